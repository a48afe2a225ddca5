"""What all pre-training objectives have in common."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, TEXT, lively, random_rows

from research import sharding
from research.models.positions import seqpe
from research.objectives.registry import OBJECTIVES, check_row_layout, objective_inputs

# Those that predict hidden tokens from both sides; the others have tests of their own.
MASKED = [
    name
    for name in OBJECTIVES
    if objective_inputs(name).is_pretraining
    and name not in ("causal_lm", "mntp", "gem")
]
ARGUMENTS = {"smae": {"pairs": ((1, 4), (2, 16))}}


def make(name, cfg=CFG, text=TEXT, **options):
    return OBJECTIVES[name](cfg, text, **ARGUMENTS.get(name, {}) | options)


@pytest.mark.parametrize("name", MASKED)
def test_losses_are_scalars_with_dropout_and_recomputation(key, name):
    objective = make(name, dataclasses.replace(CFG, dropout=0.1, remat="dots"))
    params, frozen = jax.eval_shape(objective.init, key)
    rows = random_rows(0, 12, 32)
    value, metrics, _ = jax.eval_shape(objective.loss, params, frozen, rows, key)
    gradient = jax.grad(lambda *x: objective.loss(*x).value)
    jax.eval_shape(gradient, params, frozen, rows, key)
    assert value.shape == () and value.dtype == jnp.float32
    assert {x.shape for x in metrics.values()} == {()}
    assert {"accuracy", "generator_accuracy"} & set(metrics) and "masked" in metrics


@pytest.mark.parametrize("name", ["smae", "electra"])
def test_one_device_equals_eight(key, name):
    objective = make(name)
    params, frozen = jax.jit(objective.init)(key)
    rows = jax.tree.map(np.asarray, random_rows(3, 8, 32))

    def value_and_grad(*arguments):
        return jax.jit(jax.value_and_grad(lambda *x: objective.loss(*x)[0]))(*arguments)

    expected = value_and_grad(params, frozen, rows, key)
    mesh = sharding.make_mesh({"fsdp": 8})
    places = sharding.shardings(jax.eval_shape(lambda: params), mesh)
    with jax.set_mesh(mesh):
        batch = sharding.put_batch(rows, mesh)
        got = value_and_grad(jax.device_put(params, places), frozen, batch, key)
    chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)


def test_half_precision_changes_a_loss_by_less_than_a_percent(key):
    half = dataclasses.replace(CFG, dtype="bfloat16")
    single, other = make("smae"), make("smae", half)
    params = lively(single.init)[0]
    rows = random_rows(3, 8, 32)
    with jax.numpy_dtype_promotion("standard"):  # flax's norms need it
        got, expected = (
            jax.jit(part.loss)(params, {}, rows, key)[0] for part in (other, single)
        )
    np.testing.assert_allclose(got, expected, rtol=0.01)


RATIOS = [
    *((name, "ratio") for name in MASKED if name != "smae"),
    *((name, "decoder_ratio") for name in ("retromae", "dupmae", "cot_mae")),
]


@pytest.mark.parametrize("name, argument", RATIOS)
def test_a_ratio_lies_between_zero_and_one(name, argument):
    for ratio in (0.0, 1.0, -0.1):
        message = rf"objective.{argument} is {ratio}; it must lie in \(0, 1\)"
        with pytest.raises(ValueError, match=message):
            make(name, **{argument: ratio})


@pytest.mark.parametrize("name", MASKED)
def test_tokens_need_a_mask_and_two_sides(name):
    with pytest.raises(ValueError, match=r"the vocabulary has no \[MASK\] token"):
        make(name, text=TEXT._replace(mask_id=None))
    with pytest.raises(ValueError, match="needs an encoder that attends to both"):
        make(name, dataclasses.replace(CFG, causal=True))


def test_spans_are_those_of_the_objective():
    declutr = {"name": "declutr", "anchors": 2, "positives": 3}
    spans = {"name": "spans", "kind": "declutr", "anchors": 2, "positives": 3}
    check_row_layout(declutr, spans)
    check_row_layout({"name": "mlm"}, {"name": "packed"})
    with pytest.raises(
        ValueError, match="row_layout.positives is 2 and objective.positi"
    ):
        check_row_layout(declutr, spans | {"positives": 2})
    for rows in ({"name": "packed"}, spans | {"kind": "cot"}):
        with pytest.raises(
            ValueError, match="declutr needs row_layout.name 'spans' of kind"
        ):
            check_row_layout(declutr, rows)


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if objective_inputs(name).is_pretraining]
)
def test_the_penalty_of_seqpe_is_part_of_every_loss(key, name, monkeypatch):
    causal = name in ("causal_lm", "gem")
    cfg = dataclasses.replace(CFG, position_bias="seqpe", causal=causal)
    objective = make(name, cfg, TEXT._replace(end_id=3))
    params, frozen = jax.eval_shape(objective.init, key)
    calls = []

    def penalty(key, params, cfg):
        calls.append(cfg)
        return jnp.zeros(())

    monkeypatch.setattr(seqpe, "penalty", penalty)
    jax.eval_shape(objective.loss, params, frozen, random_rows(0, 12, 32), key)
    assert len(calls) == 1


def test_an_objective_says_which_batches_it_reads():
    assert not objective_inputs("contrastive").is_pretraining
    assert not objective_inputs("gritlm").is_pretraining
    assert objective_inputs("mlm").is_pretraining
    assert objective_inputs("cot_mae").span_kind == "cot"
    with pytest.raises(ValueError, match="unknown objective 'bert'; known: contrast"):
        objective_inputs("bert")

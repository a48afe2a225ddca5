"""Training a part of a model: adapters, or biases."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.losses.contrastive import infonce
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import score_loss
from research.models import lora as adapters
from research.models.config import bert, modern
from research.models.lora import full_params
from research.models.pooling.basic import mean_pool
from research.objectives.contrastive import contrastive
from research.objectives.mlm import mlm
from research.objectives.tuning import TUNING, bitfit, full, lora
from research.train import loop
from research.train.experiment import Experiment, abstract_state, initial_state
from research.train.optimizers import adamw
from research.types import Batch, Labels, PretrainingBatch, TokenizerInfo, Tokens

SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp": 48,
    "max_len": 32,
}
CFG = bert(**SHAPE, dropout=0.1)
PAIRS, LENGTH = 8, 8


class Batches:
    """batches(step) of pairs, a text a row; queries and documents by adapter."""

    def __init__(self, adapter=False):
        self.adapter = adapter

    def __call__(self, step):
        random = np.random.default_rng(step)
        ids = random.integers(5, 60, (2 * PAIRS, LENGTH), dtype=np.int32)
        # Each pair in two rows side by side, and so on the same device
        number = np.tile(np.arange(2, dtype=np.int32), PAIRS)[:, None]
        adapter = np.broadcast_to(number, ids.shape).copy() if self.adapter else None
        tokens = Tokens(ids, np.ones_like(ids), ids > 0, adapter)
        rows = np.arange(2 * PAIRS, dtype=np.int32)
        return Batch(tokens, rows[::2], rows[1::2], Labels())

    def source_name(self, step):
        return "pairs"


def objective(cfg=CFG, **arguments):
    nested = SIZE_LOSSES["full_size"](score_loss(infonce))
    return contrastive(cfg, mean_pool, nested, **arguments)


def parts(tuned, steps=2, devices=1, **changes):
    tx = adamw(steps, learning_rate=1e-2, schedule="constant")
    experiment = Experiment(tuned, tx, Batches(), parts_mesh(devices), steps)
    return experiment._replace(log_every=1, save_every=1)._replace(**changes)


def names(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {sharding.path_name(path): np.asarray(leaf) for path, leaf in leaves}


def changed(before, after):
    before, after = names(before), names(after)
    return {name for name in before if (before[name] != after[name]).any()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two steps of LoRA on one device: the first state, and the last."""
    experiment = parts(lora(objective(head="tanh"), rank=4, alpha=8.0))
    first = initial_state(experiment, abstract_state(experiment, parts_mesh(1)))
    first = jax.device_get(first)
    workdir = tmp_path_factory.mktemp("lora")
    return first, jax.device_get(loop.train(experiment, workdir).state)


def parts_mesh(devices):
    return sharding.make_mesh({"data": 1, "fsdp": -1}, jax.devices()[:devices])


def test_only_adapters_and_heads_are_trained(run):
    first, last = run
    moved = changed(first.params, last.params)
    assert moved == set(names(last.params))
    outside = {name for name in moved if not name.startswith("encoder/")}
    assert outside == {"head/kernel", "head/bias"}
    inside = moved - outside
    assert all(name[-7:-1] == "/lora/" for name in inside) and len(inside) == 12
    chex.assert_trees_all_equal(first.frozen, last.frozen)
    tree = full_params(last.params, last.frozen)["encoder"]
    plain = full_params(*objective().init(jax.random.key(0)))["encoder"]
    chex.assert_trees_all_equal_shapes(adapters.remove_adapters(tree), plain)


def test_the_base_has_no_moments(run):
    _, last = run
    moments = 2 * adapters.num_params(last.params)
    assert adapters.num_params(last.opt_state) <= moments + 8  # and counters
    assert adapters.num_params(last.frozen) > 5 * adapters.num_params(
        last.params["head"]
    )


def test_the_loss_at_first_is_that_of_the_whole_model():
    batch, key = Batches()(0), jax.random.key(3)
    values = []
    for tuning in (full, partial(lora, rank=4)):
        tuned = tuning(objective())
        values.append(jax.jit(tuned.loss)(*tuned.init(jax.random.key(0)), batch, key))
    chex.assert_trees_all_equal(*values)


def test_bitfit_trains_biases_only(tmp_path):
    experiment = parts(bitfit(objective()))
    first = initial_state(experiment, abstract_state(experiment, parts_mesh(1)))
    first = jax.device_get(first)
    last = jax.device_get(loop.train(experiment, tmp_path).state)
    moved = changed(
        full_params(first.params, first.frozen), full_params(last.params, last.frozen)
    )
    assert moved and all(name.endswith("/bias") for name in moved)
    # All but those that shift all scores of a query alike.
    assert set(names(last.params)) - moved <= {"encoder/layers/key/bias"}


def test_an_interrupted_run_ends_with_the_same_bits(tmp_path):
    tuned = lora(objective(), rank=2, dropout=0.1, base_dtype="bfloat16")
    loop.train(parts(tuned, 1), tmp_path / "cut")
    # The learning rate is constant: a run of two steps begins as one of one step.
    last = loop.train(parts(tuned, 2), tmp_path / "cut").state
    whole_run = loop.train(parts(tuned, 2), tmp_path / "whole").state
    chex.assert_trees_all_equal(*map(jax.device_get, (last, whole_run)))
    kernel = last.frozen["base"]["encoder"]["layers"]["query"]["kernel"]
    assert kernel.dtype == jnp.bfloat16
    assert last.params["encoder"]["layers"]["query"]["lora"]["a"].dtype == jnp.float32


def test_gradcache_has_the_gradient_of_the_whole_batch():
    cfg = dataclasses.replace(CFG, dropout=0.0)
    grads = []
    for micro_batch in (0, 2):
        tuned = lora(objective(cfg, micro_batch=micro_batch), adapters=("q", "d"))
        params, frozen = tuned.init(jax.random.key(0))
        params = jax.tree.map(lambda x: x + 0.01, params)  # b is not zero
        gradient = jax.jit(jax.grad(lambda *x, tuned=tuned: tuned.loss(*x).value))
        batch = Batches(adapter=True)(0)
        grads.append(gradient(params, frozen, batch, jax.random.key(1)))
    chex.assert_trees_all_close(*grads, atol=1e-6)
    # Both adapters learn, for they have texts of their own.
    b = np.asarray(grads[0]["encoder"]["layers"]["down"]["lora"]["b"])
    assert (np.abs(b).max((0, 2)) > 1e-7).all()


def test_eight_devices_train_as_one(tmp_path):
    tuned = lora(objective(), rank=4, adapters=("query", "document"))
    states = [
        loop.train(
            parts(tuned, devices=n, batches=Batches(adapter=True)),
            tmp_path / str(n),
        ).state
        for n in (1, 8)
    ]
    a = states[1].params["encoder"]["layers"]["query"]["lora"]["a"]
    assert a.sharding.shard_shape(a.shape)[1] == a.shape[1] // 8
    one, eight = (jax.device_get(state.params) for state in states)
    chex.assert_trees_all_close(one, eight, atol=1e-4)


def test_statistics_of_a_pre_training_run_along():
    text = TokenizerInfo(60, 4, (0, 1, 2, 3, 4))
    tuned = lora(mlm(CFG, text, weighting="loss"), rank=2, base_dtype="bfloat16")
    params, frozen = tuned.init(jax.random.key(0))
    ids = np.full((2, 32), 7, np.int32)
    batch = PretrainingBatch(
        Tokens(ids, np.ones_like(ids), ids > 0), np.arange(1, 33)[None] + 0 * ids
    )
    new = jax.jit(tuned.loss)(params, frozen, batch, jax.random.key(1)).frozen
    chex.assert_trees_all_equal_shapes(new, frozen)
    assert (new["own"]["losses"] != frozen["own"]["losses"]).any()
    assert "head" in params and "head" not in frozen["base"]


@pytest.mark.parametrize(
    "build, message",
    [
        (partial(lora, base_dtype="int8"), "base_dtype is 'int8'; allowed: float32"),
        (partial(lora, adapters=("a", "a")), "adapters is a, a; adapters need names"),
    ],
)
def test_a_tuning_that_cannot_be_says_so(build, message):
    with pytest.raises(ValueError, match=message):
        build(objective())


def test_bitfit_needs_biases():
    tuned = bitfit(objective(modern(**SHAPE)))
    with pytest.raises(ValueError, match="the encoder has no biases"):
        jax.eval_shape(tuned.init, jax.random.key(0))


def test_full_changes_nothing():
    plain = objective()
    assert TUNING["full"](plain) is plain

"""Biases of the distance: golden values, parity with transformers, gradients."""

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import context_extension
from research.config_sections import build
from research.models import encoder
from research.models.config import ENCODERS, modern
from research.models.positions.bias import (
    BUCKETS,
    POSITION_BIASES,
    alibi_slopes,
    init_bias,
    position_penalty,
    t5_buckets,
)
from research.types import Tokens

FORWARD = jax.jit(encoder.forward, static_argnums=2)
INIT = jax.jit(encoder.init, static_argnums=1)
SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp": 48,
    "max_len": 64,
}
SIDES = pytest.mark.parametrize("causal", [False, True])


def made(name, key, causal=False):
    """(cfg, parameters, bias of [1, 9, 9] distances) of a kind of bias."""
    cfg = modern(**SHAPE, position="none", position_bias=name, causal=causal)
    params = POSITION_BIASES[name].init(key, cfg)
    place = jnp.arange(9)
    relative = (place[None, :] - place[:, None])[None]
    return cfg, params, POSITION_BIASES[name].bias(params, cfg, relative)


@pytest.mark.parametrize("name", POSITION_BIASES)
def test_a_bias_is_float32_for_every_head_and_pair(key, name):
    _, _, bias = made(name, key)
    assert bias.shape == (1, 4, 9, 9) and bias.dtype == jnp.float32


def test_slopes_of_powers_of_two_and_of_others():
    eight = [2.0**-h for h in range(1, 9)]
    np.testing.assert_allclose(alibi_slopes(8), eight)
    np.testing.assert_allclose(
        alibi_slopes(12), [*eight, 0.707107, 0.353553, 0.176777, 0.088388], rtol=1e-5
    )
    np.testing.assert_allclose(
        alibi_slopes(16), [2.0 ** (-h / 2) for h in range(1, 17)]
    )


@SIDES
def test_alibi_is_symmetric_with_a_zero_diagonal(key, causal):
    _, params, bias = made("alibi", key, causal)
    assert params == {}
    np.testing.assert_array_equal(bias, bias.swapaxes(2, 3))
    np.testing.assert_array_equal(jnp.diagonal(bias, axis1=2, axis2=3), 0)
    np.testing.assert_allclose(bias[0, :, 5, 2], -3 * alibi_slopes(4))


def test_alibi_is_the_slope_times_the_key_position_under_a_causal_softmax(key):
    _, _, bias = made("alibi", key, causal=True)
    hidden = np.where(np.tri(9), 0.0, -np.inf).astype(np.float32)[None, None]
    column = alibi_slopes(4)[None, :, None, None] * np.arange(9, dtype=np.float32)
    np.testing.assert_allclose(
        jax.nn.softmax(bias + hidden), jax.nn.softmax(column + hidden), atol=1e-6
    )


def test_buckets_have_the_golden_values():
    both = {0: 0, -1: 1, 1: 17, -7: 7, -8: 8, 8: 24, -15: 9, 16: 26, -31: 11, 64: 30}
    both |= {-127: 15, 128: 31}
    behind = {0: 0, -15: 15, -16: 16, -31: 21, -64: 26, -127: 31, 5: 0}
    for golden, causal in ((both, False), (behind, True)):
        got = t5_buckets(np.array(list(golden)), causal=causal)
        np.testing.assert_array_equal(got, list(golden.values()))


@SIDES
def test_buckets_are_those_of_transformers(causal):
    torch = pytest.importorskip("torch")
    t5 = pytest.importorskip("transformers.models.t5.modeling_t5")
    relative = np.arange(-300, 301)
    expected = t5.T5Attention._relative_position_bucket(
        torch.tensor(relative), not causal, num_buckets=BUCKETS, max_distance=128
    )
    np.testing.assert_array_equal(t5_buckets(relative, causal=causal), expected.numpy())


@SIDES
def test_t5_looks_the_bucket_up_at_any_distance(key, causal):
    cfg, params, _ = made("t5", key, causal)
    assert params["embedding"].shape == (BUCKETS, 4)
    relative = np.array([[[-5_000, -40, -3, 0, 1, 17, 5_000]]], np.int32)
    got = POSITION_BIASES["t5"].bias(params, cfg, jnp.asarray(relative))
    expected = np.asarray(params["embedding"])[t5_buckets(relative, causal=causal)]
    np.testing.assert_array_equal(got, np.moveaxis(expected, 3, 1))


@pytest.mark.parametrize("name", ["kerple_log", "kerple_power"])
def test_kerple_falls_with_the_distance_from_zero(key, name):
    cfg, params, bias = made(name, key)
    p, a = (np.asarray(params[x])[:, None] for x in ("p", "a"))
    assert (p >= 0.01).all() and (p <= 2).all() and (a >= 0.01).all() and (a <= 1).all()
    distance = np.arange(9.0)[None]
    expected = {
        "kerple_log": -p * np.log(1 + a * distance),
        "kerple_power": -a * distance**p,
    }[name]
    np.testing.assert_allclose(bias[0, :, 0], expected, atol=1e-5)
    np.testing.assert_array_equal(bias[0, :, 0, 0], 0)
    assert (np.diff(bias[0, :, 0]) <= 0).all()
    np.testing.assert_array_equal(bias, bias.swapaxes(2, 3))


@pytest.mark.parametrize("name", ["kerple_log", "kerple_power"])
def test_kerple_stays_in_bounds_and_its_gradient_gets_through(key, name):
    cfg, _, _ = made(name, key)
    relative = jnp.arange(-4, 5)[None, None]
    outside = {"p": jnp.array([-1.0, 3.0, 1.0, 1.0]), "a": jnp.array([1.0, 1, -1, 1])}
    bounded = {
        "p": jnp.array([0.01, 2.0, 1.0, 1.0]),
        "a": jnp.array([1.0, 1, 0.01, 1]),
    }

    def bias(params):
        return POSITION_BIASES[name].bias(params, cfg, relative)

    np.testing.assert_allclose(bias(outside), bias(bounded), atol=1e-5)
    slope = jax.grad(lambda params: bias(params).sum())(outside)
    for leaf in jax.tree.leaves(slope):
        assert np.isfinite(leaf).all() and (np.abs(leaf) > 1e-4).all()


def states(key, cfg, ids, before=0):
    """Hidden states of a text that stands after another one in its row."""
    ids = np.concatenate([np.arange(before), ids, [0, 0]]).astype(np.int32)
    segment = np.repeat([1, 2, 0], [before, len(ids) - before - 2, 2]).astype(np.int32)
    tokens = Tokens(*(jnp.asarray(x)[None] for x in (ids, segment, segment > 0)))
    params = INIT(key, cfg)
    params = jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, params)
    return np.asarray(FORWARD(params, tokens, cfg).hidden_states[0, before:-2])


TEXT = np.array([7, 3, 50, 21, 8, 9, 33, 3, 17, 40, 2])


@pytest.mark.parametrize(
    ("name", "causal"),
    [("none", True), ("alibi", True), *((name, False) for name in POSITION_BIASES)],
)
def test_the_model_sees_no_absolute_position(key, name, causal):
    cfg = modern(**SHAPE, position="none", position_bias=name, causal=causal)
    here, there = states(key, cfg, TEXT), states(key, cfg, TEXT, before=9)
    np.testing.assert_allclose(here, there, atol=1e-5)


@pytest.mark.parametrize("name", ["alibi", "kerple_log", "kerple_power"])
def test_the_model_of_a_symmetric_bias_reads_both_ways(key, name):
    cfg = modern(**SHAPE, position="none", position_bias=name)
    forth, back = states(key, cfg, TEXT), states(key, cfg, TEXT[::-1])
    np.testing.assert_allclose(forth, back[::-1], atol=1e-5)


@pytest.mark.parametrize(
    ("name", "causal"),
    [("none", False), ("none", True), ("alibi", False), ("t5", False)],
)
def test_order_is_nothing_only_without_positions_and_both_ways(key, name, causal):
    order = np.array([4, 1, 9, 0, 10, 7, 3, 6, 2, 8, 5])
    cfg = modern(**SHAPE, position="none", position_bias=name, causal=causal)
    permuted = states(key, cfg, TEXT[order])
    gap = np.abs(permuted - states(key, cfg, TEXT)[order]).max()
    assert gap < 1e-5 if (name, causal) == ("none", False) else gap > 1e-2


@pytest.mark.parametrize("name", ["t5", "kerple_power"])
def test_the_parameters_of_a_bias_are_trained(key, name):
    cfg = modern(**SHAPE, position="none", position_bias=name)
    ids = jnp.asarray(TEXT, jnp.int32)[None]
    tokens = Tokens(ids, jnp.ones_like(ids), ids > 0)

    def loss(relative):
        return FORWARD(
            {**params, "position_bias": relative}, tokens, cfg
        ).hidden_states.std()

    params = INIT(key, cfg)
    for slope in jax.tree.leaves(jax.jit(jax.grad(loss))(params["position_bias"])):
        assert np.isfinite(slope).all() and np.abs(slope).max() > 0


@pytest.mark.parametrize("name", [*POSITION_BIASES, "seqpe"])
def test_every_bias_can_be_chosen_in_a_recipe_and_only_seqpe_has_a_penalty(key, name):
    config = context_extension.get_config("tiny")
    config.encoder.position, config.encoder.position_bias = "none", name
    cfg = build(ENCODERS, config.encoder)
    ids = jax.ShapeDtypeStruct((2, 24), jnp.int32)
    tokens = Tokens(ids, ids, jax.ShapeDtypeStruct((2, 24), bool))
    params = jax.eval_shape(lambda: compiled.init(key, cfg))
    states = jax.eval_shape(lambda p, t: FORWARD(p, t, cfg), params, tokens)
    assert states.hidden_states.shape == (2, 24, cfg.width)
    assert ("position_bias" in params) == (name != "alibi")
    penalty = position_penalty(key, {"position_bias": init_bias(key, cfg)}, cfg)
    assert penalty > 0 if name == "seqpe" else penalty == 0.0

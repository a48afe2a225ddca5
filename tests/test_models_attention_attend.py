"""Every implementation of attention computes what full logits in memory give."""

import dataclasses
from functools import partial

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import config, encoder
from research.models.attention import blockwise, inputs, kernels
from research.models.attention.attend import attend
from research.models.attention.blocks import attending_blocks, split_blocks
from research.models.attention.blockwise import blockwise_attention
from research.models.attention.dot_product import (
    attention_logits,
    make_attention_masks,
    softmax_weighted_sum,
)
from research.models.attention.inputs import AttentionInputs
from research.models.positions.bias import POSITION_BIASES
from research.models.positions.relative_rope import (
    LMInfinite,
    SelfExtend,
    relative_remapping,
)
from research.models.positions.segment_positions import segment_positions
from research.types import Tokens

SHAPE = {"vocab_size": 30, "width": 32, "depth": 2, "num_heads": 4, "mlp": 16}
FAR = (SelfExtend(group=3, window=6, original=20),)
NEAR = (LMInfinite(window=9, sinks=2),)
ALTERNATING = {"sliding_window_layers": (True, False), "window": 5}
CASES = {
    "plain": {},
    "grouped queries": {"num_kv_heads": 2, "causal": True, "attn_logit_softcap": 2.0},
    "anchor": {"causal": True, "anchor_token": True},
    "t5": {"position_bias": "t5"},
    "branches": {"position_bias": "alibi", "position_methods": FAR},
    "visible": {"position_methods": NEAR, "causal": True},
}
# Two rows of several texts, out of order in the second, and padding at either end.
SEGMENT_IDS = np.repeat(
    [[1, 2, 3, 0], [0, 2, 1, 3]], [[30, 7, 41, 12], [3, 50, 17, 20]][0], axis=1
)


def make_config(**changes):
    return config.EncoderConfig(
        **{**SHAPE, "position": "rope", "dropout": 0.0, **changes}
    )


def draw_inputs(cfg, segment_ids=SEGMENT_IDS):
    """Random (q, k, v, bias parameters), and positions [B, S]."""
    keys = jax.random.split(jax.random.key(1), 4)
    branches = len(relative_remapping(cfg).branches)

    def draw(key, heads):
        return jax.random.normal(key, (*segment_ids.shape, heads, cfg.head_dim))

    q = tuple(draw(k, cfg.num_heads) for k in jax.random.split(keys[0], branches))
    k = tuple(draw(k, cfg.num_kv_heads) for k in jax.random.split(keys[1], branches))
    bias_params = None
    if cfg.position_bias in POSITION_BIASES:
        bias_params = POSITION_BIASES[cfg.position_bias].init(keys[2], cfg)
    positions = segment_positions(
        jnp.asarray(segment_ids, jnp.int32), running=cfg.anchor_token
    )
    return (q, k, draw(keys[3], cfg.num_kv_heads), bias_params), positions


def make_attn(positions, bias_params=None):
    """The inputs of attention that is given rotated queries and keys."""
    return AttentionInputs(positions, (), None, 1.0, None, bias_params, None)


def dense_attention(cfg, q, k, v, attn, is_local=None):
    positions = attn.positions
    masks = make_attention_masks(cfg, attn.bias_params, positions, positions)
    logits = attention_logits(cfg, q, k, masks, is_local)
    return softmax_weighted_sum(logits, v, cfg.dropout, None)


def check_equal(implementation, cfg, flags=(None,)):
    """Results of valid tokens and the gradient of their weighted sum."""
    arrays, positions = draw_inputs(cfg)
    valid = (positions.segment_ids > 0)[:, :, None, None]
    weight = jax.random.normal(jax.random.key(2), arrays[0][0].shape)
    weight = jnp.where(valid, weight, 0)

    def run(implementation, arrays, is_local):
        q, k, v, bias_params = arrays
        attn = make_attn(positions, bias_params)
        y = implementation(cfg, q, k, v, attn, is_local)
        return (y * weight).sum(), y

    expected, got = (
        jax.jit(partial(jax.value_and_grad(run, has_aux=True, argnums=1), f))
        for f in (dense_attention, implementation)
    )
    for flag in flags:
        is_local = None if flag is None else jnp.bool_(flag)
        (_, y), gradient = got(arrays, is_local)
        (_, expected_y), expected_gradient = expected(arrays, is_local)
        assert jnp.isfinite(y).all()
        np.testing.assert_allclose(
            jnp.where(valid, y, 0), jnp.where(valid, expected_y, 0), atol=1e-5
        )
        for a, b in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1, jnp.abs(b).max()))


@pytest.mark.parametrize("name", CASES)
def test_blockwise_is_plain(name):
    # Neither size of a block divides 90.
    check_equal(
        partial(blockwise_attention, block=(16, 24)), make_config(**CASES[name])
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 5, "num_kv_heads": 2, "causal": True},
        {"window": 5, **CASES["branches"]},
        {"window": 40},
    ],
    ids=["causal", "branches", "as wide as the row"],
)
def test_local_blocks_are_plain(changes, monkeypatch):
    monkeypatch.setattr(blockwise, "WINDOW_BLOCK", 8)
    cfg = make_config(sliding_window_layers=(True, False), **changes)
    implementation = partial(blockwise_attention, block=(16, 24))
    check_equal(implementation, cfg, flags=(True, False))


def test_blockwise_skips_blocks_that_see_nothing():
    cfg = make_config(causal=True)
    segment_ids = np.repeat([[1, 2, 0]], [32, 48, 16], axis=1)
    positions = segment_positions(jnp.asarray(segment_ids, jnp.int32))
    blocks = split_blocks(positions, 16)
    attends = attending_blocks(cfg, blocks, blocks, None)
    texts = np.array([0, 0, 1, 1, 1, 2])
    expected = (texts[:, None] == texts[None]) & (texts < 2)[None]
    np.testing.assert_array_equal(attends, np.tril(expected))
    cfg = make_config(sliding_window_layers=(True, False), window=20)
    attends = attending_blocks(cfg, blocks, blocks, jnp.bool_(True))
    distance = np.abs(np.arange(6)[:, None] - np.arange(6)[None])
    np.testing.assert_array_equal(attends, expected & (distance <= 2))


def test_memory_of_the_gradient_grows_with_the_length():
    cfg = make_config(attention="blockwise", **ALTERNATING)

    def measure_memory(length):
        segment_ids = np.ones((1, length), int)
        arrays, positions = jax.eval_shape(lambda: draw_inputs(cfg, segment_ids))

        def run(arrays, positions, is_local):
            attn = make_attn(positions)
            return attend(cfg, *arrays[:3], attn, is_local=is_local).sum()

        gradient = jax.jit(jax.grad(run))
        compiled = gradient.lower(arrays, positions, jnp.bool_(True)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert measure_memory(4_096) < 2.1 * measure_memory(2_048)


def test_dropout_is_a_function_of_its_key(key):
    cfg = make_config(dropout=0.4, **ALTERNATING)
    (q, k, v, _), positions = draw_inputs(cfg, np.ones((2, 96), int))
    keys = jax.random.split(key, 20)

    @jax.jit
    def run(key, is_local):
        attn = make_attn(positions)
        return blockwise_attention(cfg, q, k, v, attn, is_local, key, block=(16, 24))

    for is_local in (jnp.bool_(True), jnp.bool_(False)):
        np.testing.assert_array_equal(run(keys[0], is_local), run(keys[0], is_local))
        assert jnp.abs(run(keys[0], is_local) - run(keys[1], is_local)).max() > 0.1
        mean = jnp.stack([run(k, is_local) for k in keys]).mean(0)
        assert jnp.abs(mean - run(None, is_local)).mean() < 0.15


def test_gradient_under_dropout(key):
    """The backward pass drops the same weights: it is the derivative."""
    cfg = make_config(dropout=0.3)
    (q, k, v, _), positions = draw_inputs(cfg)

    @jax.jit
    def run(scale):
        scaled = tuple(scale * x for x in q)
        y = blockwise_attention(
            cfg, scaled, k, v, make_attn(positions), None, key, block=(16, 24)
        )
        return jnp.sin(y).sum()

    slope = (run(1.005) - run(0.995)) / 0.01
    np.testing.assert_allclose(jax.jit(jax.grad(run))(1.0), slope, rtol=2e-2)


@pytest.mark.parametrize(
    "changes",
    [{"causal": True, "num_kv_heads": 2, "attn_logit_softcap": 2.0}, {**ALTERNATING}],
    ids=["causal", "local"],
)
def test_splash_is_plain(changes):
    cfg = make_config(**changes)
    flags = (True, False) if cfg.sliding_window_layers else (None,)
    implementation = partial(kernels.splash_attention, block=128, interpret=True)
    check_equal(implementation, cfg, flags)


@pytest.mark.parametrize(
    "changes",
    [{"causal": True, "num_kv_heads": 2}, {"position_bias": "alibi"}, ALTERNATING],
    ids=["causal", "alibi", "local"],
)
def test_attention_with_a_mask_is_plain(changes):
    """In JAX's own implementation; cuDNN is compared on a GPU."""
    cfg = make_config(**changes)
    flags = (True, False) if cfg.sliding_window_layers else (None,)
    check_equal(partial(kernels.attend_with_mask, implementation="xla"), cfg, flags)


@pytest.mark.parametrize(
    "changes, length, dropout, dense",
    [
        ({}, 255, False, True),
        ({}, 256, False, False),
        ({"position_bias": "t5"}, 256, False, True),
        ({"dropout": 0.1}, 256, True, True),
        ({"dropout": 0.1}, 256, False, False),
        ({"dropout": 0.1, "attention_dropout": 0.0}, 256, True, False),
        ({"attention_dropout": 0.1}, 256, True, True),
        ({"attention": "plain"}, 1_024, False, True),
    ],
)
def test_auto_takes_a_kernel_from_some_length(
    monkeypatch, changes, length, dropout, dense
):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    cfg = make_config(**{"dtype": "bfloat16", **changes})
    # Heads of 8 channels
    assert inputs.uses_dense_masks(cfg, length, dropout=dropout) == dense


def test_splash_of_each_device_s_rows_and_heads():
    cfg = make_config(num_kv_heads=2)
    (q, k, v, _), positions = draw_inputs(cfg)
    attn = make_attn(positions)
    expected = dense_attention(cfg, q, k, v, attn)
    axes = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "model"), axis_types=axes)):
        run = jax.jit(partial(kernels.splash_attention, cfg, interpret=True))
        got = run(q, k, v, attn)
    valid = (positions.segment_ids > 0)[:, :, None, None]
    np.testing.assert_allclose(
        jnp.where(valid, got, 0), jnp.where(valid, expected, 0), atol=1e-5
    )


@pytest.mark.parametrize("name", ["flash", "splash"])
@pytest.mark.parametrize(
    "changes, word",
    [
        ({"position_bias": "t5"}, "'t5'"),
        ({"position_methods": FAR}, "distances"),
        ({"causal": True, "anchor_token": True}, "anchor"),
    ],
)
def test_what_kernels_cannot_do(name, changes, word):
    cfg = make_config(attention=name, **changes)
    (q, k, v, _), positions = draw_inputs(cfg)
    with pytest.raises(ValueError, match=f"{word}.*; auto, blockwise, plain can"):
        attend(cfg, q, k, v, make_attn(positions))


def test_what_only_flash_cannot_do():
    cfg = make_config(attention="flash")
    (q, k, v, _), positions = draw_inputs(cfg)
    with pytest.raises(ValueError, match="float32; auto, blockwise, plain, splash can"):
        attend(cfg, q, k, v, make_attn(positions))
    cfg = make_config(attention="flash", dtype="bfloat16", dropout=0.1)
    with pytest.raises(ValueError, match="dropout of attention weights"):
        attend(cfg, q, k, v, make_attn(positions), key=jax.random.key(0))


def test_auto_on_cpu(key, monkeypatch):
    """Full logits up to some length, then blockwise: the same hidden states."""
    cfg = make_config(**ALTERNATING, position_offset=0)
    params = compiled.init(key, cfg)
    ids = np.random.default_rng(0).integers(0, 30, SEGMENT_IDS.shape)
    valid = SEGMENT_IDS > 0
    tokens = Tokens(jnp.int32(ids), jnp.int32(SEGMENT_IDS), jnp.asarray(valid))

    def compute_states(attention):
        shape = dataclasses.replace(cfg, attention=attention)
        run = jax.jit(lambda: encoder.apply(params, tokens, shape)[0])
        return run()[valid]

    expected = compute_states("plain")
    np.testing.assert_array_equal(compute_states("auto"), expected)
    monkeypatch.setattr(inputs, "MAX_DENSE_LENGTH", 64)
    np.testing.assert_allclose(compute_states("auto"), expected, atol=1e-5)

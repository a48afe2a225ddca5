"""Every implementation of attention computes what the plain one does."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import config, encoder
from research.models.attention import attend as attention_attend
from research.models.attention import blockwise, kernels
from research.models.attention.dot_product import (
    Scored,
    Setting,
    attention_logits,
    make_attention_masks,
    softmax_weighted_sum,
)
from research.models.positions.bias import RELATIVE
from research.models.positions.relative_rope import relation
from research.models.positions.segment_positions import segment_positions
from research.types import Tokens

SHAPE = {"vocab_size": 30, "width": 32, "depth": 2, "num_heads": 4, "mlp": 16}
FAR = (("self_extend", (("group", 3), ("window", 6), ("original", 20))),)
NEAR = (("lm_infinite", (("window", 9), ("sinks", 2))),)
ALTERNATING = {"local": (True, False), "window": 5}
CASES = {
    "plain": {},
    "grouped queries": {"num_kv_heads": 2, "causal": True, "attn_logit_softcap": 2.0},
    "anchor": {"causal": True, "anchor": True},
    "t5": {"position_bias": "t5"},
    "branches": {"position_bias": "alibi", "position_methods": FAR},
    "visible": {"position_methods": NEAR, "causal": True},
}
# Two rows of several texts, out of order in the second, and padding at either end.
SEGMENT = np.repeat(
    [[1, 2, 3, 0], [0, 2, 1, 3]], [[30, 7, 41, 12], [3, 50, 17, 20]][0], axis=1
)


def shape(**changes):
    fields = {**SHAPE, "position": "rope", "dropout": 0.0, **changes}
    return config.EncoderConfig(**fields)


def rows(cfg, segment=SEGMENT, local=(None,)):
    """Random rows, which tokens are real, and a Setting for each kind of block."""
    where = segment_positions(jnp.asarray(segment, jnp.int32), running=cfg.anchor_token)
    keys = jax.random.split(jax.random.key(1), 4)
    branches = len(relation(cfg).branches)

    def drawn(key, heads):
        return jax.random.normal(key, (*segment.shape, heads, cfg.head_dim))

    query = [drawn(k, cfg.num_heads) for k in jax.random.split(keys[0], branches)]
    key = [drawn(k, cfg.num_kv_heads) for k in jax.random.split(keys[1], branches)]
    relative = None
    if cfg.position_bias in RELATIVE:
        relative = RELATIVE[cfg.position_bias].init(keys[2], cfg)
    x = Scored(relative, tuple(query), tuple(key), drawn(keys[3], cfg.num_kv_heads))
    local = [None if flag is None else jnp.bool_(flag) for flag in local]
    return x, jnp.asarray(segment > 0), *(Setting(where, None, flag) for flag in local)


def reference(cfg, x, setting):
    where = setting.places
    terms = make_attention_masks(cfg, relation(cfg), x.relative, where, where)
    s = attention_logits(cfg, x.query, x.key, terms, setting.local)
    return softmax_weighted_sum(s, x.v, cfg.dropout, setting.dropout_key)


def check_equal(attend, cfg, x, real, *settings):
    """Results of real tokens and the gradient of their weighted sum."""
    real = real[:, :, None, None]
    weight = jnp.where(real, jax.random.normal(jax.random.key(2), x.query[0].shape), 0)

    def run(attend, x, setting):
        y = attend(cfg, x, setting)
        return (y * weight).sum(), y

    def gradient(attend):
        return jax.jit(partial(jax.value_and_grad(run, 1, has_aux=True), attend))

    want, got = gradient(reference), gradient(attend)
    for setting in settings:
        (_, y), dx = got(x, setting)
        (_, y_want), dx_want = want(x, setting)
        assert jnp.isfinite(y).all()
        np.testing.assert_allclose(
            jnp.where(real, y, 0), jnp.where(real, y_want, 0), atol=1e-5
        )
        for a, b in zip(jax.tree.leaves(dx), jax.tree.leaves(dx_want), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5 * max(1, jnp.abs(b).max()))


@pytest.mark.parametrize("name", CASES)
def test_blockwise_is_plain(name):
    cfg = shape(**CASES[name])
    attend = partial(blockwise.blockwise, block=(16, 24))  # neither divides 90
    check_equal(attend, cfg, *rows(cfg))


@pytest.mark.parametrize(
    "changes",
    [
        {"window": 5, "num_kv_heads": 2, "causal": True},
        {"window": 5, **CASES["branches"]},
    ]
    + [{"window": 40}],
    ids=["causal", "branches", "as wide as the row"],
)
def test_local_blocks_are_plain(changes, monkeypatch):
    monkeypatch.setattr(blockwise, "WINDOWED", 8)
    cfg = shape(local=(True, False), **changes)
    attend = partial(blockwise.blockwise, block=(16, 24))
    check_equal(attend, cfg, *rows(cfg, local=(True, False)))


def test_blockwise_skips_blocks_that_see_nothing():
    cfg = shape(causal=True)
    segment = np.repeat([[1, 2, 0]], [32, 48, 16], axis=1)
    where = segment_positions(jnp.asarray(segment, jnp.int32))
    blocks = blockwise._split(where, 16)
    seen = blockwise._seen(cfg, blocks, blocks, None)
    texts = np.array([0, 0, 1, 1, 1, 2])
    want = (texts[:, None] == texts[None]) & (texts < 2)[None]
    np.testing.assert_array_equal(seen, np.tril(want))
    cfg = shape(local=(True, False), window=20)
    seen = blockwise._seen(cfg, blocks, blocks, jnp.bool_(True))
    distance = np.abs(np.arange(6)[:, None] - np.arange(6)[None])
    np.testing.assert_array_equal(seen, want & (distance <= 2))


def test_memory_of_the_gradient_grows_with_the_length():
    cfg = shape(attention="blockwise", **ALTERNATING)

    def memory(length):
        segment = np.ones((1, length), int)
        x, _, setting = jax.eval_shape(lambda: rows(cfg, segment, local=(True,)))

        def run(x, setting):
            return attention_attend.attend(cfg, x, setting, None).sum()

        compiled = jax.jit(jax.grad(run)).lower(x, setting).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert memory(4_096) < 2.1 * memory(2_048)


def test_dropout_is_a_function_of_its_key(key):
    cfg = shape(dropout=0.4, **ALTERNATING)
    segment = np.ones((2, 96), int)
    keys = jax.random.split(key, 20)
    attend = jax.jit(partial(blockwise.blockwise, cfg, block=(16, 24)))
    for local in (True, False):
        x, _, setting = rows(cfg, segment, local=(local,))

        def run(key, x=x, setting=setting):
            return attend(x, setting._replace(dropout_key=key))

        np.testing.assert_array_equal(run(keys[0]), run(keys[0]))
        assert jnp.abs(run(keys[0]) - run(keys[1])).max() > 0.1
        mean = jnp.stack([run(k) for k in keys]).mean(0)
        assert jnp.abs(mean - run(None)).mean() < 0.15


def test_gradient_under_dropout(key):
    """The backward pass drops the same weights: it is the derivative."""
    cfg = shape(dropout=0.3)
    x, _, setting = rows(cfg)
    setting = setting._replace(dropout_key=key)

    def run(scale):
        scaled = x._replace(query=tuple(scale * q for q in x.query))
        y = blockwise.blockwise(cfg, scaled, setting, block=(16, 24))
        return jnp.sin(y).sum()

    run = jax.jit(run)
    slope = (run(1.005) - run(0.995)) / 0.01
    np.testing.assert_allclose(jax.jit(jax.grad(run))(1.0), slope, rtol=2e-2)


@pytest.mark.parametrize(
    "changes",
    [{"causal": True, "num_kv_heads": 2, "attn_logit_softcap": 2.0}, {**ALTERNATING}],
    ids=["causal", "local"],
)
def test_splash_is_plain(changes):
    cfg = shape(**changes)
    attend = partial(kernels.splash, block=128, interpret=True)
    local = (True, False) if cfg.sliding_window_layers else (None,)
    check_equal(attend, cfg, *rows(cfg, local=local))


def test_splash_of_each_device_s_rows_and_heads():
    cfg = shape(kv_heads=2)
    x, real, setting = rows(cfg)
    want = reference(cfg, x, setting)
    axes = (jax.sharding.AxisType.Auto,) * 2
    with jax.set_mesh(jax.make_mesh((2, 2), ("data", "model"), axis_types=axes)):
        got = jax.jit(partial(kernels.splash, cfg, interpret=True))(x, setting)
    mask = real[:, :, None, None]
    np.testing.assert_allclose(
        jnp.where(mask, got, 0), jnp.where(mask, want, 0), atol=1e-5
    )


@pytest.mark.parametrize("name", ["flash", "splash"])
@pytest.mark.parametrize(
    "changes, word",
    [
        ({"position_bias": "alibi"}, "'alibi'"),
        ({"position_methods": FAR}, "distances"),
        ({"causal": True, "anchor": True}, "anchor"),
    ],
)
def test_what_kernels_cannot_do(name, changes, word):
    cfg = shape(attention=name, **changes)
    x, _, setting = rows(cfg)
    with pytest.raises(ValueError, match=f"{word}.*; auto, blockwise, plain can"):
        attention_attend.attend(cfg, x, setting, None)


def test_what_only_flash_cannot_do():
    cfg = shape(attention="flash")
    x, _, setting = rows(cfg)
    with pytest.raises(ValueError, match="float32; auto, blockwise, plain, splash can"):
        attention_attend.attend(cfg, x, setting, None)
    cfg = shape(attention="flash", dtype="bfloat16", dropout=0.1)
    with pytest.raises(ValueError, match="dropout of attention weights"):
        attention_attend.attend(
            cfg, x, setting._replace(dropout_key=jax.random.key(0)), None
        )


def test_auto_on_cpu(key, monkeypatch):
    """Plain up to some length, then blockwise: the same hidden states."""
    cfg = shape(**ALTERNATING, position_offset=0)
    params = encoder.init(key, cfg)
    ids = jnp.asarray(
        np.random.default_rng(0).integers(0, 30, SEGMENT.shape), jnp.int32
    )
    tokens = Tokens(ids, jnp.asarray(SEGMENT, jnp.int32), jnp.asarray(SEGMENT > 0))
    real = SEGMENT > 0

    def states(attention):
        shape = dataclasses.replace(cfg, attention=attention)
        return jax.jit(partial(encoder.forward, cfg=shape))(
            params, tokens
        ).hidden_states[real]

    want = states("plain")
    np.testing.assert_array_equal(states("auto"), want)
    monkeypatch.setattr(attention_attend, "PLAIN", 64)
    np.testing.assert_allclose(states("auto"), want, atol=1e-5)

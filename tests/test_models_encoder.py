"""The encoder: packing, padding and depth change nothing that they should not."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import config, encoder
from research.models.layers import dropout, plain_attention
from research.models.pooling import POOLS
from research.models.positions import positions, rope_frequencies, rotate
from research.structs import Tokens

SHAPE = {"vocab": 50, "width": 16, "depth": 3, "heads": 2, "mlp": 24, "max_len": 32}
TINY = {
    "bert": config.bert(**SHAPE, dropout=0.0),
    "modern": config.modern(**SHAPE),
}
FAMILIES = pytest.mark.parametrize("cfg", TINY.values(), ids=TINY)


def row(texts, length):
    """A packed row [1, S] of texts (lists of ids)."""
    ids, segment = np.zeros((2, 1, length), np.int32)
    start = 0
    for number, text in enumerate(texts, 1):
        ids[0, start : start + len(text)] = text
        segment[0, start : start + len(text)] = number
        start += len(text)
    return Tokens(jnp.asarray(ids), jnp.asarray(segment), jnp.asarray(segment > 0))


TEXTS = [[5, 6, 7, 8, 9], [1, 2], [11, 12, 13]]


@FAMILIES
@pytest.mark.parametrize("pool", POOLS)
def test_packed_texts_are_encoded_as_if_alone(key, cfg, pool):
    params = encoder.init(key, cfg)
    pool = POOLS[pool]
    packed = encoder.encode(params, row(TEXTS, 24), cfg, pool, slots=3)
    for text, vector in zip(TEXTS, packed, strict=True):
        alone = encoder.encode(params, row([text], len(text)), cfg, pool)
        np.testing.assert_allclose(vector, alone[0], atol=1e-5)


@FAMILIES
def test_padding_changes_nothing_even_where_it_is_longer_than_the_positions(key, cfg):
    params = encoder.init(key, cfg)
    short = encoder.encode(params, row(TEXTS[:1], 5), cfg, POOLS["mean"])
    long = encoder.encode(params, row(TEXTS[:1], 3 * cfg.max_len), cfg, POOLS["mean"])
    np.testing.assert_allclose(short, long, atol=1e-5)


@FAMILIES
def test_an_intermediate_layer_is_the_last_one_of_the_truncated_encoder(key, cfg):
    params = encoder.init(key, cfg)
    tokens = row(TEXTS, 16)
    every = encoder.encode(
        params, tokens, cfg, POOLS["mean"], slots=3, every_layer=True
    )
    assert every.shape == (3, cfg.depth + 1, cfg.width)
    for depth in range(1, cfg.depth + 1):
        cut = encoder.truncated(params, cfg, depth)
        got = encoder.encode(cut[0], tokens, cut[1], POOLS["mean"], slots=3)
        np.testing.assert_allclose(got, every[:, depth], atol=1e-5)


@FAMILIES
def test_forward_gives_the_states_that_encode_pools(key, cfg):
    params = encoder.init(key, cfg)
    tokens = row(TEXTS[:1], 8)
    output = encoder.forward(params, tokens, cfg, every_layer=True)
    assert output.layers.shape == (cfg.depth + 1, 1, 8, cfg.width)
    np.testing.assert_allclose(output.layers[-1], output.tokens, atol=1e-6)
    pooled = encoder.encode(params, tokens, cfg, POOLS["mean"])
    np.testing.assert_allclose(pooled[0], output.tokens[0, :5].mean(0), atol=1e-5)


@pytest.mark.parametrize("depth", [0, 4])
def test_a_depth_that_is_not_there_is_refused(key, depth):
    cfg = TINY["bert"]
    with pytest.raises(ValueError, match=f"depth {depth} is not in 1 ... 3"):
        encoder.truncated(encoder.init(key, cfg), cfg, depth)


def test_parameter_counts(key):
    def count(cfg):
        shapes = jax.eval_shape(lambda k: encoder.init(k, cfg), key)
        return sum(x.size for x in jax.tree.leaves(shapes))

    # all-MiniLM-L6-v2 without its pooler; bert-base-uncased without its pooler.
    assert count(config.bert()) == 22_713_216 - (384 * 384 + 384)
    base = config.bert(width=768, depth=12, mlp=3_072)
    assert count(base) == 109_482_240 - (768 * 768 + 768)
    # 4 D^2 of attention, 3 D F of the gated MLP, 2 D of norms; D of the final norm.
    modern = 30_522 * 384 + 6 * (4 * 384**2 + 3 * 384 * 1_024 + 2 * 384) + 384
    assert count(config.modern()) == modern


@FAMILIES
def test_fused_attention_equals_the_plain_one(key, cfg):
    params, tokens = encoder.init(key, cfg), row(TEXTS, 16)
    plain, fused = (
        encoder.encode(
            params,
            tokens,
            dataclasses.replace(cfg, attention=name),
            POOLS["mean"],
            slots=3,
        )
        for name in ("plain", "fused")
    )
    np.testing.assert_allclose(plain, fused, atol=1e-5)


def test_attention_is_softmax_attention(key):
    q, k, v = jax.random.normal(key, (3, 2, 5, 3, 4))
    mask = np.ones((2, 5, 5), bool)
    mask[0, :, 3:] = False
    got = plain_attention(q, k, v, jnp.asarray(mask), 0.0, None)
    for b in range(2):
        for h in range(3):
            s = np.asarray(q)[b, :, h] @ np.asarray(k)[b, :, h].T / 2.0
            w = np.exp(np.where(mask[b], s, -np.inf))
            expected = w / w.sum(1, keepdims=True) @ np.asarray(v)[b, :, h]
            np.testing.assert_allclose(got[b, :, h], expected, atol=1e-5)


def test_positions_restart_at_every_text_and_are_zero_on_padding():
    segment = jnp.asarray([[1, 1, 1, 2, 2, 3, 0, 0, 0]], jnp.int32)
    assert positions(segment).tolist() == [[0, 1, 2, 0, 1, 0, 0, 0, 0]]


def test_rotation_depends_on_the_distance_alone(key):
    angles = np.arange(8)[:, None] * rope_frequencies(6, 100.0)
    cos, sin = (jnp.asarray(f(angles), jnp.float32)[None] for f in (np.cos, np.sin))
    q, k = jax.random.normal(key, (2, 6))
    q, k = (jnp.broadcast_to(x, (1, 8, 1, 6)) for x in (q, k))
    scores = jnp.einsum("bshd,bthd->st", rotate(q, cos, sin), rotate(k, cos, sin))
    for offset in range(-7, 8):
        diagonal = jnp.diagonal(scores, offset)
        np.testing.assert_allclose(diagonal, diagonal[0] + 0 * diagonal, atol=1e-5)


def test_dropout_zeroes_its_share_and_keeps_the_mean(key):
    x = jnp.ones((501, 333))
    y = dropout(x, 0.1, key)
    assert abs(float((y == 0).mean()) - 0.1) < 3e-3
    assert abs(float(y.mean()) - 1) < 3e-3
    assert dropout(x, 0.1, None) is x


@pytest.mark.parametrize("how", ["dots", "all"])
@FAMILIES
def test_remat_changes_no_gradient(key, cfg, how):
    cfg = dataclasses.replace(cfg, dropout=0.1)
    params, tokens = encoder.init(key, cfg), row(TEXTS, 16)

    def loss(params, cfg):
        x = encoder.encode(params, tokens, cfg, POOLS["mean"], slots=3, key=key)
        return (x**2).sum()

    plain = jax.grad(loss)(params, dataclasses.replace(cfg, remat="none"))
    remat = jax.grad(loss)(params, dataclasses.replace(cfg, remat=how))
    chex.assert_trees_all_close(plain, remat, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"norm": "batch"}, "encoder.norm is 'batch'; allowed: layer, rms"),
        ({"heads": 5}, "width 16 does not divide by heads 5"),
        ({"heads": 16, "position": "rope"}, "even head size, not 1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY["bert"], **change)

"""The encoder: packing, padding and depth change nothing that they should not."""

import dataclasses
import functools

import chex
import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import config, encoder
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.segment_positions import segment_positions
from research.types import Tokens

SHAPE = {
    "vocab_size": 50,
    "width": 16,
    "depth": 3,
    "num_heads": 2,
    "mlp": 24,
    "max_len": 32,
}
MODERN = config.modern(**SHAPE)
TINY = {
    "bert": config.bert(**SHAPE, dropout=0.0),
    "modern": MODERN,
    "local": dataclasses.replace(
        MODERN,
        first_norm=False,
        window=2,
        sliding_window_layers=(False, True, True),
        rope_theta_local=100.0,
    ),
    "gemma": dataclasses.replace(
        config.modern(**{**SHAPE, "num_heads": 4}, causal=True),
        num_kv_heads=2,
        head_dim=6,
        norm="rms_plus_one",
        norm_at="sandwich",
        qk_norm=True,
        attn_logit_softcap=5.0,
        embed_scale=4.0,
        window=3,
        sliding_window_layers=(True, False, True),
    ),
    "neox": dataclasses.replace(
        config.modern(**SHAPE, causal=True),
        norm="layer",
        norm_at="parallel",
        bias=config.LINEAR,
        rope_fraction=0.5,
    ),
    "t5": dataclasses.replace(MODERN, position="none", position_bias="t5", scale=1.0),
    "alibi": config.modern(**SHAPE, position="none", position_bias="alibi"),
    "roberta": dataclasses.replace(
        config.bert(**SHAPE, dropout=0.0), position_offset=2, type_vocab=1
    ),
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


@functools.cache
def init_params(cfg):
    return compiled.init(jax.random.key(0), cfg)


def compute_states(cfg, texts, length=24):
    """The hidden states [S, D] of one row."""
    return compiled.forward(init_params(cfg), row(texts, length), cfg).hidden_states[0]


@FAMILIES
def test_packed_texts_are_encoded_as_if_alone(cfg):
    packed = compute_states(cfg, TEXTS)
    start = 0
    for text in TEXTS:
        alone = compute_states(cfg, [text])[: len(text)]
        states = packed[start : start + len(text)]
        np.testing.assert_allclose(states, alone, atol=1e-5)
        start += len(text)


def test_packed_texts_are_pooled_as_if_alone():
    def pool_all(x, mask):
        return jnp.concatenate([pool(x, mask) for pool in BASIC_POOLINGS.values()])

    cfg = TINY["bert"]
    vectors = (
        compiled.encode(init_params(cfg), row(texts, 24), cfg, pool_all, max_segments=3)
        for texts in (TEXTS, TEXTS[1:2])
    )
    packed, alone = (x.reshape(len(BASIC_POOLINGS), 3, -1) for x in vectors)
    for number, name in enumerate(BASIC_POOLINGS):
        np.testing.assert_allclose(
            packed[number, 1], alone[number, 0], atol=1e-5, err_msg=name
        )


@FAMILIES
def test_padding_changes_nothing_even_where_it_is_longer_than_the_positions(cfg):
    short = compute_states(cfg, TEXTS[:1])[: len(TEXTS[0])]
    padded = compute_states(cfg, TEXTS[:1], 3 * cfg.max_len)[: len(TEXTS[0])]
    np.testing.assert_allclose(short, padded, atol=1e-5)


@FAMILIES
def test_an_intermediate_layer_is_the_last_one_of_the_truncated_encoder(cfg):
    params, tokens = init_params(cfg), row(TEXTS, 24)
    output = compiled.forward(params, tokens, cfg, every_layer=True)
    assert output.layers.shape == (cfg.depth + 1, 1, 24, cfg.width)
    np.testing.assert_allclose(output.layers[-1], output.hidden_states, atol=1e-6)
    shallow, shallow_cfg = encoder.truncate_depth(params, cfg, 2)
    states = compiled.forward(shallow, tokens, shallow_cfg).hidden_states
    np.testing.assert_allclose(states[0, :10], output.layers[2, 0, :10], atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_encode_pools_the_states_of_every_layer(name):
    cfg = TINY[name]
    params, tokens = init_params(cfg), row(TEXTS, 24)
    layers = compiled.forward(params, tokens, cfg, every_layer=True).layers
    pooled = compiled.encode(
        params, tokens, cfg, BASIC_POOLINGS["mean"], max_segments=3, every_layer=True
    )
    assert pooled.shape == (3, cfg.depth + 1, cfg.width)
    np.testing.assert_allclose(pooled[0], layers[:, 0, :5].mean(1), atol=1e-5)
    np.testing.assert_allclose(pooled[2], layers[:, 0, 7:10].mean(1), atol=1e-5)


@pytest.mark.parametrize("depth", [0, 4])
def test_a_depth_that_is_not_there_is_refused(depth):
    cfg = TINY["bert"]
    with pytest.raises(ValueError, match=f"depth {depth} is not in 1 ... 3"):
        encoder.truncate_depth(init_params(cfg), cfg, depth)


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


def test_attention_is_softmax_attention():
    cfg = dataclasses.replace(TINY["bert"], depth=1, remat="none")
    params = init_params(cfg)
    output = compiled.forward(params, row(TEXTS[:1], 5), cfg, every_layer=True)
    x = np.asarray(output.layers[0, 0])
    p = jax.tree.map(lambda x: np.asarray(x[0]), params["layers"])
    q, k, v = (
        np.einsum("sd,dhe->hse", x, p[name]["kernel"]) + p[name]["bias"][:, None]
        for name in ("query", "key", "value")
    )
    w = np.exp(np.einsum("hse,hte->hst", q, k) / np.sqrt(8))
    y = np.einsum("hst,hte->she", w / w.sum(-1, keepdims=True), v)
    y = np.einsum("she,hed->sd", y, p["out"]["kernel"]) + p["out"]["bias"]

    def layer_norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.norm_eps)
        return x * p[name]["scale"] + p[name]["bias"]

    x = layer_norm(x + y, "attention_norm")
    up = np.asarray(jax.nn.gelu(x @ p["up"]["kernel"] + p["up"]["bias"], False))
    x = layer_norm(x + up @ p["down"]["kernel"] + p["down"]["bias"], "mlp_norm")
    np.testing.assert_allclose(output.hidden_states[0], x, atol=1e-5)


def test_places_restart_at_every_text_and_are_zero_on_padding():
    segment = jnp.asarray([[1, 1, 1, 2, 2, 3, 0, 0, 0]], jnp.int32)
    got = segment_positions(segment)
    assert got.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 0, 0, 0]]
    assert got.lengths.tolist() == [[3, 3, 3, 2, 2, 1, 0, 0, 0]]
    running = segment_positions(segment, running=True)
    assert running.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 0, 0, 0]]
    left = segment_positions(jnp.asarray([[0, 0, 1, 1]], jnp.int32))
    assert left.position_ids.tolist() == [[0, 0, 0, 1]]
    assert left.lengths.tolist() == [[0, 0, 2, 2]]


def test_an_anchor_is_seen_by_every_text_and_isolates_them():
    cfg = dataclasses.replace(TINY["neox"], anchor_token=True)
    base = compute_states(cfg, [[5, 6, 7], [1, 2], [3, 4]])
    changed = compute_states(cfg, [[5, 9, 8], [1, 2], [3, 4]])
    np.testing.assert_array_equal(base[3:7], changed[3:7])
    anchored = compute_states(cfg, [[4, 6, 7], [1, 2], [3, 4]])
    assert (jnp.abs(anchored - base)[3:7].max(-1) > 1e-5).all()


@pytest.mark.parametrize("distance", [2, 3])
def test_a_local_block_sees_its_window_inclusive(distance):
    cfg = dataclasses.replace(TINY["local"], depth=1, sliding_window_layers=(True,))
    text = [5, 6, 7, 8, 9, 10, 11]
    changed = [*text[:distance], 20, *text[distance + 1 :]]
    a, b = (compute_states(cfg, [t])[0] for t in (text, changed))
    assert bool((a != b).any()) == (distance == 2)


def test_without_positions_a_permutation_of_tokens_permutes_states():
    cfg = config.modern(**SHAPE, position="none")
    text, order = np.array([5, 6, 7, 8, 9]), np.array([3, 1, 4, 0, 2])
    states, permuted = (compute_states(cfg, [t])[:5] for t in (text, text[order]))
    np.testing.assert_allclose(states[order], permuted, atol=1e-6)


@pytest.mark.parametrize("name", ["bert", "local"])
def test_remat_and_unrolling_change_no_gradient(key, name):
    cfg = dataclasses.replace(TINY[name], dropout=0.1)
    params, tokens = init_params(TINY[name]), row(TEXTS, 24)

    def loss(params, cfg):
        x = encoder.encode(
            params, tokens, cfg, BASIC_POOLINGS["mean"], max_segments=3, key=key
        )
        return (x**2).sum()

    plain, dots, full, unrolled = (
        jax.grad(loss)(params, dataclasses.replace(cfg, remat=remat, unroll=unroll))
        for remat, unroll in (
            ("none", False),
            ("dots", False),
            ("all", False),
            ("dots", True),
        )
    )
    chex.assert_trees_all_close(plain, dots, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(plain, full, rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(plain, unrolled, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"norm": "batch"}, "encoder.norm is 'batch'; allowed: layer, rms"),
        ({"num_heads": 5, "head_dim": 0}, "width 16 does not divide by heads 5"),
        ({"num_heads": 5}, "num_heads 5 does not divide by num_kv_heads 2"),
        ({"head_dim": 7, "position": "rope"}, "even head size, not 7"),
        ({"sliding_window_layers": [True]}, "has 1 entries for 3 blocks"),
        ({"sliding_window_layers": [True] * 3}, "a window of at least 1, not 0"),
        ({"bias": ("up", "q")}, "bias names q; allowed: qkv, out, up, down"),
        ({"anchor_token": True}, "needs causal attention"),
    ],
)
def test_a_shape_that_cannot_be_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY["bert"], **change)

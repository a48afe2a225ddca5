"""RetroMAE's decoder against NumPy: what it reads, and what it cannot."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, MASK, TEXT, cross_entropy, firsts, hide, lively, random_rows

from research.losses.token_prediction import bag_of_words
from research.models import decoders, embedding, encoder, token_ops
from research.models import heads as models_heads
from research.models.positions import learned
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives import retromae as mae
from research.objectives.retromae import decode_enhanced, dupmae, retromae

ROWS = random_rows(4, 2, 32)
RULES = {
    embedded: {"decoder_ratio": 0.5, "patterns": 8, "embed_queries": embedded}
    for embedded in (False, True)
}
BOTH = pytest.mark.parametrize("embedded", [False, True], ids=["retromae", "dupmae"])


@pytest.fixture(scope="module")
def params():
    return lively(retromae(CFG, TEXT).init)[0]


def normed(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True)) * p["scale"] + p["bias"]


def block(p, queries, memory, sees):
    """BERT's block of one row: queries [S, D] look at a memory [S, D]."""

    def heads(x, name):
        y = np.einsum("sd,dhe->hse", x, p[name]["kernel"])
        return y + p[name]["bias"][:, None]

    q, k, v = heads(queries, "query"), heads(memory, "key"), heads(memory, "value")
    s = np.einsum("hqe,hke->hqk", q, k) / np.sqrt(q.shape[-1])
    s = np.where(sees, s, -1e30)
    a = np.exp(s - s.max(-1, keepdims=True))
    a /= a.sum(-1, keepdims=True)
    y = np.einsum("hqk,hke,hed->qd", a, v, p["out"]["kernel"]) + p["out"]["bias"]
    x = normed(queries + y, p["attention_norm"])
    z = x @ p["up"]["kernel"] + p["up"]["bias"]
    z = 0.5 * z * (1 + np.vectorize(math.erf)(z / math.sqrt(2)))
    return normed(x + z @ p["down"]["kernel"] + p["down"]["bias"], p["mlp_norm"])


@BOTH
def test_the_decoder_is_a_block_of_two_streams(key, params, embedded):
    sentences = jax.random.normal(key, (2, 2, 16))
    got = jax.jit(lambda *x: decode_enhanced(*x, CFG, **RULES[embedded]))(
        params, ROWS, sentences, key
    )
    visibility = jax.jit(mae.decoder_visibility, static_argnums=(2, 3))
    sees = visibility(jax.random.split(key, 3)[0], ROWS, 0.5, 8)
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    embed, decoder = p["encoder"]["embed"], p["decoder"]["layers"]
    decoder = jax.tree.map(lambda x: x[0], decoder)
    for r, m in ((0, 1), (0, 2), (1, 1)):
        place = np.flatnonzero(ROWS.tokens.segment_ids[r] == m)
        c = np.asarray(sentences)[r, m - 1]
        position = embed["position"]["embedding"][: len(place)]
        around = position + embed["type"]["embedding"][0]
        words = embed["token"]["embedding"][np.asarray(ROWS.tokens.token_ids)[r, place]]
        memory = normed(words + around, embed["norm"])
        memory[0] = c
        queries = normed(c + around, embed["norm"]) if embedded else c + position
        view = np.asarray(sees)[r][np.ix_(place, place)]
        expected = block(decoder, queries, memory, view)
        np.testing.assert_allclose(got[r, place], expected, atol=1e-4)


@BOTH
def test_no_position_sees_its_own_token(key, params, embedded):
    sentences = jax.random.normal(key, (2, 2, 16))

    @jax.jit
    def states(ids):
        rows = ROWS._replace(tokens=ROWS.tokens._replace(token_ids=ids))
        return decode_enhanced(params, rows, sentences, key, CFG, **RULES[embedded])

    before, moved = states(ROWS.tokens.token_ids), False
    for place in (1, 2, 3):
        after = states(ROWS.tokens.token_ids.at[:, place].set(9))
        np.testing.assert_allclose(after[:, place], before[:, place], atol=1e-6)
        moved |= not np.allclose(after, before, atol=1e-3)
    assert moved


def test_who_sees_the_sentence_only_knows_the_text_by_it(key, params, monkeypatch):
    first = jnp.asarray(firsts(ROWS))[:, None, :]
    only = jnp.broadcast_to(first, (2, 32, 32))
    monkeypatch.setattr(mae, "decoder_visibility", lambda *_: only)

    @jax.jit
    def states(ids, sentences):
        rows = ROWS._replace(tokens=ROWS.tokens._replace(token_ids=ids))
        return decode_enhanced(params, rows, sentences, key, CFG, **RULES[False])

    sentences = jax.random.normal(key, (2, 2, 16))
    ids, ordinary = ROWS.tokens.token_ids, ROWS.word_ids > 0
    before = np.asarray(states(ids, sentences))[ordinary]
    same = np.asarray(states(jnp.where(ordinary, 9, ids), sentences))[ordinary]
    np.testing.assert_allclose(same, before, atol=1e-6)
    other = np.asarray(states(ids, sentences[::-1]))[ordinary]
    assert not np.allclose(other, before, atol=1e-2)


@pytest.mark.parametrize("bag_weight", [0.0, 0.1])
def test_losses_are_over_hidden_ordinary_and_distinct_tokens(
    key, params, monkeypatch, bag_weight
):
    mask_words = jax.jit(mlm_masking.mask_whole_words, static_argnums=2)
    (mask,) = mask_words(key, ROWS, (0.3,))
    hide(monkeypatch, mask)
    objective = dupmae(CFG, TEXT, bag_weight=bag_weight) if bag_weight else None
    objective = objective or retromae(CFG, TEXT)
    rule = RULES[bool(bag_weight)]
    total, metrics, _ = jax.jit(objective.loss)(params, {}, ROWS, key)

    @jax.jit
    def reference(params):
        tokens = ROWS.tokens._replace(
            token_ids=jnp.where(mask, MASK, ROWS.tokens.token_ids)
        )
        x = encoder.forward(params["encoder"], tokens, CFG).hidden_states
        c = token_ops.gather_tokens(
            x, token_ops.first_token_positions(tokens.segment_ids, 2)
        )
        y = decode_enhanced(params, ROWS, c, key, CFG, **rule)
        z = models_heads.apply_mlm_head(params["head"], x, CFG)
        table = params["encoder"]["embed"]["token"]["embedding"]
        bag, texts = bag_of_words(z, table, params["head"]["bias"], ROWS, 2)
        ids, ordinary = ROWS.tokens.token_ids, ROWS.word_ids > 0
        decoder = cross_entropy(
            params, models_heads.apply_mlm_head(params["head"], y, CFG), ids, ordinary
        )
        return cross_entropy(params, z, ids, mask), decoder, bag / texts

    mlm, decoder, bag = reference(params)
    np.testing.assert_allclose(metrics["mlm"], mlm, rtol=1e-4)
    np.testing.assert_allclose(metrics["decoder"], decoder, rtol=1e-4)
    np.testing.assert_allclose(total, mlm + decoder + bag_weight * bag, rtol=1e-4)


@BOTH
def test_queries_and_keys_begin_at_the_same_row_of_a_longer_table(
    key, params, embedded
):
    """Where a text begins changes what is looked up, and nothing between the two."""
    cfg = dataclasses.replace(CFG, random_offset=32)
    sentences = jax.random.normal(key, (2, 2, 16))
    looked = []

    def rows(places, cfg, key=None):
        looked.append(learned.table_rows(places, cfg, key))
        return looked[-1]

    with pytest.MonkeyPatch.context() as patch:
        for module in (embedding, decoders):
            patch.setattr(module, "table_rows", rows)
        decode_enhanced(params, ROWS, sentences, key, cfg, **RULES[embedded])
    assert len(looked) >= 2
    for other in looked[1:]:
        np.testing.assert_array_equal(other, looked[0])
    assert (
        looked[0] != learned.table_rows(segment_positions(ROWS.tokens.segment_ids), CFG)
    ).any()

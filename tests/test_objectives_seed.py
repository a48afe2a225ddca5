"""SEED-Encoder's weak decoder: what it sees, and what it is asked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, MASK, TEXT, cross_entropy, hide, lively, random_rows

from research.models import encoder, heads, token_ops
from research.models.attention.masks import decoder_mask
from research.models.positions.segment_positions import segment_positions
from research.objectives import mlm_masking
from research.objectives.seed import decode_next_tokens, seed

ROWS = random_rows(4, 2, 32)


def test_two_tokens_and_the_first_are_seen():
    where = segment_positions(jnp.ones((1, 6), jnp.int32))
    got = [
        "".join(map(str, row))
        for row in np.asarray(decoder_mask(2, where, where))[0] * 1
    ]
    assert got == ["100000", "110000", "111000", "101100", "100110", "100011"]


def test_a_token_reaches_the_states_of_its_window(key):
    params = lively(seed(CFG, TEXT, depth=1, window=2).init)[0]
    sentences = jax.random.normal(key, (1, 1, 16))

    @jax.jit
    def states(ids):
        rows = random_rows(0, 1, 16)
        segment = jnp.ones((1, 16), jnp.int32)
        rows = rows._replace(
            tokens=rows.tokens._replace(token_ids=ids, segment_ids=segment)
        )
        return decode_next_tokens(params, rows, sentences, 2, None, CFG)

    ids = jnp.full((1, 16), 7, jnp.int32)
    before = np.asarray(states(ids))
    for place, reached in ((0, []), (5, [5, 6]), (15, [15])):
        after = np.asarray(states(ids.at[0, place].set(9)))
        changed = np.abs(after - before)[0].max(1) > 1e-5
        assert np.flatnonzero(changed).tolist() == reached


def test_the_loss_is_of_hidden_and_of_next_tokens(key, monkeypatch):
    mask_words = jax.jit(mlm_masking.mask_whole_words, static_argnums=2)
    (mask,) = mask_words(key, ROWS, (0.15,))
    hide(monkeypatch, mask)
    objective = seed(CFG, TEXT, weight=0.3, window=3, depth=2)
    params = lively(objective.init)[0]
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
        y = decode_next_tokens(params, ROWS, c, 3, None, CFG)
        ids, segment = ROWS.tokens.token_ids, ROWS.tokens.segment_ids
        asked = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
        z = heads.apply_mlm_head(params["head"], x, CFG)
        decoder = cross_entropy(params, y[:, :-1], ids[:, 1:], asked)
        return cross_entropy(params, z, ids, mask), decoder

    mlm, decoder = reference(params)
    np.testing.assert_allclose(metrics["decoder"], decoder, rtol=1e-4)
    np.testing.assert_allclose(total, 0.7 * mlm + 0.3 * decoder, rtol=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="objective.depth is 0 and objective.window 2"):
        seed(CFG, TEXT, depth=0)
    with pytest.raises(ValueError, match="objective.weight is 1.0; it must lie in"):
        seed(CFG, TEXT, weight=1.0)

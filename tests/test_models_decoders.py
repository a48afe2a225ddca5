"""Decoders of masked autoencoding."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, SHAPE, firsts, lively, random_rows

from research.models import decoders, encoder, token_ops
from research.models.config import modern
from research.models.positions.segment_positions import segment_positions
from research.objectives import retromae


def test_a_sentence_takes_the_first_place_of_its_text_as_it_is(key):
    rows = random_rows(0, 2, 32)
    x = jax.random.normal(key, (2, 32, 16))
    vectors = jax.random.normal(jax.random.key(1), (2, 2, 16))
    segment, first = np.asarray(rows.tokens.segment_ids), firsts(rows)
    got = np.asarray(
        token_ops.replace_first_tokens(
            x, vectors, segment_positions(rows.tokens.segment_ids)
        )
    )
    np.testing.assert_array_equal(got[~first], np.asarray(x)[~first])
    row, place = np.nonzero(first)
    assert len(row) == 4
    expected = np.asarray(vectors)[row, segment[row, place] - 1]
    np.testing.assert_array_equal(got[row, place], expected)


def test_every_position_has_its_own_view_of_the_text(key):
    rows = random_rows(1, 3, 32)
    segment, word = np.asarray(rows.tokens.segment_ids), rows.word_ids
    sees = np.asarray(
        jax.jit(retromae.decoder_visibility, static_argnums=(2, 3))(key, rows, 0.5, 8)
    )
    assert not sees.diagonal(axis1=1, axis2=2).any()
    views = set()
    for r, i in zip(*np.nonzero(segment), strict=True):
        text = segment[r] == segment[r, i]
        hides = text & ~sees[r, i] & (np.arange(32) != i)
        assert not hides[word[r] == 0].any()  # [CLS] and [SEP] are seen by all others
        assert hides.sum() <= max(1, round(0.5 * text.sum()))
        for number in set(word[r, hides]) - {word[r, i]}:
            assert hides[word[r] == number].all()
        if word[r, i] == 0:  # what it does not see is its mask
            views.add((r, segment[r, i], tuple(np.flatnonzero(hides))))
    texts = {view[:2] for view in views}
    assert len(views) > len(texts)  # [CLS] and [SEP] of a text see different words


def test_one_pattern_is_the_same_view_for_all(key):
    rows = random_rows(1, 3, 32)
    sees = jax.jit(retromae.decoder_visibility, static_argnums=(2, 3))(
        key, rows, 0.5, 1
    )
    sees = np.asarray(sees) | np.eye(32, dtype=bool)[None]
    # All but the diagonal of a column is alike.
    hidden = (~sees).sum(1)
    assert np.isin(hidden, (0, 31, 32)).all() and (hidden > 0).any()


@pytest.mark.parametrize(
    "cfg",
    [CFG, dataclasses.replace(CFG, position_bias="t5"), modern(**SHAPE, max_len=64)],
    ids=["learned", "relative", "rotary"],
)
def test_a_decoder_of_some_positions_gives_their_states_among_all(key, cfg):
    params = lively(partial(encoder.init, cfg=cfg))
    decoder = lively(partial(decoders.init_decoder, cfg=cfg, depth=2))
    where = segment_positions(random_rows(2, 2, 32).tokens.segment_ids)
    x = jax.random.normal(key, (2, 32, 16))
    at = jnp.asarray([[3, 0, 2], [1, 2, 3]], jnp.int32)

    @jax.jit
    def both(params, decoder, x):
        whole = decoders.decode(params, decoder, x, where, cfg)
        return token_ops.gather_tokens(whole, at), decoders.decode(
            params, decoder, x, where, cfg, query_positions=at
        )

    expected, got = both(params, decoder, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)

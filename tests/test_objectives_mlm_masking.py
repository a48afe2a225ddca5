"""Masks: budgets, nesting, whole words, and what is never masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import random_rows

from research.objectives import mlm_masking
from research.types import max_documents

RATIOS = (0.2, 0.4)
MASK_WORDS = jax.jit(mlm_masking.mask_whole_words, static_argnames="ratios")


@pytest.mark.parametrize("seed", range(20))
def test_masks_are_nested_whole_words_within_budget(seed):
    rows = random_rows(seed)
    small, large = map(
        np.asarray, MASK_WORDS(jax.random.key(seed), rows, ratios=RATIOS)
    )
    assert not (small & ~large).any()
    assert not large[rows.word_ids == 0].any()
    segment = np.asarray(rows.tokens.segment_ids)
    for r in range(len(segment)):
        for number in range(1, rows.word_ids[r].max() + 1):
            for mask in (small, large):
                assert len(set(mask[r][rows.word_ids[r] == number])) == 1
        for text in range(1, segment[r].max() + 1):
            here = segment[r] == text
            size = here.sum()
            assert small[r][here].sum() <= max(1, round(0.2 * size))
            assert large[r][here].sum() <= max(1, round(0.4 * size))
            left = max(1, round(0.4 * size)) - large[r][here].sum()
            unmasked = set(rows.word_ids[r][here & ~large[r]]) - {0}
            # Greedy: no word that is left out would still fit.
            assert all((rows.word_ids[r] == n).sum() > left for n in unmasked)


def test_heavier_words_are_masked_more_often():
    rows = random_rows(0)
    heavy = rows.word_ids % 2 == 1
    weights = jnp.where(jnp.asarray(heavy), 50.0, 1.0)
    plain, weighted = (
        np.mean(
            [
                np.asarray(MASK_WORDS(k, rows, ratios=(0.2,), weights=w)[0])[heavy]
                for k in jax.random.split(jax.random.key(1), 20)
            ]
        )
        for w in (None, weights)
    )
    assert weighted > 1.3 * plain


def test_single_tokens_are_masked_to_the_count():
    rows = random_rows(3)
    mask = np.asarray(mlm_masking.mask_single_tokens(jax.random.key(0), rows, 0.15))
    segment = np.asarray(rows.tokens.segment_ids)
    for r in range(len(segment)):
        for text in range(1, segment[r].max() + 1):
            ordinary = (segment[r] == text) & (rows.word_ids[r] > 0)
            assert mask[r][ordinary].sum() == round(0.15 * ordinary.sum())
    assert not mask[rows.word_ids == 0].any()


def test_eight_in_ten_are_hidden_and_one_is_random():
    ids = jnp.full((100, 200), 7, jnp.int32)
    mask = jnp.ones_like(ids, bool).at[:, 0].set(False)
    got = mlm_masking.replace_masked(
        jax.random.key(0),
        ids,
        mask,
        mask_id=3,
        vocab_size=40,
        special_ids=(0, 1, 2, 3, 4),
    )
    got = np.asarray(got)
    assert (got[:, 0] == 7).all()
    shares = [(got[:, 1:] == i).mean() for i in (3, 7)]
    np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 35], atol=0.01)
    assert not np.isin(got, (0, 1, 2, 4)).any()


@pytest.mark.parametrize("ratio", [0.15, 0.2, 0.4, 0.9])
@pytest.mark.parametrize("shortest", [1, 3])
def test_the_buffer_holds_the_most_that_texts_of_a_row_may_lose(ratio, shortest):
    """Whatever their lengths: the best of all ways to fill a row."""
    length = 48
    most = [0] * (length + 1)
    for _ in range(max_documents(length)):
        most = [
            max(
                [max(1, round(ratio * t)) + most[s - t] for t in range(shortest, s + 1)]
                + [most[s]]
            )
            for s in range(length + 1)
        ]
    size = mlm_masking.buffer_size(length, ratio, shortest)
    assert most[length] <= size <= most[length] + 2


def test_the_buffer_holds_every_masked_token():
    rows = random_rows(5)
    mask = mlm_masking.mask_whole_words(jax.random.key(5), rows, (0.4,))[0]
    size = mlm_masking.buffer_size(48, 0.4)
    positions, real = mlm_masking.masked_positions(mask, size)
    assert positions.shape == real.shape == (6, size)
    for r in range(6):
        found = np.asarray(positions[r])[np.asarray(real[r])]
        assert found.tolist() == np.flatnonzero(np.asarray(mask[r])).tolist()

"""Objectives on spans of a document."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from packed import CFG, TEXT, lively, rows_of

from research.losses.token_prediction import token_losses
from research.objectives import mlm_masking
from research.objectives.masked_prediction import mlm_output
from research.objectives.mlm_masking import mask_tokens
from research.objectives.spans import (
    average_positives,
    cot_mae,
    declutr,
    nt_xent,
    predict_from_partners,
    swap_partners,
)

SPANS = [[[2, *range(10 + n, 17 + 2 * n), 3]] for n in range(4)]
ROWS = rows_of(SPANS, 24)


def test_swapping_partners_permutes_the_terms(key):
    objective = cot_mae(CFG, TEXT)
    params = lively(objective.init)[0]
    mask_words = jax.jit(mlm_masking.mask_whole_words, static_argnums=2)
    small, large = mask_words(key, ROWS, (0.3, 0.45))
    seen = mask_tokens(key, ROWS, small, 8, TEXT)
    dark = mask_tokens(jax.random.key(1), ROWS, large, 11, TEXT)

    @jax.jit
    def losses(params, rows, seen, dark):
        parts = predict_from_partners(params, rows, seen, dark, (None,) * 3, CFG)
        total, each = token_losses(*mlm_output(params), parts, [1.0, 1.0])
        return total, [
            jnp.where(p.valid, x.loss, 0.0) for p, x in zip(parts, each, strict=True)
        ]

    total, each = losses(params, ROWS, seen, dark)
    other = jax.tree.map(swap_partners, (ROWS, seen, dark))
    again, moved = losses(params, *other)
    np.testing.assert_allclose(again, total, rtol=1e-5)
    for a, b in zip(each, moved, strict=True):
        assert np.asarray(a).any()
        np.testing.assert_allclose(swap_partners(a), b, atol=1e-4)
    # The decoder reads its partner's vector: without the swap it is another's.
    alone = losses(params, ROWS, jax.tree.map(swap_partners, seen), dark)[1]
    assert not np.allclose(alone[1], each[1], atol=1e-3)


def test_nt_xent_is_a_loop_over_all_others(key):
    x, y = np.asarray(jax.random.normal(key, (2, 5, 8)), np.float64)
    both = np.concatenate([x, y])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    losses = []
    for i in range(10):
        scores = both @ both[i] / 0.05
        others = np.delete(scores, i)
        losses.append(np.log(np.exp(others).sum()) - scores[(i + 5) % 10])
    got = nt_xent(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 0.05)
    np.testing.assert_allclose(got, np.mean(losses), rtol=1e-4)


def test_positives_are_averaged_as_they_are():
    vectors = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    got = average_positives(jnp.asarray(vectors), 2, 3)  # two documents of 2 + 6 spans
    expected = [vectors[i : i + 3].mean(0) for i in (2, 5, 10, 13)]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    one = average_positives(jnp.asarray(vectors), 4, 1)
    np.testing.assert_array_equal(one, vectors[[4, 5, 6, 7, 12, 13, 14, 15]])


def test_errors(key):
    with pytest.raises(ValueError, match="3 rows are no pairs of spans"):
        swap_partners(jnp.zeros((3, 2)))
    with pytest.raises(ValueError, match="objective.depth is 0"):
        cot_mae(CFG, TEXT, depth=0)
    objective = declutr(CFG, TEXT)
    params = jax.eval_shape(objective.init, key)[0]
    with pytest.raises(ValueError, match="4 rows do not divide into groups of 6"):
        jax.eval_shape(objective.loss, params, {}, ROWS, key)

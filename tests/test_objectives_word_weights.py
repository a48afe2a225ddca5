"""Weights of words by how rare or how hard their tokens are."""

import jax.numpy as jnp
import numpy as np
import pytest
from packed import TEXT

from research.objectives.word_weights import (
    MIN_COUNT,
    RATE,
    check_weighting,
    frequency_weights,
    update_losses,
)


def test_rare_tokens_weigh_more_up_to_the_rarest():
    got = frequency_weights(np.array([0, MIN_COUNT, 4 * MIN_COUNT]), 0.5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got[0], got[1])
    np.testing.assert_allclose(got[1] / got[2], 2, rtol=1e-6)


def test_running_losses_move_towards_the_mean_of_a_step():
    labels = jnp.asarray([[1, 1, 2], [3, 0, 0]], jnp.int32)
    new = jnp.asarray([[2.0, 4.0, 9.0], [1.0, 7.0, 7.0]])
    real = jnp.asarray([[True, True, True], [True, False, False]])
    got = update_losses(jnp.full(5, 5.0), labels, new, real)
    expected = [5, 5 + RATE * (3 - 5), 5 + RATE * (9 - 5), 5 + RATE * (1 - 5), 5]
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_errors():
    with pytest.raises(ValueError, match="is 'rare'; allowed: none, frequency, loss"):
        check_weighting("rare", TEXT)
    with pytest.raises(ValueError, match="'frequency' needs counts"):
        check_weighting("frequency", TEXT._replace(token_counts=None))

"""Dropout."""

import jax.numpy as jnp
import numpy as np

from research.models.dropout import dropout


def test_dropout_zeroes_its_share_and_keeps_the_mean(key):
    x = jnp.ones((501, 333))
    y = dropout(x, 0.1, key)
    assert abs(float((y == 0).mean()) - 0.1) < 3e-3
    assert abs(float(y.mean()) - 1) < 3e-3
    assert dropout(x, 0.1, None) is x
    np.testing.assert_array_equal(dropout(x, jnp.float32(0.1), key), y)

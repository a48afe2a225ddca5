"""Poolings against their definitions, on a row of two texts and one of none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.attention.masks import attention_mask, pooling_masks
from research.models.config import bert
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.segment_positions import segment_positions

SEGMENT = np.array([[1, 1, 1, 2, 2, 0]], np.int32)
POOL = np.array([[False, True, True, True, True, False]])  # token 0: an instruction
EXPECTED = {
    "mean": lambda x: (x[1:3].mean(0), x[3:5].mean(0)),
    "cls": lambda x: (x[1], x[3]),
    "last": lambda x: (x[2], x[4]),
    "max": lambda x: (x[1:3].max(0), x[3:5].max(0)),
    "weighted_mean": lambda x: ((x[1] + 2 * x[2]) / 3, (x[3] + 2 * x[4]) / 3),
}


def test_every_pooling_has_a_test():
    assert EXPECTED.keys() == BASIC_POOLINGS.keys()


@pytest.mark.parametrize("name", BASIC_POOLINGS)
def test_pooling(key, name):
    x = jax.random.normal(key, (1, 6, 4))
    got = BASIC_POOLINGS[name](x, pooling_masks(SEGMENT, POOL, 3))
    assert got.shape == (1, 3, 4)
    np.testing.assert_allclose(got[0, :2], EXPECTED[name](np.asarray(x[0])), rtol=1e-5)
    assert not got[0, 2].any()


def test_a_token_sees_its_own_text_and_padding_is_not_seen():
    expected = [
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
    ]
    where = segment_positions(jnp.asarray(SEGMENT))
    got = attention_mask(bert(), where, where)
    assert np.asarray(got).astype(int).tolist() == [expected]

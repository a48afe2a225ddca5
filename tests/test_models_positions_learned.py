"""Longer position tables: where the old rows are, and what is between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.positions import learned
from research.models.positions.learned import SPREAD, TABLES


@pytest.fixture
def table(key):
    return jax.random.normal(key, (5, 3))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", [1, 2, 3, 7])
def test_the_old_rows_are_there_to_the_bit(name, scale, table):
    new = TABLES[name](table, scale=scale)
    assert new.shape == (5 * scale, 3) and new.dtype == table.dtype
    kept = new[::scale] if name in SPREAD else new[:5]
    np.testing.assert_array_equal(kept, table)


def test_positions_are_divided_repeated_or_mixed(table):
    rows = np.arange(20)
    np.testing.assert_array_equal(learned.grouped(table, scale=4), table[rows // 4])
    np.testing.assert_array_equal(learned.recurrent(table, scale=4), table[rows % 5])
    expected = [
        np.interp(rows / 4, np.arange(5), np.asarray(table)[:, column])
        for column in range(3)
    ]
    new = learned.interpolated(table, scale=4)
    np.testing.assert_allclose(new, np.transpose(expected), atol=1e-6)
    np.testing.assert_array_equal(new[-4:], jnp.repeat(table[-1:], 4, axis=0))


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("scale", [0, 0.5, 2.5, -1])
def test_a_scale_that_is_no_whole_number_is_refused(name, scale, table):
    with pytest.raises(ValueError, match=f"{name}'s scale is {scale}; it must be a wh"):
        TABLES[name](table, scale=scale)

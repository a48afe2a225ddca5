"""Longer position tables: where the old rows are, and what is between them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.positions.learned import (
    GroupedTable,
    InterpolatedTable,
    RecurrentTable,
)

TABLES = (GroupedTable, RecurrentTable, InterpolatedTable)


@pytest.fixture
def table(key):
    return jax.random.normal(key, (5, 3))


@pytest.mark.parametrize("method", TABLES)
@pytest.mark.parametrize("scale", [1, 2, 3, 7])
def test_the_old_rows_are_there_to_the_bit(method, scale, table):
    new = method(scale=scale).extend_table(table)
    assert new.shape == (5 * scale, 3) and new.dtype == table.dtype
    old = new[:: method(scale=scale).position_stride][:5]
    np.testing.assert_array_equal(old, table)


def test_positions_are_divided_repeated_or_mixed(table):
    rows = np.arange(20)
    np.testing.assert_array_equal(
        GroupedTable(scale=4).extend_table(table), table[rows // 4]
    )
    np.testing.assert_array_equal(
        RecurrentTable(scale=4).extend_table(table), table[rows % 5]
    )
    expected = [
        np.interp(rows / 4, np.arange(5), np.asarray(table)[:, column])
        for column in range(3)
    ]
    new = InterpolatedTable(scale=4).extend_table(table)
    np.testing.assert_allclose(new, np.transpose(expected), atol=1e-6)
    np.testing.assert_array_equal(new[-4:], jnp.repeat(table[-1:], 4, axis=0))


@pytest.mark.parametrize("method", TABLES)
def test_a_scale_below_1_is_refused(method):
    with pytest.raises(ValueError, match=f"{method.name}'s scale is 0; it must be"):
        method(scale=0)

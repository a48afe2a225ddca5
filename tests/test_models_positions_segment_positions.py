"""The rows of the position table that tokens take."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import bert
from research.models.positions.learned import table_rows
from research.models.positions.segment_positions import segment_positions

CFG = bert(vocab_size=60, width=32, depth=1, num_heads=2, mlp=32, max_len=64)
# Two texts of 3 and 2 tokens and one of 7, each row padded.
SEGMENT = jnp.array([[1, 1, 1, 2, 2, 0, 0, 0], [1] * 7 + [0]])


def test_a_text_that_fitted_stands_at_every_stride_th_row():
    cfg = dataclasses.replace(CFG, max_len=12, position_stride=3, position_offset=2)
    rows = table_rows(segment_positions(SEGMENT), cfg) - 2
    np.testing.assert_array_equal(rows[0, :5], [0, 3, 6, 0, 3])
    np.testing.assert_array_equal(rows[1, :7], range(7))  # of more than 12 / 3 tokens


def test_grouped_positions_are_those_of_each_texts_smallest_factor():
    """As get_position_ids of dwzhu-pku/LongEmbed, for a batch of one text: p // f."""
    cfg = dataclasses.replace(
        CFG, max_len=32, position_stride=8, group_per_text=True, position_offset=2
    )
    counts = (1, 3, 4, 5, 7, 8, 9, 20, 29, 32)
    # Each row has a text of that many tokens, one of 3 and padding
    segment = [[1] * count + [2] * 3 + [0] * (33 - count) for count in counts]
    rows = table_rows(segment_positions(jnp.asarray(segment)), cfg) - 2
    for row, count in zip(np.asarray(rows), counts, strict=True):
        factor = -(-count // 4)  # 4 rows were trained
        expected = np.arange(count) // factor
        np.testing.assert_array_equal(row[:count], expected * 8)
        np.testing.assert_array_equal(row[count : count + 3], [0, 8, 16])
        assert expected.max() < 4


def test_a_text_of_a_training_begins_anywhere(key):
    cfg = dataclasses.replace(
        CFG, position_stride=8, random_offset=57, position_offset=2
    )
    where = segment_positions(SEGMENT)
    keys = jax.random.split(key, 2000)
    rows = np.asarray(jax.vmap(lambda k: table_rows(where, cfg, k))(keys)) - 2
    first = rows[:, [0, 0, 1], [0, 3, 0]]
    assert first.min() == 0 and first.max() == 57  # 64 rows, texts of at most 7 tokens
    np.testing.assert_allclose(first.mean(0), 57 / 2, atol=2)
    assert abs(np.corrcoef(first.T) - np.eye(3)).max() < 0.1  # each text its own
    np.testing.assert_array_equal(rows[:, 0, :3] - first[:, :1], [[0, 1, 2]] * 2000)
    np.testing.assert_array_equal(rows[:, 0, 3:5] - first[:, 1:2], [[0, 1]] * 2000)
    np.testing.assert_array_equal(
        rows[:, 1, :7] - first[:, 2:], [list(range(7))] * 2000
    )
    assert rows.max() <= 63

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.packing import LENGTHS, best_fit, bucket_length


@given(st.lists(st.integers(1, 64), min_size=1, max_size=120), st.integers(1, 9))
def test_every_text_is_placed_once_whole_and_end_to_end(lengths, limit):
    lengths = np.array(lengths)
    packing = best_fit(lengths, 64, limit)
    assert packing.row.max() + 1 == packing.rows
    for row in range(packing.rows):
        texts = np.flatnonzero(packing.row == row)
        texts = texts[np.argsort(packing.segment_ids[texts])]
        assert packing.segment_ids[texts].tolist() == list(range(1, len(texts) + 1))
        assert len(texts) <= limit
        ends = np.cumsum(lengths[texts])
        assert packing.start[texts].tolist() == [0, *ends[:-1]]
        assert ends[-1] <= 64


@given(st.lists(st.integers(1, 64), min_size=2, max_size=120))
def test_no_two_rows_fit_in_one(lengths):
    lengths = np.array(lengths)
    packing = best_fit(lengths, 64, 64)
    row_tokens = np.bincount(packing.row, lengths)
    assert sum(np.sort(row_tokens)[:2]) > 64 or packing.rows == 1


def test_best_fit_takes_the_fullest_row():
    packing = best_fit(np.array([50, 40, 24, 14]), 64, 8)
    assert packing.row.tolist() == [0, 1, 1, 0]


def test_lengths():
    assert [bucket_length(n) for n in (1, 64, 65, 128, 300)] == [64, 64, 128, 128, 512]
    with pytest.raises(ValueError, match="over the longest row"):
        bucket_length(LENGTHS[-1] + 1)
    with pytest.raises(ValueError, match="a text of 65 tokens, in rows of 64"):
        best_fit(np.array([65]), 64, 8)

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from research.data.packing import (
    LENGTHS,
    best_fit,
    bucket_length,
    pack_bins,
    split_evenly,
)


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


@given(st.data(), st.integers(1, 4), st.integers(1, 30), st.integers(1, 9))
def test_bins_are_packed_as_best_fit_packs_each_of_them(data, bins, texts, limit):
    numbers = st.lists(st.integers(1, 64), min_size=texts, max_size=texts)
    lengths = np.array([data.draw(numbers) for _ in range(bins)])
    # Without a limit, rows of equal room are alike: the same room is left in the rows
    packing = pack_bins(lengths, 64, texts)
    singles = [best_fit(row, 64, texts) for row in lengths]
    assert packing.rows == max(single.rows for single in singles)
    for i, single in enumerate(singles):
        totals = [np.bincount(x, lengths[i]) for x in (packing.row[i], single.row)]
        assert sorted(totals[0]) == sorted(totals[1])
    # Texts lie end to end, numbered from 1, and no more than the limit in a row
    packing = pack_bins(lengths, 64, limit)
    for i in range(bins):
        for row in range(packing.row[i].max() + 1):
            inside = np.flatnonzero(packing.row[i] == row)
            inside = inside[np.argsort(packing.segment_ids[i][inside])]
            numbers = packing.segment_ids[i][inside].tolist()
            assert numbers == list(range(1, len(inside) + 1))
            assert len(inside) <= limit
            ends = np.cumsum(lengths[i][inside])
            assert packing.start[i][inside].tolist() == [0, *ends[:-1]]
            assert ends[-1] <= 64


def test_bins_refuse_a_text_longer_than_a_row():
    with pytest.raises(ValueError, match="a text of 65 tokens, in rows of 64"):
        pack_bins(np.array([[65], [1]]), 64, 8)


@given(st.lists(st.integers(1, 500), min_size=1, max_size=40), st.integers(1, 8))
def test_dealt_bins_have_equal_numbers_and_nearly_equal_sizes(sizes, bins):
    sizes = np.array(sizes * bins)
    dealt = split_evenly(sizes, bins)
    assert sorted(dealt.ravel().tolist()) == list(range(len(sizes)))
    totals = sizes[dealt].sum(axis=1)
    assert totals.max() - totals.min() <= sizes.max()


def test_lengths():
    assert [bucket_length(n) for n in (1, 64, 65, 128, 300)] == [64, 64, 128, 128, 512]
    with pytest.raises(ValueError, match="over the longest row"):
        bucket_length(LENGTHS[-1] + 1)
    with pytest.raises(ValueError, match="a text of 65 tokens, in rows of 64"):
        best_fit(np.array([65]), 64, 8)

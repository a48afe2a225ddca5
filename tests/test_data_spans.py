"""Spans: their bounds, and how the two or more of a document lie to each other."""

import numpy as np
import pytest

from research.data import spans


def document(rng):
    """(words, sentences) of a random document, each with its length at the end."""
    words = np.cumsum(rng.integers(1, 5, rng.integers(3, 60)))
    words = np.concatenate([[0], words])
    inner = words[1:-1]
    sentences = np.sort(rng.choice(inner, rng.integers(0, len(inner) + 1), False))
    return words, np.concatenate([[0], sentences, words[-1:]])


def relation(a, b):
    (low, high), (start, end) = a, b
    if start == high or end == low:
        return "adjacent"
    if start < high and low < end:
        return "overlapping" if not (low <= start and end <= high) else "within"
    return "separate"


@pytest.mark.parametrize("seed", range(8))
def test_neighbours(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        words, sentences = document(rng)
        max_length = int(rng.integers(2, 40))
        a, b = spans.draw_neighbor_spans(rng, words, sentences, max_length, 0.15)
        for start, end in (a, b):
            assert 0 <= start < end <= words[-1]
            assert end - start <= max_length
        assert a[1] - a[0] <= words[-1] // 2
        assert a[0] in sentences
        assert a != b


def test_neighbours_are_of_three_kinds_and_whole_sentences():
    rng = np.random.default_rng(0)
    words = np.arange(0, 8001, 2)
    sentences = words[::5]
    pairs = [
        spans.draw_neighbor_spans(rng, words, sentences, 64, 0.15) for _ in range(3000)
    ]
    ends = np.array(pairs)
    assert np.isin(ends, sentences).mean() > 0.95  # short spans cut a sentence
    sizes = (ends[..., 1] - ends[..., 0]).ravel()
    assert (sizes == 60).mean() == pytest.approx(0.85, abs=0.03)
    kinds = [relation(a, b) for a, b in pairs]
    assert kinds.count("adjacent") > 900
    assert kinds.count("overlapping") > 900
    assert kinds.count("separate") > 900


def test_anchors_keep_their_bounds():
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(4000):
        count, positives = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        max_length = int(rng.integers(4, 40))
        min_length = int(rng.integers(2, max_length + 1))
        size = 2 * count * max_length + int(rng.integers(0, 100))
        sizes = {"min_length": min_length, "max_length": max_length}
        group = spans.draw_anchor_spans(
            rng, size, count=count, positives=positives, **sizes
        )
        assert group.shape == (count * (1 + positives), 2)
        start, end = group.T
        assert (start >= 0).all() and (end <= size).all()
        assert (end - start >= min_length).all() and (end - start <= max_length).all()
        cells = np.sort(start[:count] // max_length)
        assert (end[:count] <= (start[:count] // max_length + 1) * max_length).all()
        assert (np.diff(cells) > 1).all()
        anchor_of = np.repeat(np.arange(count), positives)
        positive = slice(count, None)
        assert (start[positive] <= end[anchor_of]).all() and (
            end[positive] >= start[anchor_of]
        ).all()
        if max_length - min_length > 15:
            shares = (end - start - min_length + 0.5) / (max_length - min_length)
            lengths.append(shares[[0, -1]])
    anchor_share, positive_share = np.mean(lengths, axis=0)
    assert anchor_share == pytest.approx(2 / 3, abs=0.02)  # Beta(4, 2)
    assert positive_share == pytest.approx(1 / 3, abs=0.02)  # Beta(2, 4)

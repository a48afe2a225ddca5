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
    return "apart"


@pytest.mark.parametrize("seed", range(8))
def test_neighbours(seed):
    rng = np.random.default_rng(seed)
    for _ in range(200):
        words, sentences = document(rng)
        longest = int(rng.integers(2, 40))
        a, b = spans.draw_neighbor_spans(rng, words, sentences, longest, 0.15)
        for start, end in (a, b):
            assert 0 <= start < end <= words[-1]
            assert end - start <= longest
        assert a[1] - a[0] <= words[-1] // 2
        assert a[0] in sentences
        assert a != b


def test_neighbours_are_of_three_kinds_and_whole_sentences():
    rng = np.random.default_rng(0)
    words = np.arange(0, 8001, 2)
    sentences = words[::5]
    found = [
        spans.draw_neighbor_spans(rng, words, sentences, 64, 0.15) for _ in range(3000)
    ]
    ends = np.array(found)
    assert np.isin(ends, sentences).mean() > 0.95  # short spans cut a sentence
    sizes = (ends[..., 1] - ends[..., 0]).ravel()
    assert (sizes == 60).mean() == pytest.approx(0.85, abs=0.03)
    kinds = [relation(a, b) for a, b in found]
    assert kinds.count("adjacent") > 900
    assert kinds.count("overlapping") > 900
    assert kinds.count("apart") > 900


def test_anchors_keep_their_bounds():
    rng = np.random.default_rng(0)
    lengths = []
    for _ in range(4000):
        count, positives = int(rng.integers(1, 5)), int(rng.integers(1, 4))
        longest = int(rng.integers(4, 40))
        shortest = int(rng.integers(2, longest + 1))
        size = 2 * count * longest + int(rng.integers(0, 100))
        sizes = {"shortest": shortest, "longest": longest}
        found = spans.draw_anchor_spans(
            rng, size, count=count, positives=positives, **sizes
        )
        assert found.shape == (count * (1 + positives), 2)
        start, end = found.T
        assert (start >= 0).all() and (end <= size).all()
        assert (end - start >= shortest).all() and (end - start <= longest).all()
        cells = np.sort(start[:count] // longest)
        assert (end[:count] <= (start[:count] // longest + 1) * longest).all()
        assert (np.diff(cells) > 1).all()
        of = np.repeat(np.arange(count), positives)
        near = slice(count, None)
        assert (start[near] <= end[of]).all() and (end[near] >= start[of]).all()
        if longest - shortest > 15:
            shares = (end - start - shortest + 0.5) / (longest - shortest)
            lengths.append(shares[[0, -1]])
    anchor, positive = np.mean(lengths, axis=0)
    assert anchor == pytest.approx(2 / 3, abs=0.02)  # Beta(4, 2)
    assert positive == pytest.approx(1 / 3, abs=0.02)  # Beta(2, 4)

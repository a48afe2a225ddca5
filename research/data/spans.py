"""Spans drawn from a document: CoT-MAE's two neighbours, DeCLUTR's anchors."""

import numpy as np

Span = tuple[int, int]  # [start, end) in tokens of a document


def draw_neighbor_spans(
    rng: np.random.Generator,
    words: np.ndarray,
    sentences: np.ndarray,
    longest: int,
    short: float,
) -> tuple[Span, Span]:
    """Two spans of a document (CoT-MAE, Wu et al. 2023, section 3.1).

    A span is as many whole sentences as fit its length: `longest`, or with probability
    `short` uniform in 2 ... longest; of a longer sentence it is the first words. The
    first span is at most half of the document, so that there is something beside it.
    The second is, with equal chances, any other span, adjacent to the first, or
    partly overlapping it.

    Args:
        words, sentences: where they begin, from 0, and the document's length N >= 2.
        longest: tokens of a span.
        short: probability.
    """
    size = int(words[-1])
    marks = (sentences, words)
    first, second = (
        longest if rng.random() >= short else int(rng.integers(2, longest + 1))
        for _ in range(2)
    )
    start = int(rng.choice(sentences[:-1]))
    a = start, _end(marks, start, min(first, size // 2))
    after = a[1] < size and (start == 0 or rng.random() < 0.5)
    kind = ("random", "adjacent", "overlapping")[rng.integers(3)]
    if kind == "random":
        others = sentences[:-1] if len(sentences) > 2 else words[:-1]
        others = others[others != start]
        if len(others):
            start = int(rng.choice(others))
            return a, (start, _end(marks, start, second))
    if kind == "overlapping" and a[1] - a[0] > 1:
        return a, _overlapping(rng, marks, a, after, max(second, a[1] - a[0]))
    if after:
        return a, (a[1], _end(marks, a[1], second))
    return a, (_start(marks, a[0], second), a[0])


def _overlapping(rng, marks: tuple, a: Span, after: bool, length: int) -> Span:
    """A span of at most `length` tokens, over one end of `a` but not all of it."""
    for places in marks:
        inside = places[(places > a[0]) & (places < a[1])]
        if len(inside):
            break
    else:
        inside = np.arange(a[0] + 1, a[1])
    middle = int(rng.choice(inside))
    # Whole words that end with `a` would leave one span within the other.
    if after:
        return middle, max(_end(marks, middle, length), a[1] + 1)
    return min(_start(marks, middle, length), a[0] - 1), middle


def _end(marks: tuple, start: int, length: int) -> int:
    """Where a span that begins at `start` ends."""
    for places in marks:
        end = int(places[np.searchsorted(places, start + length, "right") - 1])
        if end > start:
            return end
    return start + length


def _start(marks: tuple, end: int, length: int) -> int:
    """Where a span that ends at `end` begins."""
    for places in marks:
        start = int(places[np.searchsorted(places, end - length)])
        if start < end:
            return start
    return end - length


def draw_anchor_spans(
    rng: np.random.Generator,
    size: int,
    *,
    count: int,
    positives: int,
    shortest: int,
    longest: int,
) -> np.ndarray:
    """Anchors and positives of a document (DeCLUTR, Giorgi et al. 2021, section 3.1).

    An anchor's length is int(Beta(4, 2) * (longest - shortest) + shortest), it lies in
    a cell of a grid of `longest` tokens, and neither in that of another nor beside it.
    A positive's is the same of Beta(2, 4); it overlaps its anchor or is adjacent to it.

    Args:
        size: N tokens of the document, at least 2 * count * longest.
        count: A, anchors.
        positives: P of each anchor.
        shortest, longest: tokens of a span.

    Returns:
        [A + A*P, 2] start and end of the anchors, then of the positives of the first
        anchor, of the second, and so on.
    """
    span = longest - shortest
    lengths = (rng.beta(4, 2, count) * span + shortest).astype(int)
    cells = np.arange(size // longest)
    starts = np.zeros(count, int)
    for i in range(count):
        # A cell in the middle takes two more with it, one at an end only one.
        spare = len(cells) - 3 >= 2 * (count - i - 1)
        cell = rng.choice(cells if spare else cells[[0, -1]])
        starts[i] = cell * longest + rng.integers(longest - lengths[i] + 1)
        cells = cells[np.abs(cells - cell) > 1]
    ends = starts + lengths
    sizes = (rng.beta(2, 4, (count, positives)) * span + shortest).astype(int)
    low = np.maximum(starts[:, None] - sizes, 0)
    high = np.minimum(ends[:, None], size - sizes)
    begin = rng.integers(low, high + 1)
    near = np.stack([begin, begin + sizes], -1).reshape(-1, 2)
    return np.concatenate([np.stack([starts, ends], -1), near])

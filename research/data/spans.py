"""Spans of a document: CoT-MAE's neighbors, DeCLUTR's anchors, chunks."""

import numpy as np

Span = tuple[int, int]  # [start, end) in tokens of a document
# Token positions at which a span may begin or end: of sentences, then of words.
Bounds = tuple[np.ndarray, np.ndarray]


def draw_neighbor_spans(
    rng: np.random.Generator,
    words: np.ndarray,
    sentences: np.ndarray,
    max_length: int,
    short_probability: float,
) -> tuple[Span, Span]:
    """Two spans of a document (CoT-MAE, Wu et al. 2023, section 3.1).

    The length of a span is `max_length` or, with probability `short_probability`,
    uniform in 2 ... max_length. A span holds as many full sentences as fit in its
    length, or the first words of a sentence that does not fit. The first span covers at
    most half of the document, so that there is text beside it. The second one is, with
    equal probability, at random, adjacent to the first, or partly overlapping it.

    Args:
        rng: Source of randomness.
        words: Positions at which words begin, from 0, followed by the document's length
            N >= 2.
        sentences: Positions at which sentences begin, from 0, followed by N.
        max_length: Maximum number of tokens of a span.
        short_probability: Probability of a span shorter than `max_length`.
    """
    # The lengths of both spans.
    size = int(words[-1])
    bounds = (sentences, words)
    length_a, length_b = (
        max_length
        if rng.random() >= short_probability
        else int(rng.integers(2, max_length + 1))
        for _ in range(2)
    )
    # The first span begins at a sentence.
    start = int(rng.choice(sentences[:-1]))
    span = start, _find_end(bounds, start, min(length_a, size // 2))
    after = span[1] < size and (start == 0 or rng.random() < 0.5)
    kind = ("random", "adjacent", "overlapping")[rng.integers(3)]
    # A random second span begins at another sentence, or at another word.
    if kind == "random":
        starts = sentences[:-1] if len(sentences) > 2 else words[:-1]
        starts = starts[starts != start]
        if len(starts):
            start = int(rng.choice(starts))
            return span, (start, _find_end(bounds, start, length_b))
    if kind == "overlapping" and span[1] - span[0] > 1:
        length = max(length_b, span[1] - span[0])
        return span, _draw_overlapping(rng, bounds, span, after, length)
    # An adjacent one begins where the first ends, or ends where it begins.
    if after:
        return span, (span[1], _find_end(bounds, span[1], length_b))
    return span, (_find_start(bounds, span[0], length_b), span[0])


def _draw_overlapping(
    rng: np.random.Generator, bounds: Bounds, span: Span, after: bool, length: int
) -> Span:
    """A span of at most `length` tokens that covers one end of `span` only."""
    for positions in bounds:
        inside = positions[(positions > span[0]) & (positions < span[1])]
        if len(inside):
            break
    else:
        inside = np.arange(span[0] + 1, span[1])
    middle = int(rng.choice(inside))
    # It ends at least one token beyond `span`, so that neither contains the other.
    if after:
        return middle, max(_find_end(bounds, middle, length), span[1] + 1)
    return min(_find_start(bounds, middle, length), span[0] - 1), middle


def _find_end(bounds: Bounds, start: int, length: int) -> int:
    """End of the longest span of at most `length` tokens that begins at `start`."""
    for positions in bounds:
        end = int(positions[np.searchsorted(positions, start + length, "right") - 1])
        if end > start:
            return end
    return start + length


def _find_start(bounds: Bounds, end: int, length: int) -> int:
    """Start of the longest span of at most `length` tokens that ends at `end`."""
    for positions in bounds:
        start = int(positions[np.searchsorted(positions, end - length)])
        if start < end:
            return start
    return end - length


def draw_anchor_spans(
    rng: np.random.Generator,
    size: int,
    *,
    count: int,
    positives: int,
    min_length: int,
    max_length: int,
) -> np.ndarray:
    """Anchors and positives of a document (DeCLUTR, Giorgi et al. 2021, section 3.1).

    An anchor's length is int(Beta(4, 2) * (max_length - min_length) + min_length). It
    lies within a cell of a grid of `max_length` tokens; no two anchors share a cell or
    lie in neighboring ones. A positive's length follows Beta(2, 4) in the same way; it
    overlaps its anchor or is adjacent to it.

    Args:
        rng: Source of randomness.
        size: N, number of tokens of the document, at least 2 * count * max_length.
        count: A, number of anchors.
        positives: P, number of positives per anchor.
        min_length: Minimum number of tokens of a span.
        max_length: Maximum number of tokens of a span.

    Returns:
        [A + A*P, 2] start and end of the anchors, then of the positives of the first
        anchor, of the second, and so on.
    """
    span = max_length - min_length
    lengths = (rng.beta(4, 2, count) * span + min_length).astype(int)  # [A]
    # Anchors: each takes a cell, and its neighbors become unusable.
    cells = np.arange(size // max_length)
    starts = np.zeros(count, int)
    for i in range(count):
        # A cell in the middle uses up two more, one at an end only one more.
        enough = len(cells) - 3 >= 2 * (count - i - 1)
        cell = rng.choice(cells if enough else cells[[0, -1]])
        starts[i] = cell * max_length + rng.integers(max_length - lengths[i] + 1)
        cells = cells[np.abs(cells - cell) > 1]
    ends = starts + lengths
    # A positive begins anywhere such that it overlaps or touches its anchor.
    sizes = (rng.beta(2, 4, (count, positives)) * span + min_length).astype(int)
    low = np.maximum(starts[:, None] - sizes, 0)  # [A, P]
    high = np.minimum(ends[:, None], size - sizes)  # [A, P]
    begin = rng.integers(low, high + 1)  # [A, P]
    positive_spans = np.stack([begin, begin + sizes], -1).reshape(-1, 2)
    return np.concatenate([np.stack([starts, ends], -1), positive_spans])


def split_into_chunks(bounds: Bounds, length: int, overlap: int) -> list[Span]:
    """Chunks that cover a document in its order, of full sentences where these fit.

    Args:
        bounds: Positions of sentences and of words, each followed by the document's
            length.
        length: Maximum length of a chunk.
        overlap: Most that a chunk repeats of the chunk before it, below the length.
    """
    chunks, start, size = [], 0, int(bounds[1][-1])
    while True:
        end = _find_end(bounds, start, length)
        chunks.append((start, end))
        if end >= size:
            return chunks
        # A chunk begins and ends after the one before it
        repeated = _find_start(bounds, end, overlap) if overlap else end
        goes_on = repeated > start and _find_end(bounds, repeated, length) > end
        start = repeated if goes_on else end


def draw_random_chunks(
    rng: np.random.Generator, size: int, low: int, high: int
) -> list[Span]:
    """Random spans of a document, as many as would cover it without overlap.

    Args:
        rng: Source of randomness.
        size: Length of the document.
        low: Minimum length of a span, unless the document is shorter.
        high: Maximum length of a span.
    """
    count = max(1, round(2 * size / (low + high)))
    lengths = np.minimum(rng.integers(low, high + 1, count), size)
    starts = rng.integers(0, size - lengths + 1)
    return list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))

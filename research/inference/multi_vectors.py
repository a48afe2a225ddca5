"""Texts of several vectors on the host: parts of them, and their MaxSim."""

from collections.abc import Iterator

import numpy as np

from research.types import MultiVectors

# Most scores of vectors that are in memory at a time.
SCORES_PER_STEP = 1 << 24


def maxsim(queries: MultiVectors, documents: MultiVectors) -> np.ndarray:
    """Sums over a query's vectors of the largest dot product with each document.

    All scores of vectors are in memory at once.

    Returns:
        [Q, N] float32.
    """
    scores = queries.vectors @ documents.vectors.T  # [query vectors, document vectors]
    # The vectors of a text follow one another: [query vectors, N], then [Q, N]
    scores = np.maximum.reduceat(scores, documents.offsets[:-1], axis=1)
    return np.add.reduceat(scores, queries.offsets[:-1], axis=0)


def to_multi_vectors(embeddings) -> MultiVectors:
    """Embeddings of several vectors, or of one vector per text as such."""
    if isinstance(embeddings, MultiVectors):
        return embeddings
    return MultiVectors(np.asarray(embeddings), np.arange(len(embeddings) + 1))


def count_vectors(embeddings: MultiVectors) -> np.ndarray:
    """[N, 1] float32 number of vectors of each text."""
    return np.diff(embeddings.offsets)[:, None].astype(np.float32)


def get_texts(embeddings: MultiVectors, start: int, stop: int) -> MultiVectors:
    """The texts start ... stop - 1, whose vectors alone are read."""
    offsets = embeddings.offsets[start : stop + 1]
    vectors = embeddings.vectors[int(offsets[0]) : int(offsets[-1])]
    return MultiVectors(np.asarray(vectors, np.float32), offsets - offsets[0])


def split_texts(
    offsets: np.ndarray, start: int, stop: int, limit: int
) -> Iterator[tuple[int, int]]:
    """Yields ranges of the texts start ... stop - 1 with few enough vectors.

    Args:
        offsets: [N+1] as in `MultiVectors`.
        start: First text.
        stop: Text after the last one.
        limit: Most vectors of a range; a text with more is a range of its own.
    """
    while start < stop:
        end = int(np.searchsorted(offsets, offsets[start] + limit, side="right")) - 1
        end = min(max(end, start + 1), stop)
        yield start, end
        start = end

"""Merging of the best results of blocks, which all searches share."""

from collections.abc import Iterable

import chex
import numpy as np

# Scores [Q, k] from best to worst, and the numbers [Q, k] of vectors or texts.
Top = tuple[np.ndarray, np.ndarray]


def merge_top(best: Top | None, top: Top, k: int, precedence: np.ndarray | None) -> Top:
    """The k best of earlier blocks and of a block.

    Args:
        best: The best of earlier blocks; None for none.
        top: Scores and numbers [Q, n] of a block.
        k: Number of results per query.
        precedence: Of equal scores, that with the smallest precedence comes first; None
            for the smallest number.
    """
    scores, numbers = (np.asarray(x) for x in top)
    if best is not None:
        scores = np.concatenate([best[0], scores], 1)
        numbers = np.concatenate([best[1], numbers], 1)
    # Sorted by score and, where scores are equal, by precedence
    ties = numbers if precedence is None else precedence[numbers]
    order = np.lexsort((ties, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def merge_blocks(
    blocks: Iterable[tuple[int, np.ndarray]], k: int, precedence: np.ndarray | None
) -> Top:
    """The k best documents of blocks: (number of the first one, scores [Q, n])."""
    best = None
    for first, scores in blocks:
        numbers = np.broadcast_to(first + np.arange(scores.shape[1]), scores.shape)
        best = merge_top(best, (scores, numbers), k, precedence)
    return best


def check_search(queries, vectors, k: int) -> None:
    """Checks queries [Q, D], the vectors [N, D] that they search, and k.

    Raises:
        ValueError: `k` is not positive, there are no vectors, or the widths differ.
    """
    chex.assert_rank([queries, vectors], 2)
    if k < 1:
        raise ValueError(f"k is {k}; a search needs at least 1")
    (count, width), (num_vectors, vector_width) = queries.shape, vectors.shape
    if not num_vectors or not count:
        raise ValueError(f"cannot search {num_vectors} vectors for {count} queries")
    if width != vector_width:
        raise ValueError(
            f"queries of width {width} cannot search vectors of width {vector_width}"
        )

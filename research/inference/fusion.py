"""Fusion of rankings: reciprocal ranks (Cormack et al. 2009) or weighted scores."""

from collections.abc import Callable, Sequence

import numpy as np

from research.config_sections import bind_call, parse_call

# Scores [Q, n] from best to worst, and numbers [Q, n] of documents; -1 for none.
Ranking = tuple[np.ndarray, np.ndarray]


def rrf(rankings: Sequence[Ranking], *, k: int = 60) -> list[np.ndarray]:
    """Reciprocal rank fusion: 1 / (k + rank) of each document, with ranks from 1.

    Args:
        rankings: One ranking per system.
        k: How much less the first ranks count than without it.

    Returns:
        For each ranking, [Q, n] what it adds to its documents' scores.
    """
    return [
        np.broadcast_to(1 / (k + 1 + np.arange(scores.shape[1])), scores.shape)
        for scores, _ in rankings
    ]


def weighted(rankings: Sequence[Ranking], *, alpha: float = 0.5) -> list[np.ndarray]:
    """The weighted mean of scores, scaled per query to 0 ... 1 in each ranking.

    A document that a ranking lacks gets 0 there.

    Args:
        rankings: Two rankings, such as by vectors and by BM25.
        alpha: Weight of the first; the second has 1 - alpha.

    Returns:
        As in `rrf`.
    """
    # Scores of 0 ... 1, which weights can compare
    first, second = (_scale(*ranking) for ranking in rankings)
    return [alpha * first, (1 - alpha) * second]


FUSIONS = {"rrf": rrf, "weighted": weighted}


def parse_fusion(text: str) -> Callable[[Sequence[Ranking]], list[np.ndarray]]:
    """Reads a fusion such as "rrf(k=60)" or "weighted(alpha=0.7)".

    Raises:
        ValueError: There is no such fusion, or it has no such argument.
    """
    call = parse_call(text)
    bind_call(FUSIONS, call, [])
    return lambda rankings: bind_call(FUSIONS, call, rankings)()


def fuse_rankings(
    fusion: Callable[[Sequence[Ranking]], list[np.ndarray]],
    rankings: Sequence[Ranking],
    count: int,
) -> Ranking:
    """The best documents by the fusion of rankings.

    Of equal scores, the document comes first that is earlier in the first ranking.

    Args:
        fusion: From `parse_fusion`.
        rankings: Rankings of the same Q queries, each with its own n.
        count: Number of documents per query.

    Returns:
        Scores [Q, count] float32 and numbers [Q, count]; where the rankings hold fewer
        documents, the number is -1 and the score -inf.
    """
    numbers = np.concatenate([numbers for _, numbers in rankings], 1)  # [Q, n]
    values = np.concatenate(fusion(rankings), 1)  # [Q, n]
    best_scores = np.full((len(numbers), count), -np.inf, np.float32)
    best = np.full((len(numbers), count), -1, np.int64)
    for i, (row, value) in enumerate(zip(numbers, values, strict=True)):
        documents, first, inverse = np.unique(
            row, return_index=True, return_inverse=True
        )
        sums = np.bincount(inverse.ravel(), weights=value)
        sums[documents < 0] = -np.inf
        order = np.lexsort((first, -sums))
        order = order[documents[order] >= 0][:count]
        best_scores[i, : len(order)] = sums[order]
        best[i, : len(order)] = documents[order]
    return best_scores, best


def _scale(scores: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Scores [Q, n] scaled to 0 ... 1 per query; 0 where all are equal, or for none."""
    valid = numbers >= 0
    low = np.where(valid, scores, np.inf).min(1, keepdims=True)
    high = np.where(valid, scores, -np.inf).max(1, keepdims=True)
    span = high - low
    with np.errstate(invalid="ignore"):
        scaled = (scores - low) / np.where(span > 0, span, 1)
    return np.where(valid & (span > 0), scaled, 0.0)

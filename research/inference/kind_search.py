"""Exact search of sparse embeddings and of those of BGE-M3, on the host."""

import numpy as np

from research.inference.similarity import (
    SCORES_PER_STEP,
    get_texts,
    normalize_embeddings,
    score_m3,
    split_texts,
)
from research.inference.top_k import Top, check_search, merge_top
from research.types import MultiVectors


def search_m3(
    queries: MultiVectors,
    documents: MultiVectors,
    k: int,
    *,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    scores_per_step: int = SCORES_PER_STEP,
) -> Top:
    """The k documents with the largest sums of three scores (`score_m3`).

    Args:
        queries: Q queries, whose vectors are rows as in `transforms.m3_rows`.
        documents: N documents, the same; those of a folder are read in blocks.
        k: Number of documents per query; at most N are returned.
        normalize: Ignored: the scores say which vectors are scaled.
        precedence, share: As in `search_multi_vectors`.
        scores_per_step: Number of scores of vectors in memory at a time; at least those
            of one document.

    Returns:
        As in `search_multi_vectors`.

    Raises:
        ValueError: As in `search_multi_vectors`, or the vectors are no such rows.
    """
    del normalize
    check_search(queries.vectors, documents.vectors, k)
    start, stop, _ = share.indices(documents.count)
    k, best = min(k, stop - start), None
    limit = scores_per_step // len(queries.vectors)
    for first, end in split_texts(documents.offsets, start, stop, limit):
        scores = score_m3(queries, get_texts(documents, first, end))  # [Q, n]
        numbers = np.broadcast_to(np.arange(first, end), scores.shape)
        best = merge_top(best, (scores, numbers), k, precedence)
    return best


def search_sparse(
    queries,
    documents,
    k: int,
    *,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    scores_per_step: int = SCORES_PER_STEP,
) -> Top:
    """The k documents with the largest dot products, by SciPy's sparse product.

    Args:
        queries: [Q, V] SciPy CSR array.
        documents: [N, V] SciPy CSR array.
        k: Number of documents per query; at most N are returned, those without a term
            of the query last.
        normalize, precedence, share: As in `search_multi_vectors`.
        scores_per_step: Number of scores in memory at a time; at least those of one
            document.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of documents.

    Raises:
        ValueError: As in `search_multi_vectors`.
    """
    check_search(queries, documents, k)
    start, stop, _ = share.indices(documents.shape[0])
    k, best = min(k, stop - start), None
    if normalize:
        queries, documents = normalize_embeddings((queries, documents))
    # A block's scores are dense, since most documents share a term with the query
    step = max(1, scores_per_step // queries.shape[0])
    for first in range(start, stop, step):
        end = min(first + step, stop)
        scores = (queries @ documents[first:end].T).toarray()  # [Q, n]
        numbers = np.broadcast_to(np.arange(first, end), scores.shape)
        best = merge_top(best, (scores, numbers), k, precedence)
    return best

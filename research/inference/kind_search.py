"""Exact search of multi-vector and sparse embeddings, on the host."""

from collections.abc import Callable

import numpy as np

from research.inference.similarity import (
    SCORES_PER_STEP,
    count_vectors,
    get_texts,
    maxsim,
    normalize_embeddings,
    split_texts,
    to_multi_vectors,
)
from research.inference.top_k import Top, check_search, merge_top
from research.types import MultiVectors

# Most vectors of queries that are scored at a time.
QUERY_VECTORS = 4_096


def search_multi_vectors(
    queries: np.ndarray | MultiVectors,
    documents: MultiVectors,
    k: int,
    *,
    mean: bool = False,
    normalize: bool = False,
    score: Callable[[MultiVectors, MultiVectors], np.ndarray] = maxsim,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    scores_per_step: int = SCORES_PER_STEP,
) -> Top:
    """The k documents with the largest sums of best dot products (MaxSim).

    The best vector of a document counts for each vector of a query. With one vector per
    query, such as where documents are cut into chunks, it is that of the best chunk.

    Args:
        queries: [Q, D] float32, or several vectors for each of Q queries.
        documents: Vectors of N documents; those of a folder are read in blocks.
        k: Number of documents per query; at most N are returned.
        mean: Whether scores are divided by the number of the query's vectors.
        normalize: Whether vectors are first scaled to length 1.
        score: Function of queries and documents, in the place of `maxsim`.
        precedence: As in `search.rank_documents`.
        share: The range of the documents that is searched.
        scores_per_step: Number of scores of vectors in memory at a time; at least those
            of one query and one document.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of documents.

    Raises:
        ValueError: `k` is not positive, there are no vectors, or the widths differ.
    """
    queries = to_multi_vectors(queries)
    check_search(queries.vectors, documents.vectors, k)
    start, stop, _ = share.indices(documents.count)
    k = min(k, stop - start)
    if normalize:
        (queries,) = normalize_embeddings([queries])
    # Ranges of queries, and the best documents so far of each
    steps = list(split_texts(queries.offsets, 0, queries.count, QUERY_VECTORS))
    best: list[Top | None] = [None] * len(steps)
    widest = max(int(queries.offsets[j] - queries.offsets[i]) for i, j in steps)
    limit = scores_per_step // widest
    # Documents are read once, block by block, for all queries
    for first, end in split_texts(documents.offsets, start, stop, limit):
        block = get_texts(documents, first, end)
        if normalize:
            (block,) = normalize_embeddings([block])
        for i, (low, high) in enumerate(steps):
            scores = score(get_texts(queries, low, high), block)  # [q, n]
            numbers = np.broadcast_to(np.arange(first, end), scores.shape)
            best[i] = merge_top(best[i], (scores, numbers), k, precedence)
    scores, numbers = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return (scores / count_vectors(queries) if mean else scores), numbers


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
        normalize, precedence, share, scores_per_step: As in `search_multi_vectors`.

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

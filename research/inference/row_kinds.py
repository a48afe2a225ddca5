"""Kinds of embeddings whose tokens are rows: their scores on the host, and search.

Texts are `MultiVectors` of rows as in `transforms.token_rows`. To add a kind, add its
number of terms to `token_rows.ROW_TERMS`, its score and search to ROW_KINDS, and its
similarity in training to `losses.similarity`.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from research.inference.multi_vectors import (
    SCORES_PER_STEP,
    count_vectors,
    get_texts,
    maxsim,
    split_texts,
)
from research.inference.top_k import Top, check_search, merge_blocks, merge_top
from research.transforms.normalize import l2_normalize_rows
from research.transforms.token_rows import SPARSE_SHARE, split_rows
from research.types import MultiVectors

# Fewest documents that are scored at a time.
MIN_CANDIDATES = 64
# Bounds are raised by this factor, far more than the rounding of scores.
SLACK = 1 + 1e-6
ID_BITS = 24


class RowKind(NamedTuple):
    """A kind of embeddings, with the similarity of the same name.

    Attributes:
        score: (rows of Q queries, rows of N documents) -> [Q, N] float32.
        search: As `search_m3`.
        one_vector: A pooling of the same parameters that gives one vector per text.
    """

    score: Callable[[MultiVectors, MultiVectors], np.ndarray]
    search: Callable[..., Top]
    one_vector: str


def score_m3(queries: MultiVectors, documents: MultiVectors) -> np.ndarray:
    """Sums of cosines, of products of weights and of mean best cosines (BGE-M3).

    Args:
        queries: Rows of Q queries.
        documents: Rows of N documents.

    Returns:
        [Q, N] float32.

    Raises:
        ValueError: The vectors are no such rows.
    """
    dense, tokens, terms = zip(
        *(_split_m3(texts) for texts in (queries, documents)), strict=True
    )
    # [Q, N] products of weights, and means of best cosines
    weights = _make_weights(terms, (queries.count, documents.count))
    sparse = (weights[0] @ weights[1].T).toarray()
    best = maxsim(*tokens) / count_vectors(tokens[0])
    return dense[0] @ dense[1].T + np.float32(SPARSE_SHARE) * sparse + best


def score_slim(queries: MultiVectors, documents: MultiVectors) -> np.ndarray:
    """MaxSim of tokens of a few weights each (SLIM); arguments as in `score_m3`."""
    return score_terms(*list_terms(queries, documents)).astype(np.float32)


def score_terms(queries: MultiVectors, documents: MultiVectors) -> np.ndarray:
    """MaxSim [Q, N] float64 of texts whose vectors are CSR arrays [C, V]."""
    products = (documents.vectors @ queries.vectors.T).toarray()  # [tokens, tokens]
    # The tokens of a text follow one another: [N, query tokens], then [N, Q]
    best = np.maximum.reduceat(products, documents.offsets[:-1], axis=0)
    return np.add.reduceat(best, queries.offsets[:-1], axis=1).T


def make_bounds(queries: MultiVectors, documents: MultiVectors) -> tuple:
    """Sparse vectors whose dot products are at least the scores of `score_terms`.

    A query's weight of a term is the sum over its tokens, a document's the largest of
    its tokens (Li et al. 2023, SLIM): the best token of a document has no more of any
    term.

    Returns:
        CSR arrays [Q, V] of queries and [N, V] of documents, float64.
    """
    from scipy.sparse import csr_array

    shape = queries.count, queries.vectors.shape[1]
    tokens = queries.vectors.tocoo()
    numbers = queries.text_numbers[tokens.row]
    sums = csr_array((tokens.data, (numbers, tokens.col)), shape=shape)
    tokens = documents.vectors.tocoo()
    terms = documents.text_numbers[tokens.row], tokens.col, tokens.data
    (largest,) = _make_weights([_keep_largest(*terms)], [documents.count], shape[1])
    return sums, largest


def list_terms(*sides: MultiVectors) -> list[MultiVectors]:
    """SLIM's rows as CSR arrays [C, V] float64, in which sums hardly round.

    V is above all ids of all sides.
    """
    from scipy.sparse import csr_array

    parts = [_split_terms(texts, "slim")[1:] for texts in sides]
    width = 1 + int(max((ids.max() for ids, _ in parts if ids.size), default=0))
    texts = []
    for side, (ids, weights) in zip(sides, parts, strict=True):
        is_term = weights > 0  # [C, K]
        ends = np.cumsum([0, *is_term.sum(1)])
        data = weights[is_term].astype(np.float64), ids[is_term].astype(int), ends
        vectors = csr_array(data, shape=(len(weights), width))
        texts.append(MultiVectors(vectors, side.offsets))
    return texts


def _split_m3(texts: MultiVectors) -> tuple:
    """Dense vectors, vectors of tokens, and (texts, ids, weights) of rows of N texts.

    Vectors are of length 1, and a token of the vocabulary has its largest weight.
    """
    vectors, ids, weights = _split_terms(texts, "m3")
    vectors, numbers = l2_normalize_rows(vectors), texts.text_numbers
    first = texts.offsets[:-1]
    # The first row is the text's, and also the token's if there is no other
    is_token = np.ones(len(vectors), bool)
    is_token[first] = np.diff(texts.offsets) == 1
    counts = np.bincount(numbers[is_token], minlength=texts.count)
    tokens = MultiVectors(vectors[is_token], np.cumsum([0, *counts]))
    return vectors[first], tokens, _keep_largest(numbers, ids[:, 0], weights[:, 0])


def _split_terms(texts: MultiVectors, kind: str) -> tuple:
    """Vectors, ids and weights of rows, checked."""
    vectors, ids, weights = split_rows(np.asarray(texts.vectors), kind)
    if np.any(ids != np.round(ids)) or np.any(weights < 0):
        raise ValueError(f"these vectors are not those of the pooling {kind}")
    return vectors, ids, weights


def _keep_largest(numbers: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> tuple:
    """The texts, ids and weights [n] of terms, each with its largest weight in a text.

    Terms without weight are left out.
    """
    valid = weights > 0
    # One number for a text and an id of three digits, which is sorted once
    keys = (numbers[valid] << ID_BITS) + ids[valid].astype(int)
    order = np.argsort(keys)
    keys, weights = keys[order], weights[valid][order]
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    keys, weights = keys[starts], np.maximum.reduceat(weights, starts)
    return keys >> ID_BITS, keys & (1 << ID_BITS) - 1, weights


def _make_weights(sides, counts, width: int = 0) -> list:
    """CSR arrays [N, V] of (texts, ids, weights) of N texts of each side."""
    from scipy.sparse import csr_array

    # Ids are below the width of all sides
    width = width or 1 + max((int(i.max()) for _, i, _ in sides if len(i)), default=0)
    return [
        csr_array((weights, (numbers, ids)), shape=(count, width))
        for (numbers, ids, weights), count in zip(sides, counts, strict=True)
    ]


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
        queries: Q queries, whose vectors are rows as in `transforms.token_rows`.
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
    limit = scores_per_step // len(queries.vectors)
    blocks = (
        (first, score_m3(queries, get_texts(documents, first, end)))
        for first, end in split_texts(documents.offsets, start, stop, limit)
    )
    return merge_blocks(blocks, min(k, stop - start), precedence)


def search_slim(
    queries: MultiVectors,
    documents: MultiVectors,
    k: int,
    *,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    scores_per_step: int = SCORES_PER_STEP,
) -> Top:
    """The k documents with the largest MaxSim of sparse tokens (Li et al. 2023, SLIM).

    The first stage is a product of sparse vectors of texts, which an inverted index
    computes, and is an upper bound of the score (`make_bounds`). The second stage
    scores the documents with the largest bounds, and goes on until the bound of the
    others is below the k-th score, so that the result is exact. The authors score the
    first 1,000 documents, by bounds of rounded weights without small ones.

    Args:
        queries, documents, k, normalize, precedence, share: As in `search_m3`.
        scores_per_step: Number of bounds, and of values of rows of documents, in memory
            at a time; at least those of one document.

    Returns:
        As in `search_m3`.

    Raises:
        ValueError: As in `search_m3`.
    """
    del normalize
    check_search(queries.vectors, documents.vectors, k)
    start, stop, _ = share.indices(documents.count)
    k = min(k, stop - start)
    # [1, k] of each query; what is not found yet is below all scores
    best = [(np.full((1, k), -np.inf), np.zeros((1, k), int))] * queries.count
    limit = scores_per_step // documents.vectors.shape[1]
    for first, end in split_texts(documents.offsets, start, stop, limit):
        q, d = list_terms(queries, get_texts(documents, first, end))
        sums, largest = make_bounds(q, d)
        step = max(1, scores_per_step // d.count)
        for i in range(q.count):
            # [step, n] bounds of the next queries
            if i % step == 0:
                bounds = (sums[i : i + step] @ largest.T).toarray() * SLACK
            for numbers in _list_candidates(bounds[i % step], k):
                is_open = bounds[i % step][numbers] >= best[i][0][0, -1]
                if not is_open.any():
                    break
                numbers = numbers[is_open]
                scores = score_terms(q.take_texts([i]), d.take_texts(numbers))
                top = scores.astype(np.float32), first + numbers[None]
                best[i] = merge_top(best[i], top, k, precedence)
    scores, numbers = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return scores.astype(np.float32), numbers


def _list_candidates(bounds: np.ndarray, k: int) -> Iterator[np.ndarray]:
    """Yields numbers of documents from the largest bound on, ever more at a time."""
    order, start, size = np.argsort(-bounds, kind="stable"), 0, max(k, MIN_CANDIDATES)
    while start < len(order):
        yield order[start : start + size]
        start, size = start + size, 2 * size


ROW_KINDS = {
    "m3": RowKind(score_m3, search_m3, "m3(output='dense')"),
    "slim": RowKind(score_slim, search_slim, "splade"),
}

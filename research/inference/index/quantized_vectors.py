"""Vectors that are stored as codes, and the ranking of candidates by a query."""

from typing import Any

import numpy as np

from research.inference.top_k import merge_top
from research.transforms.normalize import l2_normalize_rows
from research.transforms.quantization import Quantizer
from research.types import MultiVectors

# Number of queries whose candidates are in memory at a time.
_QUERIES_PER_STEP = 64


class QuantizedVectors:
    """Vectors [N, D] that are codes in memory; a slice decodes these rows alone.

    Args:
        codes: [N, W] codes of the quantizer.
        quantizer: What decodes them.
    """

    ndim = 2

    def __init__(self, codes: np.ndarray, quantizer: Quantizer):
        self.codes, self.quantizer = codes, quantizer
        self.shape = len(codes), quantizer.width

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.quantizer.decode(self.codes[rows])

    def take(self, numbers: np.ndarray, axis: int = 0) -> np.ndarray:
        """The vectors [n, D] float32 of the rows [n]."""
        return self.quantizer.decode(self.codes.take(numbers, axis))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def store_vectors(embeddings: Any, quantizer: Quantizer | None) -> Any:
    """Embeddings of documents as they are stored: encoded, if there is a quantizer.

    Args:
        embeddings: [N, D] vectors, or several vectors for each of N documents.
        quantizer: What encodes vectors; None for nothing.
    """
    if quantizer is None:
        return embeddings
    if isinstance(embeddings, MultiVectors):
        vectors = store_vectors(embeddings.vectors, quantizer)
        return embeddings._replace(vectors=vectors)
    return QuantizedVectors(quantizer.encode(embeddings), quantizer)


def rescore_candidates(
    queries: np.ndarray,
    documents: Any,
    candidates: np.ndarray,
    k: int,
    *,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of each query's candidates, by dot products with their vectors.

    Args:
        queries: [Q, D].
        documents: [N, D] vectors, in memory, as codes or in a folder.
        candidates: [Q, n] numbers of documents; -1 for none.
        k: Number of documents per query; at most n are returned.
        normalize: Whether vectors are first scaled to length 1.
        precedence: As in `search.rank_documents`.

    Returns:
        Scores [Q, k] float32 from best to worst, and numbers of documents; those
        without a document have the score -inf.
    """
    best = []
    for start in range(0, len(queries), _QUERIES_PER_STEP):
        some = slice(start, start + _QUERIES_PER_STEP)
        # A document that is a candidate of several queries is read once: [u, D]
        numbers, positions = np.unique(candidates[some], return_inverse=True)
        vectors = np.asarray(documents.take(np.maximum(numbers, 0), axis=0), np.float32)
        vectors = l2_normalize_rows(vectors) if normalize else vectors
        positions = positions.reshape(candidates[some].shape)
        scores = queries[some].astype(np.float32) @ vectors.T  # [q, u]
        scores = np.take_along_axis(scores, positions, 1)  # [q, n]
        scores[candidates[some] < 0] = -np.inf
        best.append(merge_top(None, (scores, candidates[some]), k, precedence))
    scores, numbers = map(np.concatenate, zip(*best, strict=True))
    return scores, numbers

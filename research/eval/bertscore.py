"""BERTScore: precision and recall of the tokens of two texts (Zhang et al. 2020)."""

from typing import NamedTuple

import numpy as np

from research.inference.multi_vectors import get_texts
from research.inference.similarity import normalize_embeddings
from research.types import MultiVectors


class BertScore(NamedTuple):
    """Scores of N pairs of texts, [N] float32 each."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def bertscore(
    candidates: MultiVectors,
    references: MultiVectors,
    *,
    idf: bool = False,
    baseline: float = 0.0,
) -> BertScore:
    """BERTScore of each candidate with the reference of the same number.

    Precision is the mean, over a candidate's tokens, of the best cosine with a token of
    the reference, and recall the same of the reference; F1 is their harmonic mean.
    Special tokens are no part of the means, but may be the best match of a token.

    Zhang et al. 2020, arXiv:1904.09675.

    Args:
        candidates: Vectors of the tokens of N texts.
        references: Vectors of the tokens of N texts.
        idf: Whether means are weighted by ln((N + 1) / (n + 1)) of each token, where n
            references have it.
        baseline: Score b of texts that have nothing to do with each other; scores x
            become (x - b) / (1 - b).

    Raises:
        ValueError: The numbers of texts differ, or `idf` is asked of vectors without
            tokens.
    """
    if candidates.count != references.count:
        raise ValueError(
            f"{candidates.count} candidates cannot be compared with "
            f"{references.count} references"
        )
    weights = weigh_tokens(candidates, references if idf else None)
    weights = weights, weigh_tokens(references, references if idf else None)
    # Precision and recall [2, N], pair by pair
    pair = normalize_embeddings((candidates, references))
    means = np.zeros((2, references.count), np.float32)
    for i in range(references.count):
        a, b = (get_texts(x, i, i + 1).vectors for x in pair)
        scores = a @ b.T  # [S, T] cosines
        for side, best in enumerate((scores.max(1), scores.max(0))):
            start, stop = pair[side].offsets[i : i + 2]
            w = weights[side][start:stop]
            # A text of special tokens alone scores 0
            means[side, i] = best @ w / w.sum() if w.any() else 0.0
    # The harmonic mean, which is 0 if both are
    total = means.sum(0)
    f1 = np.where(total == 0, 0, 2 * means.prod(0) / np.where(total == 0, 1, total))
    return BertScore(*((x - baseline) / (1 - baseline) for x in (*means, f1)))


def weigh_tokens(texts: MultiVectors, references: MultiVectors | None) -> np.ndarray:
    """Weights [C] float32 of the tokens of texts: 0 for special ones.

    Args:
        texts: The texts.
        references: Texts whose inverse document frequencies are the weights; None for
            equal weights.
    """
    if references is None:
        if texts.token_ids is None:
            return np.ones(len(texts.vectors), np.float32)
        return (texts.token_ids >= 0).astype(np.float32)
    if texts.token_ids is None or references.token_ids is None:
        raise ValueError("idf weights need vectors of tokens, not those of chunks")
    # The number of references with a token
    pairs = np.stack([references.token_ids, references.text_numbers], 1)
    tokens, counts = np.unique(np.unique(pairs, axis=0)[:, 0], return_counts=True)
    # [V] numbers by token, 0 for tokens that no reference has
    size = int(max(tokens.max(), texts.token_ids.max())) + 1
    frequency = np.zeros(size, np.int64)
    frequency[tokens[tokens >= 0]] = counts[tokens >= 0]
    weights = np.log((references.count + 1) / (frequency[texts.token_ids] + 1))
    return np.where(texts.token_ids >= 0, weights, 0).astype(np.float32)

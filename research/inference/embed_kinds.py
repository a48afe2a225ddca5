"""Multi-vector, sparse and joined embeddings, from the vectors of encoders."""

from collections.abc import Callable, Sequence

import numpy as np

from research.inference.batching import TokenRows, list_pooled_tokens
from research.transforms.normalize import l2_normalize_rows
from research.types import MultiVectors

# Texts whose weights for all tokens of a vocabulary are in memory at a time: 120 MB for
# 30,000 tokens.
SPARSE_TEXTS = 1_024
# finish(vectors [n, ...], name of each in error messages) -> vectors
Finish = Callable[[np.ndarray, Callable[[int], str]], np.ndarray]


def group_tokens(
    vectors: np.ndarray,
    rows: TokenRows,
    finish: Finish,
    label: Callable[[int], str],
    special: np.ndarray,
) -> MultiVectors:
    """The vectors of tokens, by their texts.

    Args:
        vectors: [C, D] vectors of the pooled tokens of N rows, end to end.
        rows: The rows, one per text.
        finish: Truncates and normalizes vectors.
        label: Function from the index of a text to its name in error messages.
        special: [n] ids of special tokens.
    """
    # The tokens of a row follow one another
    masks = list_pooled_tokens(rows)
    pairs = zip(rows.token_ids, masks, strict=True)
    token_ids = np.concatenate([np.asarray(row)[mask] for row, mask in pairs])
    token_ids[np.isin(token_ids, special)] = -1
    counts = [mask.sum() for mask in masks]
    numbers = np.repeat(np.arange(len(counts)), counts)
    # Vectors of zeros are no tokens, unless a text has no other
    is_token = vectors.reshape(len(vectors), -1).any(1)
    if not is_token.all():
        has_token = np.bincount(numbers[is_token], minlength=len(counts)) > 0
        is_token |= ~has_token[numbers]
        vectors, numbers = vectors[is_token], numbers[is_token]
        token_ids = token_ids[is_token]
        counts = np.bincount(numbers, minlength=len(counts))
    texts = MultiVectors(vectors, np.cumsum([0, *counts]), token_ids=token_ids)
    vectors = finish(vectors, lambda i: label(int(numbers[i])))
    return texts._replace(vectors=vectors)


def check_finite(vectors: np.ndarray, label: Callable[[int], str]) -> None:
    """Checks vectors [N, ..., D].

    Raises:
        ValueError: A vector is not finite; `label` names its text.
    """
    # A vector whose norm overflows would become zero.
    with np.errstate(over="ignore", invalid="ignore"):
        norms = np.linalg.norm(np.asarray(vectors, np.float32), axis=-1)
    is_finite = np.isfinite(norms.reshape(len(vectors), -1)).all(1)  # [N]
    if not is_finite.all():
        raise ValueError(
            f"the vector of {label(int(is_finite.argmin()))} is not finite: the "
            "model's parameters have values that are not, or too large ones"
        )


def encode_sparse(
    encode: Callable[[TokenRows], np.ndarray],
    rows: TokenRows,
    finish: Finish,
    label: Callable[[int], str],
):
    """Sparse weights of texts, some texts at a time.

    Args:
        encode: Function from rows of tokens to weights [n, V].
        rows: N rows, one per text.
        finish: Truncates and normalizes vectors.
        label: Function from the index of a text to its name in error messages.

    Returns:
        [N, V] SciPy CSR array, float32, of the weights that are not 0.
    """
    from scipy.sparse import csr_array, vstack

    # The weights of a vocabulary take too much memory for a corpus
    parts = []
    for start in range(0, len(rows.token_ids), SPARSE_TEXTS):
        some = slice(start, start + SPARSE_TEXTS)
        part = TokenRows(*(None if x is None else x[some] for x in rows))
        weights = finish(encode(part), lambda i, first=start: label(first + i))
        parts.append(csr_array(np.asarray(weights, np.float32)))
    return vstack(parts, format="csr") if parts[1:] else parts[0]


def join_embeddings(parts: Sequence, *, normalize: bool):
    """Concatenated vectors of the same texts by several models.

    The dot product of two such vectors is the sum of those of the models.

    Args:
        parts: Embeddings of N texts by each model, [N, D_i] or `MultiVectors` of their
            chunks, as many in each.
        normalize: Whether the vectors of each model are first scaled to length 1, so
            that cosines are averaged.

    Returns:
        [N, sum of D_i] float32, or `MultiVectors` of chunks.

    Raises:
        ValueError: The models have other numbers of chunks of a text.
    """
    vectors = [np.asarray(getattr(part, "vectors", part)) for part in parts]
    offsets = [getattr(part, "offsets", np.arange(len(part) + 1)) for part in parts]
    # A chunk has a vector in every model
    for other in offsets[1:]:
        if not np.array_equal(other, offsets[0]):
            number = int(np.argmax(np.diff(other) != np.diff(offsets[0])))
            counts = [np.diff(x)[number] for x in (offsets[0], other)]
            raise ValueError(
                f"text {number} has {counts[0]} chunks in one model and {counts[1]} in "
                "another: cut them alike, and texts at one --max_length"
            )
    if normalize:
        vectors = list(map(l2_normalize_rows, vectors))
    joined = np.concatenate(vectors, axis=1)
    if isinstance(parts[0], MultiVectors):
        return parts[0]._replace(vectors=joined)
    return joined

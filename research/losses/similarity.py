"""Similarities of queries and documents: cosine and dot product.

Losses of scores take the similarities of a batch as `PairScores`. To add a similarity,
add a function ([N, D], [M, D]) -> [N, M] to SIMILARITIES.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.transforms.normalize import l2_normalize, to_float32
from research.types import Array, Labels


class PairScores(NamedTuple):
    """Similarities between the texts of a batch, float32.

    Under jit, fields that a loss does not use are not computed.

    Attributes:
        query_document: [B, B*K] scores of query i and document j.
        query_query: [B, B] scores of queries i and j.
        positive_positive: [B, B] scores of the positives of queries i and j.
        own_documents: [B, K] scores of each query and its own documents, the positive
            first.
    """

    query_document: Array
    query_query: Array
    positive_positive: Array
    own_documents: Array


def pair_scores(q: Array, d: Array, similarity: str) -> PairScores:
    """Scores the queries and documents of a batch against each other.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents; rows i*K ... i*K + K-1 belong to query i.
        similarity: A name in SIMILARITIES.

    Raises:
        ValueError: The similarity is unknown, or the number of documents is not a
            multiple of the number of queries.
    """
    check_option("similarity", similarity, SIMILARITIES)
    score = SIMILARITIES[similarity]
    positives = d[:: docs_per_query(q, d)]  # [B, D]
    return PairScores(
        query_document=score(q, d),
        query_query=score(q, q),
        positive_positive=score(positives, positives),
        own_documents=own_document_scores(q, d, similarity),
    )


def own_document_scores(q: Array, d: Array, similarity: str) -> Array:
    """Scores each query against its own documents only.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents.
        similarity: A name in SIMILARITIES.

    Returns:
        [B, K] float32.
    """
    d = d.reshape(q.shape[0], docs_per_query(q, d), -1)
    # [B, 1, D] x [B, K, D] -> [B, 1, K]
    return jax.vmap(SIMILARITIES[similarity])(q[:, None], d)[:, 0]


def dot(x: Array, y: Array) -> Array:
    """Dot products of [N, D] and [M, D]: [N, M] float32."""
    chex.assert_rank([x, y], 2)
    # With the default precision TPUs multiply in bfloat16: a cosine near 1 is then off
    # by up to 0.004, and its logit by 0.4 at a temperature of 0.01.
    return jnp.matmul(
        to_float32(x),
        to_float32(y).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def cosine(x: Array, y: Array) -> Array:
    """Cosines of [N, D] and [M, D]: [N, M] float32; 0 for a vector of zeros."""
    return dot(l2_normalize(x), l2_normalize(y))


def docs_per_query(q: Array, d: Array) -> int:
    """K, the number of documents per query.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents.

    Raises:
        ValueError: The documents do not divide evenly among the queries.
    """
    chex.assert_rank([q, d], 2)
    if d.shape[0] % q.shape[0]:
        raise ValueError(
            f"{d.shape[0]} documents do not divide evenly among {q.shape[0]} queries"
        )
    return d.shape[0] // q.shape[0]


def target_scores(labels: Labels, shape: tuple[int, int]) -> Array:
    """The labels' graded similarities, one per query and document.

    Args:
        labels: Labels with score [B] (if K is 1) or [B, K].
        shape: (B, K).

    Returns:
        [B, K] float32.

    Raises:
        ValueError: The scores are missing, or not one per pair.
    """
    if labels.score is None:
        raise ValueError("this loss needs a score for each pair, but the data has none")
    if labels.score.size != shape[0] * shape[1]:
        raise ValueError(
            f"this loss needs a score for each of {shape[0]} x {shape[1]} pairs, "
            f"but the scores have shape {labels.score.shape}"
        )
    return to_float32(labels.score).reshape(shape)


# Functions ([N, D], [M, D]) -> [N, M] float32, by name.
SIMILARITIES = {"cosine": cosine, "dot": dot}

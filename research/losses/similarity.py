"""Similarities of queries and documents, and what losses check about both."""

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.transforms.normalize import l2_normalize, to_float32
from research.types import Array, Labels


def similarities(q: Array, d: Array, similarity: str) -> Array:
    """[B, N] float32 "cosine" or "dot" of every row of q [B, D] with every one of d."""
    check_option("similarity", similarity, ("cosine", "dot"))
    if similarity == "cosine":
        q, d = l2_normalize(q), l2_normalize(d)
    # The default precision multiplies in bfloat16 on TPU, where a cosine near 1 is off
    # by up to 0.004: 0.4 of a logit at a temperature of 0.01.
    return jnp.matmul(
        to_float32(q),
        to_float32(d).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def cosines(q: Array, d: Array) -> Array:
    """[B, K] cosine of each query with its own documents."""
    ways_of(q, d)
    d = l2_normalize(d).reshape(q.shape[0], -1, q.shape[1])
    return jnp.sum(l2_normalize(q)[:, None] * d, axis=-1)


def scores_of(q: Array, d: Array, labels: Labels) -> Array:
    """[B, K] float32 scores of the pairs of each query with its documents.

    Raises:
        ValueError: scores are missing, or not one for each pair.
    """
    shape = (q.shape[0], ways_of(q, d))
    if labels.score is None:
        raise ValueError("this loss needs a score for each pair, but the data has none")
    if labels.score.size != shape[0] * shape[1]:
        raise ValueError(
            f"this loss needs a score for each of {shape[0]} x {shape[1]} pairs, "
            f"but the scores have shape {labels.score.shape}"
        )
    return to_float32(labels.score).reshape(shape)


def ways_of(q: Array, d: Array) -> int:
    """K, the number of documents of each query; ValueError if it is not whole."""
    if d.shape[0] % q.shape[0]:
        raise ValueError(
            f"{d.shape[0]} documents do not divide evenly among {q.shape[0]} queries"
        )
    return d.shape[0] // q.shape[0]

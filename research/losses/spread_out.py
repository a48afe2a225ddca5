"""Spread-out regularization: the texts of a batch should point in all directions."""

import jax.numpy as jnp

from research.losses.contrastive import find_same_texts
from research.losses.similarity import PairScores
from research.types import Array, Labels


def spread_out(scores: PairScores, labels: Labels) -> Array:
    """Mean square of the similarities of different queries, plus that of positives.

    The second moment of Zhang et al. 2017, as EmbeddingGemma (Schechter Vera et al.
    2025) uses it beside a contrastive loss. It is 0 for orthogonal vectors, 2 for equal
    ones, and 2 / D on average for random ones of D dimensions. It is meant for cosines.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Ids of equal texts, which are not pushed apart.

    Returns:
        [b] float32, the mean over the other rows of the batch.
    """
    vectors = scores.vectors
    num_docs, is_own = vectors.docs_per_query, vectors.is_own
    same_query, same_document = find_same_texts(vectors, labels)
    total = jnp.zeros(len(vectors.queries))
    # [b, B] similarities of queries, and of positives
    for similarities, is_same in (
        (scores.query_query, same_query),
        (scores.positive_positive, same_document[:, ::num_docs]),
    ):
        squares = jnp.where(is_same | is_own, 0.0, jnp.square(similarities))
        total += jnp.sum(squares, axis=1) / max(1, is_own.shape[1] - 1)
    return total

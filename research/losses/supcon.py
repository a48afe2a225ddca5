"""Supervised contrastive loss (SupCon): all texts of a class are positives."""

import chex
import jax
import jax.numpy as jnp

from research.losses.similarity import PairScores
from research.types import Array, Labels


def supcon(scores: PairScores, labels: Labels, *, temperature: float = 0.05) -> Array:
    """Softmax cross-entropy with several positives: supervised contrastive loss.

    Khosla et al. 2020, eq. 2 (L_out), of queries and documents: the positives of a
    query are its own positive and those of all queries of its group (the class of
    `labeled_texts`). The loss is the mean over them; the denominator has all documents.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Labels whose query_id is the group; without them, a query has one
            positive.
        temperature: Divisor of the similarities.

    Returns:
        [b] float32 loss per query.
    """
    vectors, num_docs = scores.vectors, scores.vectors.docs_per_query
    same_group = vectors.is_own  # [b, B]
    if (ids := labels.query_id) is not None:
        chex.assert_shape(ids, (len(vectors.all_queries), 2))
        same_group |= jnp.all(vectors.take_rows(ids)[:, None] == ids[None], axis=-1)
    # [b, B*K] positives of the queries of the group
    is_positive = jnp.repeat(same_group, num_docs, axis=1)
    is_positive &= (jnp.arange(is_positive.shape[1]) % num_docs == 0)[None, :]
    # [b, B*K] logits, and the mean of those of the positives
    logits = scores.query_document / temperature
    total = jnp.sum(jnp.where(is_positive, logits, 0.0), axis=1)
    count = jnp.sum(is_positive, axis=1).astype(jnp.float32)
    return jax.nn.logsumexp(logits, axis=1) - total / count

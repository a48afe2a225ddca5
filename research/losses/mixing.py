"""Synthetic hard negatives: mixtures of a query's own ones (KaLM-Embedding-V2).

Zhao et al. 2025. A pair-wise mixture is the point between two negatives, at a place
that is drawn from Beta(2, 2); a list-wise one is the mean of all, weighted by the
softmax of their similarities to the query (our reading: the paper's formula was not at
hand). Mixtures are negatives of every query for which all their parents are.
"""

import jax
import jax.numpy as jnp

from research.losses.similarity import SIMILARITIES, TOKEN_SIMILARITIES, PairScores
from research.transforms.normalize import l2_normalize, to_float32
from research.types import Array, Key, Labels


def mix_negatives(
    scores: PairScores,
    labels: Labels,
    allowed: Array,
    *,
    temperature: float,
    pairs: int,
    lists: bool,
) -> tuple[Array, Array]:
    """Similarities of b queries and the mixtures of all queries' hard negatives.

    The draws depend on the step, by the labels' draw, and not on the devices.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Labels of the batch.
        allowed: [b, B*K] bool, documents that are negatives of a row.
        temperature: Divisor of the similarities that weight a list.
        pairs: Number of pair-wise mixtures per query.
        lists: Whether there is a list-wise mixture per query.

    Returns:
        [b, B*M] similarities, with M mixtures per query, and [b, B*M] bool, mixtures
        that are negatives of a row.

    Raises:
        ValueError: A query has no two hard negatives, or several vectors.
    """
    vectors = scores.vectors
    if scores.similarity in TOKEN_SIMILARITIES:
        raise ValueError(
            f"mixtures are of one vector per text, which {scores.similarity} does not "
            "compare"
        )
    count, num_negatives = len(vectors.all_queries), vectors.docs_per_query - 1
    if num_negatives < 2:
        raise ValueError(
            "mixtures blend at least two hard negatives of a query, which has "
            f"{num_negatives or 'none'}"
        )
    # [B, N, D] hard negatives; of cosines only the directions count
    negatives = to_float32(vectors.all_documents)
    if scores.similarity == "cosine":
        negatives = l2_normalize(negatives)
    negatives = negatives.reshape(count, num_negatives + 1, -1)[:, 1:]
    # [B, M, N] weights of the parents
    weights = []
    if pairs:
        weights.append(
            draw_pair_weights(_make_key(labels), (count, pairs, num_negatives))
        )
    if lists:
        logits = scores.all_own_documents[:, 1:] / temperature  # [B, N]
        weights.append(jax.nn.softmax(logits, axis=1)[:, None])
    weights = jnp.concatenate(weights, axis=1)
    mixed = blend(weights, negatives)  # [B*M, D]
    similarities = SIMILARITIES[scores.similarity](vectors.queries, mixed)
    # Mixtures with a parent that is no negative of the row: [b, B, M]
    hidden = ~allowed.reshape(-1, count, num_negatives + 1)[:, :, 1:]
    parents = jnp.einsum("bjn,jmn->bjm", to_float32(hidden), to_float32(weights > 0))
    return similarities, parents.reshape(similarities.shape) == 0


def draw_pair_weights(key: Key, shape: tuple[int, int, int]) -> Array:
    """Weights of two random parents each, that sum to 1, the others being 0.

    Args:
        key: Key of the draws.
        shape: (B, M, N), the number of queries, mixtures and parents.

    Returns:
        [B, M, N] float32.
    """
    choice_key, place_key = jax.random.split(key)
    # Two different parents: those with the highest of N random numbers
    parents = jax.lax.top_k(jax.random.uniform(choice_key, shape), 2)[1]  # [B, M, 2]
    # The median of three uniform numbers has the distribution Beta(2, 2)
    place = jnp.sort(jax.random.uniform(place_key, (*shape[:2], 3)), axis=-1)[..., 1:2]
    places = jnp.concatenate([place, 1 - place], axis=-1)  # [B, M, 2]
    is_parent = jax.nn.one_hot(parents, shape[2])  # [B, M, 2, N]
    return jnp.sum(is_parent * places[..., None], axis=2)


def blend(weights: Array, negatives: Array) -> Array:
    """Weighted sums of hard negatives of each query.

    Args:
        weights: [B, M, N].
        negatives: [B, N, D] float32.

    Returns:
        [B*M, D] float32.
    """
    mixed = jnp.einsum(
        "jmn,jnd->jmd", weights, negatives, precision=jax.lax.Precision.HIGHEST
    )
    return mixed.reshape(-1, negatives.shape[-1])


def _make_key(labels: Labels) -> Key:
    """A key for each step, the same on all devices."""
    return jax.random.key(0 if labels.draw is None else labels.draw[0])

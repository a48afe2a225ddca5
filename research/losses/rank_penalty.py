"""Entropy of the spectrum of embeddings, as a term that lowers or raises their rank."""

import chex
import jax.numpy as jnp

from research.losses.similarity import dot
from research.transforms.normalize import l2_normalize
from research.types import Array

# Smaller shares of the spectrum are rounding; they contribute nothing.
MIN_SHARE = 1e-7


def von_neumann_entropy(x: Array) -> Array:
    """Entropy, in nats, of the eigenvalues of u^T u / N for the unit rows u of [N, D].

    Its exponential is the representation rank. With a positive weight in a loss it
    stands in for the rank reduction of Jung et al. 2024, "Unveiling Key Aspects of
    Fine-Tuning in Sentence Embeddings: A Representation Rank Analysis", whose own
    formula was not at hand.

    Returns:
        [] float32: 0 for a single direction, log D at most.
    """
    chex.assert_rank(x, 2)
    x = l2_normalize(x)
    # The smaller Gram matrix, whose nonzero eigenvalues are those of the other one.
    gram = dot(x, x) if len(x) < x.shape[1] else dot(x.T, x.T)
    values = jnp.linalg.eigvalsh(gram)
    shares = values / jnp.maximum(values.sum(), MIN_SHARE)
    # The inner `where` keeps the infinite gradient of log at 0 out of the result.
    valid = shares > MIN_SHARE
    logs = jnp.log(jnp.where(valid, shares, 1.0))
    return -jnp.sum(jnp.where(valid, shares * logs, 0.0))

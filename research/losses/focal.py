"""Weights of examples by how hard they are."""

import jax.numpy as jnp

from research.types import Array


def focal_weights(loss: Array, exponent: float, progress: Array | None = None) -> Array:
    """(1 - p)^exponent for the probability p = exp(-loss) of each positive: [b].

    Lin et al. 2017, for contrastive losses Zhao et al. 2025 (KaLM-Embedding-V2).

    Args:
        loss: [b] cross-entropy of the positives.
        exponent: Exponent of the weights.
        progress: [B] the part of the run that is done, which scales the exponent; None
            for 1.
    """
    # 1 - p without cancellation, and above 0: the slope of a root is infinite there
    difficulty = jnp.maximum(-jnp.expm1(-loss), 1e-6)
    scale = 1.0 if progress is None else progress[0]
    return difficulty ** (exponent * scale)

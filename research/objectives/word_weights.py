"""Which words are hidden more often: rare ones, or those that are hard to predict.

A table over the vocabulary says how likely a token is to be hidden, relative to others
(Zhang et al. 2023, "Weighted sampling for masked language modeling").
"""

import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import check_option
from research.types import Array, TokenizerInfo

WEIGHTINGS = ("none", "frequency", "loss")
# Tokens that occur less often than this are as rare as if they did so often.
RAREST = 10
# The share of a step in a token's running loss.
RATE = 0.1


def checked(weighting: str, text: TokenizerInfo) -> str:
    """The weighting.

    Raises:
        ValueError: it is none, or the data it needs are not known.
    """
    check_option("objective.weighting", weighting, WEIGHTINGS)
    if weighting == "frequency" and text.token_counts is None:
        raise ValueError(
            "objective.weighting 'frequency' needs counts of the data's tokens, which "
            "are not known"
        )
    return weighting


def of_frequency(counts: np.ndarray, power: float) -> np.ndarray:
    """max(count, RAREST)^-power: [V] float32 of the counts [V]."""
    return (np.maximum(counts, RAREST) ** -float(power)).astype(np.float32)


def running_losses(vocab: int) -> Array:
    """[V] float32 what each token's prediction costs, before any was made: log V."""
    return jnp.full(vocab, np.log(vocab), jnp.float32)


def updated(losses: Array, labels: Array, new: Array, real: Array) -> Array:
    """Running losses after another step.

    Each token that was hidden in the step moves by RATE towards the mean of what its
    predictions cost there.

    Args:
        losses: [V] float32.
        labels: [...] int32 tokens that were predicted.
        new: [...] float32 what that cost.
        real: [...] bool, which count.

    Returns:
        [V] float32.
    """

    def total(values):
        values = jnp.where(real, values, 0.0).ravel()
        return jax.ops.segment_sum(values, labels.ravel(), len(losses))

    count = total(jnp.ones_like(new))
    mean = total(new) / jnp.maximum(count, 1.0)
    return jnp.where(count > 0, losses + RATE * (mean - losses), losses)

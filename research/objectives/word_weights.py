"""Weights of words for masking: rare words, or words that are hard to predict.

A table over the vocabulary says how likely a token is to be masked, relative to others
(Zhang et al. 2023, "Weighted sampling for masked language modeling").
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import check_option
from research.types import Array, TokenizerInfo

WEIGHTINGS = ("none", "frequency", "loss")
# Tokens that occur less often than this count as if they occurred this often.
MIN_COUNT = 10
# The share of a step in a token's running loss.
RATE = 0.1


def check_weighting(weighting: str, tokenizer: TokenizerInfo) -> None:
    """Raises ValueError for an unknown weighting, or one whose counts are unknown."""
    check_option("objective.weighting", weighting, WEIGHTINGS)
    if weighting == "frequency" and tokenizer.token_counts is None:
        raise ValueError(
            "objective.weighting 'frequency' needs counts of the data's tokens, which "
            "are not known"
        )


def frequency_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """max(count, MIN_COUNT)^-power: [V] float32 of token counts [V]."""
    return (np.maximum(counts, MIN_COUNT) ** -float(power)).astype(np.float32)


def initial_losses(vocab_size: int) -> Array:
    """[V] float32 running losses before the first step: log V, a uniform guess's."""
    return jnp.full(vocab_size, np.log(vocab_size), jnp.float32)


def update_losses(
    running_losses: Array, labels: Array, losses: Array, valid: Array
) -> Array:
    """Running losses after another step.

    Each token that was masked in the step moves by RATE towards the mean of its losses
    there.

    Args:
        running_losses: [V] float32.
        labels: [...] int32 tokens that were predicted.
        losses: [...] float32 loss of each prediction.
        valid: [...] bool, which predictions count.

    Returns:
        [V] float32.
    """
    chex.assert_equal_shape([labels, losses, valid])

    def sum_by_token(values):
        values = jnp.where(valid, values, 0.0).ravel()
        return jax.ops.segment_sum(values, labels.ravel(), len(running_losses))

    count = sum_by_token(jnp.ones_like(losses))
    mean = sum_by_token(losses) / jnp.maximum(count, 1.0)
    moved = running_losses + RATE * (mean - running_losses)
    return jnp.where(count > 0, moved, running_losses)

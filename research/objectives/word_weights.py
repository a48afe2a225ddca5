"""Sampling weights for masking: by the rarity of a token, or by its loss.

A table over the vocabulary holds the weight with which a token is sampled for masking
(Zhang et al. 2023, "Weighted sampling for masked language modeling").
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import check_option
from research.types import Array, TokenizerInfo

WEIGHTINGS = ("none", "frequency", "loss")
# Smaller token counts are raised to this number.
MIN_COUNT = 10
# Weight of the current step in the running loss of a token.
RATE = 0.1


def check_weighting(weighting: str, tokenizer: TokenizerInfo) -> None:
    """Raises ValueError for an unknown weighting, or missing token counts."""
    check_option("objective.weighting", weighting, WEIGHTINGS)
    if weighting == "frequency" and tokenizer.token_counts is None:
        raise ValueError(
            "objective.weighting 'frequency' needs counts of the data's tokens, which "
            "are not known"
        )


def frequency_weights(counts: np.ndarray, power: float) -> np.ndarray:
    """[V] float32 weights max(count, MIN_COUNT)^-power of token counts [V]."""
    return (np.maximum(counts, MIN_COUNT) ** -float(power)).astype(np.float32)


def initial_losses(vocab_size: int) -> Array:
    """[V] float32 initial running losses: log V, the loss of a uniform guess."""
    return jnp.full(vocab_size, np.log(vocab_size), jnp.float32)


def update_losses(
    running_losses: Array, labels: Array, losses: Array, valid: Array
) -> Array:
    """Updates the running losses by the losses of a step.

    The running loss of each masked token moves by RATE towards its mean loss in the
    step.

    Args:
        running_losses: [V] float32 running losses.
        labels: [...] int32 ids of the predicted tokens.
        losses: [...] float32 loss of each prediction.
        valid: [...] bool, whether a prediction counts.

    Returns:
        [V] float32.
    """
    chex.assert_equal_shape([labels, losses, valid])

    def sum_by_token(values):
        values = jnp.where(valid, values, 0.0).ravel()
        return jax.ops.segment_sum(values, labels.ravel(), len(running_losses))

    # [V] number and mean loss of each token in this step
    count = sum_by_token(jnp.ones_like(losses))
    mean = sum_by_token(losses) / jnp.maximum(count, 1.0)
    # Other tokens keep their running loss
    moved = running_losses + RATE * (mean - running_losses)
    return jnp.where(count > 0, moved, running_losses)

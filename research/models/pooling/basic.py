"""Poolings: the vector of a text from the states of its tokens."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.types import Array, Key, Params


class LearnedPooling(NamedTuple):
    """A pooling that has parameters, or reads more than the last layer.

    Attributes:
        init: (key, the encoder's shape, its parameters) -> the readout's parameters;
            None where it has none.
        pool: (the encoder's parameters, its shape, states, mask [B, M, S]) ->
            [B, M, E]; its own parameters are "readout" of these. The states are
            [B, S, D], or [L, B, M, D] where there is `each`.
        each: what is pooled of every layer first; None reads the last layer only.
        routed: whether `each` takes (states, router's logits [B, S, E], mask).
        head: whether `init` reads the "head" of a pre-training, if there is one.
        width: E of an encoder of that shape; None where it is the encoder's width.
    """

    init: Callable[[Key, EncoderConfig, Params], Params] | None
    pool: Callable[[Params, EncoderConfig, Array, Array], Array]
    pool_layer: Callable[..., Array] | None = None
    reads_router: bool = False
    reuses_head: bool = False
    width: Callable[[EncoderConfig], int] | None = None


def mean_pool(tokens: Array, mask: Array) -> Array:
    """Average of the tokens of each text; 0 for a text of none.

    Args:
        tokens: [B, S, D] hidden states.
        mask: [B, M, S] bool, the tokens of text m of the row.

    Returns:
        [B, M, D] float32.
    """
    return _weighted(tokens, mask.astype(jnp.float32))


def cls_pool(tokens: Array, mask: Array) -> Array:
    """First token of each text; shapes as in `mean`."""
    return _weighted(tokens, first_token_mask(mask).astype(jnp.float32))


def last_token_pool(tokens: Array, mask: Array) -> Array:
    """Last token of each text; shapes as in `mean`."""
    final = jnp.flip(first_token_mask(jnp.flip(mask, -1)), -1)
    return _weighted(tokens, final.astype(jnp.float32))


def max_pool(tokens: Array, mask: Array) -> Array:
    """Largest value of each channel over the text; 0 for none; shapes as in `mean`."""

    def text(chosen):
        x = tokens.astype(jnp.float32)
        x = jnp.where(chosen[:, :, None], x, -jnp.inf).max(1)
        return jnp.where(chosen.any(1)[:, None], x, 0.0)

    # One text at a time: [B, M, S, D] is never in memory.
    return jax.lax.map(text, mask.swapaxes(0, 1)).swapaxes(0, 1)


def weighted_mean_pool(tokens: Array, mask: Array) -> Array:
    """Average with weights 1, 2, 3, ... along the text (SGPT, Muennighoff 2022, eq. 2).

    Shapes as in `mean`.
    """
    ranks = jnp.cumsum(mask, -1, dtype=jnp.int32) * mask.astype(jnp.int32)
    return _weighted(tokens, ranks.astype(jnp.float32))


def first_token_mask(mask: Array) -> Array:
    """Of each text the first token: [B, M, S] bool."""
    return mask & (jnp.cumsum(mask, -1, dtype=jnp.int32) == 1)


def _weighted(tokens: Array, weights: Array) -> Array:
    """Weighted average of the tokens: [B, S, D], [B, M, S] -> [B, M, D] float32."""
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1)
    return jnp.einsum(
        "bms,bsd->bmd",
        weights,
        tokens.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )

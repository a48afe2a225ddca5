"""Poolings without parameters: mean, first, last, maximum, position-weighted mean.

A pooling is a function of token states [B, S, D] and a mask [B, M, S], which says for
each of the M texts of a row which tokens are pooled; its result is [B, M, D] float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.types import Array, Key, Params


class LearnedPooling(NamedTuple):
    """A pooling that has parameters, or that reads more than the last layer.

    Attributes:
        init: (key, encoder config, encoder parameters) -> the pooling's parameters;
            None if it has none.
        pool: (encoder parameters, encoder config, states, mask [B, M, S]) ->
            [B, M, E]. Its own parameters are "pooling" of the encoder's. The states are
            the last layer's tokens [B, S, D], or [L, B, M, D] with `pool_layer`.
        pool_layer: (tokens [B, S, D], mask) -> [B, M, D], applied to each of the L
            layers first; None reads the last layer only.
        reads_router: Whether `pool_layer` takes (tokens, router logits
            [B, S, experts], mask).
        reuses_head: Whether `init` reads the "head" of a pre-training, if there is one.
        width: (encoder config) -> E; None if it is the encoder's width.
    """

    init: Callable[[Key, EncoderConfig, Params], Params] | None
    pool: Callable[[Params, EncoderConfig, Array, Array], Array]
    pool_layer: Callable[..., Array] | None = None
    reads_router: bool = False
    reuses_head: bool = False
    width: Callable[[EncoderConfig], int] | None = None


def mean_pool(tokens: Array, mask: Array) -> Array:
    """Average of the tokens of each text; 0 for a text without tokens.

    Args:
        tokens: [B, S, D] token states.
        mask: [B, M, S] bool, the tokens of text m of the row.

    Returns:
        [B, M, D] float32.
    """
    return _weighted_mean(tokens, mask.astype(jnp.float32))


def cls_pool(tokens: Array, mask: Array) -> Array:
    """First token of each text; shapes as in `mean_pool`."""
    return _weighted_mean(tokens, first_token_mask(mask).astype(jnp.float32))


def last_token_pool(tokens: Array, mask: Array) -> Array:
    """Last token of each text; shapes as in `mean_pool`."""
    last = jnp.flip(first_token_mask(jnp.flip(mask, -1)), -1)  # [B, M, S]
    return _weighted_mean(tokens, last.astype(jnp.float32))


def max_pool(tokens: Array, mask: Array) -> Array:
    """Maximum of each channel over the text; 0 for a text without tokens.

    Shapes as in `mean_pool`.
    """
    _check_shapes(tokens, mask)

    def pool_text(mask):  # [B, S] -> [B, D]
        x = jnp.where(mask[:, :, None], tokens.astype(jnp.float32), -jnp.inf)
        return jnp.where(mask.any(1)[:, None], x.max(1), 0.0)

    # One text at a time: [B, M, S, D] is never in memory.
    return jax.lax.map(pool_text, mask.swapaxes(0, 1)).swapaxes(0, 1)


def weighted_mean_pool(tokens: Array, mask: Array) -> Array:
    """Average with weights 1, 2, 3, ... along the text (SGPT, Muennighoff 2022, eq. 2).

    Shapes as in `mean_pool`.
    """
    ranks = jnp.cumsum(mask, -1, dtype=jnp.int32) * mask.astype(jnp.int32)
    return _weighted_mean(tokens, ranks.astype(jnp.float32))


def first_token_mask(mask: Array) -> Array:
    """Mask [B, M, S] of the first token of each text."""
    return mask & (jnp.cumsum(mask, -1, dtype=jnp.int32) == 1)


def _weighted_mean(tokens: Array, weights: Array) -> Array:
    """Weighted average of the tokens: [B, S, D], [B, M, S] -> [B, M, D] float32."""
    _check_shapes(tokens, weights)
    weights /= jnp.maximum(weights.sum(-1, keepdims=True), 1)
    return jnp.einsum(
        "bms,bsd->bmd",
        weights,
        tokens.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def _check_shapes(tokens: Array, mask: Array) -> None:
    """Checks tokens [B, S, D] against a mask [B, M, S]."""
    chex.assert_rank(tokens, 3)
    chex.assert_shape(mask, (tokens.shape[0], None, tokens.shape[1]))

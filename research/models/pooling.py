"""Poolings: the vector of a text from the states of its tokens."""

import jax
import jax.numpy as jnp

from research.structs import Array


def mean(tokens: Array, mask: Array) -> Array:
    """Average of the tokens of each text; 0 for a text of none.

    Args:
        tokens: [B, S, D] hidden states.
        mask: [B, M, S] bool, the tokens of text m of the row.

    Returns:
        [B, M, D] float32.
    """
    return _weighted(tokens, mask.astype(jnp.float32))


def cls(tokens: Array, mask: Array) -> Array:
    """First token of each text; shapes as in `mean`."""
    return _weighted(tokens, _first(mask).astype(jnp.float32))


def last(tokens: Array, mask: Array) -> Array:
    """Last token of each text; shapes as in `mean`."""
    final = jnp.flip(_first(jnp.flip(mask, -1)), -1)
    return _weighted(tokens, final.astype(jnp.float32))


def maximum(tokens: Array, mask: Array) -> Array:
    """Largest value of each channel over the text; 0 for none; shapes as in `mean`."""

    def text(chosen):
        x = tokens.astype(jnp.float32)
        x = jnp.where(chosen[:, :, None], x, -jnp.inf).max(1)
        return jnp.where(chosen.any(1)[:, None], x, 0.0)

    # One text at a time: [B, M, S, D] is never in memory.
    return jax.lax.map(text, mask.swapaxes(0, 1)).swapaxes(0, 1)


def weighted_mean(tokens: Array, mask: Array) -> Array:
    """Average with weights 1, 2, 3, ... along the text (SGPT, Muennighoff 2022, eq. 2).

    Shapes as in `mean`.
    """
    ranks = jnp.cumsum(mask, -1, dtype=jnp.int32) * mask.astype(jnp.int32)
    return _weighted(tokens, ranks.astype(jnp.float32))


def _first(mask: Array) -> Array:
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


POOLS = {
    "mean": mean,
    "cls": cls,
    "last": last,
    "max": maximum,
    "weighted_mean": weighted_mean,
}

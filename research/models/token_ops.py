"""Rows without some of their tokens, which keep the places where they stood."""

import jax
import jax.numpy as jnp

from research.models.positions.segment_positions import Positions, segment_positions
from research.types import Array, Tokens


def compact_tokens(tokens: Tokens, at: Array, real: Array) -> tuple[Tokens, Positions]:
    """Some of the tokens of rows, and where they stood.

    Args:
        tokens: rows [R, S].
        at: [R, P] int32 places of the row, in any order.
        real: [R, P] bool, which of these count; the others become padding.

    Returns:
        rows [R, P], and places with the positions, lengths of texts and places of the
        row [R, S].
    """

    def picked(x):
        x = jnp.take_along_axis(x, at, axis=1)
        return jnp.where(real, x, jnp.zeros_like(x))

    where = jax.tree.map(picked, segment_positions(tokens.segment_ids))
    return jax.tree.map(picked, tokens), where


def scatter_tokens(x: Array, at: Array, real: Array, fill: Array, length: int) -> Array:
    """States back at their places of the row, and a vector everywhere else.

    Args:
        x: [R, P, D] states.
        at: [R, P] int32 places of the row.
        real: [R, P] bool, which of the states count.
        fill: [D].
        length: S.

    Returns:
        [R, S, D].
    """
    rows = len(x)
    whole = jnp.broadcast_to(fill.astype(x.dtype), (rows, length, x.shape[-1]))
    row = jnp.arange(rows, dtype=jnp.int32)[:, None]
    return whole.at[row, jnp.where(real, at, length)].set(x, mode="drop")


def first_token_positions(segment: Array, texts: int) -> Array:
    """Where the texts of rows begin; 0 for a text that there is not.

    Args:
        segment: [R, S] int32.
        texts: M, the most texts of a row.

    Returns:
        [R, M] int32 places in the row.
    """
    number = jnp.arange(1, texts + 1, dtype=segment.dtype)
    mine = segment[:, None, :] == number[None, :, None]
    return jnp.argmax(mine, axis=2).astype(jnp.int32)


def spread_over_tokens(vectors: Array, segment: Array) -> Array:
    """For every token the vector of its text: [R, M, D], [R, S] -> [R, S, D]."""
    return gather_tokens(vectors, jnp.maximum(segment, 1) - 1)


def replace_first_tokens(x: Array, vectors: Array, where: Positions) -> Array:
    """x [R, S, D] with the vector [R, M, D] of every text in its first place."""
    first = (where.position_ids == 0) & (where.segment_ids > 0)
    return jnp.where(
        first[:, :, None], spread_over_tokens(vectors, where.segment_ids), x
    )


def gather_tokens(x: Array, positions: Array) -> Array:
    """The states at places of the row: [R, S, ...], [R, P] int32 -> [R, P, ...]."""
    return jax.vmap(lambda row, places: row[places])(x, positions)

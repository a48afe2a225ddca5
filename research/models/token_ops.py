"""Gathering and scattering of tokens in packed rows."""

import chex
import jax
import jax.numpy as jnp

from research.models.positions.segment_positions import Positions, segment_positions
from research.types import Array, Tokens


def compact_tokens(
    tokens: Tokens, row_positions: Array, valid: Array
) -> tuple[Tokens, Positions]:
    """Shorter rows of some of the tokens, which keep their positions in their texts.

    Args:
        tokens: Rows [R, S].
        row_positions: [R, P] int32 positions in the row, in any order.
        valid: [R, P] bool, which of these count; the others become padding.

    Returns:
        rows [R, P], and their positions, lengths of texts and positions in the row of
        length S.
    """
    chex.assert_rank(row_positions, 2)
    chex.assert_equal_shape((row_positions, valid))

    def gather_valid(x):
        x = jnp.take_along_axis(x, row_positions, axis=1)
        return jnp.where(valid, x, jnp.zeros_like(x))

    positions = segment_positions(tokens.segment_ids)
    return jax.tree.map(gather_valid, tokens), jax.tree.map(gather_valid, positions)


def scatter_tokens(
    x: Array, row_positions: Array, valid: Array, fill: Array, length: int
) -> Array:
    """States back at their positions in the row, and a vector everywhere else.

    Args:
        x: [R, P, D] states.
        row_positions: [R, P] int32 positions in the row.
        valid: [R, P] bool, which of the states count.
        fill: [D] the vector of all other positions.
        length: S.

    Returns:
        [R, S, D].
    """
    chex.assert_equal_shape_prefix((x, row_positions, valid), 2)
    row_count = len(x)
    filled = jnp.broadcast_to(fill.astype(x.dtype), (row_count, length, x.shape[-1]))
    rows = jnp.arange(row_count, dtype=jnp.int32)[:, None]
    columns = jnp.where(valid, row_positions, length)
    return filled.at[rows, columns].set(x, mode="drop")


def first_token_positions(segment_ids: Array, max_segments: int) -> Array:
    """The position in the row at which each text begins; 0 for a text that is missing.

    Args:
        segment_ids: [R, S] int32.
        max_segments: M, the most texts in a row.

    Returns:
        [R, M] int32.
    """
    numbers = jnp.arange(1, max_segments + 1, dtype=segment_ids.dtype)
    is_text = segment_ids[:, None, :] == numbers[None, :, None]  # [R, M, S]
    return jnp.argmax(is_text, axis=2).astype(jnp.int32)


def spread_over_tokens(vectors: Array, segment_ids: Array) -> Array:
    """For every token the vector of its text: [R, M, D], [R, S] -> [R, S, D]."""
    return gather_tokens(vectors, jnp.maximum(segment_ids, 1) - 1)


def replace_first_tokens(x: Array, vectors: Array, positions: Positions) -> Array:
    """x [R, S, D] with the vector [R, M, D] of every text as its first token's state.

    Args:
        x: [R, S, D] states.
        vectors: [R, M, D], one for each text of a row.
        positions: Positions [R, S] of the tokens.
    """
    is_first = (positions.position_ids == 0) & (positions.segment_ids > 0)
    spread = spread_over_tokens(vectors, positions.segment_ids)
    return jnp.where(is_first[:, :, None], spread, x)


def gather_tokens(x: Array, positions: Array) -> Array:
    """States at positions in the row: [R, S, ...], [R, P] int32 -> [R, P, ...]."""
    chex.assert_rank(positions, 2)
    chex.assert_equal_shape_prefix((x, positions), 1)
    return jax.vmap(lambda row, indices: row[indices])(x, positions)

"""Gathering and scattering of tokens in packed rows."""

import chex
import jax
import jax.numpy as jnp

from research.models.positions.segment_positions import Positions, segment_positions
from research.types import Array, Tokens


def compact_tokens(
    tokens: Tokens, row_positions: Array, valid: Array
) -> tuple[Tokens, Positions]:
    """Gathers some tokens of each row; they keep their positions in their texts.

    Args:
        tokens: Rows [R, S].
        row_positions: [R, P] int32 row positions of the tokens, in any order.
        valid: [R, P] bool, whether an entry is a token; the others become padding.

    Returns:
        Rows [R, P], and Positions [R, P] with the positions, text lengths and row
        positions that the tokens had in the rows [R, S].
    """
    chex.assert_rank(row_positions, 2)
    chex.assert_equal_shape((row_positions, valid))

    def gather_valid(x):
        x = jnp.take_along_axis(x, row_positions, axis=1)
        return jnp.where(valid, x, jnp.zeros_like(x))

    # [R, S] positions in the full rows, then those of the chosen tokens
    positions = segment_positions(tokens.segment_ids)
    return jax.tree.map(gather_valid, tokens), jax.tree.map(gather_valid, positions)


def scatter_tokens(
    x: Array, row_positions: Array, valid: Array, fill: Array, length: int
) -> Array:
    """Scatters states to their row positions; a vector fills all other positions.

    Args:
        x: [R, P, D] states.
        row_positions: [R, P] int32 row positions of the states.
        valid: [R, P] bool, whether a state is scattered.
        fill: [D] vector of all other positions.
        length: S, the length of the result's rows.

    Returns:
        [R, S, D].
    """
    chex.assert_equal_shape_prefix((x, row_positions, valid), 2)
    row_count = len(x)
    filled = jnp.broadcast_to(fill.astype(x.dtype), (row_count, length, x.shape[-1]))
    rows = jnp.arange(row_count, dtype=jnp.int32)[:, None]
    # Other states move out of the row, where mode="drop" ignores them
    columns = jnp.where(valid, row_positions, length)
    return filled.at[rows, columns].set(x, mode="drop")


def first_token_positions(segment_ids: Array, max_segments: int) -> Array:
    """Row position of the first token of each text; 0 for a missing text.

    Args:
        segment_ids: [R, S] int32.
        max_segments: M, the largest number of texts in a row.

    Returns:
        [R, M] int32.
    """
    numbers = jnp.arange(1, max_segments + 1, dtype=segment_ids.dtype)
    is_text = segment_ids[:, None, :] == numbers[None, :, None]  # [R, M, S]
    return jnp.argmax(is_text, axis=2).astype(jnp.int32)


def spread_over_tokens(vectors: Array, segment_ids: Array) -> Array:
    """Copies the vector of each text to its tokens: [R, M, D], [R, S] -> [R, S, D]."""
    return gather_tokens(vectors, jnp.maximum(segment_ids, 1) - 1)


def replace_first_tokens(x: Array, vectors: Array, positions: Positions) -> Array:
    """Replaces the state of each text's first token by the vector of the text.

    Args:
        x: [R, S, D] states.
        vectors: [R, M, D], one vector per text of a row.
        positions: Positions [R, S] of the tokens.
    """
    # [R, S] first tokens of texts
    is_first = (positions.position_ids == 0) & (positions.segment_ids > 0)
    spread = spread_over_tokens(vectors, positions.segment_ids)
    return jnp.where(is_first[:, :, None], spread, x)


def gather_tokens(x: Array, positions: Array) -> Array:
    """Gathers states at row positions: [R, S, ...], [R, P] int32 -> [R, P, ...]."""
    chex.assert_rank(positions, 2)
    chex.assert_equal_shape_prefix((x, positions), 1)
    return jax.vmap(lambda row, indices: row[indices])(x, positions)

"""Positions of tokens in packed rows, from segment ids."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.types import Array, Key


class Positions(NamedTuple):
    """Positions of tokens; every field is [B, S] int32.

    Attributes:
        segment_ids: The text of the row that a token belongs to, from 1; 0 for padding.
        position_ids: Position of the token in its text; 0 for padding.
        lengths: Number of tokens in its text; 0 for padding.
        row_positions: Position of the token in its row.
    """

    segment_ids: Array
    position_ids: Array
    lengths: Array
    row_positions: Array


def segment_positions(segment_ids: Array, *, running: bool = False) -> Positions:
    """Computes the positions of tokens in packed rows.

    Args:
        segment_ids: [B, S] int32, the text of its row that a token belongs to. The
            tokens of a text are contiguous.
        running: Whether positions continue through the row instead of restarting at
            every text.
    """
    chex.assert_rank(segment_ids, 2)
    size = segment_ids.shape[1]
    index = jnp.broadcast_to(jnp.arange(size, dtype=jnp.int32), segment_ids.shape)
    # Index of the first and of the last token of each token's text, [B, S]
    changes = segment_ids[:, 1:] != segment_ids[:, :-1]
    is_first = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    is_last = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    first = jax.lax.cummax(jnp.where(is_first, index, 0), axis=1)
    last = jax.lax.cummin(jnp.where(is_last, index, size), axis=1, reverse=True)
    # Padding has position 0 and length 0
    valid = segment_ids != 0
    return Positions(
        segment_ids,
        position_ids=jnp.where(valid, index if running else index - first, 0),
        lengths=jnp.where(valid, last - first + 1, 0),
        row_positions=index,
    )


def sample_per_text(key: Key, segment_ids: Array, low: int, high: int) -> Array:
    """A random integer in [low, high) for each text of a row, at all of its tokens.

    Args:
        key: PRNG key.
        segment_ids: [B, S] int32 text of each token. Entries are chosen by it and not
            by the first token, which compacted rows may lack.
        low: Lowest value.
        high: One above the highest value.

    Returns:
        [B, S] int32.
    """
    values = jax.random.randint(key, segment_ids.shape, low, high)
    # All tokens of text m use entry m - 1
    return jnp.take_along_axis(values, jnp.maximum(segment_ids, 1) - 1, axis=1)

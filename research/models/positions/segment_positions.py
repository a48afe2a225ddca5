"""Where the tokens of packed rows stand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.types import Array


class Positions(NamedTuple):
    """Where tokens stand; every field is [B, S] int32.

    Attributes:
        segment: the text of its row that a token belongs to; 0 is padding.
        position: its place in that text; 0 on padding.
        length: how many tokens that text has; 0 on padding.
        index: its place in the row.
    """

    segment_ids: Array
    position_ids: Array
    lengths: Array
    row_positions: Array


def segment_positions(segment: Array, *, running: bool = False) -> Positions:
    """The places of the tokens of packed rows.

    Args:
        segment: [B, S] int32, the text of its row that a token belongs to. The tokens
            of a text are neighbours.
        running: count positions through the row instead of restarting at every text.
    """
    index = jnp.broadcast_to(
        jnp.arange(segment.shape[1], dtype=jnp.int32), segment.shape
    )
    changes = segment[:, 1:] != segment[:, :-1]
    begins = jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True)
    ends = jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True)
    first = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    last = jnp.where(ends, index, segment.shape[1])
    last = jax.lax.cummin(last, axis=1, reverse=True)
    real = segment != 0
    position = jnp.where(real, index if running else index - first, 0)
    return Positions(segment, position, jnp.where(real, last - first + 1, 0), index)

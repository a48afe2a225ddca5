"""Where the tokens of packed rows stand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.structs import Array, Key


class Places(NamedTuple):
    """Where tokens stand; every field is [B, S] int32.

    Attributes:
        segment: the text of its row that a token belongs to; 0 is padding.
        position: its place in that text; 0 on padding.
        length: how many tokens that text has; 0 on padding.
        index: its place in the row.
    """

    segment: Array
    position: Array
    length: Array
    index: Array


def places(segment: Array, *, running: bool = False) -> Places:
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
    return Places(segment, position, jnp.where(real, last - first + 1, 0), index)


def table_rows(places: Places, cfg: EncoderConfig, key: Key | None = None) -> Array:
    """The row of the position table for each token: [B, S] int32.

    A text that the table served before it was extended stands at every stride-th row,
    where the original rows are. To train the rows of a longer table, texts begin
    anywhere instead (both LongEmbed, Zhu et al. 2024, section 4.1).

    Args:
        places: where the tokens stand, [B, S].
        cfg: the encoder's shape.
        key: of the embedding layer in training; None otherwise.
    """
    rows = places.position
    if key is not None and cfg.random_offset:
        key = jax.random.fold_in(key, 1)  # the layer's dropout takes the key itself
        drawn = jax.random.randint(key, rows.shape, 0, cfg.random_offset + 1)
        # All tokens of a text take what was drawn for its number in the row: where its
        # first one stood may lie beyond rows that were compacted.
        number = jnp.maximum(places.segment, 1) - 1
        rows += jnp.take_along_axis(drawn, number, axis=1)
    elif cfg.stride > 1:
        short = places.length <= cfg.max_len // cfg.stride
        rows = jnp.where(short, rows * cfg.stride, rows)
    return rows + cfg.position_offset

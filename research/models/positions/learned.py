"""Longer tables of learned positions, made of the rows that a model has.

All of them are used as they are, or as the start of training the new rows alone
(LongEmbed, Zhu et al. 2024, section 4.1). Tables are [P, D], P positions, without the
rows that a family keeps before position 0.
"""

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.segment_positions import Positions
from research.types import Array, Key


def grouped(table: Array, *, scale: int) -> Array:
    """[P * scale, D]: position p is the old p // scale.

    Returns:
        a table whose rows 0, scale, 2 * scale ... are the old ones.
    Raises:
        ValueError: scale is not a whole number of at least 1.
    """
    return jnp.repeat(table, _whole("grouped", scale), axis=0)


def recurrent(table: Array, *, scale: int) -> Array:
    """[P * scale, D]: position p is the old p mod P.

    Returns:
        a table whose first P rows are the old ones.
    Raises:
        ValueError: scale is not a whole number of at least 1.
    """
    return jnp.tile(table, (_whole("recurrent", scale), 1))


def interpolated(table: Array, *, scale: int) -> Array:
    """[P * scale, D]: position p is the old p / scale, between two rows a mixture.

    The paper does not say what follows the last old row, which is position
    (P - 1) * scale: here the scale - 1 positions after it hold it.

    Returns:
        a table whose rows 0, scale, 2 * scale ... are the old ones, to the bit.
    Raises:
        ValueError: scale is not a whole number of at least 1.
    """
    parts = _whole("interpolated", scale)
    after = jnp.concatenate([table[1:], table[-1:]])
    weight = jnp.arange(parts, dtype=table.dtype)[None, :, None] / parts
    mixed = table[:, None] + weight * (after - table)[:, None]
    return mixed.reshape(-1, table.shape[1])


def _whole(name: str, scale: int) -> int:
    if scale < 1 or scale != int(scale):
        raise ValueError(
            f"{name}'s scale is {scale}; it must be a whole number of at least 1"
        )
    return int(scale)


def table_rows(places: Positions, cfg: EncoderConfig, key: Key | None = None) -> Array:
    """The row of the position table for each token: [B, S] int32.

    A text that the table served before it was extended stands at every stride-th row,
    where the original rows are. To train the rows of a longer table, texts begin
    anywhere instead (both LongEmbed, Zhu et al. 2024, section 4.1).

    Args:
        places: where the tokens stand, [B, S].
        cfg: the encoder's shape.
        key: of the embedding layer in training; None otherwise.
    """
    rows = places.position_ids
    if key is not None and cfg.random_offset:
        key = jax.random.fold_in(key, 1)  # the layer's dropout takes the key itself
        drawn = jax.random.randint(key, rows.shape, 0, cfg.random_offset + 1)
        # All tokens of a text take what was drawn for its number in the row: where its
        # first one stood may lie beyond rows that were compacted.
        number = jnp.maximum(places.segment_ids, 1) - 1
        rows += jnp.take_along_axis(drawn, number, axis=1)
    elif cfg.position_stride > 1:
        short = places.lengths <= cfg.max_len // cfg.position_stride
        rows = jnp.where(short, rows * cfg.position_stride, rows)
    return rows + cfg.position_offset


TABLES = {"grouped": grouped, "recurrent": recurrent, "interpolated": interpolated}
# The methods that put the old rows `scale` apart; the others keep them in front.
SPREAD = ("grouped", "interpolated")

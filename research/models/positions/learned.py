"""Learned position tables: their rows for tokens, and longer tables from shorter ones.

Longer tables are made of the rows that a model has. They are used as they are, or as
the start of training the new rows alone (LongEmbed, Zhu et al. 2024, section 4.1).
Tables are [P, D], P positions, without the rows that a family keeps before position 0.
"""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.base import PositionMethod, make_bounded_field
from research.models.positions.segment_positions import Positions
from research.types import Array, Key, Params


@dataclass(frozen=True, kw_only=True)
class TableMethod(PositionMethod):
    """Base class of the methods that make a learned position table longer.

    They change the parameters once and do not stay in the encoder's config.

    Attributes:
        scale: How many times longer the table becomes.
    """

    requires = "learned"
    scale: int = make_bounded_field(1)

    def check(self, cfg: EncoderConfig) -> None:
        if cfg.position_stride > 1:
            raise ValueError("a position table can be extended once; this one has been")

    def conflicts_with(self, method: PositionMethod) -> bool:
        return isinstance(method, TableMethod)

    def max_context(self, cfg: EncoderConfig) -> int:
        return cfg.max_len * self.scale

    @property
    def position_stride(self) -> int:
        """Distance of the old rows in the longer table."""
        return self.scale

    def extend_table(self, table: Array) -> Array:
        """The longer table [P * scale, D] of a table [P, D]."""
        raise NotImplementedError


class GroupedTable(TableMethod):
    """Position p has the old row p // scale."""

    name = "grouped"

    def extend_table(self, table: Array) -> Array:
        return jnp.repeat(table, self.scale, axis=0)


class RecurrentTable(TableMethod):
    """Position p has the old row p mod P, so that the old rows stay in front."""

    name = "recurrent"
    position_stride = 1

    def extend_table(self, table: Array) -> Array:
        return jnp.tile(table, (self.scale, 1))


class InterpolatedTable(TableMethod):
    """Position p has the old row p / scale, between two rows a mixture.

    The paper does not say what follows the last old row, which is position
    (P - 1) * scale: here the scale - 1 positions after it repeat it.
    """

    name = "interpolated"

    def extend_table(self, table: Array) -> Array:
        next_rows = jnp.concatenate([table[1:], table[-1:]])  # [P, D]
        weights = jnp.arange(self.scale, dtype=table.dtype)[None, :, None] / self.scale
        mixed = table[:, None] + weights * (next_rows - table)[:, None]
        return mixed.reshape(-1, table.shape[1])  # [P * scale, D]


def extend_position_table(
    params: Params, cfg: EncoderConfig, method: TableMethod
) -> Params:
    """The encoder's parameters with a longer position table."""
    embed = params["embed"]
    table = jnp.asarray(embed["position"]["embedding"])
    before, rows = table[: cfg.position_offset], table[cfg.position_offset :]
    longer = jnp.concatenate([before, method.extend_table(rows)])
    return {**params, "embed": {**embed, "position": {"embedding": longer}}}


def table_rows(
    positions: Positions, cfg: EncoderConfig, key: Key | None = None
) -> Array:
    """The row of the position table for each token: [B, S] int32.

    A text that the table was long enough for before it was extended takes every
    stride-th row, where the original rows are. To train the rows of a longer table,
    texts begin anywhere instead (both LongEmbed, Zhu et al. 2024, section 4.1).

    Args:
        positions: Positions of the tokens, [B, S].
        cfg: The encoder's shape.
        key: Key of the embedding layer in training; None otherwise.
    """
    rows = positions.position_ids
    chex.assert_rank(rows, 2)
    if key is not None and cfg.random_offset:
        key = jax.random.fold_in(key, 1)  # the layer's dropout takes the key itself
        offsets = jax.random.randint(key, rows.shape, 0, cfg.random_offset + 1)
        # All tokens of a text take the offset at its number in the row: its first token
        # may be absent from rows that were compacted.
        number = jnp.maximum(positions.segment_ids, 1) - 1
        rows += jnp.take_along_axis(offsets, number, axis=1)
    elif cfg.position_stride > 1:
        is_short = positions.lengths <= cfg.max_len // cfg.position_stride
        rows = jnp.where(is_short, rows * cfg.position_stride, rows)
    return rows + cfg.position_offset

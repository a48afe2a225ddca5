"""Learned position tables: rows of tokens, and methods that extend a table.

Longer tables are made from the rows of the model's table. They are used without
training, or as initialization for training only the new rows (LongEmbed, Zhu et al.
2024, section 4.1). Tables are [P, D] for P positions, without the `position_offset`
rows before position 0.
"""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.base import PositionMethod, make_bounded_field
from research.models.positions.segment_positions import Positions, sample_per_text
from research.types import Array, Key, Params


@dataclass(frozen=True, kw_only=True)
class TableMethod(PositionMethod):
    """Base class of the methods that extend a learned position table.

    They change the parameters once and are not stored in the encoder's config.

    Attributes:
        scale: Factor by which the table becomes longer.
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
        """Distance between original rows in the longer table."""
        return self.scale

    def extend_table(self, table: Array) -> Array:
        """Extends a table [P, D] to [P * scale, D]."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class GroupedTable(TableMethod):
    """Position p has the original row p // scale.

    Attributes:
        scale: Factor by which the table becomes longer.
        per_text: Whether a text of n tokens uses p // ceil(n / P) instead, as in the
            authors' code (there n is the padded length of its batch).
    """

    name = "grouped"
    per_text: bool = False

    def extend_table(self, table: Array) -> Array:
        return jnp.repeat(table, self.scale, axis=0)


class RecurrentTable(TableMethod):
    """Position p has the original row p mod P, so the first P rows are unchanged."""

    name = "recurrent"
    position_stride = 1

    def extend_table(self, table: Array) -> Array:
        return jnp.tile(table, (self.scale, 1))


class InterpolatedTable(TableMethod):
    """Position p has the original row p / scale, linearly interpolated between rows.

    The last original row is at position (P - 1) * scale. The paper does not define the
    scale - 1 positions after it; here they repeat that row.
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
    """Extends the position table in the encoder's parameters."""
    embed = params["embed"]
    table = jnp.asarray(embed["position"]["embedding"])
    # [offset, D] rows before position 0, and [P, D] rows of positions
    before, rows = table[: cfg.position_offset], table[cfg.position_offset :]
    longer = jnp.concatenate([before, method.extend_table(rows)])
    return {**params, "embed": {**embed, "position": {"embedding": longer}}}


def table_rows(
    positions: Positions, cfg: EncoderConfig, key: Key | None = None
) -> Array:
    """The row of the position table for each token: [B, S] int32.

    A text that fits the original table uses every stride-th row of the extended one,
    which are the original rows. To train an extended table, texts begin at random
    positions instead (both LongEmbed, Zhu et al. 2024, section 4.1). With
    `group_per_text`, longer texts use these rows, too, each for as few positions as
    the text's length allows.

    Args:
        positions: Positions of the tokens, [B, S].
        cfg: The encoder's shape.
        key: PRNG key of the embedding layer in training; None otherwise.
    """
    rows = positions.position_ids
    chex.assert_rank(rows, 2)
    if key is not None and cfg.random_offset:
        key = jax.random.fold_in(key, 1)  # the layer's dropout uses `key` itself
        rows += sample_per_text(key, positions.segment_ids, 0, cfg.random_offset + 1)
    elif cfg.position_stride > 1:
        original = cfg.max_len // cfg.position_stride
        factor = -(-positions.lengths // original)  # smallest that makes a text fit
        if cfg.group_per_text:
            rows = rows // jnp.maximum(factor, 1) * cfg.position_stride
        else:
            rows = jnp.where(factor <= 1, rows * cfg.position_stride, rows)
    return rows + cfg.position_offset

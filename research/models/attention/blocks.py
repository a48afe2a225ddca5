"""Blocks of queries and keys: splitting rows, and which pairs of blocks attend."""

from typing import Any

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.segment_positions import Positions
from research.types import Array


def attending_blocks(
    cfg: EncoderConfig, query: Positions, key: Positions, is_local: Array | None
) -> Array:
    """Whether any query of one block may attend to any key of another.

    Blocks are compared by the range of their segment ids: if the texts of a row are not
    in ascending order, some pairs are True unnecessarily.

    Args:
        cfg: The encoder's shape.
        query: Positions [n, B, rows] of n blocks of queries.
        key: Positions [m, B, columns] of m blocks of keys.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.

    Returns:
        [n, m] bool.
    """

    def find_ranges(positions):
        """Smallest and largest segment id [n, B], first and last row position [n]."""
        segment_ids = positions.segment_ids
        numbers = jnp.where(segment_ids > 0, segment_ids, 2**30)
        row_positions = positions.row_positions[:, 0]
        return (
            numbers.min(-1),
            segment_ids.max(-1),
            row_positions[:, 0],
            row_positions[:, -1],
        )

    q_low, q_high, q_first, q_last = (x[:, None] for x in find_ranges(query))
    k_low, k_high, k_first, k_last = (x[None] for x in find_ranges(key))
    # [n, m] pairs of blocks that share a text, or whose keys include the anchor token
    attends = ((q_low <= k_high) & (k_low <= q_high)).any(-1)
    if cfg.anchor_token:
        attends |= k_first == 0
    # Causal: not if all keys come after all queries
    if cfg.causal:
        attends &= k_first <= q_last
    if is_local is not None:
        # Sliding window: distance of the nearest query and key
        near = (k_first - q_last <= cfg.window) & (q_first - k_last <= cfg.window)
        attends &= near | ~is_local
    return attends


def split_blocks(tree: Any, size: int) -> Any:
    """Splits [B, S, ...] into blocks [n, B, size, ...]; padding has segment id 0."""
    length = jax.tree.leaves(tree)[0].shape[1]

    def split_array(x):
        return jnp.moveaxis(x.reshape(len(x), -1, size, *x.shape[2:]), 1, 0)

    return jax.tree.map(split_array, pad_tokens(tree, 0, -length % size))


def join_blocks(blocks: Array, length: int) -> Array:
    """Joins blocks [n, B, size, ...] into [B, length, ...]."""
    x = jnp.moveaxis(blocks, 0, 1)
    return x.reshape(len(x), -1, *x.shape[3:])[:, :length]


def pad_tokens(tree: Any, before: int, after: int) -> Any:
    """Pads the second axis with zeros; row positions are continued instead."""

    def pad(x):
        # Row positions -before ... S + after - 1, so that distances stay correct
        if isinstance(x, Positions):
            rows, length = x.row_positions.shape
            index = jnp.arange(-before, length + after, dtype=jnp.int32)
            index = jnp.broadcast_to(index, (rows, len(index)))
            return Positions(*map(pad, x))._replace(row_positions=index)
        return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2))

    return jax.tree.map(pad, tree, is_leaf=lambda x: isinstance(x, Positions))

"""Which token may see which, and which tokens a pooled vector is of."""

import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.segment_positions import Positions
from research.types import Array


def visible(cfg: EncoderConfig, query: Positions, key: Positions) -> Array:
    """Attention inside each text of a packed row, to both sides or only backwards.

    With `cfg.anchor` every text also sees the first token of its row, which sees
    nothing but itself (AnchorAttention, Wang et al. 2024).

    Args:
        cfg: says whether attention is causal, and whether it has an anchor.
        query: places [B, q] of the tokens that look.
        key: places [B, k] of the tokens that are seen.

    Returns:
        [B, q, k] bool.
    """
    asks, shown = query.segment_ids[:, :, None], key.segment_ids[:, None, :]
    mask = (asks == shown) & (shown != 0)
    if cfg.anchor_token:
        mask |= (key.row_positions == 0)[:, None, :] & (asks != 0) & (shown != 0)
    if cfg.causal:
        mask &= key.row_positions[:, None, :] <= query.row_positions[:, :, None]
    return mask


def in_window(window: int, query: Positions, key: Positions) -> Array:
    """Whether two tokens are at most `window` apart: [B, q, k] bool."""
    distance = query.row_positions[:, :, None] - key.row_positions[:, None, :]
    return jnp.abs(distance) <= window


def decoder_mask(window: int, query: Positions, key: Positions) -> Array:
    """What a weak decoder sees: the first token of a text and the last few so far.

    The token itself is among these `window` tokens (SEED-Encoder, Lu et al. 2021).

    Returns:
        [B, q, k] bool; only entries within a text mean anything.
    """
    distance = query.row_positions[:, :, None] - key.row_positions[:, None, :]
    first = (key.position_ids == 0)[:, None, :]
    return (distance >= 0) & (first | (distance < window))


def pooling_masks(segment: Array, pool: Array, slots: int) -> Array:
    """The tokens of each text of a row that count in pooling.

    Args:
        segment: [B, S] int32, m >= 1 for the m-th text.
        pool: [B, S] bool.
        slots: M, the most texts in a row.

    Returns:
        [B, M, S] bool.
    """
    texts = jnp.arange(1, slots + 1, dtype=segment.dtype)
    return (segment[:, None, :] == texts[None, :, None]) & pool[:, None, :]

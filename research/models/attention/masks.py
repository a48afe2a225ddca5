"""Masks: which pairs of tokens attend, and which tokens of a text are pooled."""

import chex
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.positions.segment_positions import Positions
from research.types import Array


def attention_mask(cfg: EncoderConfig, query: Positions, key: Positions) -> Array:
    """Attention mask within each text of a packed row, bidirectional or causal.

    With `cfg.anchor_token` every text also attends to the first token of its row, which
    attends only to itself (AnchorAttention, Wang et al. 2024).

    Args:
        cfg: The encoder's shape; `causal` and `anchor_token` are used.
        query: Positions [B, q] of the queries.
        key: Positions [B, k] of the keys.

    Returns:
        [B, q, k] bool.
    """
    chex.assert_rank((query.segment_ids, key.segment_ids), 2)
    q_segments, k_segments = query.segment_ids[:, :, None], key.segment_ids[:, None, :]
    # [B, q, k] pairs within a text, without padding
    mask = (q_segments == k_segments) & (k_segments != 0)
    if cfg.anchor_token:
        # [B, 1, k] the first token of a row
        is_anchor = (key.row_positions == 0)[:, None, :]
        mask |= is_anchor & (q_segments != 0) & (k_segments != 0)
    if cfg.causal:
        mask &= key.row_positions[:, None, :] <= query.row_positions[:, :, None]
    return mask


def sliding_window_mask(cfg: EncoderConfig, query: Positions, key: Positions) -> Array:
    """Whether two tokens are at most `cfg.window` apart: [B, q, k] bool."""
    distance = query.row_positions[:, :, None] - key.row_positions[:, None, :]
    return jnp.abs(distance) <= cfg.window


def decoder_mask(window: int, query: Positions, key: Positions) -> Array:
    """Mask of the weak decoder: the text's first token and the last `window` tokens.

    The `window` tokens include the query itself (SEED-Encoder, Lu et al. 2021).

    Returns:
        [B, q, k] bool; only entries within a text are meaningful.
    """
    distance = query.row_positions[:, :, None] - key.row_positions[:, None, :]
    is_first = (key.position_ids == 0)[:, None, :]
    return (distance >= 0) & (is_first | (distance < window))


def pooling_masks(segment_ids: Array, pooling_mask: Array, max_segments: int) -> Array:
    """Mask of the pooled tokens of each text in a row.

    Args:
        segment_ids: [B, S] int32, m >= 1 for the m-th text, 0 for padding.
        pooling_mask: [B, S] bool, whether a token is pooled.
        max_segments: M, the largest number of texts in a row.

    Returns:
        [B, M, S] bool.
    """
    chex.assert_rank(segment_ids, 2)
    chex.assert_equal_shape((segment_ids, pooling_mask))
    numbers = jnp.arange(1, max_segments + 1, dtype=segment_ids.dtype)
    is_text = segment_ids[:, None, :] == numbers[None, :, None]  # [B, M, S]
    return is_text & pooling_mask[:, None, :]

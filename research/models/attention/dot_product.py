"""Dense dot-product attention: all logits [B, H, q, k] are in memory at once.

Masks, attention biases, RoPE branches, softcap and dropout are applied here, for full
rows and for the blocks of `blockwise`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.attention.masks import attention_mask, sliding_window_mask
from research.models.config import EncoderConfig
from research.models.dropout import dropout
from research.models.positions.bias import POSITION_BIASES
from research.models.positions.query_scale import logit_scale
from research.models.positions.relative_rope import relative_remapping
from research.models.positions.segment_positions import Positions
from research.types import Array, Key, Params

# The logit of a masked pair: its softmax weight is 0.
NEG_INF = float(jnp.finfo(jnp.float32).min)


class AttentionMasks(NamedTuple):
    """Masks and bias of the attention logits, shared by all blocks of the encoder.

    Attributes:
        mask: [B, q, k] bool, the pairs that attend in blocks without sliding window.
        sliding_window_mask: [B, q, k] bool, the pairs within the sliding window; None
            if no block has one.
        bias: [1 or B, H, q, k] float32 addend of the logits; None for none.
        branch_masks: [B, q, k] bool for each RoPE branch after the first, the pairs
            whose logits come from that branch.
    """

    mask: Array
    sliding_window_mask: Array | None
    bias: Array | None
    branch_masks: tuple[Array, ...]


def make_attention_masks(
    cfg: EncoderConfig,
    bias_params: Params | None,
    query: Positions,
    key: Positions,
    *,
    aligned: bool = True,
) -> AttentionMasks:
    """Makes the masks and bias for queries [B, q] and keys [B, k].

    Args:
        cfg: The encoder's shape.
        bias_params: Parameters of the attention bias; None for none.
        query: Positions [B, q] of the queries.
        key: Positions [B, k] of the keys.
        aligned: Whether the i-th tokens of all rows have the same row position, so that
            all rows share one bias.
    """
    # Branches and extra mask of remapped relative positions
    remapping = relative_remapping(cfg)
    # [B, q, k] pairs that attend
    mask = attention_mask(cfg, query, key)
    q_ids, k_ids = query.position_ids[:, :, None], key.position_ids[:, None, :]
    if remapping.visible is not None:
        mask &= remapping.visible(q_ids, k_ids)
    # [1 or B, H, q, k] bias by distances in the row, which equal those in a text
    bias = None
    if cfg.position_bias in POSITION_BIASES:
        rows = slice(1) if aligned else slice(None)
        distance = key.row_positions[rows, None, :] - query.row_positions[rows, :, None]
        bias = POSITION_BIASES[cfg.position_bias].bias(bias_params or {}, cfg, distance)
        bias *= logit_scale(cfg)
    return AttentionMasks(
        mask,
        sliding_window_mask(cfg, query, key) if cfg.sliding_window_layers else None,
        bias,
        tuple(branch.pair_mask(q_ids, k_ids) for branch in remapping.branches[1:]),
    )


def attention_logits(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    masks: AttentionMasks,
    is_local: Array | None,
) -> Array:
    """Attention logits [B, H, q, k] float32, NEG_INF where a pair does not attend.

    Args:
        cfg: The encoder's shape.
        q: [B, q, H, E] queries, scaled and rotated, one array per RoPE branch.
        k: [B, k, KV, E] keys, rotated, one array per RoPE branch.
        masks: Masks and bias for these queries and keys.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.
    """
    # [B, H, q, k] logits of the first branch, or of another one where its mask is True
    logits = head_products(q[0], k[0])
    for branch_mask, q_branch, k_branch in zip(
        masks.branch_masks, q[1:], k[1:], strict=True
    ):
        if is_local is not None:
            branch_mask &= ~is_local
        logits = jnp.where(
            branch_mask[:, None], head_products(q_branch, k_branch), logits
        )
    if masks.bias is not None:
        logits += masks.bias
    # Softcap, scaled like the logits
    if cfg.attn_logit_softcap:
        cap = cfg.attn_logit_softcap * logit_scale(cfg)
        logits = cap * jnp.tanh(logits / cap)
    # [B, q, k] mask, with the window in a sliding-window block
    mask = masks.mask
    if is_local is not None:
        mask &= masks.sliding_window_mask | ~is_local
    return jnp.where(mask[:, None], logits, NEG_INF)


def softmax_weighted_sum(
    logits: Array, v: Array, rate: float, key: Key | None
) -> Array:
    """Attention output softmax(logits) v.

    The [q, D/H] result is divided by the softmax's denominator instead of the [q, k]
    weights, which is faster on CPU.

    Args:
        logits: [B, H, q, k] float32.
        v: [B, k, KV, D/H] values.
        rate: Dropout rate of the weights.
        key: Dropout key; None runs without dropout.

    Returns:
        [B, q, H, D/H] in the type of v.
    """
    highest = jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    weights = jnp.exp(logits - highest)  # [B, H, q, k]
    total = weights.sum(-1, keepdims=True)  # [B, H, q, 1]
    weights = dropout(weights, rate, key).astype(v.dtype)
    y = sum_values(weights, v) / total  # [B, H, q, D/H]
    return y.astype(v.dtype).transpose(0, 2, 1, 3)


def head_products(q: Array, k: Array) -> Array:
    """q k^T of every head: [B, q, H, E] and [B, k, KV, E] -> [B, H, q, k] float32.

    Heads come before positions and keys are transposed, which is the fastest layout on
    CPU. The query heads that share a key head are rows of one matrix product.
    """
    b, s, h, e = q.shape
    kv = k.shape[2]
    # [B, KV, H/KV * q, E] x [B, KV, E, k]
    q = q.transpose(0, 2, 1, 3).reshape(b, kv, h // kv * s, e)
    x = jnp.matmul(q, k.transpose(0, 2, 3, 1), preferred_element_type=jnp.float32)
    return x.reshape(b, h, s, -1)


def sum_values(weights: Array, v: Array) -> Array:
    """Weighted sums: [B, H, q, k] and [B, k, KV, E] -> [B, H, q, E] float32."""
    b, h, s, _ = weights.shape
    kv = v.shape[2]
    # [B, KV, H/KV * q, k] x [B, KV, k, E]
    weights = weights.reshape(b, kv, h // kv * s, -1)
    y = jnp.matmul(weights, v.transpose(0, 2, 1, 3), preferred_element_type=jnp.float32)
    return y.reshape(b, h, s, -1)

"""AttentionInputs: masks, RoPE cosines and sines, and biases shared by all blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.attention.dot_product import AttentionMasks, make_attention_masks
from research.models.attention.kernel_support import MIN_KERNEL_LENGTH, find_kernels
from research.models.config import EncoderConfig
from research.models.positions import rope, seqpe
from research.models.positions.bias import POSITION_BIASES
from research.models.positions.query_scale import query_scale
from research.models.positions.relative_rope import (
    PLAIN_BRANCH,
    RopeBranch,
    relative_remapping,
)
from research.models.positions.segment_positions import Positions, segment_positions
from research.models.token_ops import gather_tokens
from research.types import Array, Key, Params

# Longest row with dense attention, whose [S, S] logits are in memory at once, where no
# kernel is used. On CPU dense and blockwise attention cost the same at 512 tokens, and
# blockwise takes a third of the time at 1,024.
MAX_DENSE_LENGTH = 512


class CosSin(NamedTuple):
    """Cosines and sines of RoPE, each [B|1, S|1, 1|H, R/2] float32.

    Attributes:
        query: (cosines, sines) of the queries.
        key: (cosines, sines) of the keys.
    """

    query: tuple[Array, Array]
    key: tuple[Array, Array]


class PrefixKV(NamedTuple):
    """Keys and values of one block; in a cache, of a prefix that all rows share.

    Attributes:
        key: [P, KV, E] keys, rotated.
        value: [P, KV, D/H] values.
    """

    key: Array
    value: Array


class AttentionInputs(NamedTuple):
    """Inputs of attention besides hidden states and weights, the same for all blocks.

    Attributes:
        positions: Positions [B, S] of the tokens, with their segment ids.
        rope: Cosines and sines of each RoPE branch; () without RoPE. Methods that remap
            relative positions have several branches (`positions.relative_rope`).
        local_rope: Cosines and sines of sliding-window blocks; None if there are none.
        query_scale: Factor of the queries besides `cfg.scale`, [B, S, 1, 1] or a float.
        extra_channels: [B, S, H, E] and [B, S, KV, E] channels appended to queries and
            keys (SeqPE); None for none.
        bias_params: Parameters of the attention bias; None for none.
        masks: Masks and bias of full rows for dense attention; None if attention
            computes them block by block.
        adapter_ids: [B, S] int32 LoRA adapter of each token, -1 for none; None uses the
            first adapter.
        prefix_kv: Cached keys and values, of one block, that all rows attend to before
            their own tokens; None for none.
        key_positions: Positions of the tokens as keys, if they differ: tokens that no
            token attends to have the segment id 0 there.
    """

    positions: Positions
    rope: tuple[CosSin, ...]
    local_rope: CosSin | None
    query_scale: Array | float
    extra_channels: tuple[Array, Array] | None
    bias_params: Params | None
    masks: AttentionMasks | None
    adapter_ids: Array | None = None
    prefix_kv: PrefixKV | None = None
    key_positions: Positions | None = None


def make_attention_inputs(
    params: Params,
    positions: Positions,
    cfg: EncoderConfig,
    key: Key | None = None,
    *,
    aligned: bool = True,
    adapter_ids: Array | None = None,
    extra_mask: Array | None = None,
    attended: Array | None = None,
    prefix_length: int = 0,
) -> AttentionInputs:
    """Makes the inputs that all blocks of an encoder share.

    Args:
        params: The encoder's parameters.
        positions: Positions [B, S] of the tokens.
        cfg: The encoder's shape.
        key: PRNG key in training, where some position methods sample a scale, and
            attention weights have dropout; None otherwise.
        aligned: Whether the i-th tokens of all rows have the same row position.
        adapter_ids: [B, S] int32, as in `AttentionInputs`.
        extra_mask: [B, S, S] bool, a mask in addition to the architecture's; None for
            none. With it attention is dense.
        attended: [B, S] bool, whether tokens are attended to; None if all are.
        prefix_length: P, the number of cached tokens before every row, which
            `positions` include. With a prefix attention is dense.
    """
    bias_params = (
        params.get("position_bias") if cfg.position_bias in POSITION_BIASES else None
    )
    # As keys, tokens that are not attended to are like padding
    key_positions = None
    if attended is not None:
        key_segments = jnp.where(attended, positions.segment_ids, 0)
        key_positions = positions._replace(segment_ids=key_segments)
    # [B, S, S] masks, or [B, S, P+S] with a prefix
    masks = None
    needs_masks = extra_mask is not None or prefix_length
    length, dropout = positions.segment_ids.shape[1], key is not None
    if needs_masks or uses_dense_masks(cfg, length, dropout=dropout):
        masks = make_attention_masks(
            cfg,
            bias_params,
            positions,
            _add_prefix(key_positions or positions, prefix_length),
            aligned=aligned,
        )
    if extra_mask is not None:
        masks = masks._replace(mask=masks.mask & extra_mask)
    # [B, S, 1, 1] factor of the queries, or one number
    scale = query_scale(cfg, positions)
    if not isinstance(scale, float):
        scale = scale[:, :, None, None]
    # [B, S, H, E] and [B, S, KV, E] channels, whose products are the bias of SeqPE
    extra_channels = None
    if cfg.position_bias == "seqpe":
        extra_channels = seqpe.position_channels(
            params["position_bias"], cfg, positions.position_ids
        )
    return AttentionInputs(
        positions,
        _rope_branches(params, positions, cfg, key),
        _local_rope(positions, cfg),
        scale,
        extra_channels,
        bias_params,
        masks,
        adapter_ids,
        key_positions=key_positions,
    )


def uses_dense_masks(cfg: EncoderConfig, length: int, *, dropout: bool) -> bool:
    """Whether rows of `length` tokens use dense attention.

    Args:
        cfg: The encoder's shape.
        length: S.
        dropout: Whether attention weights have the config's dropout.
    """
    if cfg.attention != "auto":
        return cfg.attention == "plain"
    has_dropout = dropout and cfg.attention_dropout_rate > 0
    longest = MAX_DENSE_LENGTH
    if find_kernels(cfg, dropout=has_dropout):
        longest = MIN_KERNEL_LENGTH - 1
    return length <= longest


def select_queries(attn: AttentionInputs, positions: Array) -> AttentionInputs:
    """The inputs for queries at some row positions only, and keys at all positions.

    Args:
        attn: Inputs of dense attention, with `masks`.
        positions: [R, P] int32 row positions of the queries.
    """
    masks = attn.masks
    bias = masks.bias
    if bias is not None:  # [1, H, S, S] -> [R, H, P, S]
        bias = jnp.moveaxis(bias[0][:, positions], 0, 1)
    # [R, P, S] masks
    masks = AttentionMasks(
        gather_tokens(masks.mask, positions),
        None
        if masks.sliding_window_mask is None
        else gather_tokens(masks.sliding_window_mask, positions),
        bias,
        tuple(gather_tokens(mask, positions) for mask in masks.branch_masks),
    )

    # [R, P, ...] cosines and sines, factors and extra channels of the queries
    rope_branches = tuple(
        CosSin(tuple(gather_tokens(x, positions) for x in branch.query), branch.key)
        for branch in attn.rope
    )
    scale, channels = attn.query_scale, attn.extra_channels
    if not isinstance(scale, float):
        scale = gather_tokens(scale, positions)
    if channels is not None:
        channels = (gather_tokens(channels[0], positions), channels[1])
    return attn._replace(
        masks=masks, rope=rope_branches, query_scale=scale, extra_channels=channels
    )


def apply_positions(
    cfg: EncoderConfig,
    q: Array,
    k: Array,
    attn: AttentionInputs,
    is_local: Array | None,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Scales queries, and rotates queries and keys for each RoPE branch.

    Args:
        cfg: The encoder's shape.
        q: [B, q, H, E] queries.
        k: [B, S, KV, E] keys.
        attn: The inputs that all blocks share.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.

    Returns:
        Queries and keys of each branch; a single array of each without RoPE.
    """
    # [B, q, H, E] scaled queries
    scale = jnp.asarray(cfg.scale * attn.query_scale, jnp.float32).astype(q.dtype)
    q = q * (scale if scale.ndim else scale.reshape(1, 1, 1, 1))
    branches = attn.rope
    if attn.local_rope is not None:
        # Sliding-window blocks use the first branch only, with angles of their own
        first = jax.tree.map(
            lambda local, full: jnp.where(is_local, local, full),
            attn.local_rope,
            branches[0],
        )
        branches = (first, *branches[1:])
    # Each branch's [B, q, H, E] queries and [B, S, KV, E] keys
    q_branches = tuple(rope.rotate(q, *branch.query) for branch in branches) or (q,)
    k_branches = tuple(rope.rotate(k, *branch.key) for branch in branches) or (k,)
    if attn.extra_channels is not None:
        q_extra, k_extra = (x.astype(q.dtype) for x in attn.extra_channels)
        q_branches = tuple(jnp.concatenate([x, q_extra], -1) for x in q_branches)
        k_branches = tuple(jnp.concatenate([x, k_extra], -1) for x in k_branches)
    return q_branches, k_branches


def shift_positions(positions: Positions, count: int) -> Positions:
    """Shifts positions by `count` tokens that precede each text."""
    # Padding keeps position 0 and length 0
    valid = positions.segment_ids != 0
    return Positions(
        positions.segment_ids,
        jnp.where(valid, positions.position_ids + count, 0),
        jnp.where(valid, positions.lengths + count, 0),
        positions.row_positions + count,
    )


def _add_prefix(positions: Positions, count: int) -> Positions:
    """Positions [B, P+S] of the keys: the prefix, then the tokens of the row."""
    if not count:
        return positions
    # The prefix belongs to text 1, the only text of every row
    prefix = jnp.ones((len(positions.segment_ids), count), jnp.int32)
    return jax.tree.map(
        lambda first, second: jnp.concatenate([first, second], 1),
        segment_positions(prefix),
        positions,
    )


def _rope_branches(
    params: Params, positions: Positions, cfg: EncoderConfig, key: Key | None
) -> tuple[CosSin, ...]:
    """Cosines and sines of each RoPE branch."""
    if cfg.position != "rope":
        return ()
    # [B, S] positions, [B|1, S|1, R/2] angles per token, [1, 1] attention factor
    position_ids = rope.rope_positions(cfg, positions.position_ids, key)
    angles, factor = rope.rope_angles(
        cfg, positions.lengths, params, key, positions.segment_ids
    )
    return tuple(
        _cos_sin(branch, position_ids, angles, factor)
        for branch in relative_remapping(cfg).branches
    )


def _local_rope(positions: Positions, cfg: EncoderConfig) -> CosSin | None:
    """Cosines and sines of sliding-window blocks; position methods do not apply."""
    if cfg.position != "rope" or not cfg.sliding_window_layers:
        return None
    angles, factor = rope.local_rope_angles(cfg)
    return _cos_sin(PLAIN_BRANCH, positions.position_ids, angles, factor)


def _cos_sin(
    branch: RopeBranch, position_ids: Array, angles: Array, factor: Array
) -> CosSin:
    """Cosines and sines of queries and keys in one branch."""
    factor = factor[:, :, None, None]
    return CosSin(
        rope.cos_sin(branch.query_angles(position_ids, angles), factor),
        rope.cos_sin(branch.key_angles(position_ids, angles), factor),
    )

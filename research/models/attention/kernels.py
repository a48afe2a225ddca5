"""Fused attention kernels: cuDNN attention on GPU, splash attention (Pallas) on TPU."""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from research.models.attention.blockwise import blockwise_attention
from research.models.attention.dot_product import make_attention_masks
from research.models.attention.inputs import AttentionInputs
from research.models.config import EncoderConfig
from research.sharding import batch_axes
from research.types import Array

# Splash attention: largest number of queries and keys in a block, and number of vector
# lanes of a TPU, of which the block size is a multiple.
BLOCK, LANES = 512, 128
# cuDNN attention: longest rows that always have a mask, longest packed rows that do.
MASK_LENGTH, PACKED_LENGTH = 512, 4_096


def flash_attention(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
) -> Array:
    """cuDNN attention, with a mask [B, 1, S, S] of the pairs that attend.

    Rows of one text each need no mask where they are longer than MASK_LENGTH, and
    attention has neither window nor bias. Rows longer than PACKED_LENGTH, whose mask
    would be large, are left to `blockwise` where they need one.

    Args:
        cfg: The encoder's shape, for which `find_obstacles` lists nothing.
        q: [B, S, H, E] bfloat16 queries, of a single RoPE branch.
        k: [B, S, KV, E] keys, of a single RoPE branch.
        v: [B, S, KV, D/H] values.
        attn: The inputs that all blocks share.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.

    Returns:
        [B, S, H, D/H].
    """
    # Short rows: other forms would cost more than the mask
    length, has_bias = v.shape[1], cfg.position_bias != "none"
    if length <= MASK_LENGTH or (has_bias and length <= PACKED_LENGTH):
        return attend_with_mask(cfg, q, k, v, attn, is_local)
    if has_bias:
        return blockwise_attention(cfg, q, k, v, attn, is_local)

    # [] bool, whether every token's position in its text is its position in the row
    positions = attn.positions
    valid = positions.segment_ids > 0
    fits = (~valid | (positions.position_ids == positions.row_positions)).all()
    if is_local is not None:
        fits &= ~is_local
    packed = attend_with_mask if length <= PACKED_LENGTH else blockwise_attention
    return jax.lax.cond(
        fits,
        lambda: attend_with_lengths(cfg, q, k, v, attn),
        lambda: packed(cfg, q, k, v, attn, is_local),
    )


def attend_with_mask(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
    *,
    implementation: str = "cudnn",
) -> Array:
    """Attention of packed rows with a mask [B, 1, S, S] of the pairs that attend."""
    positions = attn.positions
    masks = make_attention_masks(cfg, attn.bias_params, positions, positions)
    mask, segment_ids = masks.mask, positions.segment_ids
    if is_local is not None:
        mask &= masks.sliding_window_mask | ~is_local
    # Padding attends to padding, so that every query has a key
    is_padding = segment_ids == 0
    mask |= is_padding[:, :, None] & is_padding[:, None, :]
    bias = None if masks.bias is None else masks.bias.astype(v.dtype)
    return jax.nn.dot_product_attention(
        q[0],
        k[0],
        v,
        bias=bias,
        mask=mask[:, None],
        scale=1.0,  # queries are already scaled
        is_causal=cfg.causal,
        implementation=implementation,
    )


def attend_with_lengths(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
) -> Array:
    """cuDNN attention of rows that hold one text each, at their start, no windows."""
    del is_local
    lengths = (attn.positions.segment_ids > 0).sum(-1, dtype=jnp.int32)
    return jax.nn.dot_product_attention(
        q[0],
        k[0],
        v,
        scale=1.0,  # queries are already scaled
        is_causal=cfg.causal,
        # Rows without tokens are given the length 1
        key_value_seq_lengths=jnp.maximum(lengths, 1),
        implementation="cudnn",
    )


def splash_attention(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
    *,
    block: int = BLOCK,
    interpret: bool = False,
) -> Array:
    """Splash attention, with segment ids for packed rows and sliding-window masks.

    The compiler cannot partition the kernel, so `shard_map` runs it on each device of
    the ambient mesh for its rows and heads.

    Args:
        cfg: The encoder's shape, for which `find_obstacles` lists nothing.
        q: [B, S, H, E] queries, of a single RoPE branch.
        k: [B, S, KV, E] keys, of a single RoPE branch.
        v: [B, S, KV, D/H] values.
        attn: The inputs that all blocks share.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.
        block: Largest number of queries and keys in a block, a multiple of 128.
        interpret: Whether to run the kernel in interpret mode, for tests.

    Returns:
        [B, S, H, D/H].
    """
    mesh = jax.sharding.get_abstract_mesh()
    # Mesh axes that split rows and heads; None if not divisible
    rows = _dividing_axes(mesh, batch_axes(mesh), v.shape[0])
    heads = _dividing_axes(mesh, ("model",), v.shape[2])
    run = partial(_run_splash, cfg, block, interpret)
    if mesh.size > 1:
        split = P(rows, None, heads)
        specs = (split, split, split, P(rows), P())
        run = jax.shard_map(run, in_specs=specs, out_specs=split, check_vma=False)
    is_local = jnp.bool_(False) if is_local is None else is_local
    return run(q[0], k[0], v, attn.positions.segment_ids, is_local)


def _dividing_axes(mesh, axes: tuple[str, ...], size: int) -> tuple[str, ...] | None:
    """The mesh axes if they exist and their product divides the size; else None."""
    devices = math.prod(mesh.shape.get(axis, 0) for axis in axes)
    return axes if devices and size % devices == 0 else None


def _run_splash(cfg, block, interpret, q, k, v, segment_ids, is_local):
    """Splash attention for the rows and heads of one device."""
    # Imports all of Pallas, for half a second, which only TPUs need
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel as kernels,
    )
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_mask as masks,
    )

    # Block size, a multiple of the lanes, and padding of rows to equal blocks
    length = v.shape[1]
    count = -(-length // block)
    size = -(-length // (LANES * count)) * LANES
    padding = (0, size * count - length)

    def put_heads_first(x):  # [B, S, H, E] -> [B, H, padded S, E]
        x = jnp.pad(x, [(0, 0), padding, (0, 0), (0, 0)])
        return x.transpose(0, 2, 1, 3)

    def attend(mask, *arrays):
        # One mask for each of H heads; 8 block sizes, forward and backward
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=kernels.BlockSizes(*[size] * 8),
            attn_logits_soft_cap=cfg.attn_logit_softcap or None,
            interpret=interpret,
        )
        return jax.vmap(kernel)(*arrays)

    segment_ids = jnp.pad(segment_ids, [(0, 0), padding])
    # [B, H, padded S, E] queries, keys and values; [B, padded S] segment ids
    arrays = [put_heads_first(x) for x in (q, k, v)]
    arrays.append(kernels.SegmentIds(segment_ids, segment_ids))
    global_mask, local_mask = _splash_masks(masks, cfg, size * count)
    if cfg.sliding_window_layers:
        y = jax.lax.cond(
            is_local, partial(attend, local_mask), partial(attend, global_mask), *arrays
        )
    else:
        y = attend(global_mask, *arrays)
    return y.transpose(0, 2, 1, 3)[:, :length]  # [B, S, H, D/H]


def _splash_masks(masks, cfg: EncoderConfig, length: int):
    """The masks of blocks without and with a sliding window, of the module `masks`."""
    shape = (length, length)
    global_mask = masks.CausalMask(shape) if cfg.causal else masks.FullMask(shape)
    window_after = 0 if cfg.causal else cfg.window
    return global_mask, masks.LocalMask(shape, (cfg.window, window_after), 0)

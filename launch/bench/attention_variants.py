"""Attention for packed rows on GPUs: implementations that the accelerator check tries.

They have the arguments of `kernels.flash_attention`, need no bias, dropout, window or
remapped positions, and can be named by `EncoderConfig.attention` once registered.
"""

from functools import partial

import jax
import jax.numpy as jnp

from research.models import config
from research.models.attention import attend
from research.models.attention.inputs import AttentionInputs
from research.models.attention.kernels import attend_with_lengths, attend_with_mask
from research.models.config import EncoderConfig
from research.types import Array, max_segments

BLOCK = 64  # queries and keys of a block of the Triton kernel


def attend_bfloat16_logits(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
) -> Array:
    """Dense attention that stores logits and weights in the type of the values."""
    del is_local
    segment_ids = attn.positions.segment_ids
    mask = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    if cfg.causal:
        mask &= jnp.tri(v.shape[1], dtype=bool)[None, None]
    k, v = (_repeat_heads(x, cfg) for x in (k[0], v))
    # [B, H, q, k]: products accumulate in float32, softmax computes in float32
    logits = jnp.einsum("bqhe,bkhe->bhqk", q[0], k)
    logits = jnp.where(mask, logits, jnp.finfo(logits.dtype).min)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(v.dtype)
    return jnp.einsum("bhqk,bkhe->bqhe", weights, v)


def attend_triton(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
) -> Array:
    """The Triton kernel of `jax.experimental.pallas`, which reads segment ids."""
    del is_local
    from jax.experimental.pallas.ops.gpu import attention as kernels

    block = min(BLOCK, v.shape[1])
    return kernels.mha(
        q[0],
        _repeat_heads(k[0], cfg),
        _repeat_heads(v, cfg),
        attn.positions.segment_ids,
        sm_scale=1.0,
        causal=cfg.causal,
        block_sizes=kernels.BlockSizes(*[block] * 6),
        # Only for tests: the kernel compiles for CUDA alone
        interpret=jax.default_backend() == "cpu",
    )


def attend_cudnn_packed(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
) -> Array:
    """cuDNN attention with the lengths and offsets of the texts of each row.

    Without a mask in memory. JAX has no public function for it; needs Hopper.
    """
    del is_local
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    lengths, offsets = segment_lengths(attn.positions.segment_ids)
    kinds = cudnn.MaskType
    return cudnn.dot_product_attention(
        q[0],
        k[0],
        v,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=1.0,
        mask_type=kinds.PADDING_CAUSAL if cfg.causal else kinds.PADDING,
    )


def segment_lengths(segment_ids: Array) -> tuple[Array, Array]:
    """Lengths [B, M+1] and first positions [B, M+2] of texts; -1 where there is none.

    Padding is the last text of a row, so that every token's output is written.
    """
    numbers = jnp.arange(1, max_segments(segment_ids.shape[1]) + 1)
    numbers = jnp.append(numbers, 0)  # [M+1]
    is_text = segment_ids[:, None, :] == numbers[None, :, None]  # [B, M+1, S]
    lengths = is_text.sum(-1, dtype=jnp.int32)
    starts = jnp.argmax(is_text, axis=-1).astype(jnp.int32)
    exists = lengths > 0
    offsets = jnp.where(exists, starts, -1)
    # One more than there are texts, as cuDNN reads them
    offsets = jnp.pad(offsets, [(0, 0), (0, 1)], constant_values=-1)
    return jnp.where(exists, lengths, -1), offsets


def _repeat_heads(x: Array, cfg: EncoderConfig) -> Array:
    """[B, S, KV, E] keys or values for each of H query heads."""
    return jnp.repeat(x, cfg.num_heads // x.shape[2], axis=2)


VARIANTS = {
    "cudnn_mask": attend_with_mask,
    "cudnn_lengths": attend_with_lengths,
    "triton": attend_triton,
    "xla_softmax": partial(attend_with_mask, implementation="xla"),
    "bfloat16_logits": attend_bfloat16_logits,
    "cudnn_packed": attend_cudnn_packed,
}


def register_variants() -> None:
    """Makes the variants known to `EncoderConfig.attention`, in this process."""
    names = config.CHOICES["attention"]
    config.CHOICES["attention"] = tuple(dict.fromkeys((*names, *VARIANTS)))
    attend.KERNELS.update(VARIANTS)

"""Attention for packed rows on GPUs: implementations that the accelerator check tries.

They have the arguments of `kernels.flash_attention`, need no bias, dropout, window or
remapped positions, and can be named by `EncoderConfig.attention` once registered.
"""

import jax.numpy as jnp

from research.models import config
from research.models.attention import attend
from research.models.attention.inputs import AttentionInputs
from research.models.config import EncoderConfig
from research.types import Array, max_segments


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


VARIANTS = {"cudnn_packed": attend_cudnn_packed}


def register_variants() -> None:
    """Makes the variants known to `EncoderConfig.attention`, in this process."""
    names = config.CHOICES["attention"]
    config.CHOICES["attention"] = tuple(dict.fromkeys((*names, *VARIANTS)))
    attend.KERNELS.update(VARIANTS)

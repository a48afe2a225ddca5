"""Multi-head attention: chooses the implementation by config, length and platform."""

import chex
import jax

from research.models.attention.blockwise import blockwise_attention
from research.models.attention.dot_product import attention_logits, softmax_weighted_sum
from research.models.attention.inputs import AttentionInputs
from research.models.attention.kernel_support import find_kernels, find_obstacles
from research.models.attention.kernels import flash_attention, splash_attention
from research.models.config import EncoderConfig
from research.types import Array, Key


def attend(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    *,
    is_local: Array | None = None,
    key: Key | None = None,
) -> Array:
    """Multi-head self-attention of packed rows.

    If `attn` has masks of full rows, attention is dense: all logits are in memory at
    once. Otherwise `cfg.attention` names the implementation; 'auto' is splash attention
    on TPU and cuDNN attention on GPU if they support the config, else `blockwise`.

    Args:
        cfg: The encoder's shape.
        q: [B, q, H, E] queries, scaled and rotated, one array per RoPE branch.
        k: [B, S, KV, E] keys, rotated, one array per RoPE branch.
        v: [B, S, KV, D/H] values.
        attn: The inputs that all blocks share.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.
        key: Dropout key of the attention weights; None runs without dropout.

    Returns:
        [B, q, H, D/H] in the type of v.

    Raises:
        ValueError: The implementation does not support the config.
    """
    chex.assert_rank((*q, *k, v), 4)
    chex.assert_equal_shape_prefix((*k, v), 3)
    chex.assert_equal(len(q), len(k))
    # Dense attention, with all logits [B, H, q, S] in memory
    if attn.masks is not None:
        chex.assert_shape(attn.masks.mask, (len(v), q[0].shape[1], v.shape[1]))
        logits = attention_logits(cfg, q, k, attn.masks, is_local)
        return softmax_weighted_sum(logits, v, cfg.attention_dropout_rate, key)
    # The fused kernel that the config names
    dropout = key is not None and cfg.attention_dropout_rate > 0
    if cfg.attention in KERNELS:
        _check_kernel(cfg, dropout)
        return KERNELS[cfg.attention](cfg, q, k, v, attn, is_local)

    # The fastest implementation on the platform of compilation
    def run_blockwise():
        return blockwise_attention(cfg, q, k, v, attn, is_local, key)

    def make_kernel(name):
        return lambda: KERNELS[name](cfg, q, k, v, attn, is_local)

    branches = {
        platform: make_kernel(name)
        for name, platform in find_kernels(cfg, dropout=dropout)
    }
    if not branches:
        return run_blockwise()
    return jax.lax.platform_dependent(default=run_blockwise, **branches)


def _check_kernel(cfg: EncoderConfig, dropout: bool) -> None:
    """Raises ValueError if the named implementation does not support the config."""
    if obstacles := find_obstacles(cfg, cfg.attention, dropout=dropout):
        able = ["auto", "blockwise", "plain"]
        able += [
            name for name in KERNELS if not find_obstacles(cfg, name, dropout=dropout)
        ]
        raise ValueError(
            f"attention {cfg.attention!r} cannot do {obstacles[0]}; "
            f"{', '.join(able)} can"
        )


KERNELS = {"flash": flash_attention, "splash": splash_attention}

"""Attention by the kernels of accelerators: cuDNN's on GPU, splash (Pallas) on TPU."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_kernel as kernels,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
    splash_attention_mask as masks,
)
from jax.sharding import PartitionSpec as P

from research.models.attention.blockwise import blockwise
from research.models.attention.dot_product import Scored, Setting
from research.models.config import EncoderConfig
from research.models.positions.relative_rope import relation
from research.types import Array

# Splash: queries and keys of a block, at most and in steps of the chip's lanes.
BLOCK, LANES = 512, 128


def obstacles(cfg: EncoderConfig, name: str, *, dropout: bool) -> list[str]:
    """What a kernel, 'flash' or 'splash', cannot do of what the config wants.

    Args:
        cfg: the encoder's shape.
        name: of the kernel.
        dropout: whether attention weights are dropped.
    """
    how = relation(cfg)
    found = {
        f"the attention bias {cfg.position_bias!r}": cfg.position_bias != "none",
        "distances of several kinds": len(how.branches) > 1,
        "a mask of its own": how.visible is not None,
        "an anchor token": cfg.anchor_token,
        "dropout of attention weights": dropout,
    }
    if name == "flash":
        found["float32"] = cfg.dtype == "float32"
        found["a softcap"] = bool(cfg.attn_logit_softcap)
        found[f"heads of {cfg.head_dim}"] = cfg.head_dim > 128 or cfg.head_dim % 8 > 0
    return [what for what, present in found.items() if present]


def flash(cfg: EncoderConfig, x: Scored, setting: Setting) -> Array:
    """cuDNN's attention where rows hold one text at their start; else `blockwise`.

    cuDNN takes the lengths of rows, but neither packed rows without a mask of [S, S]
    nor windows to both sides.

    Args:
        cfg: an encoder without `obstacles`.
        x: queries, keys and values of rows [B, S], bfloat16.
        setting: where the tokens stand, and whether the block is local.

    Returns:
        [B, S, H, D/H].
    """
    places = setting.places
    real = places.segment_ids > 0
    fits = (~real | (places.position_ids == places.row_positions)).all()
    if setting.local is not None:
        fits &= ~setting.local

    def fused(x, setting):
        return jax.nn.dot_product_attention(
            x.query[0],
            x.key[0],
            x.v,
            scale=1.0,
            is_causal=cfg.causal,
            key_value_seq_lengths=jnp.maximum(real.sum(-1, dtype=jnp.int32), 1),
            implementation="cudnn",
        )

    return jax.lax.cond(fits, fused, partial(blockwise, cfg), x, setting)


def splash(
    cfg: EncoderConfig,
    x: Scored,
    setting: Setting,
    *,
    block: int = BLOCK,
    interpret: bool = False,
) -> Array:
    """Splash attention; packed rows by their segments, local blocks by their window.

    The compiler cannot split the kernel over devices, so each runs it for its rows, and
    heads, of the ambient mesh.

    Args:
        cfg: an encoder without `obstacles`.
        x: queries, keys and values of rows [B, S].
        setting: where the tokens stand, and whether the block is local.
        block: queries and keys of a block at most, a multiple of 128.
        interpret: run the kernel's Python code; for tests.

    Returns:
        [B, S, H, D/H].
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = _axis(mesh, "data", x.v.shape[0])
    heads = _axis(mesh, "model", x.v.shape[2])
    attend = partial(_splash, cfg, block, interpret)
    if mesh.size > 1:
        split = P(rows, None, heads)
        specs = (split, split, split, P(rows), P())
        attend = jax.shard_map(attend, in_specs=specs, out_specs=split, check_vma=False)
    local = jnp.bool_(False) if setting.local is None else setting.local
    return attend(x.query[0], x.key[0], x.v, setting.places.segment_ids, local)


def _axis(mesh, name: str, size: int) -> str | None:
    """An axis of the mesh, if it has that one and the axis divides the size."""
    return name if name in mesh.shape and size % mesh.shape[name] == 0 else None


def _splash(cfg, block, interpret, q, k, v, segment, local):
    length = v.shape[1]
    count = -(-length // block)
    size = -(-length // (LANES * count)) * LANES
    padding = (0, size * count - length)

    def heads_first(a):
        a = jnp.pad(a, [(0, 0), padding, (0, 0), (0, 0)])
        return a.transpose(0, 2, 1, 3)

    def attend(mask, *arrays):
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=kernels.BlockSizes(*[size] * 8),
            attn_logits_soft_cap=cfg.attn_logit_softcap or None,
            interpret=interpret,
        )
        return jax.vmap(kernel)(*arrays)

    segment = jnp.pad(segment, [(0, 0), padding])
    arrays = [heads_first(a) for a in (q, k, v)]
    arrays.append(kernels.SegmentIds(segment, segment))
    whole, windowed = (partial(attend, mask) for mask in _masks(cfg, size * count))
    y = (
        jax.lax.cond(local, windowed, whole, *arrays)
        if cfg.sliding_window_layers
        else whole(*arrays)
    )
    return y.transpose(0, 2, 1, 3)[:, :length]


def _masks(cfg: EncoderConfig, length: int) -> tuple[masks.Mask, masks.Mask]:
    """The masks of global and of local blocks."""
    shape = (length, length)
    whole = masks.CausalMask(shape) if cfg.causal else masks.FullMask(shape)
    after = 0 if cfg.causal else cfg.window
    return whole, masks.LocalMask(shape, (cfg.window, after), 0)

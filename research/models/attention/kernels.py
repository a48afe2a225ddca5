"""Fused attention kernels of accelerators: cuDNN's on GPU, splash (Pallas) on TPU."""

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

from research.models.attention.blockwise import blockwise_attention
from research.models.attention.inputs import AttentionInputs
from research.models.config import EncoderConfig
from research.models.positions.relative_rope import relative_remapping
from research.types import Array

# Splash: the most queries and keys of a block, and the chip's lanes, of which a block
# is a multiple.
BLOCK, LANES = 512, 128


def find_obstacles(cfg: EncoderConfig, name: str, *, dropout: bool) -> list[str]:
    """What a kernel, 'flash' or 'splash', cannot do of what the config wants.

    Args:
        cfg: The encoder's shape.
        name: The kernel's name.
        dropout: Whether attention weights are dropped.
    """
    remapping = relative_remapping(cfg)
    obstacles = {
        f"the attention bias {cfg.position_bias!r}": cfg.position_bias != "none",
        "distances of several kinds": len(remapping.branches) > 1,
        "a mask of its own": remapping.visible is not None,
        "an anchor token": cfg.anchor_token,
        "dropout of attention weights": dropout,
    }
    if name == "flash":
        head_dim = cfg.head_dim
        obstacles["float32"] = cfg.dtype == "float32"
        obstacles["a softcap"] = bool(cfg.attn_logit_softcap)
        obstacles[f"heads of {head_dim}"] = head_dim > 128 or head_dim % 8 > 0
    return [description for description, present in obstacles.items() if present]


def flash_attention(
    cfg: EncoderConfig,
    q: tuple[Array, ...],
    k: tuple[Array, ...],
    v: Array,
    attn: AttentionInputs,
    is_local: Array | None = None,
) -> Array:
    """cuDNN's attention where rows hold one text at their start; else `blockwise`.

    cuDNN takes the lengths of rows, but neither packed rows without a mask of [S, S]
    nor windows to both sides.

    Args:
        cfg: The shape of an encoder without obstacles.
        q: [B, S, H, E] bfloat16 queries, one branch.
        k: [B, S, KV, E] keys, one branch.
        v: [B, S, KV, D/H] values.
        attn: The inputs that all blocks share.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.

    Returns:
        [B, S, H, D/H].
    """
    # [] bool, whether every token's position in its text is its position in the row
    positions = attn.positions
    valid = positions.segment_ids > 0
    fits = (~valid | (positions.position_ids == positions.row_positions)).all()
    if is_local is not None:
        fits &= ~is_local

    def run_cudnn():
        # Queries are scaled already; a row without tokens counts as one of one token.
        return jax.nn.dot_product_attention(
            q[0],
            k[0],
            v,
            scale=1.0,
            is_causal=cfg.causal,
            key_value_seq_lengths=jnp.maximum(valid.sum(-1, dtype=jnp.int32), 1),
            implementation="cudnn",
        )

    def run_blockwise():
        return blockwise_attention(cfg, q, k, v, attn, is_local)

    return jax.lax.cond(fits, run_cudnn, run_blockwise)


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
    """Splash attention: packed rows by their segments, local blocks by their window.

    The compiler cannot split the kernel over devices, so each runs it for its rows, and
    heads, of the ambient mesh.

    Args:
        cfg: The shape of an encoder without obstacles.
        q: [B, S, H, E] queries, one branch.
        k: [B, S, KV, E] keys, one branch.
        v: [B, S, KV, D/H] values.
        attn: The inputs that all blocks share.
        is_local: [] bool, whether this is a sliding-window block; None if the encoder
            has none.
        block: The most queries and keys of a block, a multiple of 128.
        interpret: Run the kernel's Python code; for tests.

    Returns:
        [B, S, H, D/H].
    """
    mesh = jax.sharding.get_abstract_mesh()
    rows = _dividing_axis(mesh, "data", v.shape[0])
    heads = _dividing_axis(mesh, "model", v.shape[2])
    run = partial(_run_splash, cfg, block, interpret)
    if mesh.size > 1:
        split = P(rows, None, heads)
        specs = (split, split, split, P(rows), P())
        run = jax.shard_map(run, in_specs=specs, out_specs=split, check_vma=False)
    is_local = jnp.bool_(False) if is_local is None else is_local
    return run(q[0], k[0], v, attn.positions.segment_ids, is_local)


def _dividing_axis(mesh, name: str, size: int) -> str | None:
    """The mesh axis of that name, if there is one and it divides the size."""
    return name if name in mesh.shape and size % mesh.shape[name] == 0 else None


def _run_splash(cfg, block, interpret, q, k, v, segment_ids, is_local):
    """Splash attention of one device's rows and heads."""
    # Equal blocks, multiples of the lanes, over a row padded to a multiple of them
    length = v.shape[1]
    count = -(-length // block)
    size = -(-length // (LANES * count)) * LANES
    padding = (0, size * count - length)

    def put_heads_first(x):  # [B, S, H, E] -> [B, H, padded S, E]
        x = jnp.pad(x, [(0, 0), padding, (0, 0), (0, 0)])
        return x.transpose(0, 2, 1, 3)

    def attend(mask, *arrays):
        kernel = kernels.make_splash_mha_single_device(
            masks.MultiHeadMask([mask] * q.shape[2]),
            block_sizes=kernels.BlockSizes(*[size] * 8),
            attn_logits_soft_cap=cfg.attn_logit_softcap or None,
            interpret=interpret,
        )
        return jax.vmap(kernel)(*arrays)

    segment_ids = jnp.pad(segment_ids, [(0, 0), padding])
    arrays = [put_heads_first(x) for x in (q, k, v)]
    arrays.append(kernels.SegmentIds(segment_ids, segment_ids))
    global_mask, local_mask = _splash_masks(cfg, size * count)
    if cfg.sliding_window_layers:
        y = jax.lax.cond(
            is_local, partial(attend, local_mask), partial(attend, global_mask), *arrays
        )
    else:
        y = attend(global_mask, *arrays)
    return y.transpose(0, 2, 1, 3)[:, :length]  # [B, S, H, D/H]


def _splash_masks(cfg: EncoderConfig, length: int) -> tuple[masks.Mask, masks.Mask]:
    """The masks of global and of sliding-window blocks."""
    shape = (length, length)
    global_mask = masks.CausalMask(shape) if cfg.causal else masks.FullMask(shape)
    window_after = 0 if cfg.causal else cfg.window
    return global_mask, masks.LocalMask(shape, (cfg.window, window_after), 0)

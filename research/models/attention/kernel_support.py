"""Which fused attention kernels this process can compile, and what they can do."""

import importlib.util

import jax

from research.models.config import EncoderConfig
from research.models.positions.relative_rope import relative_remapping

# Fewest tokens of a row for which a kernel is chosen over dense attention. Forward and
# backward, with 512 tokens in bfloat16, dense attention reached 54 TFLOP/s on an H200,
# and cuDNN with a mask 152.
MIN_KERNEL_LENGTH = 256


def find_kernels(cfg: EncoderConfig, *, dropout: bool) -> list[tuple[str, str]]:
    """Lists the (kernel, platform) pairs that 'auto' can choose.

    Args:
        cfg: The encoder's shape.
        dropout: Whether attention weights have dropout.
    """
    if cfg.attention != "auto":
        return []
    kernels = []
    if jax.default_backend() == "gpu":
        kernels.append(("flash", "cuda"))
    # Also without a TPU: programs can be compiled ahead of time for one.
    if importlib.util.find_spec("libtpu"):
        kernels.append(("splash", "tpu"))
    return [
        (name, platform)
        for name, platform in kernels
        if not find_obstacles(cfg, name, dropout=dropout)
    ]


def find_obstacles(cfg: EncoderConfig, name: str, *, dropout: bool) -> list[str]:
    """Lists what the config requires and a kernel ('flash', 'splash') does not support.

    Args:
        cfg: The encoder's shape.
        name: The kernel's name.
        dropout: Whether attention weights have dropout.
    """
    remapping = relative_remapping(cfg)
    biases = ("none", "alibi") if name == "flash" else ("none",)
    obstacles = {
        f"the attention bias {cfg.position_bias!r}": cfg.position_bias not in biases,
        "distances of several kinds": len(remapping.branches) > 1,
        "a mask of its own": remapping.visible is not None,
        "an anchor token": cfg.anchor_token,
        "tokens that no token attends to": cfg.unattended_id >= 0,
        "dropout of attention weights": dropout,
    }
    if name == "flash":
        head_dim = cfg.head_dim
        obstacles["float32"] = cfg.dtype == "float32"
        obstacles["a softcap"] = bool(cfg.attn_logit_softcap)
        obstacles[f"heads of {head_dim}"] = head_dim > 128 or head_dim % 8 > 0
    return [description for description, present in obstacles.items() if present]

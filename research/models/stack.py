"""The stack of blocks: one scan over parameters that are stacked over layers [L, ...].

One block is compiled, whatever the depth; what sets blocks apart is scanned over too.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.models.attention.inputs import AttentionInputs, PrefixKV
from research.models.config import EncoderConfig
from research.models.layers import Block
from research.models.linear import lora_params
from research.models.token_prepending import Prepend, prepend_in_layers
from research.sharding import split_rows
from research.types import Array, Params

# (hidden states [B, S, D], the router's logits [B, S, E] or None) -> an array
PerLayerFn = Callable[[Array, Array | None], Array]
# What the backward pass finds stored of a block, for each `EncoderConfig.remat`.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all": jax.checkpoint_policies.nothing_saveable,
}


def scan_blocks(
    params: Params,
    x: Array,
    cfg: EncoderConfig,
    attn: AttentionInputs,
    per_layer_fn: PerLayerFn | None = None,
    *,
    keys: Array | None = None,
    prefix: PrefixKV | None = None,
    prepend: Prepend | None = None,
) -> tuple[Array, Array | None]:
    """The states after the last block, and an array made of every layer's states.

    Args:
        params: The encoder's.
        x: [B, S, D] embeddings.
        cfg: The encoder's shape.
        attn: The inputs that all blocks share.
        per_layer_fn: Makes an array of a layer's states [B, S, D], before the final
            norm, and the logits of its router. It runs inside the scan, so that the
            states of all layers never stand in memory together. None for nothing.
        keys: [L] dropout keys; None runs without dropout.
        prefix: Keys and values [L, P, ...] of a cached prefix; None without.
        prepend: What token prepending copies; None for nothing.

    Returns:
        [B, S, D], and [L+1, ...] of the embedding layer, whose router logits are 0, and
        of every block, or None.
    """
    chex.assert_shape(x, (*attn.positions.segment_ids.shape, cfg.width))
    per_layer_fn = per_layer_fn or (lambda x, router_logits: None)

    def layer(x, scanned):
        layer_params, flags, key, prefix_kv = scanned
        x, router_logits, _ = Block(cfg).apply(
            {"params": layer_params},
            x,
            attn._replace(prefix_kv=prefix_kv),
            lora=lora_params(layer_params),
            key=key,
            **flags,
        )
        # Without this a compiler that sees weights split over devices splits the hidden
        # states by width, and moves them around instead of the weights.
        x = split_rows(x)
        return x, per_layer_fn(x, router_logits)

    scanned = (params["layers"], layer_flags(cfg), keys, prefix)
    layer, scanned = prepend_in_layers(layer, scanned, prepend)
    layer = rematerialize(layer, cfg)
    # The embedding layer's states, then those of every block
    router_logits = None
    if cfg.num_experts:
        router_logits = jnp.zeros((*x.shape[:2], cfg.num_experts), cfg.compute_dtype)
    embedded = per_layer_fn(x, router_logits)
    x, per_layer = jax.lax.scan(layer, x, scanned)
    if embedded is None:
        return x, None
    return x, jnp.concatenate([embedded[None], per_layer])


def rematerialize(function: Callable, cfg: EncoderConfig) -> Callable:
    """A block's function whose backward pass stores only what `cfg.remat` says."""
    if cfg.remat == "none":
        return function
    return jax.checkpoint(function, policy=REMAT_POLICIES[cfg.remat])


def layer_flags(cfg: EncoderConfig) -> dict[str, np.ndarray | None]:
    """What sets blocks apart, as arguments of `Block`: [L] bool, or None for all alike.

    Scanned over with the parameters, so that one program serves all blocks.
    """
    return {
        "is_local": np.array(cfg.sliding_window_layers)
        if cfg.sliding_window_layers
        else None,
        "is_first": None if cfg.first_norm else np.arange(cfg.depth) == 0,
    }

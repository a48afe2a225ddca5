"""The stack of blocks: one scan over parameters that are stacked over layers [L, ...].

Only one block is compiled, whatever the depth; flags that differ between blocks are
scanned over too.
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
from research.sharding import split_hidden
from research.types import Array, Params

# (hidden states [B, S, D], the router's logits [B, S, E] or None) -> an array
PerLayerFn = Callable[[Array, Array | None], Array]
# What is stored of a block for the backward pass, for each `EncoderConfig.remat`.
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
    """Applies all blocks; also collects a function of every layer's states.

    Args:
        params: The encoder's parameters.
        x: [B, S, D] output of the embedding layer.
        cfg: The encoder's shape.
        attn: The inputs that all blocks share.
        per_layer_fn: Function of a layer's states [B, S, D], before the final norm, and
            its router logits that returns an array. It runs inside the scan, so that
            the states of all layers are never in memory at once. None for none.
        keys: [L] dropout keys; None runs without dropout.
        prefix: Keys and values [L, P, ...] of a cached prefix; None for none.
        prepend: Positions and blocks of token prepending; None for none.

    Returns:
        The final states [B, S, D] before the final norm, and the results of
        `per_layer_fn` for the embedding layer (with router logits 0) and for every
        block, [L+1, ...] or None.
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
        # Without this constraint, the compiler shards the hidden states by width where
        # weights are sharded, and moves states between devices instead of weights.
        x = split_hidden(x)
        return x, per_layer_fn(x, router_logits)

    scanned = (params["layers"], layer_flags(cfg), keys, prefix)
    # Token prepending wraps the layer, rematerialization wraps both
    layer, scanned = prepend_in_layers(layer, scanned, prepend)
    layer = rematerialize(layer, cfg)
    # `per_layer_fn` of the embedding layer, then of every block: [L+1, ...]
    router_logits = None
    if cfg.num_experts:
        router_logits = jnp.zeros((*x.shape[:2], cfg.num_experts), cfg.compute_dtype)
    embedded = per_layer_fn(x, router_logits)
    x, per_layer = jax.lax.scan(layer, x, scanned, unroll=cfg.unroll)
    if embedded is None:
        return x, None
    return x, jnp.concatenate([embedded[None], per_layer])


def rematerialize(function: Callable, cfg: EncoderConfig) -> Callable:
    """Wraps a function so that only what `cfg.remat` allows is stored for backward."""
    if cfg.remat == "none":
        return function
    return jax.checkpoint(function, policy=REMAT_POLICIES[cfg.remat])


def layer_flags(cfg: EncoderConfig) -> dict[str, np.ndarray | None]:
    """Arguments of `Block` that differ between blocks: [L] bool, or None if none does.

    They are scanned over with the parameters, so that one program serves all blocks.
    """
    return {
        "is_local": np.array(cfg.sliding_window_layers)
        if cfg.sliding_window_layers
        else None,
        "is_first": None if cfg.first_norm else np.arange(cfg.depth) == 0,
    }

"""The attention of one block by itself, with its weights, for analyses."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.models.attention.dot_product import attention_logits, sum_values
from research.models.attention.inputs import AttentionInputs, apply_positions
from research.models.config import EncoderConfig
from research.models.layers import BIAS_GROUPS, norm
from research.models.linear import Linear, lora_params
from research.models.stack import layer_flags
from research.types import Array, Params


class AttentionSublayer(NamedTuple):
    """What the attention of a block computes.

    Attributes:
        weights: [B, H, S, S] float32 attention weights; rows sum to 1.
        output: [B, S, D] output, before it is added to the hidden states.
    """

    weights: Array
    output: Array


@partial(jax.jit, static_argnames="cfg")
def apply_attention(
    params: Params, x: Array, attn: AttentionInputs, layer: Array, cfg: EncoderConfig
) -> AttentionSublayer:
    """Applies the attention of one block to its input.

    Args:
        params: The encoder's parameters.
        x: [B, S, D] hidden states before the block, as `encoder.apply` gives them to
            `per_layer_fn`.
        attn: The inputs that all blocks share, with the masks of dense attention.
        layer: [] int, the number of the block, from 0.
        cfg: The encoder's shape.
    """
    # The parameters and flags of this block.
    block = jax.tree.map(lambda p: p[layer], params["layers"])
    flags = jax.tree.map(lambda f: jnp.asarray(f)[layer], layer_flags(cfg))
    is_local, is_first = flags["is_local"], flags["is_first"]
    lora = lora_params(block) or {}

    def apply_norm(name, x):
        return norm(cfg, None).apply({"params": block[name]}, x)

    def project(name, features, x, axes=1):  # [B, S, ...] -> [B, S, *features]
        has_bias = BIAS_GROUPS[name] in cfg.bias
        linear = Linear(features, has_bias, cfg.compute_dtype, axes)
        rows = x.reshape(-1, *x.shape[2:])
        y = linear.apply({"params": block[name]}, rows, lora.get(name))
        return y.reshape(*x.shape[:2], *features)

    # [B, S, D] input of attention, which some families normalize.
    inputs = x
    if cfg.norm_at != "post":
        inputs = apply_norm("attention_norm", x)
        inputs = inputs if is_first is None else jnp.where(is_first, x, inputs)
    # [B, S, H, E] queries, [B, S, KV, E] keys and values.
    q = project("query", (cfg.num_heads, cfg.head_dim), inputs)
    k = project("key", (cfg.num_kv_heads, cfg.head_dim), inputs)
    v = project("value", (cfg.num_kv_heads, cfg.head_dim), inputs)
    if cfg.qk_norm:
        q, k = apply_norm("query_norm", q), apply_norm("key_norm", k)
    q, k = apply_positions(cfg, q, k, attn, is_local)
    # [B, H, S, S] weights, and [B, S, D] output.
    weights = jax.nn.softmax(attention_logits(cfg, q, k, attn.masks, is_local), -1)
    y = sum_values(weights.astype(v.dtype), v).astype(v.dtype).transpose(0, 2, 1, 3)
    return AttentionSublayer(weights, project("out", (cfg.width,), y, axes=2))

"""Prefix caching: keys and values of the common first tokens of all texts.

A long instruction before every text is then computed once instead of once per text.
This is exact for causal encoders whose positions do not depend on the length of the
text (`can_share_prefix`).
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp

from research.models.attention.inputs import (
    PrefixKV,
    make_attention_inputs,
    shift_positions,
)
from research.models.config import EncoderConfig
from research.models.embedding import embed_tokens
from research.models.layers import Block, apply_final_norm
from research.models.linear import lora_params
from research.models.positions.segment_positions import segment_positions
from research.models.stack import PerLayerFn, layer_flags, scan_blocks
from research.models.token_prepending import Prepend
from research.sharding import split_hidden
from research.types import Array, Params, Tokens


@partial(jax.jit, static_argnames="cfg")
def encode_prefix(params: Params, token_ids: Array, cfg: EncoderConfig) -> PrefixKV:
    """Computes the keys and values of the common first tokens in every block.

    Args:
        params: The encoder's parameters.
        token_ids: [P] int32 token ids, including special tokens.
        cfg: The encoder's shape, for which `can_share_prefix` holds.

    Returns:
        Keys and values, each [L, P, KV, E].
    """
    chex.assert_rank(token_ids, 1)
    positions = segment_positions(jnp.ones_like(token_ids)[None])
    attn = make_attention_inputs(params, positions, cfg)

    def layer(x, scanned):
        layer_params, flags = scanned
        variables, lora = {"params": layer_params}, lora_params(layer_params)
        # x [1, P, D]; keys and values lose the batch axis: [P, KV, E]
        x, _, kv = Block(cfg).apply(variables, x, attn, lora=lora, **flags)
        return x, jax.tree.map(lambda row: row[0], kv)

    x = embed_tokens(params, token_ids[None], positions, cfg)  # [1, P, D]
    return jax.lax.scan(layer, x, (params["layers"], layer_flags(cfg)))[1]


def apply_after_prefix(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    prefix: PrefixKV,
    per_layer_fn: PerLayerFn | None = None,
    *,
    prepend: Prepend | None = None,
) -> tuple[Array, Array | None]:
    """`encoder.apply`, without dropout, for the tokens after a cached prefix.

    Args:
        params: The encoder's parameters.
        tokens: Rows [B, S] with one text each, without its first P tokens.
        cfg: The encoder's shape.
        prefix: Keys and values of these P tokens, [L, P, ...], from `encode_prefix`.
        per_layer_fn: As in `scan_blocks`.
        prepend: Positions and blocks of token prepending; None for none.

    Returns:
        Hidden states [B, S, D], and the results of `per_layer_fn` for the embedding
        layer and every block, [L+1, ...] or None.
    """
    length = prefix.value.shape[1]
    chex.assert_equal_shape_prefix((prefix.key, prefix.value), 3)
    # Positions continue after the prefix; there are P + S keys
    positions = shift_positions(segment_positions(tokens.segment_ids), length)
    attn = make_attention_inputs(
        params,
        positions,
        cfg,
        adapter_ids=tokens.adapter_ids,
        prefix_length=length,
    )
    x = split_hidden(
        embed_tokens(params, tokens.token_ids, positions, cfg)
    )  # [B, S, D]
    x, per_layer = scan_blocks(
        params, x, cfg, attn, per_layer_fn, prefix=prefix, prepend=prepend
    )
    return apply_final_norm(params, x, cfg), per_layer


def can_share_prefix(cfg: EncoderConfig) -> bool:
    """Whether the first tokens of a text have the same keys and values in all texts.

    False if they attend to later tokens, or if positions depend on the length of the
    text. Sliding-window blocks and distance biases are not supported either.
    """
    # Position methods must not depend on the length of the text
    fixed = all(method.prefix_cacheable for method in cfg.position_methods)
    independent = not (
        cfg.sliding_window_layers or cfg.anchor_token or cfg.position_stride > 1
    )
    return cfg.causal and fixed and independent and cfg.position_bias == "none"

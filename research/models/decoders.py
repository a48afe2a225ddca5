"""Decoders of masked-autoencoder pre-training, on packed rows.

A few blocks of the encoder's architecture that reconstruct a text, in most objectives
from its embedding (RetroMAE, SEED-Encoder, MAE-LM, Starbucks). Only pre-training losses
use them.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from research.models import encoder
from research.models.attention.inputs import make_attention_inputs, select_queries
from research.models.config import EncoderConfig
from research.models.layers import Block, norm
from research.models.positions.learned import table_rows
from research.models.positions.segment_positions import Positions
from research.models.token_ops import gather_tokens
from research.sharding import split_hidden
from research.types import Array, Key, Params


def init_decoder(key: Key, cfg: EncoderConfig, depth: int) -> Params:
    """Random parameters of `depth` blocks, and a final norm if the encoder has one."""
    params = encoder.init(key, _decoder_config(cfg, depth))
    return {name: params[name] for name in ("layers", "final_norm") if name in params}


def copy_decoder(params: Params, depth: int) -> Params:
    """Initializes a decoder as a copy of the encoder's first `depth` blocks."""
    parts = {"layers": jax.tree.map(lambda x: x[:depth], params["layers"])}
    if "final_norm" in params:
        parts["final_norm"] = params["final_norm"]
    return jax.tree.map(jnp.array, parts)


def decode(
    params: Params,
    decoder: Params,
    x: Array,
    positions: Positions,
    cfg: EncoderConfig,
    *,
    query_positions: Array | None = None,
    kv_inputs: Array | None = None,
    extra_mask: Array | None = None,
    key: Key | None = None,
) -> Array:
    """Final hidden states of a decoder.

    All its blocks attend to the full text. RoPE and attention bias are the encoder's;
    in pre-norm families a decoder has its own final norm.

    Args:
        params: The encoder's parameters.
        decoder: The decoder's parameters, from `init_decoder`.
        x: [R, S, D] input states.
        positions: Positions [R, S] of the tokens.
        cfg: The encoder's shape.
        query_positions: [R, P] int32 row positions whose states are returned; None for
            all. With dense attention, the last block computes only keys and values of
            the other tokens.
        kv_inputs: [R, S, D] inputs of the keys and values of the first block; None for
            x.
        extra_mask: [R, S, S] bool, the pairs of tokens of a text that attend; None for
            all. It requires dense attention, with the logits of full rows in memory.
        key: Dropout key; None runs without dropout.

    Returns:
        [R, P, D], or [R, S, D] without `query_positions`.
    """
    chex.assert_shape(x, (*positions.segment_ids.shape, cfg.width))
    depth = len(jax.tree.leaves(decoder["layers"])[0])
    cfg = _decoder_config(cfg, depth)
    # One key per block for dropout, and one for positions sampled in training
    keys = (None,) * (depth + 1) if key is None else jax.random.split(key, depth + 1)
    # Masks [R, S, S], RoPE angles and biases, shared by all blocks
    attn = make_attention_inputs(
        params, positions, cfg, keys[depth], extra_mask=extra_mask
    )
    for number in range(depth):
        is_last = number == depth - 1
        if is_last and query_positions is not None and attn.masks is not None:
            # [R, P, D] queries of the last block
            kv_inputs = x if kv_inputs is None else kv_inputs
            x = gather_tokens(x, query_positions)
            attn = select_queries(attn, query_positions)
            query_positions = None
        # [R, S, D], or [R, P, D] in the last block
        x, _, _ = Block(cfg).apply(
            {"params": jax.tree.map(lambda w, i=number: w[i], decoder["layers"])},
            x,
            attn,
            is_first=None if cfg.first_norm else jnp.asarray(number == 0),
            kv_inputs=kv_inputs,
            key=keys[number],
        )
        x, kv_inputs = split_hidden(x), None
    # [R, P, D] final states
    if query_positions is not None:
        x = gather_tokens(x, query_positions)
    if "final_norm" in decoder:
        x = norm(cfg, None).apply({"params": decoder["final_norm"]}, x)
    return x


def _decoder_config(cfg: EncoderConfig, depth: int) -> EncoderConfig:
    """The decoder's config: the encoder's, without sliding windows."""
    return dataclasses.replace(cfg, depth=depth, sliding_window_layers=(), window=0)


def position_embeddings(
    params: Params, positions: Positions, cfg: EncoderConfig, key: Key | None = None
) -> Array | None:
    """Position embeddings [R, S, D] of the tokens; None for an encoder without a table.

    With the same key they equal those that `embedding.embed_tokens` adds.
    """
    if cfg.position != "learned":
        return None
    # [P, D] position table
    table = params["embed"]["position"]["embedding"].astype(cfg.compute_dtype)
    return table[table_rows(positions, cfg, key)]

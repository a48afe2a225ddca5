"""The encoder: from token ids to hidden states and to embeddings of texts.

One implementation for all families (BERT, ModernBERT, Llama, T5 ...): embedding layer,
a scan over blocks, final norm. `config.EncoderConfig` describes the architecture.
"""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp

from research.models.attention.inputs import (
    MAX_DENSE_LENGTH,
    PrefixKV,
    make_attention_inputs,
)
from research.models.attention.masks import pooling_masks
from research.models.config import EncoderConfig
from research.models.embedding import TokenEmbedding, embed_tokens
from research.models.layers import Block, apply_final_norm, norm
from research.models.pooling import registry
from research.models.pooling.basic import LearnedPooling
from research.models.positions.bias import POSITION_BIASES, init_positions
from research.models.positions.segment_positions import Positions, segment_positions
from research.models.prefix_cache import apply_after_prefix
from research.models.stack import PerLayerFn, layer_flags, scan_blocks
from research.models.token_prepending import Prepend
from research.sharding import split_hidden
from research.types import Array, EncoderOutput, Key, Params, Pool, Tokens


# Jitted, so that a call outside of jit compiles once instead of op by op.
@partial(jax.jit, static_argnames="cfg")
def init(key: Key, cfg: EncoderConfig) -> Params:
    """Random parameters: kernels and tables are normal with std 0.02, as in BERT."""
    embed_key, layers_key, norm_key, position_key = jax.random.split(key, 4)
    params = init_positions(position_key, cfg)
    # Inputs that determine the shapes: two tokens, dense attention
    token_ids = jnp.zeros((1, 2), jnp.int32)
    positions = segment_positions(jnp.ones_like(token_ids))
    x = jnp.zeros((1, 2, cfg.width), cfg.compute_dtype)
    cfg = dataclasses.replace(cfg, attention="plain")
    attn = make_attention_inputs(params, positions, cfg)
    flags = jax.tree.map(lambda flag: flag[0], layer_flags(cfg))

    def init_block(key):
        return Block(cfg).init(key, x, attn, **flags)["params"]

    # Parameters of blocks are stacked: [L, ...]
    embedding = TokenEmbedding(cfg)
    params["embed"] = embedding.init(embed_key, token_ids, positions, None)["params"]
    params["layers"] = jax.vmap(init_block)(jax.random.split(layers_key, cfg.depth))
    if cfg.norm_at != "post":
        params["final_norm"] = norm(cfg, None).init(norm_key, x)["params"]
    return params


@partial(jax.jit, static_argnames=("cfg", "every_layer"))
def forward(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    *,
    key: Key | None = None,
    every_layer: bool = False,
) -> EncoderOutput:
    """Computes the hidden states of the tokens of a batch.

    Args:
        params: The parameters, from `init`.
        tokens: Rows [B, S].
        cfg: The encoder's shape.
        key: Dropout key; None runs without dropout.
        every_layer: Whether to also return the outputs of the embedding layer and of
            every block, each after the final norm if the family has one.

    Returns:
        Hidden states [B, S, D] and, with `every_layer`, layers [L+1, B, S, D].
    """

    def normalize_layer(x, router_logits):
        return apply_final_norm(params, x, cfg)

    per_layer_fn = normalize_layer if every_layer else None
    return EncoderOutput(*apply(params, tokens, cfg, per_layer_fn, key=key))


def apply(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    per_layer_fn: PerLayerFn | None = None,
    *,
    positions: Positions | None = None,
    input_embeddings: Array | None = None,
    extra_mask: Array | None = None,
    prepend: Prepend | None = None,
    key: Key | None = None,
) -> tuple[Array, Array | None]:
    """Final hidden states, and optionally an array computed from every layer's states.

    Args:
        params: The parameters, from `init`.
        tokens: Rows [B, S].
        cfg: The encoder's shape.
        per_layer_fn: Function of a layer's states, before the final norm, and router
            logits, applied inside the scan (see `scan_blocks`); None for none.
        positions: Positions [B, S] of the tokens, if rows lack some tokens of their
            texts (`token_ops.compact_tokens`); None if every text is complete. Fused
            kernels, which assume consecutive tokens, are not used then.
        input_embeddings: [B, S, D] states that replace the embedding layer's output.
        extra_mask: [B, S, S] bool, a mask in addition to the architecture's; None for
            none. It requires dense attention, with the logits of full rows in memory.
        prepend: Positions and blocks of token prepending; None for none.
        key: Dropout key; None runs without dropout.

    Returns:
        Hidden states [B, S, D], and the results of `per_layer_fn` for the embedding
        layer and every block, [L+1, ...] or None.
    """
    chex.assert_rank(tokens.token_ids, 2)
    chex.assert_equal_shape((tokens.token_ids, tokens.segment_ids))
    # Keys [L] for blocks, and one each for sampled positions and for embeddings
    keys = None if key is None else jax.random.split(key, cfg.depth + 2)
    block_keys, position_key, embed_key = (
        (None,) * 3 if keys is None else (keys[:-2], keys[-2], keys[-1])
    )
    # Masks [B, S, S], RoPE angles and biases, shared by all blocks
    aligned = positions is None
    if aligned:
        positions = segment_positions(tokens.segment_ids, running=cfg.anchor_token)
    else:
        cfg = _attend_by_position(cfg, tokens.token_ids.shape[1])
    attn = make_attention_inputs(
        params,
        positions,
        cfg,
        position_key,
        aligned=aligned,
        adapter_ids=tokens.adapter_ids,
        extra_mask=extra_mask,
        attended=find_attended(tokens.token_ids, cfg),
    )
    # [B, S, D] embeddings, and the states after the last block
    x = input_embeddings
    if x is None:
        x = embed_tokens(params, tokens.token_ids, positions, cfg, key=embed_key)
    x, per_layer = scan_blocks(
        params,
        split_hidden(x),
        cfg,
        attn,
        per_layer_fn,
        keys=block_keys,
        prepend=prepend,
    )
    return apply_final_norm(params, x, cfg), per_layer


def find_attended(token_ids: Array, cfg: EncoderConfig) -> Array | None:
    """Whether tokens are attended to, in the shape of the ids; None if all are."""
    return token_ids != cfg.unattended_id if cfg.unattended_id >= 0 else None


def _attend_by_position(cfg: EncoderConfig, length: int) -> EncoderConfig:
    """The config with an attention that does not assume consecutive tokens in rows."""
    dense = (
        length <= MAX_DENSE_LENGTH
        or cfg.position_bias in POSITION_BIASES
        or bool(cfg.sliding_window_layers)
    )
    return dataclasses.replace(cfg, attention="plain" if dense else "blockwise")


@partial(
    jax.jit,
    static_argnames=(
        *("cfg", "pool", "max_segments", "every_layer", "before_final_norm"),
        *("clip_dims", "as_queries"),
    ),
)
def encode(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    *,
    max_segments: int = 1,
    span_ids: Array | None = None,
    every_layer: bool = False,
    before_final_norm: bool = False,
    clip_dims: tuple[int, ...] = (),
    prepend: Prepend | None = None,
    prefix: PrefixKV | None = None,
    key: Key | None = None,
    as_queries: bool = False,
) -> Array:
    """Computes the embeddings of texts, not normalized.

    Args:
        params: The parameters, from `init`.
        tokens: Rows [B, S].
        cfg: The encoder's shape.
        pool: One of `BASIC_POOLINGS`, or the result of `parse_pooling`.
        max_segments: M, the largest number of texts (or spans) in a row.
        span_ids: [B, S] int32, m >= 1 for the tokens of the m-th span of a row, to pool
            spans of texts; None pools full texts.
        every_layer: Whether to pool the outputs of the embedding layer and every block.
        before_final_norm: With `every_layer`, pool states before the final norm, and
            append the last layer's states after it.
        clip_dims: Dimensions that are set to 0 in every state that is pooled.
        prepend: Positions and blocks of token prepending; None for none.
        prefix: Cached keys and values of the first tokens of all texts, from
            `prefix_cache.encode_prefix`; each row then holds the remaining tokens of
            one text, and there is no dropout.
        key: Dropout key; None runs without dropout.
        as_queries: Whether all texts are queries, for which a pooling may need no
            encoder (`LearnedPooling.pool_query`).

    Returns:
        [B*M, D] float32, with the m-th text of row b in row b*M + m-1 (zeros for a
        missing text); [B*M, L+1, D] with `every_layer`, [B*M, L+2, D] with
        `before_final_norm` too. D is the output width of the pooling.

    Raises:
        ValueError: The encoder lacks the pooling's parameters, or `every_layer` is used
            with a pooling that combines all layers.
    """
    # [B, M, S] tokens of each text or span
    segment_ids = tokens.segment_ids if span_ids is None else span_ids
    mask = pooling_masks(segment_ids, tokens.pooling_mask, max_segments)
    if as_queries and registry.has_query_pooling(pool):
        vectors = pool.pool_query(params, cfg, tokens.token_ids, mask)
        vectors = _flatten_texts(vectors)
        # The same at every depth
        depths = (len(vectors), cfg.depth + 1, vectors.shape[1])
        return jnp.broadcast_to(vectors[:, None], depths) if every_layer else vectors
    # run(per_layer_fn) -> final states [B, S, D], results of every layer [L+1, ...]
    if prefix is None:
        run = partial(apply, params, tokens, cfg, prepend=prepend, key=key)
    else:
        run = partial(apply_after_prefix, params, tokens, cfg, prefix, prepend=prepend)
    uses_router = isinstance(pool, LearnedPooling) and pool.reads_router
    reads_ids = isinstance(pool, LearnedPooling) and pool.reads_token_ids
    pool, pool_layer = registry.bind_pooling(pool, params, cfg)
    if reads_ids:
        pool = partial(pool, token_ids=tokens.token_ids)
    if pool_layer is not None and every_layer:
        raise ValueError("this pooling makes one vector of all layers, not of each")

    def clip(x):
        return x.at[..., jnp.array(clip_dims)].set(0) if clip_dims else x

    # Pool inside the scan, which stacks [L, B, M, D] instead of [L, B, S, D]
    def pool_in_scan(x, router_logits):
        if not before_final_norm:
            x = apply_final_norm(params, x, cfg)
        x = clip(x)
        if pool_layer is None:
            return pool(x, mask)
        return pool_layer(x, *([router_logits] if uses_router else []), mask=mask)

    # [B*M, D] from all layers, [B*M, D] from the last, or [B*M, L+1, D] from each
    if pool_layer is not None:
        _, layers = run(pool_in_scan)
        return _flatten_texts(pool(layers[1:], mask))
    if not every_layer:
        return _flatten_texts(pool(clip(run()[0]), mask))
    x, layers = run(pool_in_scan)
    if before_final_norm:
        layers = jnp.concatenate([layers, pool(clip(x), mask)[None]])
    layers = jnp.moveaxis(layers, 0, 2)  # [B, M, L+1, D]
    return layers.reshape(-1, *layers.shape[2:])


def _flatten_texts(vectors: Array) -> Array:
    """[B, M, D] as [B*M, D]."""
    return vectors.reshape(-1, vectors.shape[2])


def truncate_depth(
    params: Params, cfg: EncoderConfig, depth: int
) -> tuple[Params, EncoderConfig]:
    """Truncates an encoder to its first `depth` blocks; a final norm is kept.

    Raises:
        ValueError: The encoder has no such depth.
    """
    if not 1 <= depth <= cfg.depth:
        raise ValueError(f"depth {depth} is not in 1 ... {cfg.depth} of this encoder")
    # Parameters are stacked over layers: [L, ...] -> [depth, ...]
    layers = jax.tree.map(lambda x: x[:depth], params["layers"])
    shape = dataclasses.replace(
        cfg, depth=depth, sliding_window_layers=cfg.sliding_window_layers[:depth]
    )
    return {**params, "layers": layers}, shape


def hidden_state_indices(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Indices of layers in the L+2 outputs of `encode(before_final_norm=True)`.

    Layers are numbered like `hidden_states` in transformers: 0 is the output of the
    embedding layer, k < L that of block k before the final norm, and L or -1 that of
    the last block after the final norm.

    Raises:
        ValueError: The encoder has no such layer.
    """
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"layer {layer} is not in {-depth - 1} ... {depth} of this encoder, "
                f"whose depth is {depth}"
            )
    # Negative layers count from the last; its state after the norm comes last
    numbers = (layer % (depth + 1) for layer in layers)
    return tuple(number + (number == depth) for number in numbers)

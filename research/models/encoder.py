"""The one encoder: parameters stacked over layers, applied by a scan."""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from research.models.attention.attend import MAX_DENSE_LENGTH
from research.models.attention.inputs import (
    PrefixKV,
    kinds,
    later,
    make_attention_inputs,
    terms_after,
)
from research.models.attention.masks import pooling_masks
from research.models.config import EncoderConfig
from research.models.layers import Block, Embedder, norm
from research.models.pooling import registry
from research.models.pooling.basic import LearnedPooling
from research.models.positions import clex, seqpe
from research.models.positions.bias import RELATIVE
from research.models.positions.segment_positions import Positions, segment_positions
from research.models.token_prepending import Prepend, _prepended
from research.sharding import split_rows
from research.types import Array, EncoderOutput, Key, Params, Pool, Tokens

# What the backward pass finds stored of a block, for each `EncoderConfig.remat`.
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all": jax.checkpoint_policies.nothing_saveable,
}


# Called outside of a jit too, these compile once and not operation by operation.
@partial(jax.jit, static_argnames="cfg")
def init(key: Key, cfg: EncoderConfig) -> Params:
    """Random parameters: normal(0.02) kernels and tables, as BERT's."""
    embed_key, layers_key, norm_key, extra_key = jax.random.split(key, 4)
    ids = jnp.zeros((1, 2), jnp.int32)
    where = segment_positions(jnp.ones_like(ids))
    x = jnp.zeros((1, 2, cfg.width), cfg.compute_dtype)
    params = dict(_extra(extra_key, cfg))
    cfg = dataclasses.replace(cfg, attention="plain")  # shapes need no kernel
    around = make_attention_inputs(params, where, cfg, None)
    kind = jax.tree.map(lambda flags: flags[0], kinds(cfg))

    def layer(key):
        return Block(cfg).init(key, x, around, kind, None)["params"]

    params["embed"] = Embedder(cfg).init(embed_key, ids, where, None)["params"]
    params["layers"] = jax.vmap(layer)(jax.random.split(layers_key, cfg.depth))
    if cfg.norm_at != "post":
        params["final_norm"] = norm(cfg, None).init(norm_key, x)["params"]
    return params


def _extra(key: Key, cfg: EncoderConfig) -> Params:
    """The parameters that are neither tables of tokens nor of any one block."""
    params = {}
    if cfg.position_bias == "seqpe":
        params["relative"] = seqpe.init(key, cfg)
    elif cfg.position_bias != "none":
        params["relative"] = RELATIVE[cfg.position_bias].init(key, cfg)
    for name, arguments in cfg.position_methods:
        if name == "clex":
            params["clex"] = clex.init_clex(key, cfg, **dict(arguments))
    return {name: value for name, value in params.items() if value}


@partial(jax.jit, static_argnames=("cfg", "every_layer"))
def forward(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    *,
    key: Key | None = None,
    every_layer: bool = False,
) -> EncoderOutput:
    """Hidden states of the tokens.

    Args:
        params: as `init` makes them.
        tokens: rows [B, S].
        cfg: the encoder's shape.
        key: dropout key; None runs without dropout.
        every_layer: also return the embedding layer's output and each block's.

    Returns:
        tokens [B, S, D] and, if asked for, layers [L+1, B, S, D].
    """
    keep = (lambda x: x) if every_layer else None
    return EncoderOutput(*apply(params, tokens, cfg, keep, key=key))


def apply(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    per_layer_fn: Callable[..., Array] | None = None,
    *,
    positions: Positions | None = None,
    input_embeddings: Array | None = None,
    key: Key | None = None,
    prepend: Prepend | None = None,
    adapter_ids: Array | None = None,
    apply_final_norm: bool = True,
    prefix: PrefixKV | None = None,
    with_router_logits: bool = False,
    extra_mask: Array | None = None,
) -> tuple[Array, Array | None]:
    """Final hidden states, and what is wanted of every layer's.

    Args:
        params: as `init` makes them.
        tokens: rows [B, S].
        cfg: the encoder's shape.
        keep: makes of the states [B, S, D] of a layer what is kept of them; None keeps
            nothing. It runs inside the scan over layers: all of their states never
            stand in memory together.
        routed: whether `keep` takes the logits [B, S, E] of the routers too, which are
            0 for the embedding layer.
        where: the places of the tokens; None where each text stands whole in the row.
            Otherwise no kernel is used: these go by the order of the row.
        inputs: [B, S, D] in place of the embedding layer's output.
        key: dropout key; None runs without dropout.
        prepend: what is copied between tokens before some blocks; None for nothing.
        adapter: [B, S] int32, the adapter of each token, -1 for none; None goes by
            `tokens.adapter`.
        normed: whether `keep` sees states after the final norm, where the family has
            one, or as blocks pass them on.
        prefix: the tokens before those of every row, from `prefix`, [L, P, ...]. Rows
            hold the rest of one text each, and their scores stand whole in memory.
        sees: [B, S, S] bool, which tokens of its text each may look at, of those that
            the shape lets it see; None for all. Scores then stand whole in memory.

    Returns:
        [B, S, D], and [L+1, ...] of the embedding layer and every block, or None.
    """
    aligned = positions is None
    if aligned:
        positions = segment_positions(tokens.segment_ids, running=cfg.anchor_token)
    else:
        cfg = _unaligned(cfg, positions.row_positions.shape[1])
    if prefix is not None or extra_mask is not None:
        cfg = dataclasses.replace(cfg, attention="plain")
    if prefix is not None:
        positions = later(positions, prefix.value.shape[1])
    keys = None if key is None else jax.random.split(key, cfg.depth + 2)
    position_key = None if key is None else keys[-2]
    adapter_ids = tokens.adapter_ids if adapter_ids is None else adapter_ids
    around = make_attention_inputs(
        params, positions, cfg, position_key, aligned=aligned, adapter=adapter_ids
    )
    if prefix is not None:
        around = around._replace(
            masks=terms_after(cfg, positions, prefix.value.shape[1])
        )

    if extra_mask is not None:
        around = around.restrict(extra_mask)

    def final(x):
        if cfg.norm_at != "post":
            return norm(cfg, None).apply({"params": params["final_norm"]}, x)
        return x

    def kept(x, logits):
        if per_layer_fn is None:
            return None
        return per_layer_fn(
            final(x) if apply_final_norm else x,
            *([logits] if with_router_logits else []),
        )

    def layer(x, xs):
        p, kind, k, copies, past = xs
        if prepend is not None:
            x = _prepended(x, prepend, copies)
        # Without this a compiler that sees weights split over devices splits the hidden
        # states by width, and moves them around instead of the weights.
        x, seen = Block(cfg).apply(
            {"params": p}, x, around, kind, k, None, past, mutable="routing"
        )
        x = split_rows(x if past is None else x[0])
        return x, kept(x, *seen.get("routing", {}).get("logits", [None]))

    x = input_embeddings
    if x is None:
        embed_key = None if keys is None else keys[-1]
        embed = {"params": params["embed"]}
        x = Embedder(cfg).apply(embed, tokens.token_ids, positions, embed_key)
    x = split_rows(x)
    first = kept(x, jnp.zeros((*x.shape[:2], cfg.num_experts), cfg.compute_dtype))
    copies = None if prepend is None else prepend.blocks
    block_keys = None if keys is None else keys[:-2]
    xs = (params["layers"], kinds(cfg), block_keys, copies, prefix)
    if cfg.remat != "none":
        layer = jax.checkpoint(layer, policy=REMAT_POLICIES[cfg.remat])
    x, rest = jax.lax.scan(layer, x, xs)
    if per_layer_fn is None:
        return final(x), None
    return final(x), jnp.concatenate([first[None], rest])


@partial(
    jax.jit,
    static_argnames=("cfg", "pool", "max_segments", "every_layer", "before_final_norm"),
)
def encode(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    pool: Pool | LearnedPooling,
    *,
    max_segments: int = 1,
    span_ids: Array | None = None,
    key: Key | None = None,
    every_layer: bool = False,
    before_final_norm: bool = False,
    prepend: Prepend | None = None,
    adapter_ids: Array | None = None,
    prefix: PrefixKV | None = None,
) -> Array:
    """Embeddings of the texts, not normalised.

    Args:
        params: as `init` makes them.
        tokens: rows [B, S].
        cfg: the encoder's shape.
        pool: one of `BASIC_POOLINGS`, or what `parse_pooling` reads.
        slots: M, the most texts (or spans) that a row holds.
        spans: [B, S] int32, m >= 1 for the tokens of the m-th span of a row, where
            spans of texts are pooled and not whole texts.
        key: dropout key; None runs without dropout.
        every_layer: pool the embedding layer's output and each block's.
        raw: with `every_layer`, these before the final norm, and after them the last
            one's once more after it.
        prepend, adapter, prefix: as in `apply`.

    Returns:
        [B*M, D] float32, row b*M + m-1 for the m-th text of row b (zero where there is
        none); [B*M, L+1, D] with `every_layer`, [B*M, L+2, D] if `raw` too. D is the
        pooling's, if it has its own.

    Raises:
        ValueError: the encoder lacks the pooling's parameters, or every layer is wanted
            of a pooling that makes one vector of all layers.
    """
    groups = tokens.segment_ids if span_ids is None else span_ids
    mask = pooling_masks(groups, tokens.pooling_mask, max_segments)
    told = {"prepend": prepend, "adapter_ids": adapter_ids, "prefix": prefix}
    routed = isinstance(pool, LearnedPooling) and pool.reads_router
    pool, each = registry.bind_pooling(pool, params, cfg)
    if each is not None:
        if every_layer:
            raise ValueError("this pooling makes one vector of all layers, not of each")
        keep = partial(each, mask=mask)
        _, layers = apply(
            params, tokens, cfg, keep, key=key, with_router_logits=routed, **told
        )
        return _listed(pool(layers[1:], mask))
    # Pooled inside the scan: [L, B*M, D] is stacked, never [L, B, S, D].
    keep = (lambda x: pool(x, mask)) if every_layer else None
    x, layers = apply(
        params,
        tokens,
        cfg,
        keep,
        key=key,
        apply_final_norm=not before_final_norm,
        **told,
    )
    if not every_layer:
        return _listed(pool(x, mask))
    if before_final_norm:
        layers = jnp.concatenate([layers, pool(x, mask)[None]])
    layers = jnp.moveaxis(layers, 0, 2)
    return layers.reshape(-1, *layers.shape[2:])


def _listed(vectors: Array) -> Array:
    """[B, M, D] as [B*M, D]."""
    return vectors.reshape(-1, vectors.shape[2])


def truncate_depth(
    params: Params, cfg: EncoderConfig, depth: int
) -> tuple[Params, EncoderConfig]:
    """The encoder of the first `depth` blocks; it keeps the final norm if there is one.

    Raises:
        ValueError: the encoder has no such depth.
    """
    if not 1 <= depth <= cfg.depth:
        raise ValueError(f"depth {depth} is not in 1 ... {cfg.depth} of this encoder")
    layers = jax.tree.map(lambda x: x[:depth], params["layers"])
    shape = dataclasses.replace(
        cfg, depth=depth, sliding_window_layers=cfg.sliding_window_layers[:depth]
    )
    return {**params, "layers": layers}, shape


def _unaligned(cfg: EncoderConfig, length: int) -> EncoderConfig:
    """The same with attention that goes by the places of tokens, not by their order."""
    whole = (
        length <= MAX_DENSE_LENGTH
        or cfg.position_bias in RELATIVE
        or bool(cfg.sliding_window_layers)
    )
    return dataclasses.replace(cfg, attention="plain" if whole else "blockwise")


def hidden_state_indices(layers: tuple[int, ...], depth: int) -> tuple[int, ...]:
    """Which of the L+2 states that `encode` returns raw these layers are.

    The numbers are those of `hidden_states` in transformers: 0 is the embedding layer's
    output, k < L that of block k without the final norm, and L, or -1, that of the last
    block after it.

    Raises:
        ValueError: the encoder has no such layer.
    """
    for layer in layers:
        if not -depth - 1 <= layer <= depth:
            raise ValueError(
                f"layer {layer} is not in {-depth - 1} ... {depth} of this encoder, "
                f"whose depth is {depth}"
            )
    places = (layer % (depth + 1) for layer in layers)
    return tuple(place + (place == depth) for place in places)

"""The one encoder: parameters stacked over layers, applied by a scan."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.models.config import EncoderConfig
from research.models.layers import Block, Embedder, norm
from research.models.masks import same_text, text_masks
from research.models.positions import positions, rope_frequencies, rope_table
from research.parallel import split_rows
from research.structs import Array, EncoderOutput, Key, Params, Pool, Tokens

# What the backward pass finds stored of a block, for each `EncoderConfig.remat`.
SAVED = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "all": jax.checkpoint_policies.nothing_saveable,
}


def init(key: Key, cfg: EncoderConfig) -> Params:
    """Random parameters: normal(0.02) kernels and tables, as BERT's."""
    embed_key, layers_key, norm_key = jax.random.split(key, 3)
    ids = jnp.zeros((1, 2), jnp.int32)
    x = jnp.zeros((1, 2, cfg.width), cfg.compute_dtype)
    mask = jnp.ones((1, 2, 2), bool)
    rope = _rope(ids, cfg)

    def layer(key):
        return Block(cfg).init(key, x, mask, rope, None)["params"]

    params = {
        "embed": Embedder(cfg).init(embed_key, ids, ids, None)["params"],
        "layers": jax.vmap(layer)(jax.random.split(layers_key, cfg.depth)),
    }
    if cfg.norm_at == "pre":
        params["final_norm"] = norm(cfg, None).init(norm_key, x)["params"]
    return params


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
    x, layers = _scan(params, tokens, cfg, key, keep)
    return EncoderOutput(x, layers)


def encode(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    pool: Pool,
    *,
    slots: int = 1,
    key: Key | None = None,
    every_layer: bool = False,
) -> Array:
    """Embeddings of the texts, not normalised.

    Args:
        params: as `init` makes them.
        tokens: rows [B, S].
        cfg: the encoder's shape.
        pool: one of `pooling.POOLS`.
        slots: M, the most texts that a row holds.
        key: dropout key; None runs without dropout.
        every_layer: pool the embedding layer's output and each block's.

    Returns:
        [B*M, D] float32, row b*M + m-1 for the m-th text of row b (zero where there is
        none); [B*M, L+1, D] with `every_layer`.
    """
    mask = text_masks(tokens.segment, tokens.pool, slots)
    # Pooled inside the scan: [L, B*M, D] is stacked, never [L, B, S, D].
    keep = (lambda x: pool(x, mask)) if every_layer else None
    x, layers = _scan(params, tokens, cfg, key, keep)
    if every_layer:
        return jnp.moveaxis(layers, 0, 2).reshape(-1, cfg.depth + 1, cfg.width)
    return pool(x, mask).reshape(-1, cfg.width)


def truncated(
    params: Params, cfg: EncoderConfig, depth: int
) -> tuple[Params, EncoderConfig]:
    """The encoder of the first `depth` blocks; it keeps the final norm if there is one.

    Raises:
        ValueError: the encoder has no such depth.
    """
    if not 1 <= depth <= cfg.depth:
        raise ValueError(f"depth {depth} is not in 1 ... {cfg.depth} of this encoder")
    layers = jax.tree.map(lambda x: x[:depth], params["layers"])
    return {**params, "layers": layers}, dataclasses.replace(cfg, depth=depth)


def _rope(position: Array, cfg: EncoderConfig) -> tuple[Array, Array] | None:
    if cfg.position != "rope":
        return None
    table = rope_table(rope_frequencies(cfg.head_dim, cfg.rope_theta), cfg.max_len)
    cos, sin = (jnp.asarray(x)[position] for x in table)
    return cos, sin


def _scan(
    params: Params,
    tokens: Tokens,
    cfg: EncoderConfig,
    key: Key | None,
    keep: Callable[[Array], Array] | None,
) -> tuple[Array, Array | None]:
    """Final states [B, S, D], and what `keep` makes of every layer's, stacked."""
    position = positions(tokens.segment)
    mask = same_text(tokens.segment)
    rope = _rope(position, cfg)
    keys = None if key is None else jax.random.split(key, cfg.depth + 1)

    def final(x):
        if cfg.norm_at == "pre":
            return norm(cfg, None).apply({"params": params["final_norm"]}, x)
        return x

    def layer(x, xs):
        p, k = xs
        # Without this a compiler that sees weights split over devices splits the hidden
        # states by width, and moves them around instead of the weights.
        x = split_rows(Block(cfg).apply({"params": p}, x, mask, rope, k))
        return x, None if keep is None else keep(final(x))

    embedder = Embedder(cfg)
    embed_key = None if keys is None else keys[-1]
    x = embedder.apply({"params": params["embed"]}, tokens.ids, position, embed_key)
    x = split_rows(x)
    first = None if keep is None else keep(final(x))
    xs = (params["layers"], None if keys is None else keys[:-1])
    if cfg.remat != "none":
        layer = jax.checkpoint(layer, policy=SAVED[cfg.remat])
    x, rest = jax.lax.scan(layer, x, xs)
    if keep is None:
        return final(x), None
    return final(x), jnp.concatenate([first[None], rest])

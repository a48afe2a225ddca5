"""Attention poolings with learned latents: NV-Embed, and attention over layers."""

from functools import partial
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.linear import KERNEL_INIT
from research.models.pooling.basic import LearnedPooling, last_token_pool, mean_pool
from research.types import Array, Key, Params

LAYER_VECTORS = {"last": last_token_pool, "mean": mean_pool}


def latent_attention(
    *, latents: int = 512, heads: int = 8, head_dim: int = 0, mult: int = 4
) -> LearnedPooling:
    """Tokens attend to learned latents, then mean pooling (NV-Embed, Lee et al. 2024).

    Queries are the tokens, keys and values the latents, both normalized; a residual sum
    and a gated GELU layer follow, as in Perceiver (equations 3 to 5). The latents are
    the same for all texts, and all tokens attend to all of them.

    Args:
        latents: Number of latents.
        heads: Number of attention heads.
        head_dim: Size of a head; 0 is the encoder's width, as in the authors' code.
        mult: Inner width of the feed-forward layer, in units of the encoder's width.
    """
    sizes = _BlockSizes(latents, heads, head_dim, mult)

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        weights = params["pooling"]
        kv = weights["latents"].astype(tokens.dtype)[None]  # [1, latents, D]
        kv = jnp.broadcast_to(kv, (len(tokens), *kv.shape[1:]))
        return mean_pool(_apply_block(weights, tokens, kv, heads), mask)

    return LearnedPooling(partial(_init_block, sizes), pool)


def layer_attention(
    *,
    latents: int = 768,
    heads: int = 32,
    head_dim: int = 0,
    mult: int = 4,
    layer_vector: str = "last",
) -> LearnedPooling:
    """Learned latents attend to the vectors of all layers (Tang & Yang 2024).

    Keys and values are the pooled vectors of the blocks, plus a learned embedding of
    the layer; queries are the latents, and the mean of their outputs is the embedding
    of the text. The vectors are computed after the final norm, as in all poolings here,
    while the authors use states before it. An encoder truncated in depth uses the layer
    embeddings of the remaining layers.

    Args:
        latents, heads, mult: As in `latent_attention`.
        head_dim: Head size; 0 is half the encoder's width, as in the authors' code.
        layer_vector: Pooling of each layer: "last" token or "mean".
    """
    check_option("pool.layer_vector", layer_vector, LAYER_VECTORS)
    sizes = _BlockSizes(latents, heads, head_dim, mult)

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        layers_key, key = jax.random.split(key)
        block = sizes._replace(head_dim=head_dim or cfg.width // 2)
        layers = KERNEL_INIT(layers_key, (cfg.depth, cfg.width))
        return {**_init_block(block, key, cfg, params), "layers": layers}

    def pool(params: Params, cfg: EncoderConfig, vectors: Array, mask: Array) -> Array:
        chex.assert_rank(vectors, 4)
        weights = params["pooling"]
        depth, b, m, d = vectors.shape
        # One sequence of L layers for each text: [L, B, M, D] -> [B * M, L, D]
        x = vectors + weights["layers"][:depth, None, None]
        x = jnp.moveaxis(x.reshape(depth, b * m, d), 0, 1)
        queries = jnp.broadcast_to(weights["latents"][None], (b * m, latents, d))
        y = _apply_block(weights, queries, x, heads).mean(1).reshape(b, m, d)
        return jnp.where(mask.any(2)[:, :, None], y, 0.0)  # 0 for a missing text

    return LearnedPooling(init, pool, pool_layer=LAYER_VECTORS[layer_vector])


class _BlockSizes(NamedTuple):
    """Sizes of a cross-attention block; head_dim 0 stands for the encoder's width."""

    latents: int
    heads: int
    head_dim: int
    mult: int


def _init_block(
    sizes: _BlockSizes, key: Key, cfg: EncoderConfig, params: Params
) -> Params:
    """Random latents, and attention and feed-forward parameters for `_apply_block`."""
    del params
    latents_key, *keys = jax.random.split(key, 6)
    d, inner = cfg.width, sizes.heads * (sizes.head_dim or cfg.width)
    # Kernels [in, out]; "key_value" and "up" each hold two of them
    shapes = {
        "query": (d, inner),
        "key_value": (d, 2 * inner),
        "out": (inner, d),
        "up": (d, 2 * sizes.mult * d),
        "down": (sizes.mult * d, d),
    }
    block = {
        name: {"kernel": KERNEL_INIT(kernel_key, shape)}
        for kernel_key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }
    # Biases of the feed-forward layer, scales and biases of the norms
    for name in ("up", "down"):
        block[name]["bias"] = jnp.zeros(shapes[name][1])
    for name in ("query_norm", "memory_norm", "mlp_norm"):
        block[name] = {"scale": jnp.ones(d), "bias": jnp.zeros(d)}
    return {"latents": jax.random.normal(latents_key, (sizes.latents, d)), **block}


def _apply_block(params: Params, x: Array, kv: Array, heads: int) -> Array:
    """Pre-norm cross-attention and a gated GELU layer, each with a residual sum.

    Args:
        params: Parameters from `_init_block`.
        x: [B, N, D] inputs of the queries.
        kv: [B, K, D] inputs of keys and values.
        heads: Number of attention heads.

    Returns:
        [B, N, D].
    """

    def dense(name, y):
        layer = params[name]
        z = y.reshape(-1, y.shape[-1]) @ layer["kernel"].astype(y.dtype)
        if "bias" in layer:
            z = z + layer["bias"].astype(y.dtype)[None]
        return z.reshape(*y.shape[:-1], -1)

    # [B, N, H * E] -> [B, N, H, E]
    def split_heads(y):
        return y.reshape(*y.shape[:2], heads, -1)

    # [B, N, H, E] queries; [B, K, H, E] keys and values
    q = split_heads(dense("query", _layer_norm(params["query_norm"], x)))
    keys_values = dense("key_value", _layer_norm(params["memory_norm"], kv))
    k, v = map(split_heads, jnp.split(keys_values, 2, -1))
    y = jax.nn.dot_product_attention(q, k, v)
    # [B, N, D] residual sum
    x = x + dense("out", y.reshape(*y.shape[:2], -1))
    # [B, N, D] gated feed-forward layer and residual sum
    inner = dense("up", _layer_norm(params["mlp_norm"], x))  # [B, N, 2 * mult * D]
    value, gate = jnp.split(inner, 2, -1)
    return x + dense("down", value * jax.nn.gelu(gate, approximate=False))


def _layer_norm(params: Params, x: Array) -> Array:
    """Layer norm over the last axis, in float32."""
    y = jax.nn.standardize(x.astype(jnp.float32), algorithm="stable")
    shape = (1,) * (x.ndim - 1) + (-1,)
    y = y * params["scale"].reshape(shape) + params["bias"].reshape(shape)
    return y.astype(x.dtype)

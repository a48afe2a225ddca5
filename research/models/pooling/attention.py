"""Poolings by attention to learned latents, or by them (NV-Embed; all layers)."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.linear import KERNEL_INIT
from research.models.pooling.basic import LearnedPooling, last_token_pool, mean_pool
from research.types import Array, Key, Params

PARTS = ("scale", "bias")
EACH = {"last": last_token_pool, "mean": mean_pool}


def latent_attention(
    *, latents: int = 512, heads: int = 8, head_dim: int = 0, mult: int = 4
) -> LearnedPooling:
    """Every token looks at learned latents, then the mean (NV-Embed, Lee et al. 2024).

    Tokens are the queries, the latents keys and values, both normalised; a residual sum
    and a gated GELU layer follow, as in Perceiver (equations 3 to 5). The latents are
    the same for all texts and never masked.

    Args:
        latents: how many.
        heads: of the attention.
        head_dim: of each; 0 is the encoder's width, as the authors have it.
        mult: the width inside the feed-forward layer over the encoder's.
    """
    sizes = _Sizes(latents, heads, head_dim, mult)

    def pool(params: Params, cfg: EncoderConfig, tokens: Array, mask: Array) -> Array:
        readout = params["readout"]
        memory = jnp.broadcast_to(
            readout["latents"].astype(tokens.dtype)[None],
            (len(tokens), *readout["latents"].shape),
        )
        return mean_pool(_attended(readout, tokens, memory, heads), mask)

    return LearnedPooling(partial(_init, sizes), pool)


def layer_attention(
    *,
    latents: int = 768,
    heads: int = 32,
    head_dim: int = 0,
    mult: int = 4,
    of: str = "last",
) -> LearnedPooling:
    """Learned latents look at the vectors of all layers (Tang & Yang 2024).

    One vector of each block, with a learned embedding of the layer added, is key and
    value; the latents are the queries, and their outputs' mean is the embedding. The
    vectors are after the final norm, as everywhere here; the authors' are before it.
    An encoder cut in depth uses the embeddings of the layers that it has.

    Args:
        latents, heads, mult: as in `latent_attention`.
        head_dim: of each head; 0 is half the encoder's width, as the authors have it.
        of: the vector of a layer: the "last" token, or the "mean".
    """
    check_option("pool.of", of, EACH)
    sizes = _Sizes(latents, heads, head_dim, mult)

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        half = sizes._replace(head_dim=head_dim or cfg.width // 2)
        layers_key, key = jax.random.split(key)
        layers = KERNEL_INIT(layers_key, (cfg.depth, cfg.width))
        return {**_init(half, key, cfg, params), "layers": layers}

    def pool(params: Params, cfg: EncoderConfig, vectors: Array, mask: Array) -> Array:
        readout = params["readout"]
        depth, b, m, d = vectors.shape
        x = vectors + readout["layers"][:depth, None, None]
        x = jnp.moveaxis(x.reshape(depth, b * m, d), 0, 1)
        z = jnp.broadcast_to(readout["latents"][None], (b * m, latents, d))
        y = _attended(readout, z, x, heads).mean(1).reshape(b, m, d)
        return jnp.where(mask.any(2)[:, :, None], y, 0.0)

    return LearnedPooling(init, pool, pool_layer=EACH[of])


class _Sizes(NamedTuple):
    """Of an attention over or by latents; head_dim 0 is the encoder's width."""

    latents: int
    heads: int
    head_dim: int
    mult: int


def _init(sizes: _Sizes, key: Key, cfg: EncoderConfig, params: Params) -> Params:
    """Latents, and the attention and feed-forward layer of `_attended`."""
    del params
    latents_key, *keys = jax.random.split(key, 6)
    d, inner = cfg.width, sizes.heads * (sizes.head_dim or cfg.width)
    shapes = {
        "query": (d, inner),
        "key_value": (d, 2 * inner),
        "out": (inner, d),
        "up": (d, 2 * sizes.mult * d),
        "down": (sizes.mult * d, d),
    }
    drawn = zip(keys, shapes, strict=True)
    made = {name: {"kernel": KERNEL_INIT(k, shapes[name])} for k, name in drawn}
    for name in ("up", "down"):
        made[name]["bias"] = jnp.zeros(shapes[name][1])
    norms = ("query_norm", "memory_norm", "mlp_norm")
    made |= {name: {"scale": jnp.ones(d), "bias": jnp.zeros(d)} for name in norms}
    return {"latents": jax.random.normal(latents_key, (sizes.latents, d)), **made}


def _attended(readout: Params, x: Array, memory: Array, heads: int) -> Array:
    """x [B, N, D] after it looked at the memory [B, K, D], and a feed-forward layer."""

    def dense(name, y):
        layer = readout[name]
        z = y.reshape(-1, y.shape[-1]) @ layer["kernel"].astype(y.dtype)
        if "bias" in layer:
            z = z + layer["bias"].astype(y.dtype)[None]
        return z.reshape(*y.shape[:-1], -1)

    def split(y):
        return y.reshape(*y.shape[:2], heads, -1)

    q = split(dense("query", _normed(readout["query_norm"], x)))
    seen = dense("key_value", _normed(readout["memory_norm"], memory))
    k, v = map(split, jnp.split(seen, 2, -1))
    scores = jnp.einsum("bnhe,bkhe->bhnk", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5).astype(v.dtype)
    y = jnp.einsum("bhnk,bkhe->bnhe", weights, v)
    x = x + dense("out", y.reshape(*y.shape[:2], -1))
    value, gate = jnp.split(dense("up", _normed(readout["mlp_norm"], x)), 2, -1)
    return x + dense("down", value * jax.nn.gelu(gate, approximate=False))


def _normed(layer: Params, x: Array) -> Array:
    """Layer norm over the last axis, in float32."""
    y = x.astype(jnp.float32)
    y = y - y.mean(-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-5)
    scale, bias = (layer[n].reshape((1,) * (x.ndim - 1) + (-1,)) for n in PARTS)
    return (y * scale + bias).astype(x.dtype)

"""Poolings with parameters, which stand in the encoder's tree under "readout".

A pooling is written as one text, "mean" or "latent_attention:latents=64,heads=4", in
model.json and wherever texts are embedded.
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from research.models import lexicon
from research.models.config import EncoderConfig
from research.models.layers import INIT
from research.models.pooling import POOLS, last, mean
from research.structs import Array, Key, Params, Pool


class Readout(NamedTuple):
    """A pooling with parameters.

    Attributes:
        init: (key, the encoder's shape, its parameters) -> the readout's parameters.
        pool: (readout's parameters, states, mask [B, M, S]) -> [B, M, E]; the states
            are [B, S, D], or [L, B, M, D] where there is `each`.
        each: what is pooled of every layer first; None reads the last layer only.
        width: E, where it is not that of the encoder.
    """

    init: Callable[[Key, EncoderConfig, Params], Params]
    pool: Callable[[Params, Array, Array], Array]
    each: Pool | None = None
    width: int | None = None


def pooling(text: str) -> Pool | Readout:
    """The pooling of "name" or "name:argument=number,argument=word".

    Raises:
        ValueError: the text has another form, there is no such pooling, or it has no
            such argument.
    """
    name, _, rest = text.partition(":")
    if name not in POOLINGS:
        raise ValueError(f"unknown pooling {name!r}; known: {', '.join(POOLINGS)}")
    arguments = {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        arguments[key] = int(value) if value.lstrip("-").isdigit() else value
    known = dict(inspect.signature(POOLINGS[name]).parameters)
    wanted = [key for key in known if known[key].kind is known[key].KEYWORD_ONLY]
    if unknown := sorted(set(arguments) - set(wanted)):
        raise ValueError(
            f"pooling {text!r}: {name} has no argument {', '.join(unknown)}; "
            f"it has {', '.join(wanted) or 'none'}"
        )
    if name in POOLS:
        return POOLS[name]
    return READOUTS[name](**arguments)


def written(section: Mapping[str, Any]) -> str:
    """The text of a config's section of a pooling; the inverse of `pooling`."""
    arguments = dict(section.items())
    name = arguments.pop("name")
    listed = ",".join(f"{key}={value}" for key, value in arguments.items())
    return f"{name}:{listed}" if listed else name


def width(text: str, cfg: EncoderConfig) -> int:
    """How many numbers the pooled vector has."""
    found = pooling(text)
    own = found.width if isinstance(found, Readout) else None
    return cfg.width if own is None else own


def with_readout(
    key: Key, params: Params, cfg: EncoderConfig, pool: Pool | Readout
) -> Params:
    """The encoder's parameters with those of its pooling, and no other's.

    A readout that is there already is kept.

    Raises:
        ValueError: it is of another pooling, or of other sizes.
    """
    rest = {name: part for name, part in params.items() if name != "readout"}
    if not isinstance(pool, Readout):
        return rest
    if "readout" not in params:
        return {**rest, "readout": pool.init(key, cfg, rest)}
    shapes = [
        jax.tree.map(jnp.shape, part)
        for part in (
            jax.eval_shape(partial(pool.init, cfg=cfg), key, params=rest),
            params["readout"],
        )
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "the model that the run starts from pools otherwise than the config, whose "
            f"pooling has the parameters {_listed(shapes[0])}, not "
            f"{_listed(shapes[1])}"
        )
    return dict(params)


def _listed(shapes: Params) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(
        shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return ", ".join(
        f"{jax.tree_util.keystr(path, simple=True, separator='/')} {list(shape)}"
        for path, shape in leaves
    )


def applied(pool: Pool | Readout, params: Params) -> tuple[Pool, Pool | None]:
    """The pooling of an encoder, and what it wants of every layer (or None).

    Args:
        pool: of `POOLINGS`.
        params: the encoder's.

    Raises:
        ValueError: the encoder lacks the pooling's parameters.
    """
    if not isinstance(pool, Readout):
        return pool, None
    if "readout" not in params:
        raise ValueError(
            "this pooling has parameters, and the model was not trained with it"
        )
    return partial(pool.pool, params["readout"]), pool.each


def latent_attention(
    *, latents: int = 512, heads: int = 8, head_dim: int = 0, mult: int = 4
) -> Readout:
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

    def pool(readout: Params, tokens: Array, mask: Array) -> Array:
        memory = jnp.broadcast_to(
            readout["latents"].astype(tokens.dtype)[None],
            (len(tokens), *readout["latents"].shape),
        )
        return mean(_attended(readout, tokens, memory, heads), mask)

    return Readout(partial(_init, sizes), pool)


def layer_attention(
    *,
    latents: int = 768,
    heads: int = 32,
    head_dim: int = 0,
    mult: int = 4,
    of: str = "last",
) -> Readout:
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
    if of not in EACH:
        raise ValueError(f"pool.of is {of!r}; allowed: {', '.join(EACH)}")
    sizes = _Sizes(latents, heads, head_dim, mult)

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        half = sizes._replace(head_dim=head_dim or cfg.width // 2)
        layers_key, key = jax.random.split(key)
        layers = INIT(layers_key, (cfg.depth, cfg.width))
        return {**_init(half, key, cfg, params), "layers": layers}

    def pool(readout: Params, vectors: Array, mask: Array) -> Array:
        depth, b, m, d = vectors.shape
        x = vectors + readout["layers"][:depth, None, None]
        x = jnp.moveaxis(x.reshape(depth, b * m, d), 0, 1)
        z = jnp.broadcast_to(readout["latents"][None], (b * m, latents, d))
        y = _attended(readout, z, x, heads).mean(1).reshape(b, m, d)
        return jnp.where(mask.any(2)[:, :, None], y, 0.0)

    return Readout(init, pool, each=EACH[of])


def lexicon_of(*, clusters: int = 4_000, seed: int = 0) -> Readout:
    """Which clusters of the vocabulary a text speaks of (LENS, Lei et al. 2025).

    The token table's rows are clustered once, by k-means, and a text's vector is the
    largest log(1 + relu(logit)) of its tokens for the centroid of each cluster. The
    authors read the state before a token in its place; here, that of the token itself.

    Args:
        clusters: K, the width of the embedding.
        seed: of k-means.
    """

    def init(key: Key, cfg: EncoderConfig, params: Params) -> Params:
        del key
        if not 1 <= clusters <= cfg.vocab:
            raise ValueError(
                f"pool.clusters is {clusters}; allowed: 1 ... {cfg.vocab}, the rows of "
                "the token table"
            )
        table = params["embed"]["token"]["embedding"]
        return {"centroids": lexicon.centroids(table, clusters, seed)}

    def pool(readout: Params, tokens: Array, mask: Array) -> Array:
        return lexicon.strengths(tokens, readout["centroids"], mask)

    return Readout(init, pool, width=clusters)


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
    made = {name: {"kernel": INIT(k, shapes[name])} for k, name in drawn}
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


PARTS = ("scale", "bias")
EACH = {"last": last, "mean": mean}
READOUTS = {
    "latent_attention": latent_attention,
    "layer_attention": layer_attention,
    "lexicon": lexicon_of,
}
# Everything that a config's section `pool` can name.
POOLINGS = {**POOLS, **READOUTS}

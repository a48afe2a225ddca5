"""Text to vectors, fast: sorted by length, few shapes, the device never waits."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.inference.batching import Runner, batch_sizes, row_vectors
from research.inference.tokenize import Reader, marked, method_reader, plain_reader
from research.models import lora, prefix_cache
from research.models.attention.inputs import PrefixKV
from research.models.config import EncoderConfig
from research.models.encoder import encode, hidden_state_indices, truncate_depth
from research.models.pooling.projection import Dense, project
from research.models.pooling.registry import bind_pooling, parse_pooling
from research.models.pooling.registry import pooled_width as pooled_width
from research.models.prefix_cache import can_share_prefix
from research.models.token_prepending import Prepend, add_token, prepend_blocks
from research.text.templates import Prompt
from research.text.tokens import PST
from research.transforms.normalize import l2_normalize
from research.types import Array, EmbedFn, Params, Tokens


def make_embedder(
    params: Params,
    cfg: EncoderConfig,
    tokenizer: tokenizers.Tokenizer,
    *,
    pool: str,
    max_length: int,
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    dense: Sequence[Dense] = (),
    depth: int | None = None,
    dim: int | None = None,
    prompt: Prompt | None = None,
    prepend: tuple[int, int] | None = None,
    layers: tuple[int, ...] = (-1,),
    bidirectional: bool | None = None,
    batch_tokens: int | None = None,
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
) -> EmbedFn:
    """The function from texts and a role to embeddings [N, D] float32.

    Args:
        params: the encoder's parameters.
        cfg: the encoder's shape.
        tokenizer: its truncation and padding settings are not used.
        pool: such as "mean", or whatever `parse_pooling` reads, unless the method
            asks for another.
        max_length: longer texts are cut to this many tokens, special ones included.
        prompts: {role: text to put before each text}, where there is no method.
        normalize: scale every vector to length 1.
        dense: layers that the pooled vector goes through.
        depth: use the first `depth` blocks only.
        dim: keep the first `dim` numbers, before normalising.
        method: the templates that texts are put into; the vectors of several are
            averaged before they are normalised.
        prepend: the window (start, exit) of blocks of token prepending, before which
            <PST> takes the state of the last token (Fu et al. 2024). With
            start = exit, or None for a method that has a <PST>, nothing is copied.
        layers: whose pooled states are averaged, numbered as in `layer_places`.
        bidirectional: whether tokens see both sides; None leaves it as it is.
        batch_tokens: tokens in a batch, padding included, on each device; None is
            1,024 on CPU, where more would leave the cache, and 32,768 elsewhere.
        mesh: rows are spread over its 'data' axis; None uses the default device.
        adapters: the names of those in `params`; a text goes through the one named like
            its role, or through the first.

    Returns:
        embed(texts, role); it raises a ValueError that names a text of no tokens.

    Raises:
        ValueError: the encoder has no such depth, dim, pooling, length, layer or
            blocks, or the method has no place for <PST>.
    """
    if bidirectional is not None:
        cfg = dataclasses.replace(cfg, causal=not bidirectional)
    if depth is not None:
        params, cfg = truncate_depth(params, cfg, depth)
    width = dense[-1].kernel.shape[1] if dense else pooled_width(pool, cfg)
    if dim is not None and not 1 <= dim <= width:
        raise ValueError(f"dim {dim} is not in 1 ... {width} of this encoder")
    _check_length(cfg, max_length)
    blocks = None if prepend is None else prepend_blocks(prepend, cfg.depth)
    options = {"dim": dim, "normalize": normalize}
    read = plain_reader(tokenizer, max_length, prompts)
    if prompt is not None:
        if any((prompts or {}).values()):
            raise ValueError("there are prompts and a method, which leaves them out")
        mark = cfg.vocab_size if marked(prompt) else None
        read = method_reader(prompt, tokenizer, max_length, mark)
        pool = prompt.pool or pool
        options["normalize"] &= max(map(len, prompt.templates.values())) == 1
    if marked(prompt):
        params, cfg = add_token(params, cfg, jax.random.key(0))
    elif prepend is not None:
        raise ValueError(f"token prepending needs a method with a place for {PST}")
    if tuple(layers) != (-1,):
        options["layers"] = hidden_state_indices(tuple(layers), cfg.depth)
        params, cfg = truncate_depth(
            params, cfg, _deepest(options["layers"], cfg.depth)
        )
    options["blocks"] = None if blocks is None else blocks[: cfg.depth]
    runner = make_runners(params, cfg, pool, mesh, dense, adapters=adapters, **options)
    sizes = batch_sizes(cfg, batch_tokens, mesh)
    return _embed_fn(runner, read, sizes, normalize and not options["normalize"])


def make_grid_embedder(
    params: Params,
    cfg: EncoderConfig,
    tokenizer: tokenizers.Tokenizer,
    *,
    pool: str,
    max_length: int,
    depths: Sequence[int],
    prompts: Mapping[str, str] | None = None,
    dense: Sequence[Dense] = (),
    batch_tokens: int | None = None,
    mesh: Mesh | None = None,
    adapters: Sequence[str] = (),
) -> EmbedFn:
    """The embeddings of several depths in one pass: [N, len(depths), D] float32.

    They are not normalised, so that they can be cut to any width first. Arguments and
    errors are those of `make_embedder`; depth 0 is the embedding layer.
    """
    wrong = [depth for depth in depths if not 0 <= depth <= cfg.depth]
    if wrong:
        raise ValueError(f"depth {wrong[0]} is not in 0 ... {cfg.depth}")
    params, cfg = truncate_depth(params, cfg, max(*depths, 1))
    _check_length(cfg, max_length)
    options = {"adapters": adapters, "depths": tuple(depths)}
    runner = make_runners(params, cfg, pool, mesh, dense, **options)
    read = plain_reader(tokenizer, max_length, prompts)
    return _embed_fn(runner, read, batch_sizes(cfg, batch_tokens, mesh))


@partial(
    jax.jit,
    static_argnames=("cfg", "pool", "slots", "depths", "layers", "dim", "normalize"),
)
def _vectors(
    params: Params,
    dense: tuple[Dense, ...],
    blocks: Array | None,
    tables: Mapping[str, Array],
    prefix: PrefixKV | None = None,
    *,
    cfg: EncoderConfig,
    pool: str,
    slots: int = 1,
    depths: tuple[int, ...] | None = None,
    layers: tuple[int, ...] | None = None,
    dim: int | None = None,
    normalize: bool = False,
) -> Array:
    """Vectors [R, M, dim] or [R, M, len(depths), dim] of rows [R, S] of one text each.

    M = slots is 1 without "spans", which say which tokens of a row are pooled together.
    `layers` are averaged; they number the raw states of `encode`.
    """
    ids, lengths = tables["ids"], tables["lengths"]
    real = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    tokens = Tokens(ids, real.astype(jnp.int32), real)
    pooled = {"max_segments": slots, "span_ids": tables.get("spans"), "prefix": prefix}
    pooled["before_final_norm"] = layers is not None
    pooled["every_layer"] = depths is not None or layers is not None
    if blocks is not None:
        pooled["prepend"] = Prepend(tables["marks"], lengths - 1, blocks)
    x = encode(params, tokens, cfg, parse_pooling(pool), **pooled)
    if depths is not None:
        x = x[:, np.asarray(depths)]
    if layers is not None:
        x = x[:, np.asarray(layers)].mean(1)
    x = project(dense, x)[..., :dim]
    x = l2_normalize(x) if normalize else x
    return x.reshape(-1, slots, *x.shape[1:])


def make_runners(
    params: Params,
    cfg: EncoderConfig,
    pool: str,
    mesh: Mesh | None,
    dense: Sequence[Dense] = (),
    adapters: Sequence[str] = (),
    blocks: np.ndarray | None = None,
    **options,
) -> Callable[[str], Runner]:
    """For the texts of a role, what computes rows' vectors without waiting for them.

    Args:
        params: the encoder's parameters.
        cfg: the encoder's shape.
        pool: such as "mean", or whatever `parse_pooling` reads.
        mesh: as in `make_embedder`.
        dense: layers that the pooled vector goes through.
        adapters: as in `make_embedder`.
        blocks: [L] bool, before which blocks of rows with "marks" tokens are prepended;
            None for never.
        **options: depths, layers, dim and normalize of `_vectors`.

    Raises:
        ValueError: there is no such pooling, or not in this model.
    """
    bind_pooling(parse_pooling(pool), params, cfg)
    place = jnp.asarray
    if mesh is not None:
        place = partial(jax.device_put, device=NamedSharding(mesh, P("data")))
    params, dense, blocks = placed((params, tuple(dense), blocks), mesh)
    # Of the same shapes, so that all of them are compiled once.
    models = [lora.select_adapter(params, i) for i in range(len(adapters))] or [params]
    static = {"cfg": cfg, "pool": pool, **options}

    def runner(role):
        own = models[adapters.index(role) if role in adapters else 0]
        begin = partial(_prefix, own, cfg, mesh) if can_share_prefix(cfg) else None
        return Runner(partial(run, own), begin, pool == "last")

    def run(own, tables, slots=1, prefix=None):
        tables = jax.tree.map(place, tables)
        # Splash attention spreads its rows as the ambient mesh says.
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            return _vectors(own, dense, blocks, tables, prefix, slots=slots, **static)

    return runner


def _prefix(params: Params, cfg: EncoderConfig, mesh: Mesh | None, ids: np.ndarray):
    """What rows see of the tokens [P] that all of them begin with."""
    return prefix_cache.encode_prefix(params, placed(ids, mesh), cfg)


def placed(params: Params, mesh: Mesh | None) -> Params:
    """Parameters on the devices of the mesh, or on the default device."""
    if mesh is None:
        return jax.tree.map(jnp.asarray, params)
    return jax.tree.map(partial(_on_mesh, mesh), params)


def _on_mesh(mesh: Mesh, x: Array) -> Array:
    """A parameter as it lies if it is on the mesh already, else a copy everywhere."""
    if isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat):
        return x
    return jax.device_put(x, NamedSharding(mesh, P()))


def _embed_fn(
    runner: Callable[[str], Runner],
    read: Reader,
    sizes: tuple[int, int, int],
    normalize: bool = False,
) -> EmbedFn:
    """Texts to vectors; `normalize` those that the runner does not."""

    def embed(texts: Sequence[str], role: str) -> np.ndarray:
        if not len(texts):
            raise ValueError("there are no texts to embed")
        parts = [row_vectors(runner(role), rows, sizes) for rows in read(texts, role)]
        x = parts[0] if len(parts) == 1 else np.mean(parts, axis=0)
        return np.asarray(l2_normalize(x)) if normalize else x

    return embed


def _check_length(cfg: EncoderConfig, max_length: int) -> None:
    if not 1 <= max_length <= cfg.max_len:
        raise ValueError(
            f"max_length {max_length} is not in 1 ... {cfg.max_len} of this encoder"
        )


def _deepest(places: tuple[int, ...], depth: int) -> int:
    """How many blocks are needed for layers of these places; at least one."""
    return max(1, *(min(place, depth) for place in places))

"""Text to vectors, fast: sorted by length, few shapes, the device never waits."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.data.text import token_ids
from research.models.config import EncoderConfig
from research.models.encoder import encode, truncated
from research.models.pooling import POOLS
from research.structs import Array, EmbedFn, Params, Tokens

# Batches that are computing or wait to be; more would only hold their inputs in memory.
IN_FLIGHT = 16


def make_embedder(
    params: Params,
    cfg: EncoderConfig,
    tokenizer: tokenizers.Tokenizer,
    *,
    pool: str,
    max_length: int,
    prompts: Mapping[str, str] | None = None,
    normalize: bool = True,
    depth: int | None = None,
    dim: int | None = None,
    batch_tokens: int | None = None,
    mesh: Mesh | None = None,
) -> EmbedFn:
    """The function from texts and a role to embeddings [N, D] float32.

    Args:
        params: the encoder's parameters.
        cfg: the encoder's shape.
        tokenizer: its truncation and padding settings are not used.
        pool: a name in `pooling.POOLS`.
        max_length: longer texts are cut to this many tokens, special ones included.
        prompts: {role: text to put before each text}.
        normalize: scale every vector to length 1.
        depth: use the first `depth` blocks only.
        dim: keep the first `dim` numbers, before normalising.
        batch_tokens: tokens in a batch, padding included, on each device; None is
            1,024 on CPU, where more would leave the cache, and 32,768 elsewhere.
        mesh: rows are spread over its 'data' axis; None uses the default device.

    Returns:
        embed(texts, role); it raises a ValueError that names a text of no tokens.

    Raises:
        ValueError: the encoder has no such depth, dim, pooling or length.
    """
    if depth is not None:
        params, cfg = truncated(params, cfg, depth)
    if dim is not None and not 1 <= dim <= cfg.width:
        raise ValueError(f"dim {dim} is not in 1 ... {cfg.width} of this encoder")
    run = _runner(params, cfg, pool, mesh, dim=dim, normalize=normalize)
    return _embed_fn(run, cfg, tokenizer, max_length, prompts, batch_tokens, mesh)


def make_grid_embedder(
    params: Params,
    cfg: EncoderConfig,
    tokenizer: tokenizers.Tokenizer,
    *,
    pool: str,
    max_length: int,
    depths: Sequence[int],
    prompts: Mapping[str, str] | None = None,
    batch_tokens: int | None = None,
    mesh: Mesh | None = None,
) -> EmbedFn:
    """The embeddings of several depths in one pass: [N, len(depths), D] float32.

    They are not normalised, so that they can be cut to any width first. Arguments and
    errors are those of `make_embedder`; depth 0 is the embedding layer.
    """
    wrong = [depth for depth in depths if not 0 <= depth <= cfg.depth]
    if wrong:
        raise ValueError(f"depth {wrong[0]} is not in 0 ... {cfg.depth}")
    params, cfg = truncated(params, cfg, max(*depths, 1))
    run = _runner(params, cfg, pool, mesh, depths=tuple(depths))
    return _embed_fn(run, cfg, tokenizer, max_length, prompts, batch_tokens, mesh)


def unit(x: Array) -> Array:
    """Rows scaled to length 1 over the last axis; a zero row stays zero."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return x / jnp.maximum(norm, 1e-12)


def padded_length(length: int) -> int:
    """The next of the row lengths that we compile for: steps of 8, 16, 32, 64 ..."""
    step = max(8, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


def batches(
    lengths: np.ndarray, batch_tokens: int, longest: int, multiple: int = 1
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Batches of about equal size of texts of about equal length, longest first.

    Args:
        lengths: [N] tokens of each text.
        batch_tokens: rows times row length, about.
        longest: no row is longer.
        multiple: the number of rows divides by this.

    Yields:
        text numbers, rows, row length. Rows is the same for every full batch of a
        length, and a power of two times `multiple` in the last one.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        length = min(padded_length(int(lengths[order[start]])), longest)
        rows = max(1, batch_tokens // length // multiple)
        left = -(-(len(order) - start) // multiple)
        rows = min(rows, 1 << (left - 1).bit_length()) * multiple
        yield order[start : start + rows], rows, length
        start += rows


@partial(jax.jit, static_argnames=("cfg", "pool", "depths", "dim", "normalize"))
def _vectors(
    params: Params,
    ids: Array,
    lengths: Array,
    *,
    cfg: EncoderConfig,
    pool: str,
    depths: tuple[int, ...] | None = None,
    dim: int | None = None,
    normalize: bool = False,
) -> Array:
    """Vectors [R, dim], or [R, len(depths), dim], of rows [R, S] of one text each."""
    real = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    tokens = Tokens(ids, real.astype(jnp.int32), real)
    every_layer = depths is not None
    x = encode(params, tokens, cfg, POOLS[pool], every_layer=every_layer)
    if every_layer:
        x = x[:, np.asarray(depths)]
    x = x[..., :dim]
    return unit(x) if normalize else x


def _runner(
    params: Params, cfg: EncoderConfig, pool: str, mesh: Mesh | None, **options
) -> Callable[[np.ndarray, np.ndarray], Array]:
    """(ids [R, S], lengths [R]) -> vectors of the rows, perhaps still computing."""
    if pool not in POOLS:
        raise ValueError(f"unknown pooling {pool!r}; known: {', '.join(POOLS)}")
    place = jnp.asarray
    if mesh is not None:
        place = partial(jax.device_put, device=NamedSharding(mesh, P("data")))
        params = jax.tree.map(partial(_on_mesh, mesh), params)
    else:
        params = jax.tree.map(jnp.asarray, params)

    def run(ids, lengths):
        rows = place(ids), place(lengths)
        return _vectors(params, *rows, cfg=cfg, pool=pool, **options)

    return run


def _on_mesh(mesh: Mesh, x: Array) -> Array:
    """A parameter as it lies if it is on the mesh already, else a copy everywhere."""
    if isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat):
        return x
    return jax.device_put(x, NamedSharding(mesh, P()))


def _embed_fn(
    run: Callable[[np.ndarray, np.ndarray], Array],
    cfg: EncoderConfig,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    prompts: Mapping[str, str] | None,
    batch_tokens: int | None,
    mesh: Mesh | None,
) -> EmbedFn:
    if not 1 <= max_length <= cfg.max_len:
        raise ValueError(
            f"max_length {max_length} is not in 1 ... {cfg.max_len} of this encoder"
        )
    multiple = 1 if mesh is None else mesh.shape["data"]
    if batch_tokens is None:
        batch_tokens = 1_024 if jax.default_backend() == "cpu" else 32_768

    def embed(texts: Sequence[str], role: str) -> np.ndarray:
        if not len(texts):
            raise ValueError("there are no texts to embed")
        prompt = (prompts or {}).get(role, "")
        ids = token_ids(tokenizer, texts, max_length, prompt=prompt)
        lengths = np.array([len(row) for row in ids])
        sizes = (batch_tokens * multiple, cfg.max_len, multiple)
        vectors, waiting = None, deque()
        for chosen, rows, length in batches(lengths, *sizes):
            table = _table([ids[i] for i in chosen], rows, length)
            waiting.append((chosen, run(*table)))  # dispatched, not waited for
            if len(waiting) > IN_FLIGHT:
                vectors = _stored(vectors, len(ids), *waiting.popleft())
        for chosen, part in waiting:
            vectors = _stored(vectors, len(ids), chosen, part)
        return vectors

    return embed


def _table(
    ids: list[np.ndarray], rows: int, length: int
) -> tuple[np.ndarray, np.ndarray]:
    """(ids [rows, length] padded with 0, lengths [rows]); filler rows have length 1."""
    table = np.zeros((rows, length), np.int32)
    counts = np.ones(rows, np.int32)
    for i, row in enumerate(ids):
        table[i, : len(row)] = row
        counts[i] = len(row)
    return table, counts


def _stored(
    vectors: np.ndarray | None, count: int, chosen: np.ndarray, part: Array
) -> np.ndarray:
    """Vectors of `count` texts with a batch's put where its texts stand."""
    if vectors is None:
        vectors = np.empty((count, *part.shape[1:]), np.float32)
    vectors[chosen] = np.asarray(part)[: len(chosen)]
    return vectors

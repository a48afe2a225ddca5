"""Text to vectors, fast: sorted by length, few shapes, the device never waits."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.data.templates import Method, in_templates
from research.data.text import token_ids
from research.models.config import EncoderConfig
from research.models.encoder import encode, truncated
from research.models.pooling import POOLS
from research.models.projection import Dense, project
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
    dense: Sequence[Dense] = (),
    depth: int | None = None,
    dim: int | None = None,
    method: Method | None = None,
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
        dense: layers that the pooled vector goes through.
        depth: use the first `depth` blocks only.
        dim: keep the first `dim` numbers, before normalising.
        method: the template that texts are put into, instead of after the prompts.
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
    width = dense[-1].kernel.shape[1] if dense else cfg.width
    if dim is not None and not 1 <= dim <= width:
        raise ValueError(f"dim {dim} is not in 1 ... {width} of this encoder")
    run = make_runner(params, cfg, pool, mesh, dense, dim=dim, normalize=normalize)
    texts = tokenizer, max_length, prompts
    return _embed_fn(run, cfg, *texts, batch_tokens, mesh, method)


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
) -> EmbedFn:
    """The embeddings of several depths in one pass: [N, len(depths), D] float32.

    They are not normalised, so that they can be cut to any width first. Arguments and
    errors are those of `make_embedder`; depth 0 is the embedding layer.
    """
    wrong = [depth for depth in depths if not 0 <= depth <= cfg.depth]
    if wrong:
        raise ValueError(f"depth {wrong[0]} is not in 0 ... {cfg.depth}")
    params, cfg = truncated(params, cfg, max(*depths, 1))
    run = make_runner(params, cfg, pool, mesh, dense, depths=tuple(depths))
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


@partial(
    jax.jit, static_argnames=("cfg", "pool", "slots", "depths", "dim", "normalize")
)
def _vectors(
    params: Params,
    dense: tuple[Dense, ...],
    ids: Array,
    lengths: Array,
    spans: Array | None = None,
    *,
    cfg: EncoderConfig,
    pool: str,
    slots: int = 1,
    depths: tuple[int, ...] | None = None,
    dim: int | None = None,
    normalize: bool = False,
) -> Array:
    """Vectors [R, M, dim] or [R, M, len(depths), dim] of rows [R, S] of one text each.

    M = slots is 1 without `spans`, which say which tokens of a row are pooled together.
    """
    real = jnp.arange(ids.shape[1])[None] < lengths[:, None]
    tokens = Tokens(ids, real.astype(jnp.int32), real)
    every_layer = depths is not None
    pooled = {"slots": slots, "spans": spans, "every_layer": every_layer}
    x = encode(params, tokens, cfg, POOLS[pool], **pooled)
    if every_layer:
        x = x[:, np.asarray(depths)]
    x = project(dense, x)[..., :dim]
    x = unit(x) if normalize else x
    return x.reshape(-1, slots, *x.shape[1:])


# run(ids [R, S], lengths [R]) -> [R, 1, ...], the vector of each row; or, with which
# span each token is pooled in, run(ids, lengths, spans [R, S], slots=M) -> [R, M, ...].
Runner = Callable[..., Array]


def make_runner(
    params: Params,
    cfg: EncoderConfig,
    pool: str,
    mesh: Mesh | None,
    dense: Sequence[Dense] = (),
    **options,
) -> Runner:
    """What computes the vectors of rows and returns before they are there.

    Args:
        params: the encoder's parameters.
        cfg: the encoder's shape.
        pool: a name in `pooling.POOLS`.
        mesh: as in `make_embedder`.
        dense: layers that the pooled vector goes through.
        **options: depths, dim and normalize of `_vectors`.

    Raises:
        ValueError: there is no such pooling.
    """
    if pool not in POOLS:
        raise ValueError(f"unknown pooling {pool!r}; known: {', '.join(POOLS)}")
    place = jnp.asarray
    if mesh is not None:
        place = partial(jax.device_put, device=NamedSharding(mesh, P("data")))
    model = placed((params, tuple(dense)), mesh)

    def run(*rows, slots=1):
        rows = map(place, rows)
        # Splash attention spreads its rows as the ambient mesh says.
        with nullcontext() if mesh is None else jax.set_mesh(mesh):
            return _vectors(*model, *rows, cfg=cfg, pool=pool, slots=slots, **options)

    return run


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
    run: Runner,
    cfg: EncoderConfig,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    prompts: Mapping[str, str] | None,
    batch_tokens: int | None,
    mesh: Mesh | None,
    method: Method | None = None,
) -> EmbedFn:
    if not 1 <= max_length <= cfg.max_len:
        raise ValueError(
            f"max_length {max_length} is not in 1 ... {cfg.max_len} of this encoder"
        )
    if method is not None and any((prompts or {}).values()):
        raise ValueError("there are prompts and a method, which would leave them out")
    sizes = batch_sizes(cfg, batch_tokens, mesh)

    def embed(texts: Sequence[str], role: str) -> np.ndarray:
        if not len(texts):
            raise ValueError("there are no texts to embed")
        if method is not None:
            (part,) = in_templates(method, tokenizer, texts, max_length, role)
            spans = [pooled.astype(np.int32) for pooled in part.pooled]
            return row_vectors(run, part.ids, sizes, spans)
        prompt = (prompts or {}).get(role, "")
        ids = token_ids(tokenizer, texts, max_length, prompt=prompt)
        return row_vectors(run, ids, sizes)

    return embed


def batch_sizes(
    cfg: EncoderConfig, batch_tokens: int | None, mesh: Mesh | None
) -> tuple[int, int, int]:
    """The arguments of `batches` after the lengths, as `make_embedder` has them."""
    multiple = 1 if mesh is None else mesh.shape["data"]
    if batch_tokens is None:
        batch_tokens = 1_024 if jax.default_backend() == "cpu" else 32_768
    return batch_tokens * multiple, cfg.max_len, multiple


def row_vectors(
    run: Runner,
    ids: Sequence[np.ndarray],
    sizes: tuple[int, int, int],
    spans: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """The vectors of rows of tokens, each at most as long as the encoder reaches.

    Args:
        run: as `make_runner` makes it.
        ids: an [S] int32 for every row.
        sizes: of the batches, from `batch_sizes`.
        spans: for every row an [S] int32, m >= 1 for the tokens of its m-th span, each
            of at least one; None for a span over all of each row.

    Returns:
        [P, ...] float32, spans of the first row first.
    """
    counts = np.array([1] * len(ids) if spans is None else [x.max() for x in spans])
    first = np.cumsum(counts) - counts
    lengths = np.array([len(row) for row in ids])
    vectors, waiting = None, deque()
    for chosen, rows, length in batches(lengths, *sizes):
        taken = np.ones(rows, np.int32)  # filler rows have length 1
        taken[: len(chosen)] = lengths[chosen]
        tables = [_table([ids[i] for i in chosen], rows, length), taken]
        if spans is not None:
            tables.append(_table([spans[i] for i in chosen], rows, length))
        slots = 1 << int(counts[chosen].max() - 1).bit_length()
        part = run(*tables, slots=slots)  # dispatched, not waited for
        waiting.append((first[chosen], counts[chosen], part))
        if len(waiting) > IN_FLIGHT:
            vectors = _stored(vectors, counts.sum(), *waiting.popleft())
    for done in waiting:
        vectors = _stored(vectors, counts.sum(), *done)
    return vectors


def _table(parts: list[np.ndarray], rows: int, length: int) -> np.ndarray:
    """[rows, length] int32 of arrays that are at most as long, padded with 0."""
    table = np.zeros((rows, length), np.int32)
    for i, row in enumerate(parts):
        table[i, : len(row)] = row
    return table


def _stored(
    vectors: np.ndarray | None,
    total: int,
    first: np.ndarray,
    counts: np.ndarray,
    part: Array,
) -> np.ndarray:
    """All `total` vectors with those of a batch put where they stand.

    Args:
        vectors: those that are there; None before the first batch.
        total: how many there will be.
        first: [N] where the vectors of each row of the batch start.
        counts: [N] how many a row has.
        part: [R, M, ...], R >= N and M >= all counts.
    """
    if vectors is None:
        vectors = np.empty((total, *part.shape[2:]), np.float32)
    slot = np.arange(part.shape[1])[None]
    real = slot < counts[:, None]
    vectors[(first[:, None] + slot)[real]] = np.asarray(part)[: len(first)][real]
    return vectors

"""Exact search of texts of several vectors by MaxSim, on all devices of a process."""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.inference.batching import BatchSizes, group_by_length, padded_length
from research.inference.index.vector_shards import run_ahead
from research.inference.multi_vectors import (
    count_vectors,
    get_texts,
    split_texts,
    to_multi_vectors,
)
from research.inference.similarity import normalize_embeddings
from research.inference.top_k import Top, check_search, merge_top
from research.sharding import make_mesh
from research.transforms.best_scores import find_best_scores
from research.transforms.normalize import l2_normalize
from research.types import Array, MultiVectors

# Most vectors of queries that are scored at a time.
QUERY_VECTORS = 1_024
# Most vectors and documents of a device that are read at a time.
READ_VECTORS, READ_DOCUMENTS = 65_536, 8_192


class DocumentBlocks(NamedTuple):
    """Some documents, in blocks of documents of similar lengths.

    Attributes:
        blocks: For each block, vectors [n, T, D] and places [n] in the scores of a
            device; those of padding are W. Shorter documents repeat their last vector,
            which changes no best score.
        numbers: [E, W] index of the document that a device has at each place.
    """

    blocks: list[tuple[np.ndarray, np.ndarray]]
    numbers: np.ndarray


def search_multi_vectors(
    queries: np.ndarray | MultiVectors,
    documents: MultiVectors,
    k: int,
    *,
    mean: bool = False,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    mesh: Mesh | None = None,
    vectors_per_step: int | None = None,
) -> Top:
    """The k documents with the largest sums of best dot products (MaxSim).

    The best vector of a document counts for each vector of a query. With one vector per
    query, such as where documents are cut into chunks, it is that of the best chunk.
    A device has the scores of a block of documents in memory, and not those of all.

    Args:
        queries: [Q, D] float32, or several vectors for each of Q queries.
        documents: Vectors of N documents; those of a folder are read in parts.
        k: Number of documents per query; at most N are returned.
        mean: Whether scores are divided by the number of the query's vectors.
        normalize: Whether vectors are first scaled to length 1.
        precedence: As in `search.rank_documents`.
        share: The range of the documents that is searched.
        mesh: As in `search.search`.
        vectors_per_step: Number of vectors of documents that a device scores at a time;
            at least those of one document. None for 2,048 on CPU, where more scores do
            not fit the cache, and 32,768 elsewhere.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of documents.

    Raises:
        ValueError: `k` is not positive, there are no vectors, or the widths differ.
    """
    queries = to_multi_vectors(queries)
    check_search(queries.vectors, documents.vectors, k)
    start, stop, _ = share.indices(documents.count)
    k = min(k, stop - start)
    mesh = mesh or make_mesh({"data": -1}, jax.local_devices())
    sharding, devices = NamedSharding(mesh, P("data")), mesh.shape["data"]
    if normalize:
        (queries,) = normalize_embeddings([queries])
    steps = list(_pad_queries(queries))
    most = max(count for count, *_ in steps)
    # The best documents so far of each step of queries
    best: list[Top | None] = [None] * len(steps)
    score = partial(_score_block, normalize=normalize, mesh=mesh)
    # A thread reads the next documents while the devices score some
    if vectors_per_step is None:
        vectors_per_step = 2_048 if jax.default_backend() == "cpu" else 32_768
    sizes = BatchSizes(vectors_per_step * devices, 0, devices)
    parts = _read_documents(documents, start, stop, sizes, precedence)
    for part in run_ahead(parts):
        blocks = jax.device_put(part.blocks, sharding)
        for i, (count, vectors, owners) in enumerate(steps):
            shape = (*part.numbers.shape, most)  # [E, W, q]
            scores = jnp.full(shape, -jnp.inf, device=sharding)
            for block in blocks:
                scores = score(scores, vectors, owners, *block)
            # [E, q, k] best of each device, and then of all: [q, E * k]
            top, places = _take_best(scores, k=min(k, shape[1]), mesh=mesh)
            numbers = part.numbers[np.arange(devices)[:, None, None], places]
            top, numbers = (
                np.moveaxis(np.asarray(x), 0, 1).reshape(shape[2], -1)[:count]
                for x in (top, numbers)
            )
            best[i] = merge_top(best[i], (top, numbers), k, precedence)
    scores, numbers = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return (scores / count_vectors(queries) if mean else scores), numbers


def _pad_queries(queries: MultiVectors) -> Iterator[tuple[int, Array, Array]]:
    """Queries in steps: how many they are, their vectors, and each vector's query.

    Vectors are [C, D] and the numbers [C] of all steps; those of padding are -1.
    """
    # Steps of similar size, all of which have the shape of the largest
    total, widest = len(queries.vectors), int(np.diff(queries.offsets).max())
    limit = total // -(-total // QUERY_VECTORS) + widest
    steps = list(split_texts(queries.offsets, 0, queries.count, limit))
    largest = max(
        queries.offsets[stop] - queries.offsets[start] for start, stop in steps
    )
    size = padded_length(int(largest))
    for start, stop in steps:
        part = get_texts(queries, start, stop)
        missing = size - len(part.vectors)
        yield (
            stop - start,
            jnp.asarray(np.pad(part.vectors, ((0, missing), (0, 0)))),
            jnp.asarray(np.pad(part.text_numbers, (0, missing), constant_values=-1)),
        )


def _read_documents(
    documents: MultiVectors,
    start: int,
    stop: int,
    sizes: BatchSizes,
    precedence: np.ndarray | None,
) -> Iterator[DocumentBlocks]:
    """The documents start ... stop - 1, as many at a time as the devices are given."""
    devices, limit = sizes.row_multiple, READ_VECTORS * sizes.row_multiple
    for low, high in split_texts(documents.offsets, start, stop, limit):
        for first in range(low, high, READ_DOCUMENTS * devices):
            last = min(first + READ_DOCUMENTS * devices, high)
            part = get_texts(documents, first, last)
            order = None if precedence is None else precedence[first:last]
            blocks = _make_blocks(part, sizes, order)
            yield blocks._replace(numbers=blocks.numbers + first)


def _make_blocks(
    texts: MultiVectors, sizes: BatchSizes, precedence: np.ndarray | None
) -> DocumentBlocks:
    """Documents in blocks, whose rows the devices share."""
    lengths, devices = np.diff(texts.offsets), sizes.row_multiple  # [n]
    # A block has texts of similar lengths, and one of few shapes
    sizes = sizes._replace(max_length=padded_length(int(lengths.max())))
    groups = list(group_by_length(lengths, sizes))
    # [n] the device that has each document
    device = np.empty(texts.count, np.int64)
    for rows, count, _ in groups:
        device[rows] = np.arange(len(rows)) // (count // devices)
    # Places on a device are in the order of precedence, so that the first of equal
    # scores is the one that comes first
    ties = np.arange(texts.count) if precedence is None else precedence
    order = np.lexsort((ties, device))
    counts = np.bincount(device, minlength=devices)
    starts = np.cumsum(counts) - counts  # [E]
    places = np.empty(texts.count, np.int32)
    places[order] = np.arange(texts.count) - starts[device[order]]
    width = padded_length(int(counts.max()))
    numbers = np.zeros((devices, width), np.int64)
    numbers[device, places] = np.arange(texts.count)
    # Padding has a place that is not there
    blocks = []
    for rows, count, length in groups:
        last = texts.offsets[rows + 1] - 1
        sources = texts.offsets[rows][:, None] + np.arange(length)  # [n, T]
        vectors = texts.vectors[np.minimum(sources, last[:, None])]
        missing = count - len(rows)
        vectors = np.pad(vectors, ((0, missing), (0, 0), (0, 0)))
        block_places = np.pad(places[rows], (0, missing), constant_values=width)
        blocks.append((vectors, block_places))
    return DocumentBlocks(blocks, numbers)


@partial(jax.jit, static_argnames=("normalize", "mesh"), donate_argnums=0)
def _score_block(
    scores: Array,
    queries: Array,
    owners: Array,
    documents: Array,
    places: Array,
    *,
    normalize: bool,
    mesh: Mesh,
) -> Array:
    """Writes the scores of a block of documents to their places.

    Args:
        scores: [E, W, q] of each device's documents.
        queries: [C, D] vectors of q queries.
        owners: [C] int32 the query of each vector.
        documents, places: A block of `DocumentBlocks`.
        normalize: Whether vectors of documents are scaled to length 1.
        mesh: Mesh whose devices share the documents.
    """

    def score_shard(scores, queries, owners, documents, places):
        if normalize:
            documents = l2_normalize(documents)
        best = find_best_scores(queries, documents, score=_dot)  # [C, n]
        # [n, q] sums over the vectors of a query
        is_own = owners[:, None] == jnp.arange(scores.shape[2])[None]  # [C, q]
        total = _dot(best.T, is_own.astype(jnp.float32).T)
        return scores.at[0, places].set(total, mode="drop")

    # Devices exchange nothing: each has its own documents
    split, shared = P("data"), P()
    specs = (split, shared, shared, split, split)
    return jax.shard_map(score_shard, mesh=mesh, in_specs=specs, out_specs=split)(
        scores, queries, owners, documents, places
    )


def _dot(x: Array, y: Array) -> Array:
    """Exact dot products of [N, D] and [M, D]: [N, M] float32."""
    return jnp.matmul(x, y.T, precision="highest", preferred_element_type=jnp.float32)


@partial(jax.jit, static_argnames=("k", "mesh"))
def _take_best(scores: Array, *, k: int, mesh: Mesh) -> tuple[Array, Array]:
    """The k best scores [E, q, k] of each device, and their places."""

    def take(scores):
        return tuple(jax.lax.top_k(scores.swapaxes(1, 2), k))

    # A plain top_k might gather the scores of all devices
    split = P("data")
    return jax.shard_map(take, mesh=mesh, in_specs=split, out_specs=(split, split))(
        scores
    )

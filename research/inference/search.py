"""Exact search: the best rows for a query, over rows sharded on the devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.transforms.normalize import l2_normalize_rows
from research.types import Array, ChunkEmbeddings


def search(
    queries: np.ndarray,
    rows: np.ndarray,
    k: int,
    *,
    mesh: Mesh | None = None,
    query_chunk: int = 256,
    row_chunk: int = 65_536,
) -> tuple[np.ndarray, np.ndarray]:
    """The k rows of largest dot product with each query, exactly.

    Each device scores its part of a chunk of rows and keeps its k best; the k best of
    these are kept, then merged with those of earlier chunks. A device holds
    row_chunk * (D + query_chunk) numbers at a time, however many rows there are.

    Args:
        queries: [Q, D] float32.
        rows: [N, D] float32; may be memory-mapped.
        k: how many; at most N are returned.
        mesh: rows are spread over its 'data' axis; None uses all devices.
        query_chunk: queries scored at a time.
        row_chunk: rows on a device at a time.

    Returns:
        scores [Q, min(k, N)] float32 from best to worst, and row numbers; of equal
        scores the smaller row number comes first.

    Raises:
        ValueError: k is not positive, there are no rows, or the widths differ.
    """
    _check(queries, rows, k)
    mesh = mesh or jax.make_mesh(
        (len(jax.devices()),), ("data",), axis_types=(AxisType.Auto,)
    )
    k, devices = min(k, len(rows)), mesh.shape["data"]
    size = min(row_chunk, -(-len(rows) // devices)) * devices
    step = min(query_chunk, len(queries))
    count = len(queries)
    queries = jnp.asarray(_padded(queries, -(-count // step) * step))
    best = [None] * (len(queries) // step)
    for start in range(0, len(rows), size):
        block = _padded(rows[start : start + size], size)
        block = jax.device_put(block, NamedSharding(mesh, P("data")))
        real = min(size, len(rows) - start)
        for i in range(len(best)):
            asked = queries[i * step : (i + 1) * step]
            found = _block_top(asked, block, real, k=k, mesh=mesh)
            best[i] = _merged(best[i], found, start, k)
    scores, found = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return scores[:count], found[:count]


def search_chunks(
    queries: np.ndarray, chunks: ChunkEmbeddings, k: int, *, scores: int = 1 << 24
) -> tuple[np.ndarray, np.ndarray]:
    """The k texts whose best chunk has the largest dot product, exactly, on the host.

    Args:
        queries: [Q, D] float32.
        chunks: of N texts.
        k: how many texts; at most N are returned.
        scores: held at a time; at least one query is scored.

    Returns:
        scores [Q, min(k, N)] float32 from best to worst, and numbers of texts; of equal
        scores the smaller number comes first.

    Raises:
        ValueError: as in `search`.
    """
    _check(queries, chunks.vectors, k)
    first = np.flatnonzero(np.diff(chunks.document_numbers, prepend=-1))
    step = max(1, scores // len(chunks.vectors))
    best = []
    for start in range(0, len(queries), step):
        found = queries[start : start + step] @ chunks.vectors.T
        found = np.maximum.reduceat(found, first, axis=1)
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
        best.append((np.take_along_axis(found, order, 1), order))
    found, texts = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return found, texts


def _check(queries: np.ndarray, rows: np.ndarray, k: int) -> None:
    if k < 1:
        raise ValueError(f"k is {k}; a search needs at least 1")
    if not len(rows) or not len(queries):
        raise ValueError(f"cannot search {len(rows)} rows for {len(queries)} queries")
    if queries.shape[1] != rows.shape[1]:
        raise ValueError(
            f"queries of width {queries.shape[1]} cannot search rows of width "
            f"{rows.shape[1]}"
        )


def _padded(x: np.ndarray, length: int) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return np.pad(x, ((0, length - len(x)), (0, 0)))


@partial(jax.jit, static_argnames=("k", "mesh"))
def _block_top(
    queries: Array, block: Array, count: Array, *, k: int, mesh: Mesh
) -> tuple[Array, Array]:
    """The k best of the first `count` rows of a sharded block, for queries [Q, D]."""

    def local(queries, rows, count):
        first = jax.lax.axis_index("data") * len(rows)
        scores = jnp.matmul(
            queries, rows.T, precision="highest", preferred_element_type=jnp.float32
        )
        number = first + jnp.arange(len(rows))
        scores = jnp.where((number < count)[None], scores, -jnp.inf)
        scores, found = jax.lax.top_k(scores, min(k, len(rows)))
        return scores, found + first

    # shard_map: a plain top_k over a sharded axis would gather every score.
    specs = {"in_specs": (P(), P("data"), P()), "out_specs": (P(None, "data"),) * 2}
    scores, found = jax.shard_map(local, mesh=mesh, **specs)(queries, block, count)
    scores, order = jax.lax.top_k(scores, min(k, scores.shape[1]))
    return scores, jnp.take_along_axis(found, order, 1)


def _merged(best, found, start: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what was found before (smaller row numbers) and now."""
    scores, rows = (np.asarray(x) for x in found)
    rows = rows.astype(np.int64) + start
    if best is None:
        return scores, rows
    scores = np.concatenate([best[0], scores], 1)
    rows = np.concatenate([best[1], rows], 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def rank_documents(
    queries: np.ndarray,
    documents: np.ndarray | ChunkEmbeddings,
    k: int,
    *,
    similarity: str = "cosine",
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents of each query; a document is as good as its best chunk.

    Args:
        queries: [Q, D].
        documents: [N, D], or the chunks of N documents.
        k: how many documents; at most N are returned.
        similarity: 'cosine' or 'dot'.

    Returns:
        scores [Q, min(k, N)] float32 from best to worst, and documents' numbers.
    """
    chunked = isinstance(documents, ChunkEmbeddings)
    vectors = documents.vectors if chunked else documents
    if similarity == "cosine":
        queries, vectors = l2_normalize_rows(queries), l2_normalize_rows(vectors)
    if chunked:
        return search_chunks(queries, documents._replace(vectors=vectors), k)
    return search(queries, vectors, k)

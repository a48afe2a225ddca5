"""Exact nearest-neighbor search over vectors, on all devices and processes."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.config_sections import check_option
from research.inference.vector_shards import ShardedVectors
from research.sharding import make_mesh
from research.transforms.normalize import l2_normalize_rows
from research.types import Array, ChunkEmbeddings


def rank_documents(
    queries: np.ndarray,
    documents: np.ndarray | ShardedVectors | ChunkEmbeddings,
    k: int,
    *,
    similarity: str = "cosine",
    precedence: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents for each query; the best chunk gives a document's score.

    In a run of several processes, all of them call this with the same arguments; each
    searches its share of the documents, and all get the same result.

    Args:
        queries: [Q, D] query vectors.
        documents: [N, D] document vectors, or the chunks of N documents. Those of a
            folder are read in blocks.
        k: Number of documents per query; at most N are returned.
        similarity: 'cosine' or 'dot'.
        precedence: [N] int; of documents with equal scores, that with the smallest
            number comes first. None for their indices.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of documents.

    Raises:
        ValueError: We do not rank by this similarity, or as in `search`.
    """
    check_option("similarity", similarity, ("cosine", "dot"))
    # The cosine is the dot product of normalized vectors.
    normalize = similarity == "cosine"
    if normalize:
        queries = l2_normalize_rows(queries)
    find, count = search, len(documents)
    if embedding_kind(documents) == "multi_vector":
        find, count = search_chunks, int(documents.document_numbers[-1]) + 1
    # A range of documents for each process.
    index, processes = jax.process_index(), jax.process_count()
    options = {"normalize": normalize, "precedence": precedence}
    if processes == 1 or count < processes:
        return find(queries, documents, k, **options)
    share = slice(index * count // processes, (index + 1) * count // processes)
    top = find(queries, documents, k, share=share, **options)
    return _merge_processes(top, min(k, count), precedence)


def embedding_kind(embeddings: np.ndarray | ChunkEmbeddings) -> str:
    """The kind of embeddings that an embedder returned.

    "dense" is one vector per text, [N, D]; "multi_vector" is several vectors per text,
    `ChunkEmbeddings`.
    """
    return "multi_vector" if isinstance(embeddings, ChunkEmbeddings) else "dense"


def search(
    queries: np.ndarray,
    vectors: np.ndarray | ShardedVectors,
    k: int,
    *,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    mesh: Mesh | None = None,
    queries_per_step: int = 256,
    vectors_per_step: int = 65_536,
) -> tuple[np.ndarray, np.ndarray]:
    """The k vectors with the largest dot products with each query, exactly.

    Vectors are searched in blocks. Each device scores its part of a block and keeps its
    k best; the k best of all devices are merged with those of earlier blocks. A device
    holds vectors_per_step * (D + queries_per_step) values at a time, independent of N.

    Args:
        queries: [Q, D] float32.
        vectors: [N, D] float32; may be memory-mapped.
        k: Number of vectors per query; at most N are returned.
        normalize: Whether vectors are first scaled to length 1.
        precedence: As in `rank_documents`.
        share: The range of the vectors that is searched.
        mesh: Mesh over whose 'data' axis vectors are spread; None for all devices of
            this process.
        queries_per_step: Number of queries scored at a time.
        vectors_per_step: Number of vectors on a device at a time.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of vectors.

    Raises:
        ValueError: `k` is not positive, there are no vectors, or the widths differ.
    """
    _check(queries, vectors, k)
    first, stop, _ = share.indices(len(vectors))
    mesh = mesh or make_mesh({"data": -1}, jax.local_devices())
    # Number of vectors in a block over all devices, and of queries in a step.
    k, devices, count = min(k, stop - first), mesh.shape["data"], len(queries)
    size = min(vectors_per_step, -(-(stop - first) // devices)) * devices
    step = min(queries_per_step, count)
    queries = jnp.asarray(_pad(queries, -(-count // step) * step))
    # For each step of queries, the k best vectors so far: [step, k].
    best = [None] * (len(queries) // step)
    for start in range(first, stop, size):
        block = vectors[start : min(start + size, stop)]
        valid = len(block)
        # Of equal scores, a device keeps those that come first in its block.
        order = np.arange(valid)
        if precedence is not None:
            order = np.argsort(precedence[start : start + valid])
            block = block[order]
        block = _pad(l2_normalize_rows(block) if normalize else block, size)
        block = jax.device_put(block, NamedSharding(mesh, P("data")))
        for i in range(len(best)):
            some = queries[i * step : (i + 1) * step]
            scores, rows = _top_of_block(some, block, valid, k=k, mesh=mesh)
            top = scores, start + order.take(rows, mode="clip")  # padding: -inf
            best[i] = _merge_top(best[i], top, k, precedence)
    scores, numbers = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return scores[:count], numbers[:count]


def search_chunks(
    queries: np.ndarray,
    chunks: ChunkEmbeddings,
    k: int,
    *,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    scores_per_step: int = 1 << 24,
) -> tuple[np.ndarray, np.ndarray]:
    """The k documents whose best chunks have the largest dot products, on the host.

    Args:
        queries: [Q, D] float32.
        chunks: The chunks of N documents.
        k: Number of documents per query; at most N are returned.
        normalize: Whether the vectors of chunks are first scaled to length 1.
        precedence: As in `rank_documents`.
        share: The range of the documents that is searched.
        scores_per_step: Number of scores in memory at a time; at least those of one
            document.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of documents.

    Raises:
        ValueError: As in `search`.
    """
    _check(queries, chunks.vectors, k)
    # [N + 1] the first chunk of each document; chunks are in the order of documents.
    first = np.flatnonzero(np.diff(chunks.document_numbers, prepend=-1, append=-1))
    start, stop, _ = share.indices(len(first) - 1)
    k, best = min(k, stop - start), None
    while start < stop:
        # The documents [start, end) whose chunks fit a block, at least one.
        limit = first[start] + scores_per_step // len(queries)
        end = int(np.searchsorted(first, limit, side="right")) - 1
        end = min(max(end, start + 1), stop)
        block = np.asarray(chunks.vectors[int(first[start]) : int(first[end])])
        block = l2_normalize_rows(block) if normalize else block
        # [Q, c] scores of chunks to [Q, n] scores of documents.
        scores = queries @ block.T
        scores = np.maximum.reduceat(scores, first[start:end] - first[start], axis=1)
        numbers = np.broadcast_to(np.arange(end - start), scores.shape)
        best = _merge_top(best, (scores, start + numbers), k, precedence)
        start = end
    return best


def _check(queries: np.ndarray, vectors: np.ndarray, k: int) -> None:
    chex.assert_rank([queries, vectors], 2)
    if k < 1:
        raise ValueError(f"k is {k}; a search needs at least 1")
    if not len(vectors) or not len(queries):
        raise ValueError(
            f"cannot search {len(vectors)} vectors for {len(queries)} queries"
        )
    if queries.shape[1] != vectors.shape[1]:
        raise ValueError(
            f"queries of width {queries.shape[1]} cannot search vectors of width "
            f"{vectors.shape[1]}"
        )


def _pad(x: np.ndarray, length: int) -> np.ndarray:
    x = np.asarray(x, np.float32)
    return np.pad(x, ((0, length - len(x)), (0, 0)))


@partial(jax.jit, static_argnames=("k", "mesh"))
def _top_of_block(
    queries: Array, block: Array, count: Array, *, k: int, mesh: Mesh
) -> tuple[Array, Array]:
    """The k best of the first `count` rows of a sharded block, for queries [Q, D]."""

    def search_shard(queries, rows, count):
        first = jax.lax.axis_index("data") * len(rows)
        # [Q, n] scores of the rows on this device
        scores = jnp.matmul(
            queries, rows.T, precision="highest", preferred_element_type=jnp.float32
        )
        # Rows beyond `count` are padding.
        number = first + jnp.arange(len(rows))
        scores = jnp.where((number < count)[None], scores, -jnp.inf)
        scores, positions = jax.lax.top_k(scores, min(k, len(rows)))
        return scores, positions + first

    # A plain top_k over a sharded axis would gather all scores on every device.
    specs = {"in_specs": (P(), P("data"), P()), "out_specs": (P(None, "data"),) * 2}
    scores, numbers = jax.shard_map(search_shard, mesh=mesh, **specs)(
        queries, block, count
    )
    # From [Q, devices * k] to the k best of all devices: [Q, k].
    scores, order = jax.lax.top_k(scores, min(k, scores.shape[1]))
    return scores, jnp.take_along_axis(numbers, order, 1)


def _merge_top(
    best, top, k: int, precedence: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of earlier blocks and of a block: scores and numbers [Q, k]."""
    scores, numbers = (np.asarray(x) for x in top)
    if best is not None:
        scores = np.concatenate([best[0], scores], 1)
        numbers = np.concatenate([best[1], numbers], 1)
    ties = numbers if precedence is None else precedence[numbers]
    order = np.lexsort((ties, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def _merge_processes(
    top, k: int, precedence: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of all processes' shares."""
    scores, numbers = top
    # Shares may hold fewer than k documents, but all processes pass the same shape.
    missing = ((0, 0), (0, k - scores.shape[1]))
    scores = np.pad(scores.astype(np.float32), missing, constant_values=-np.inf)
    numbers = np.pad(numbers.astype(np.int32), missing)
    parts = zip(*process_allgather((scores, numbers)), strict=True)  # of [Q, k] each
    best = None
    for part in parts:
        best = _merge_top(best, part, k, precedence)
    return best

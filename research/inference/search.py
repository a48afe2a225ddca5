"""Exact search over embeddings of any kind, on all devices and processes."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research.inference.index.quantized_vectors import rescore_candidates
from research.inference.index.vector_shards import ShardedVectors, run_ahead
from research.inference.multi_vector_search import search_multi_vectors
from research.inference.multi_vectors import SCORES_PER_STEP
from research.inference.row_kinds import ROW_KINDS
from research.inference.similarity import (
    check_similarity,
    count_texts,
    embedding_kind,
    normalize_embeddings,
    uses_unit_vectors,
)
from research.inference.top_k import Top, check_search, merge_blocks, merge_top
from research.sharding import make_mesh
from research.transforms.normalize import l2_normalize_rows
from research.types import Array, MultiVectors


def rank_documents(
    queries: np.ndarray | MultiVectors,
    documents: np.ndarray | ShardedVectors | MultiVectors,
    k: int,
    *,
    similarity: str = "cosine",
    precedence: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The k best documents for each query, by a similarity of the queries' kind.

    In a run of several processes, all of them call this with the same arguments; each
    searches its share of the documents, and all get the same result.

    Args:
        queries: Embeddings of Q queries.
        documents: Embeddings of N documents, of the same kind; those of dense queries
            may have several vectors, such as those of chunks, whose best one counts.
            Vectors of a folder are read in blocks, and codes are decoded in blocks.
        k: Number of documents per query; at most N are returned.
        similarity: One of `similarity.SIMILARITIES` of the kind.
        precedence: [N] int; of documents with equal scores, that with the smallest
            number comes first. None for their indices.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of documents.

    Raises:
        ValueError: We do not rank by this similarity, or as in `search`.
    """
    check_similarity(queries, similarity)
    quantizer = getattr(getattr(documents, "vectors", documents), "quantizer", None)
    if quantizer is not None and embedding_kind(queries) == "dense":
        queries = quantizer.center_queries(queries)
    is_dense = embedding_kind(documents) == "dense"
    if quantizer is None or not quantizer.rescore or not is_dense:
        return _rank(queries, documents, k, similarity, precedence)
    # Of binary codes, those with the fewest bits that differ are candidates.
    check_search(queries, documents, k)
    bits = np.where(queries > 0, np.float32(1), np.float32(-1))
    _, candidates = _rank(bits, documents, k * quantizer.rescore, "dot", precedence)
    normalize = uses_unit_vectors(similarity)
    queries = l2_normalize_rows(queries) if normalize else queries
    return rescore_candidates(
        queries, documents, candidates, k, normalize=normalize, precedence=precedence
    )


def _rank(
    queries: np.ndarray | MultiVectors,
    documents: np.ndarray | ShardedVectors | MultiVectors,
    k: int,
    similarity: str,
    precedence: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks documents by their vectors; each process searches its share of them."""
    # The cosine is the dot product of normalized vectors.
    options = {"normalize": uses_unit_vectors(similarity), "precedence": precedence}
    find, count = search, count_texts(documents)
    if embedding_kind(queries) == "sparse":
        find = search_sparse
    elif similarity in ROW_KINDS:
        find = ROW_KINDS[similarity].search
    elif embedding_kind(documents) == "multi_vector":
        find = partial(search_multi_vectors, mean=similarity == "meanmaxsim")
    elif options["normalize"]:
        queries = l2_normalize_rows(queries)
    # A range of documents for each process.
    index, processes = jax.process_index(), jax.process_count()
    if processes == 1 or count < processes:
        return find(queries, documents, k, **options)
    share = slice(index * count // processes, (index + 1) * count // processes)
    top = find(queries, documents, k, share=share, **options)
    return _merge_processes(top, min(k, count), precedence)


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
    check_search(queries, vectors, k)
    first, stop, _ = share.indices(len(vectors))
    mesh = mesh or make_mesh({"data": -1}, jax.local_devices())
    # Number of vectors in a block over all devices, and of queries in a step.
    k, devices, count = min(k, stop - first), mesh.shape["data"], len(queries)
    size = min(vectors_per_step, -(-(stop - first) // devices)) * devices
    step = min(queries_per_step, count)
    queries = jnp.asarray(_pad(queries, -(-count // step) * step))
    # For each step of queries, the k best vectors so far: [step, k].
    best = [None] * (len(queries) // step)
    # A thread reads the next block while the devices search one.
    starts = range(first, stop, size)
    blocks = ((start, vectors[start : min(start + size, stop)]) for start in starts)
    for start, block in run_ahead(blocks):
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
            best[i] = merge_top(best[i], top, k, precedence)
    scores, numbers = (np.concatenate(parts) for parts in zip(*best, strict=True))
    return scores[:count], numbers[:count]


def search_sparse(
    queries,
    documents,
    k: int,
    *,
    normalize: bool = False,
    precedence: np.ndarray | None = None,
    share: slice = slice(None),
    scores_per_step: int = SCORES_PER_STEP,
) -> Top:
    """The k documents with the largest dot products, by SciPy's sparse product.

    Args:
        queries: [Q, V] SciPy CSR array.
        documents: [N, V] SciPy CSR array.
        k: Number of documents per query; at most N are returned, those without a term
            of the query last.
        normalize, precedence, share: As in `search_multi_vectors`.
        scores_per_step: Number of scores in memory at a time; at least those of one
            document.

    Returns:
        Scores [Q, min(k, N)] float32 from best to worst, and indices of documents.

    Raises:
        ValueError: As in `search_multi_vectors`.
    """
    check_search(queries, documents, k)
    start, stop, _ = share.indices(documents.shape[0])
    if normalize:
        queries, documents = normalize_embeddings((queries, documents))
    # A block's scores are dense, since most documents share a term with the query
    step = max(1, scores_per_step // queries.shape[0])
    blocks = (
        (first, (queries @ documents[first : min(first + step, stop)].T).toarray())
        for first in range(start, stop, step)
    )
    return merge_blocks(blocks, min(k, stop - start), precedence)


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
        best = merge_top(best, part, k, precedence)
    return best

"""Similarities of queries and documents: cosine, dot product, MaxSim.

Losses of scores take the similarities of a batch as `PairScores`. To add a similarity,
add a function ([N, D], [M, D]) -> [N, M] to SIMILARITIES; those of several vectors per
text take [N, S, D] and [M, T, D].

With several devices, each one compares its own pairs with all texts of the batch: the
texts' embeddings are gathered once, and the gradient returns to each device the sum of
what all devices contribute to its texts (all-gather, and reduce-scatter backward).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from research import sharding
from research.config_sections import check_option
from research.losses.late_interaction import m3, maxsim, slim
from research.transforms.normalize import inverse_norm, l2_normalize, to_float32
from research.types import Array, Labels

# Most scores of a block of rows: 128 MiB of float32.
BLOCK_SCORES = 2**25


class PairVectors(NamedTuple):
    """Embeddings of some rows of a batch, and of all texts they are compared to.

    With several devices, each one has the rows of its own pairs (`gather_pairs`); a
    large batch is compared block by block (`map_row_blocks`). B and K are those of the
    whole batch, and b is the number of rows. Several vectors of a text, [T, D], take
    the place of [D].

    Attributes:
        queries: [b, D] queries of the rows.
        documents: [b*K, D] their documents; rows i*K ... i*K + K-1 belong to query i.
        all_queries: [B, D] queries of the batch.
        all_documents: [B*K, D] documents of the batch.
        rows: [b] int32 index of each of the rows among the B pairs.
    """

    queries: Array
    documents: Array
    all_queries: Array
    all_documents: Array
    rows: Array

    @property
    def positives(self) -> Array:
        """[b, D] positives of the rows."""
        return self.documents[:: self.docs_per_query]

    @property
    def docs_per_query(self) -> int:
        """K, the number of documents per query."""
        return docs_per_query(self.queries, self.documents)

    @property
    def is_complete(self) -> bool:
        """Whether the rows are all pairs of the batch."""
        return len(self.queries) == len(self.all_queries)

    @property
    def is_own(self) -> Array:
        """[b, B] bool, whether pair j is the pair of row i."""
        return self.rows[:, None] == jnp.arange(len(self.all_queries))[None, :]

    def take_rows(self, x: Array) -> Array:
        """The entries [b, ...] of these rows of an array of all pairs [B, ...]."""
        return x if self.is_complete else x[self.rows]


class PairScores:
    """Similarities between the texts of a batch, float32, computed when they are read.

    Attributes:
        vectors: The embeddings of b rows and of the batch.
        similarity: Name of the similarity.
    """

    def __init__(self, vectors: PairVectors, similarity: str):
        """Scores embeddings by a similarity, a name in SIMILARITIES."""
        check_option("similarity", similarity, SIMILARITIES)
        self.vectors = vectors
        self.similarity = similarity
        self._score = SIMILARITIES[similarity]

    @functools.cached_property
    def query_document(self) -> Array:
        """[b, B*K] scores of queries and all documents of the batch."""
        return self._score(self.vectors.queries, self.vectors.all_documents)

    @functools.cached_property
    def positive_query(self) -> Array:
        """[b, B] scores of positives and all queries."""
        # Without a second product where the rows are all there is
        if self.vectors.is_complete:
            return self.query_document[:, :: self.vectors.docs_per_query].T
        # The query comes first, since MaxSim is not symmetric
        return self._score(self.vectors.all_queries, self.vectors.positives).T

    @functools.cached_property
    def query_query(self) -> Array:
        """[b, B] scores of queries and all queries."""
        return self._score(self.vectors.queries, self.vectors.all_queries)

    @functools.cached_property
    def positive_document(self) -> Array:
        """[b, B*K] scores of positives and all documents of the batch."""
        return self._score(self.vectors.positives, self.vectors.all_documents)

    @functools.cached_property
    def positive_positive(self) -> Array:
        """[b, B] scores of positives and all positives."""
        all_positives = self.vectors.all_documents[:: self.vectors.docs_per_query]
        return self._score(self.vectors.positives, all_positives)

    @functools.cached_property
    def own_documents(self) -> Array:
        """[b, K] scores of each query and its own documents, the positive first."""
        q, d = self.vectors.queries, self.vectors.documents
        return own_document_scores(q, d, self.similarity)

    @functools.cached_property
    def all_own_documents(self) -> Array:
        """[B, K] scores of every query of the batch and its own documents."""
        q, d = self.vectors.all_queries, self.vectors.all_documents
        return own_document_scores(q, d, self.similarity)


def pair_scores(q: Array, d: Array, similarity: str) -> PairScores:
    """Scores the queries and documents of a batch against each other.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents; rows i*K ... i*K + K-1 belong to query i.
        similarity: A name in SIMILARITIES.

    Raises:
        ValueError: The similarity is unknown, or the number of documents is not a
            multiple of the number of queries.
    """
    return PairScores(gather_pairs(q, d), similarity)


def gather_pairs(q: Array, d: Array) -> PairVectors:
    """The embeddings of this device's pairs, and those of all devices.

    Outside `sharding.map_over_data` the pairs are the whole batch, and nothing moves.

    Args:
        q: [b, D] queries of this device.
        d: [b*K, D] their documents.

    Raises:
        ValueError: The number of documents is not a multiple of the number of queries.
    """
    docs_per_query(q, d)
    rows = sharding.find_first_row(len(q)) + jnp.arange(len(q), dtype=jnp.int32)
    return PairVectors(q, d, sharding.gather_rows(q), sharding.gather_rows(d), rows)


def map_row_blocks(fn: Callable[..., Any], *pairs: PairVectors) -> Any:
    """Computes a function of the rows of a batch, a block of rows at a time.

    Only the scores of one block are in memory, so that memory grows with B and not with
    its square; the gradient computes each block's scores again.

    Args:
        fn: Function of one PairVectors for each of `pairs`, which returns a tree of
            arrays [b, ...] that depend on the rows one by one.
        *pairs: Embeddings of the same rows.

    Returns:
        The trees of all blocks, concatenated: [b, ...].
    """
    count, num_docs = len(pairs[0].queries), len(pairs[0].all_documents)
    blocks = count_row_blocks(count, num_docs)
    if blocks == 1:
        return fn(*pairs)

    def split_blocks(x):  # [b, ...] -> [blocks, b / blocks, ...]
        return x.reshape(blocks, len(x) // blocks, *x.shape[1:])

    @jax.checkpoint
    def run_block(parts):
        # The rows of the block, and all texts of the batch
        return fn(
            *(
                whole._replace(queries=q, documents=d, rows=rows)
                for whole, (q, d, rows) in zip(pairs, parts, strict=True)
            )
        )

    parts = [
        (split_blocks(p.queries), split_blocks(p.documents), split_blocks(p.rows))
        for p in pairs
    ]
    results = jax.lax.map(run_block, parts)  # [blocks, b / blocks, ...]
    return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:]), results)


def count_row_blocks(count: int, num_docs: int) -> int:
    """Number of blocks in which b rows are compared to `num_docs` documents."""
    for blocks in range(1, count + 1):
        if count % blocks == 0 and count // blocks * num_docs <= BLOCK_SCORES:
            return blocks
    return count


def own_document_scores(q: Array, d: Array, similarity: str) -> Array:
    """Scores each query against its own documents only.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents.
        similarity: A name in SIMILARITIES.

    Returns:
        [B, K] float32.
    """
    d = d.reshape(q.shape[0], docs_per_query(q, d), *d.shape[1:])
    # [B, 1, D] x [B, K, D] -> [B, 1, K]
    return jax.vmap(SIMILARITIES[similarity])(q[:, None], d)[:, 0]


def dot(x: Array, y: Array) -> Array:
    """Dot products of [N, D] and [M, D]: [N, M] float32."""
    chex.assert_rank([x, y], 2)
    if x.dtype == y.dtype == jnp.bfloat16:
        return _compute_exact_dot(x, y)
    # With the default precision TPUs multiply in bfloat16: a cosine near 1 is then off
    # by up to 0.004, and its logit by 0.4 at a temperature of 0.01.
    return jnp.matmul(
        to_float32(x),
        to_float32(y).T,
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def cosine(x: Array, y: Array) -> Array:
    """Cosines of [N, D] and [M, D]: [N, M] float32; 0 for a vector of zeros."""
    if x.dtype == y.dtype == jnp.bfloat16:
        # Products of what bfloat16 holds are exact; those of unit vectors, which it
        # would have to round, are not
        scale = inverse_norm(x) * inverse_norm(y).T  # [N, M]
        return dot(x, y) * scale
    return dot(l2_normalize(x), l2_normalize(y))


@jax.custom_vjp
def _compute_exact_dot(x: Array, y: Array) -> Array:
    """[N, M] float32, exact products of bfloat16 [N, D] and [M, D] in float32 sums.

    The gradient multiplies in bfloat16 as well, as that of other layers does.
    """
    return jnp.matmul(x, y.T, preferred_element_type=jnp.float32)


def _keep_factors(x: Array, y: Array):
    return _compute_exact_dot(x, y), (x, y)


def _compute_dot_gradient(factors: tuple[Array, Array], gradient: Array):
    x, y = factors
    gradient = gradient.astype(jnp.bfloat16)
    return (
        jnp.matmul(gradient, y, preferred_element_type=jnp.float32).astype(x.dtype),
        jnp.matmul(gradient.T, x, preferred_element_type=jnp.float32).astype(y.dtype),
    )


_compute_exact_dot.defvjp(_keep_factors, _compute_dot_gradient)


def docs_per_query(q: Array, d: Array) -> int:
    """K, the number of documents per query.

    Args:
        q: [B, D] queries.
        d: [B*K, D] documents.

    Raises:
        ValueError: The documents do not divide evenly among the queries.
    """
    chex.assert_rank([q, d], {2, 3})
    if d.shape[0] % q.shape[0]:
        raise ValueError(
            f"{d.shape[0]} documents do not divide evenly among {q.shape[0]} queries"
        )
    return d.shape[0] // q.shape[0]


def target_scores(labels: Labels, shape: tuple[int, int]) -> Array:
    """The labels' graded similarities, one per query and document.

    Args:
        labels: Labels with score [B] (if K is 1) or [B, K].
        shape: (B, K).

    Returns:
        [B, K] float32.

    Raises:
        ValueError: The scores are missing, or not one per pair.
    """
    if labels.score is None:
        raise ValueError("this loss needs a score for each pair, but the data has none")
    if labels.score.size != shape[0] * shape[1]:
        raise ValueError(
            f"this loss needs a score for each of {shape[0]} x {shape[1]} pairs, "
            f"but the scores have shape {labels.score.shape}"
        )
    return to_float32(labels.score).reshape(shape)


# Functions ([N, S, D], [M, T, D]) -> [N, M] float32 of several vectors per text.
TOKEN_SIMILARITIES = {
    "maxsim": functools.partial(maxsim, score=cosine),
    "meanmaxsim": functools.partial(maxsim, score=cosine, mean=True),
    "maxsim_dot": functools.partial(maxsim, score=dot),
    "m3": functools.partial(m3, score=cosine),
    "slim": slim,
}
# Functions ([N, D], [M, D]) -> [N, M] float32, by name, and those of several vectors.
SIMILARITIES = {"cosine": cosine, "dot": dot, **TOKEN_SIMILARITIES}

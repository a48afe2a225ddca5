"""Regularizers: texts that point in all directions, sparse vectors of few weights."""

import jax
import jax.numpy as jnp

from research.config_sections import check_option
from research.losses.contrastive import find_same_texts
from research.losses.similarity import PairScores
from research.transforms.normalize import to_float32
from research.transforms.token_rows import ROW_TERMS, split_rows
from research.types import Array, Labels, Metrics


def spread_out(scores: PairScores, labels: Labels) -> Array:
    """Mean square of the similarities of different queries, plus that of positives.

    The second moment of Zhang et al. 2017, as EmbeddingGemma (Schechter Vera et al.
    2025) uses it beside a contrastive loss. It is 0 for orthogonal vectors, 2 for equal
    ones, and 2 / D on average for random ones of D dimensions. It is meant for cosines.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Ids of equal texts, which are not pushed apart.

    Returns:
        [b] float32, the mean over the other rows of the batch.
    """
    vectors = scores.vectors
    num_docs, is_own = vectors.docs_per_query, vectors.is_own
    same_query, same_document = find_same_texts(vectors, labels)
    total = jnp.zeros(len(vectors.queries))
    # [b, B] similarities of queries, and of positives
    for similarities, is_same in (
        (scores.query_query, same_query),
        (scores.positive_positive, same_document[:, ::num_docs]),
    ):
        squares = jnp.where(is_same | is_own, 0.0, jnp.square(similarities))
        total += jnp.sum(squares, axis=1) / max(1, is_own.shape[1] - 1)
    return total


def flops(
    q: Array,
    d: Array,
    labels: Labels,
    *,
    query: float = 3e-4,
    document: float = 1e-4,
    query_norm: str = "flops",
    warmup: float = 1 / 3,
) -> Array:
    """Penalty on the multiplications of a search, for a weighted sum with a loss.

    Paria et al. 2020 (FLOPS), as SPLADE uses it (Formal et al. 2021): for queries and
    for documents, the sum over the vocabulary of the squared mean weight of the batch.
    It rises from 0 with the square of the part of the warm-up that is done.

    Args:
        q: [B, V] weights of queries, not negative.
        d: [B*K, V] weights of documents.
        labels: Labels with the progress of the run, if there is a warm-up.
        query: Factor of the queries' penalty.
        document: Factor of the documents' penalty.
        query_norm: "flops", or "l1" for the mean sum of a query's weights (efficient
            SPLADE, Lassance and Clinchant 2022).
        warmup: Part of the run in which the penalty rises; 0 for none.

    Returns:
        [B] float32, the penalty of the batch, repeated.

    Raises:
        ValueError: The query_norm is unknown, or there is a warm-up in a loss that is
            not told the progress.
    """
    check_option("query_norm", query_norm, NORMS)
    # Of queries and of documents, each with its factor
    penalty = query * NORMS[query_norm](q) + document * flops_norm(d)
    # The progress of the run is the same for all pairs
    if warmup:
        if labels.progress is None:
            raise ValueError("flops with a warmup needs the progress of a run")
        part = jnp.minimum(labels.progress[0] / warmup, 1.0)
        penalty *= part * part
    return jnp.full(len(q), penalty)


def l1(scores: PairScores, labels: Labels) -> Array:
    """Sum of the weights of a query and mean sum of those of its documents.

    Li et al. 2023 (SLIM) add it with the weight 1e-5, which keeps few terms in use. Of
    rows of tokens, only the weights that they hold count.

    Args:
        scores: Similarities of b rows of the batch.
        labels: Not used.

    Returns:
        [b] float32, not divided by the number of tokens.
    """
    del labels
    vectors, kind = scores.vectors, scores.similarity

    def sum_weights(x):  # [n, ...] -> [n]
        weights = split_rows(x, kind)[2] if kind in ROW_TERMS else x
        return jnp.sum(jnp.abs(to_float32(weights)), axis=tuple(range(1, x.ndim)))

    documents = sum_weights(vectors.documents).reshape(-1, vectors.docs_per_query)
    return sum_weights(vectors.queries) + documents.mean(1)


def flops_norm(weights: Array) -> Array:
    """Sum over the vocabulary of the squared mean weight of texts [N, V]: [].

    Weights are not negative.
    """
    return jnp.sum(jnp.square(jnp.mean(to_float32(weights), axis=0)))


def l1_norm(weights: Array) -> Array:
    """Mean over texts [N, V] of the sum of their weights: []."""
    return jnp.mean(jnp.sum(to_float32(weights), axis=1))


def sparsity_metrics(q: Array, d: Array) -> Metrics:
    """Mean numbers of weights that are not 0, and the share of texts without any.

    Args:
        q: [B, V] weights of queries.
        d: [B*K, V] weights of documents.
    """
    # [B], [B*K] numbers of terms
    counts = [jnp.sum(x > 0, axis=1) for x in jax.lax.stop_gradient((q, d))]
    query_terms, document_terms = (jnp.mean(to_float32(x)) for x in counts)
    return {
        "query_terms": query_terms,
        "document_terms": document_terms,
        "empty_texts": jnp.mean(to_float32(jnp.concatenate(counts) == 0)),
    }


NORMS = {"flops": flops_norm, "l1": l1_norm}

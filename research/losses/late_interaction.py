"""MaxSim of late interaction (ColBERT), in blocks of documents; scores of BGE-M3.

A text has a row of vectors [T, D], one for each of its tokens. A vector of zeros is no
token: it pads shorter texts, and stands for tokens that are not scored.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from research.transforms.best_scores import find_best_scores
from research.transforms.m3_rows import SPARSE_SHARE, split_rows
from research.types import Array

Score = Callable[[Array, Array], Array]

# Most scores of vectors of a block of documents: 64 MiB of float32.
BLOCK_SCORES = 2**24
# Score of a document without tokens: below all others, and finite when it is squared.
EMPTY_DOCUMENT = -1e9


def maxsim(
    queries: Array,
    documents: Array,
    *,
    score: Score,
    mean: bool = False,
) -> Array:
    """Sums over a query's tokens of the best score of a token of each document.

    Khattab and Zaharia 2020 (ColBERT), section 3.3. The scores of all tokens [N, M, S,
    T] are never in memory: documents are compared block by block, and the gradient
    computes each block again. Of equal scores of a token, each has a share of the
    gradient.

    Args:
        queries: [N, S, D] vectors of the tokens of N queries.
        documents: [M, T, D] vectors of the tokens of M documents.
        score: Similarity of vectors ([N, D], [M, D]) -> [N, M] float32.
        mean: Whether scores are divided by the number of the query's tokens.

    Returns:
        [N, M] float32.
    """
    chex.assert_rank([queries, documents], 3)
    (num_queries, query_tokens, width), num_docs = queries.shape, len(documents)
    flat_queries = queries.reshape(-1, width)  # [N*S, D]
    # Tokens of zeros score 0, and so add nothing to a query's sum
    is_token = jnp.any(queries != 0, axis=-1)  # [N, S]

    @jax.checkpoint
    def score_block(block):
        valid = jnp.any(block != 0, axis=-1)  # [m, T]
        best = find_best_scores(flat_queries, block, valid, score=score)
        best = best.reshape(num_queries, query_tokens, -1)  # [N, S, m]
        best = jnp.where(is_token[:, :, None], best, 0.0)
        # A document without tokens has no best score
        return jnp.where(valid.any(1)[None], best.sum(1), EMPTY_DOCUMENT)  # [N, m]

    blocks = count_blocks(num_docs, num_queries * query_tokens * documents.shape[1])
    if blocks == 1:
        total = score_block(documents)
    else:
        # [blocks, m, T, D] -> [blocks, N, m] -> [N, M]
        parts = documents.reshape(blocks, -1, *documents.shape[1:])
        total = jax.lax.map(score_block, parts)
        total = jnp.moveaxis(total, 0, 1).reshape(num_queries, num_docs)
    if mean:
        count = jnp.maximum(is_token.sum(1), 1).astype(jnp.float32)
        total /= count[:, None]
    return total


def count_blocks(num_docs: int, scores_per_document: int) -> int:
    """Number of equal blocks of documents, each with few enough scores."""
    for blocks in range(1, num_docs + 1):
        size = num_docs // blocks
        if num_docs % blocks == 0 and size * scores_per_document <= BLOCK_SCORES:
            return blocks
    return num_docs


def score_parts(queries: Array, documents: Array, *, score: Score) -> list[Array]:
    """The three scores of queries and documents (Chen et al. 2024, BGE-M3).

    Args:
        queries: [N, S, D + 4] rows.
        documents: [M, T, D + 4] rows.
        score: Similarity of vectors ([N, D], [M, D]) -> [N, M] float32.

    Returns:
        Dense, sparse and multi-vector scores, [N, M] float32 each: the similarity of
        the first vectors; the products of the largest weights of each token of the
        vocabulary, summed; and the mean over a query's other vectors of the best
        similarity with one of the document's.
    """
    # Vectors [N, S, D], ids and weights [N, S]
    sides = [split_rows(x) for x in (queries, documents)]
    (q, *_), (d, *_) = sides
    # [N, S, 2] ids and weights, of which a query's repeated tokens have one each
    (q_ids, q_weights), (d_ids, d_weights) = (side[1:] for side in sides)
    q_weights = jnp.where(mark_largest(q_ids, q_weights), q_weights, 0.0)
    q_terms, d_terms = (
        jnp.stack([jnp.where(weights > 0, ids, 0.0), weights], -1)
        for ids, weights in ((q_ids, q_weights), (d_ids, d_weights))
    )
    # [N, M] of texts, blocks of documents at a time
    sparse = maxsim(q_terms, d_terms, score=multiply_weights)
    return [
        score(q[:, 0], d[:, 0]),
        jnp.maximum(sparse, 0.0),  # of documents without any weight
        maxsim(q[:, 1:], d[:, 1:], score=score, mean=True),
    ]


def m3(queries: Array, documents: Array, *, score: Score) -> Array:
    """The weighted sum [N, M] of the three scores; arguments as in `score_parts`."""
    return sum_parts(score_parts(queries, documents, score=score))


def sum_parts(parts: list[Array]) -> Array:
    """The sum of dense, sparse and multi-vector scores, the second with its share."""
    return parts[0] + SPARSE_SHARE * parts[1] + parts[2]


def multiply_weights(x: Array, y: Array) -> Array:
    """Products [N, M] of weights of equal tokens, of (id, weight) [N, 2] and [M, 2].

    Their MaxSim is the product of two texts' weights over the vocabulary, without an
    array of the vocabulary's size.
    """
    products = x[:, None, 1] * y[None, :, 1]
    return jnp.where(x[:, None, 0] == y[None, :, 0], products, 0.0)


def mark_largest(ids: Array, weights: Array) -> Array:
    """Whether a token has the largest weight of its id in a text: [N, T] bool.

    Of equal weights, it is the first one's.
    """
    is_equal = ids[:, :, None] == ids[:, None, :]  # [N, T, T]
    is_more = weights[:, None, :] > weights[:, :, None]
    is_before = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool), -1)[None]
    is_as_much = (weights[:, None, :] == weights[:, :, None]) & is_before
    return ~jnp.any(is_equal & (is_more | is_as_much), axis=-1)

"""MaxSim of late interaction (ColBERT, SLIM) in blocks of documents; BGE-M3's scores.

A text has a row of vectors [T, D], one for each of its tokens. A vector of zeros is no
token: it pads shorter texts, and stands for tokens that are not scored.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from research.transforms.best_scores import find_best_scores
from research.transforms.token_rows import SPARSE_SHARE, split_rows
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
    num_queries, query_tokens, width = queries.shape
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

    total = _map_documents(score_block, documents, num_queries * query_tokens)
    if mean:
        count = jnp.maximum(is_token.sum(1), 1).astype(jnp.float32)
        total /= count[:, None]
    return total


def slim(queries: Array, documents: Array) -> Array:
    """MaxSim of tokens that are weights of a few terms each (Li et al. 2023, SLIM).

    The best tokens are found without gradients, which the maximum would pass to them
    alone, and then scored again: differentiating the comparisons of all tokens' terms
    would keep K * K times as many numbers as there are scores. Of equal scores of a
    token, the first one has the gradient.

    Args:
        queries: [N, S, 4 K] rows as in `transforms.token_rows`.
        documents: [M, T, 4 K] rows.

    Returns:
        [N, M] float32, not negative; 0 for a text without terms.
    """
    chex.assert_rank([queries, documents], 3)
    # [N, S, 2 K], [M, T, 2 K] ids and weights
    q, d = (
        jnp.concatenate(split_rows(x, "slim")[1:], -1) for x in (queries, documents)
    )
    num_queries, query_tokens, width = q.shape
    q = q.reshape(-1, width)  # [N*S, 2 K]

    def score_block(block):
        docs, length, _ = block.shape
        tokens = jax.lax.stop_gradient(block.reshape(-1, width))
        products = compare_terms(jax.lax.stop_gradient(q), tokens)
        best = products.reshape(-1, docs, length).argmax(-1)  # [N*S, m]
        scores = score_best(q, block, best)
        return scores.reshape(num_queries, query_tokens, docs).sum(1)

    # The gradient computes these scores again, but does not search for them again
    @jax.checkpoint
    def score_best(q, block, best):
        tokens = block[jnp.arange(len(block))[None], best]  # [N*S, m, 2 K]
        return jax.vmap(compare_terms)(q[:, None], tokens)  # [N*S, 1, m]

    return _map_documents(score_block, d, num_queries * query_tokens)


def _map_documents(
    score_block: Callable[[Array], Array], documents: Array, query_tokens: int
) -> Array:
    """Scores [N, M] of documents [M, T, D], of which a block [m, T, D] has [N, m]."""
    num_docs, length, _ = documents.shape
    blocks = count_blocks(num_docs, query_tokens * length)
    if blocks == 1:
        return score_block(documents)
    # [blocks, m, T, D] -> [blocks, N, m] -> [N, M]
    parts = documents.reshape(blocks, -1, *documents.shape[1:])
    total = jnp.moveaxis(jax.lax.map(score_block, parts), 0, 1)
    return total.reshape(len(total), num_docs)


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
    # Vectors [N, S, D], ids and weights [N, S, 1]
    sides = [split_rows(x, "m3") for x in (queries, documents)]
    (q, *_), (d, *_) = sides
    # [N, S, 2] ids and weights, of which a query's repeated tokens have one each
    (q_ids, q_weights), (d_ids, d_weights) = (side[1:] for side in sides)
    is_largest = mark_largest(q_ids[..., 0], q_weights[..., 0])
    q_weights = jnp.where(is_largest[..., None], q_weights, 0.0)
    q_terms, d_terms = (
        jnp.concatenate([jnp.where(weights > 0, ids, 0.0), weights], -1)
        for ids, weights in ((q_ids, q_weights), (d_ids, d_weights))
    )
    # [N, M] of texts, blocks of documents at a time
    sparse = maxsim(q_terms, d_terms, score=compare_terms)
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


def compare_terms(x: Array, y: Array) -> Array:
    """Dot products of sparse vectors: K ids, then K weights, [N, 2 K] and [M, 2 K].

    Ids are compared, K * K times for a product, which needs neither an array of the
    vocabulary's size nor gathers, which are slow on TPUs; with the usual K of 20, a
    table of the documents' weights over the vocabulary is slower on CPU, too.

    Returns:
        [N, M] float32.
    """
    x_ids, x_weights = jnp.split(x, 2, axis=1)  # [N, K]

    def score_term(ids, weights):  # [M]
        # One fused loop for all terms of x, which reads two vectors of y: [N, M]
        matches = sum(
            jnp.where(x_ids[:, k, None] == ids[None], x_weights[:, k, None], 0.0)
            for k in range(x_ids.shape[1])
        )
        return matches * weights[None]

    def add_term(total, term):
        return total + score_term(*term), None

    ids, weights = jnp.split(y.T, 2)  # [K, M]
    total = score_term(ids[0], weights[0])
    return jax.lax.scan(add_term, total, (ids[1:], weights[1:]))[0]


def mark_largest(ids: Array, weights: Array) -> Array:
    """Whether a token has the largest weight of its id in a text: [N, T] bool.

    Of equal weights, it is the first one's.
    """
    is_equal = ids[:, :, None] == ids[:, None, :]  # [N, T, T]
    is_more = weights[:, None, :] > weights[:, :, None]
    is_before = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool), -1)[None]
    is_as_much = (weights[:, None, :] == weights[:, :, None]) & is_before
    return ~jnp.any(is_equal & (is_more | is_as_much), axis=-1)

"""MaxSim, the similarity of late interaction, in blocks of documents (ColBERT).

A text has a row of vectors [T, D], one for each of its tokens. A vector of zeros is no
token: it pads shorter texts, and stands for tokens that are not scored.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from research.types import Array

# Most scores of vectors of a block of documents: 64 MiB of float32.
BLOCK_SCORES = 2**24
# Score of a document without tokens: below all others, and finite when it is squared.
EMPTY_DOCUMENT = -1e9


def maxsim(
    queries: Array,
    documents: Array,
    *,
    score: Callable[[Array, Array], Array],
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
        # [N, S, m, T] scores of tokens
        scores = score(flat_queries, block.reshape(-1, width))
        scores = scores.reshape(num_queries, query_tokens, *block.shape[:2])
        # [N, S, m] best scores, over tokens that are there
        valid = jnp.any(block != 0, axis=-1)  # [m, T]
        lowest = jnp.finfo(jnp.float32).min
        best = jnp.where(valid[None, None], scores, lowest).max(-1)
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

"""Best scores of the tokens of documents, of which MaxSim is the sum (ColBERT)."""

from collections.abc import Callable

import jax.numpy as jnp

from research.types import Array


def find_best_scores(
    queries: Array,
    documents: Array,
    is_token: Array | None = None,
    *,
    score: Callable[[Array, Array], Array],
) -> Array:
    """The best score of each vector of queries with a token of each document.

    The scores of all tokens, [C, M, T], are in memory at once.

    Args:
        queries: [C, D] vectors of the tokens of queries.
        documents: [M, T, D] vectors of the tokens of M documents.
        is_token: [M, T] bool, false for padding; None if all are tokens, or padding
            repeats one.
        score: Similarity of vectors ([C, D], [N, D]) -> [C, N] float32.

    Returns:
        [C, M] float32; its lowest number for a document without tokens.
    """
    scores = score(queries, documents.reshape(-1, documents.shape[-1]))
    scores = scores.reshape(len(queries), *documents.shape[:2])  # [C, M, T]
    if is_token is None:
        return scores.max(-1)
    lowest = jnp.finfo(jnp.float32).min
    return jnp.where(is_token[None], scores, lowest).max(-1)

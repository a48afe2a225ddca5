"""Rows of tokens: a vector, and ids and weights of terms of a vocabulary, in one array.

A text is rows [T, D + 4 K]. A row has a vector, the weights of K terms, and their ids
in three digits of base 256, which bfloat16 and float16 hold exactly. Rows of zeros are
no tokens. BGE-M3 ("m3") has the dense vector of a text in its first row, the vectors of
its tokens in the others, and K = 1; SLIM ("slim") has K terms for each token, without a
vector.
"""

from typing import Any

import jax.numpy as jnp

# {kind of rows: K, the number of their terms; None for all that they have room for}
ROW_TERMS = {"m3": 1, "slim": None}
# Values of a term: its weight and three digits.
TERM_WIDTH = 4
# Factor of the sum of products of weights, beside the dense and multi-vector scores.
SPARSE_SHARE = 0.3


def join_rows(ids, weights, vectors=None):
    """Rows [..., D + 4 K] float32 of ids and weights [..., K] and vectors [..., D].

    Ids of terms without weight become 0, so that a row without any is one of zeros.
    """
    ids = jnp.where(weights > 0, ids, 0)
    parts = [weights, ids // 65_536, ids // 256 % 256, ids % 256]
    parts = parts if vectors is None else [vectors, *parts]
    return jnp.concatenate([x.astype(jnp.float32) for x in parts], -1)


def split_rows(rows, kind: str) -> tuple[Any, Any, Any]:
    """Vectors [..., D], float32 ids and weights [..., K] of rows [..., D + 4 K].

    Args:
        rows: Rows, of NumPy or JAX.
        kind: A name in ROW_TERMS.
    """
    terms = ROW_TERMS[kind] or rows.shape[-1] // TERM_WIDTH
    width = rows.shape[-1] - TERM_WIDTH * terms
    extra = rows[..., width:].astype("float32")
    weights, first, second, third = (
        extra[..., i * terms : (i + 1) * terms] for i in range(TERM_WIDTH)
    )
    return rows[..., :width], first * 65_536 + second * 256 + third, weights

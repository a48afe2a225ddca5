"""Rows of BGE-M3: a vector, the id and the weight of each token in one array.

A text is rows [T, D + 4]. The first row has the dense vector of the text, the others
the vectors of its tokens; then come the weight of the token and its id in three digits
of base 256, which bfloat16 and float16 hold exactly. Rows of zeros are no tokens.
"""

from typing import Any

# The weight and the three digits.
EXTRA_WIDTH = 4
# Factor of the sum of products of weights, beside the dense and multi-vector scores.
SPARSE_SHARE = 0.3


def list_digits(ids) -> list:
    """Three arrays [...] of the digits of ids [...], the first one first."""
    return [ids // 65_536, ids // 256 % 256, ids % 256]


def split_rows(rows) -> tuple[Any, Any, Any]:
    """Vectors [..., D], float32 ids [...] and weights [...] of rows [..., D + 4]."""
    extra = rows[..., -EXTRA_WIDTH:].astype("float32")
    weights, first, second, third = (extra[..., i] for i in range(EXTRA_WIDTH))
    return rows[..., :-EXTRA_WIDTH], first * 65_536 + second * 256 + third, weights

"""Rows without some of their tokens."""

import jax.numpy as jnp
import numpy as np
from packed import rows_of

from research.models.token_ops import compact_tokens, scatter_tokens

TOKENS = rows_of([[[2, 10, 11, 3], [2, 12, 3]]], 8).tokens
AT = jnp.asarray([[6, 0, 2, 7, 4]], jnp.int32)
REAL = jnp.asarray([[True, True, True, False, True]])


def test_tokens_keep_their_places():
    tokens, where = compact_tokens(TOKENS, AT, REAL)
    assert tokens.token_ids.tolist() == [[3, 2, 11, 0, 2]]
    assert (
        tokens.segment_ids.tolist() == where.segment_ids.tolist() == [[2, 1, 1, 0, 2]]
    )
    assert where.position_ids.tolist() == [[2, 0, 2, 0, 0]]
    assert where.lengths.tolist() == [[3, 4, 4, 0, 3]]
    assert where.row_positions.tolist() == [[6, 0, 2, 0, 4]]
    assert tokens.pooling_mask.tolist() == [[True, True, True, False, True]]


def test_states_return_to_their_places():
    x = jnp.arange(1.0, 6.0)[None, :, None] * jnp.ones((1, 1, 2))
    got = np.asarray(scatter_tokens(x, AT, REAL, jnp.asarray([-1.0, -2.0]), 8))
    assert got[0, :, 0].tolist() == [2, -1, 3, -1, 5, -1, 1, -1]
    assert got[0, :, 1].tolist() == [2, -2, 3, -2, 5, -2, 1, -2]

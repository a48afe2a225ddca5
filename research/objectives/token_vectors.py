"""The vectors of the tokens of texts, taken from packed rows, for late interaction."""

import chex
import jax.numpy as jnp

from research import sharding
from research.types import Array, max_segments


def take_token_vectors(
    vectors: Array, segment_ids: Array, index: Array, length: int = 0
) -> Array:
    """The vectors of the scored tokens of texts, within `sharding.map_over_data`.

    Args:
        vectors: [R*S, d] vectors of the tokens of the device's rows; or [R*S, L+1, d]
            of every layer.
        segment_ids: [R, S] int32 text of each token, as in `Tokens`, but 0 for tokens
            that are not scored.
        index: [m] index of each text among those of all devices' rows, as in `Batch`.
        length: T, the most scored tokens of a text, whose others are left out; 0 for S.

    Returns:
        [m, T, d], or [m, L+1, T, d] of every layer; zeros after the last token, and NaN
        for a text in a row of another device.
    """
    chex.assert_rank([segment_ids, index], [2, 1])
    rows, row_length = segment_ids.shape
    slots = max_segments(row_length)
    # [m] row of each text on this device; an index beyond them is filled with NaN
    row = index // slots - sharding.find_first_row(rows)
    is_present = (row >= 0) & (row < rows)
    row = jnp.clip(row, 0, rows - 1)
    # [m, T] the positions of the text's tokens in the row, then those of others
    is_text = segment_ids[row] == (index % slots + 1)[:, None]  # [m, S]
    order = jnp.argsort(~is_text, axis=1, stable=True)[:, : length or row_length]
    is_token = jnp.take_along_axis(is_text, order, axis=1)
    positions = (row * row_length)[:, None] + order.astype(jnp.int32)
    positions = jnp.where(is_token, positions, len(vectors))
    # [m, T, ...] vectors
    x = vectors.at[positions].get(mode="fill", fill_value=0)
    axes = tuple(range(1, x.ndim))
    x = jnp.where(jnp.expand_dims(is_present, axes), x, jnp.nan)
    return jnp.swapaxes(x, 1, 2) if x.ndim == 4 else x

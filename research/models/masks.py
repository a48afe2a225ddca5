"""Which token may see which."""

import jax.numpy as jnp

from research.structs import Array


def same_text(segment: Array) -> Array:
    """Bidirectional attention inside each text of a packed row.

    Args:
        segment: [B, S] int32; 0 is padding.

    Returns:
        [B, S, S] bool, True where the query token (first) may see the key token.
    """
    same = segment[:, :, None] == segment[:, None, :]
    return same & (segment != 0)[:, None, :]


def text_masks(segment: Array, pool: Array, slots: int) -> Array:
    """The tokens of each text of a row that count in pooling.

    Args:
        segment: [B, S] int32, m >= 1 for the m-th text.
        pool: [B, S] bool.
        slots: M, the most texts in a row.

    Returns:
        [B, M, S] bool.
    """
    texts = jnp.arange(1, slots + 1, dtype=segment.dtype)
    return (segment[:, None, :] == texts[None, :, None]) & pool[:, None, :]

"""Where a token stands: positions in packed rows, and rotary embeddings."""

import jax
import jax.numpy as jnp
import numpy as np

from research.structs import Array


def positions(segment: Array) -> Array:
    """Position of each token in its own text: it restarts wherever the text changes.

    Args:
        segment: [B, S] int32, the text of its row that a token belongs to.

    Returns:
        [B, S] int32.
    """
    index = jnp.broadcast_to(
        jnp.arange(segment.shape[1], dtype=jnp.int32), segment.shape
    )
    begins = jnp.pad(
        segment[:, 1:] != segment[:, :-1], ((0, 0), (1, 0)), constant_values=True
    )
    first = jax.lax.cummax(jnp.where(begins, index, 0), axis=1)
    return jnp.where(segment == 0, 0, index - first)


def rope_frequencies(head_dim: int, theta: float) -> np.ndarray:
    """Angle per position of each rotated pair, `theta^(-2i/head_dim)`.

    RoFormer (Su et al. 2021, section 3.2.2), in float64 on the host.

    Returns:
        [D/H/2] float64, radians per token.
    """
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)


def rope_table(frequencies: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines of the angles of positions 0 .. length-1.

    Returns:
        two [length, D/H/2] float32 arrays, rounded once from float64.
    """
    angles = np.arange(length, dtype=np.float64)[:, None] * frequencies[None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (x_i, x_{i + D/H/2}): the half-split layout of Llama.

    Args:
        x: [B, S, H, D/H].
        cos: [B, S, D/H/2] float32.
        sin: [B, S, D/H/2] float32.

    Returns:
        [B, S, H, D/H], in the type of x.
    """
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)

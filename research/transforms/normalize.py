"""Lengths of vectors, with gradients that are finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np

from research.types import Array


def l2_norm(x: Array) -> Array:
    """Euclidean norm of the last axis, its gradient 0 where the norm is 0."""
    square = jnp.sum(jnp.square(x), axis=-1)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def l2_normalize(x: Array) -> Array:
    """Unit rows; a row of norm under 1e-12 becomes 0, and so does its gradient."""
    x = to_float32(x)
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    real = square > 1e-24
    return jnp.where(real, x * jax.lax.rsqrt(jnp.where(real, square, 1.0)), 0.0)


def to_float32(x: Array) -> Array:
    """The same in float32."""
    return x.astype(jnp.float32)


def l2_normalize_rows(x: np.ndarray) -> np.ndarray:
    """Vectors [..., D] scaled to length 1; a zero vector stays zero."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)

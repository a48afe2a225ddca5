"""L2 norms and normalization, with gradients that are finite everywhere."""

import jax
import jax.numpy as jnp
import numpy as np

from research.types import Array

MIN_NORM = 1e-12  # shorter vectors have no direction


def l2_norm(x: Array) -> Array:
    """Euclidean norm of the last axis; its gradient is 0 where the norm is 0."""
    # The inner `where` keeps sqrt's infinite gradient at 0 out of the result.
    square = jnp.sum(jnp.square(x), axis=-1)
    positive = ~(square <= 0)  # or NaN
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def l2_normalize(x: Array) -> Array:
    """Scales the last axis to length 1, in float32, for use under jit.

    For a vector shorter than MIN_NORM, the result and its gradient are 0. A vector with
    NaN stays NaN, so that the loss shows it.
    """
    x = to_float32(x)
    return x * inverse_norm(x)


def inverse_norm(x: Array) -> Array:
    """1 / length of the last axis, [..., 1] float32; 0 for lengths below MIN_NORM."""
    square = jnp.sum(jnp.square(to_float32(x)), axis=-1, keepdims=True)
    valid = ~(square <= MIN_NORM**2)
    return jnp.where(valid, jax.lax.rsqrt(jnp.where(valid, square, 1.0)), 0.0)


def l2_normalize_rows(x: np.ndarray) -> np.ndarray:
    """Scales the last axis to length 1, in NumPy and in the array's precision.

    A vector of zeros stays zero.
    """
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), MIN_NORM)


def to_float32(x: Array) -> Array:
    """Casts to float32."""
    return x.astype(jnp.float32)

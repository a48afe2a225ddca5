"""Dropout with few random bits per entry."""

import jax
import jax.numpy as jnp

from research.types import Array, Key


def dropout(x: Array, rate: float | Array, key: Key | None) -> Array:
    """Zeroes entries with probability `rate` and scales the others by 1 / (1 - rate).

    Each random 32-bit word is used for two entries, one in each half of the last axis.
    On CPU this is twice as fast as `jax.random.bernoulli`, which took a quarter of a
    training step. The rate is exact to 2^-17.

    Args:
        x: [..., N] array.
        rate: Probability in [0, 1): a number, or a [] float32 array.
        key: PRNG key; None returns x.
    """
    if key is None or (isinstance(rate, float) and rate == 0):
        return x
    # 16-bit numbers from the halves of words. They stand side by side, not in pairs: a
    # TPU would pad an axis of two numbers to the 128 lanes of its registers.
    width = x.shape[-1]
    words = jax.random.bits(key, (*x.shape[:-1], -(-width // 2)), jnp.uint32)
    bits = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[..., :width]
    # An entry is dropped if its 16 random bits, as an integer, are below the threshold
    threshold = jnp.minimum(jnp.round(rate * 2.0**16), 2.0**16 - 1)
    keep = bits >= threshold.astype(jnp.uint32)
    scale = (2.0**16 / (2.0**16 - threshold)).astype(x.dtype)
    return jnp.where(keep, x * scale, jnp.zeros_like(x))

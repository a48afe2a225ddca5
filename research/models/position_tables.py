"""Longer tables of learned positions, made of the rows that a model has.

All of them are used as they are, or as the start of training the new rows alone
(LongEmbed, Zhu et al. 2024, section 4.1). Tables are [P, D], P positions, without the
rows that a family keeps before position 0.
"""

import jax.numpy as jnp

from research.structs import Array


def grouped(table: Array, *, scale: int) -> Array:
    """[P * scale, D]: position p is the old p // scale.

    Returns:
        a table whose rows 0, scale, 2 * scale ... are the old ones.
    Raises:
        ValueError: scale is not a whole number of at least 1.
    """
    return jnp.repeat(table, _whole("grouped", scale), axis=0)


def recurrent(table: Array, *, scale: int) -> Array:
    """[P * scale, D]: position p is the old p mod P.

    Returns:
        a table whose first P rows are the old ones.
    Raises:
        ValueError: scale is not a whole number of at least 1.
    """
    return jnp.tile(table, (_whole("recurrent", scale), 1))


def interpolated(table: Array, *, scale: int) -> Array:
    """[P * scale, D]: position p is the old p / scale, between two rows a mixture.

    The paper does not say what follows the last old row, which is position
    (P - 1) * scale: here the scale - 1 positions after it hold it.

    Returns:
        a table whose rows 0, scale, 2 * scale ... are the old ones, to the bit.
    Raises:
        ValueError: scale is not a whole number of at least 1.
    """
    parts = _whole("interpolated", scale)
    after = jnp.concatenate([table[1:], table[-1:]])
    weight = jnp.arange(parts, dtype=table.dtype)[None, :, None] / parts
    mixed = table[:, None] + weight * (after - table)[:, None]
    return mixed.reshape(-1, table.shape[1])


def _whole(name: str, scale: int) -> int:
    if scale < 1 or scale != int(scale):
        raise ValueError(
            f"{name}'s scale is {scale}; it must be a whole number of at least 1"
        )
    return int(scale)


TABLES = {"grouped": grouped, "recurrent": recurrent, "interpolated": interpolated}
# The methods that put the old rows `scale` apart; the others keep them in front.
SPREAD = ("grouped", "interpolated")

"""Rotary position embedding (RoPE): frequencies, angles and the rotation.

Su et al. 2021. Angles are uint32 fractions of a full rotation: a frequency, float64 on
the host, is rounded to 2^-32 rotations per token, and its product with a position wraps
around, which is exact arithmetic modulo one rotation. At position 32,768 an angle is
off by at most 2.4e-5 radians (float32 products: 2e-3, bfloat16 products: more than one
radian already at position 300), and no table of positions is needed.
"""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.types import Array, Key, Params


class Rope(NamedTuple):
    """The frequencies of RoPE.

    Attributes:
        base: Base of the frequencies base^(-2j/d), before other changes than of the
            base.
        inv_freq: [R/2] float64 frequencies, in radians per token.
        attention_factor: Factor of cosines and sines; logits are scaled by its square.
    """

    base: float
    inv_freq: np.ndarray
    attention_factor: float = 1.0


def plain_rope(base: float, rotated: int) -> Rope:
    """RoPE without position methods: base^(-2j/d) (Su et al. 2021, section 3.2.2).

    Args:
        base: Base of the geometric series; 10,000 in the paper.
        rotated: R, the number of rotated channels of a head.

    Raises:
        ValueError: R is odd or not positive, or the base is not above 1.
    """
    if rotated < 2 or rotated % 2:
        raise ValueError(
            f"{rotated} channels cannot be rotated; it takes an even count"
        )
    if not base > 1:
        raise ValueError(f"the rotary base is {base}; it must be above 1")
    return Rope(base, base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated))


def extended_rope(cfg: EncoderConfig, length: int) -> Rope:
    """RoPE for a text of some length, after all position methods in order.

    Args:
        cfg: The encoder's shape.
        length: Number of tokens in the text.
    """
    rope = plain_rope(cfg.rope_theta, cfg.rotary_dim)
    for method in cfg.position_methods:
        rope = method.scale_rope(rope, length)
    return rope


def rope_angles(
    cfg: EncoderConfig,
    lengths: Array,
    params: Mapping[str, Params],
    key: Key | None = None,
    segment_ids: Array | None = None,
) -> tuple[Array, Array]:
    """Angle per token and attention factor of blocks without sliding window.

    Args:
        cfg: The encoder's shape; its position methods are applied in order.
        lengths: [B, S] int32 number of tokens in the text of each token.
        params: The encoder's parameters; each method's parameters are under its name.
        key: PRNG key in training, where E2-LLM and CLEX sample a scale; None otherwise.
        segment_ids: [B, S] int32 text of each token; only used in training.

    Returns:
        [B|1, S|1, R/2] angles by which positions are multiplied, uint32 fractions of a
        full rotation (CLEX in training: float32 radians), and the factor of cosines and
        sines, [1, 1] float32.
    """
    chex.assert_rank(lengths, 2)
    methods = cfg.position_methods
    # No text is longer than its row, so the table of lengths needs no more entries
    longest = min(cfg.max_len, lengths.shape[1])
    rope = extended_rope(cfg, longest)
    # Angles from parameters, by the length of each text, or the same for all texts
    learned = [
        angles
        for method in methods
        if (angles := method.learned_angles(params.get(method.name), cfg, lengths, key))
        is not None
    ]
    if learned:
        angles = learned[0]
    elif any(method.depends_on_length for method in methods):
        table, row_of_length = _angle_table(cfg, longest)
        angles = jnp.asarray(table)[jnp.asarray(row_of_length)[lengths]]
    else:
        angles = jnp.asarray(_turn_fractions(rope.inv_freq))[None, None]
    if key is not None:
        for method in methods:
            angles = method.training_angles(angles, segment_ids, key)
    return angles, jnp.full((1, 1), rope.attention_factor, jnp.float32)


def local_rope_angles(cfg: EncoderConfig) -> tuple[Array, Array]:
    """`rope_angles` of sliding-window blocks: their own base, no position methods."""
    rope = plain_rope(cfg.rope_theta_local, cfg.rotary_dim)
    return jnp.asarray(_turn_fractions(rope.inv_freq))[None, None], jnp.ones((1, 1))


def rope_positions(cfg: EncoderConfig, position_ids: Array, key: Key | None) -> Array:
    """Positions [B, S] int32 for the rotation, which CLEX stretches in training."""
    if key is not None:
        for method in cfg.position_methods:
            position_ids = method.training_positions(position_ids, key)
    return position_ids


def cos_sin(angles: Array, factor: Array) -> tuple[Array, Array]:
    """Cosines and sines, float32, times `factor`.

    Args:
        angles: [..., R/2] uint32 fractions of a full rotation, or float32 radians.
        factor: Array that broadcasts to the shape of the angles.
    """
    if angles.dtype == jnp.uint32:
        # Signed, so that the value rounded to float32 is at most half a rotation
        signed = jax.lax.bitcast_convert_type(angles, jnp.int32)
        angles = signed.astype(jnp.float32) * jnp.float32(2 * np.pi / 2**32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (x_i, x_{i + R/2}) of the first R channels: Llama's layout.

    Args:
        x: [B, S, H, E] queries or keys.
        cos: [B, S, 1|H, R/2] float32 cosines.
        sin: [B, S, 1|H, R/2] float32 sines.

    Returns:
        [B, S, H, E] in the type of x; the rotation is computed in float32.
    """
    chex.assert_rank([x, cos, sin], 4)
    chex.assert_equal_shape([cos, sin])
    pairs = cos.shape[-1]
    # The first R channels are rotated, the others are not
    rotated, unrotated = x[..., : 2 * pairs], x[..., 2 * pairs :]
    a, b = jnp.split(rotated.astype(jnp.float32), 2, axis=-1)  # [B, S, H, R/2] each
    rotated = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([rotated.astype(x.dtype), unrotated], -1)


def _angle_table(cfg: EncoderConfig, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct angles [N, R/2] uint32, and the row of this table for each length."""
    inv_freq = [extended_rope(cfg, n).inv_freq for n in range(longest + 1)]
    table = _turn_fractions(np.stack(inv_freq))
    # Consecutive lengths with equal angles share a row
    is_new = np.append(True, (table[1:] != table[:-1]).any(-1))
    return table[is_new], np.cumsum(is_new) - 1


def _turn_fractions(radians: np.ndarray) -> np.ndarray:
    """Frequencies as uint32 fractions of a rotation per token, rounded to 2^-32."""
    fraction = np.round(radians / (2 * np.pi) % 1 * 2**32)
    return (fraction % 2**32).astype(np.uint32)

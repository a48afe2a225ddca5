"""Rotary positions: the angles of tokens, and the rotation.

Angles are uint32 fractions of a turn: a frequency, float64 on the host, is rounded to
2^-32 of a turn per token, and its product with a position wraps, which is exact
arithmetic modulo one turn. At position 32,768 an angle is off by at most 2.4e-5 radians
(of float32 products 2e-3, of bfloat16 ones over a radian already at position 300), and
no table of positions is needed.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.models.positions import clex, rope_scaling, yarn
from research.models.positions.rope_scaling import Rope, at_least, plain
from research.types import Array, Key, Params


def extended_rope(cfg: EncoderConfig, length: int) -> Rope:
    """The rotation of a text's tokens in global blocks, after every rotary extension.

    Args:
        cfg: the encoder's shape.
        length: tokens of the text.
    Raises:
        ValueError: an argument of an extension is out of range, or CLEX, whose network
            knows no other frequencies, stands with another extension.
    """
    methods = _methods(cfg)
    names = [name for name, _ in methods]
    if "clex" in names and len(names) > 1:
        raise ValueError(
            f"clex stands alone, but the extensions are {', '.join(names)}"
        )
    rope = plain(cfg.rope_theta, cfg.rotated)
    for name, arguments in methods:
        rope = ROPE[name](rope, length, **dict(arguments))
    return rope


def rope_angles(
    cfg: EncoderConfig, length: Array, params: Params | None, key: Key | None = None
) -> tuple[Array, Array]:
    """What multiplies a token's position to its angles, in global blocks.

    Args:
        cfg: the encoder's shape; its rotary extensions are applied in their order.
        length: [B, S] int32, tokens of the text of each token.
        params: those of CLEX; None without it.
        key: of training, where E2-LLM and CLEX draw a scale; None otherwise.
    Returns:
        [B|1, S|1, R/2] uint32 fractions of a turn (CLEX in training: float32 radians),
        and the factor of cosines and sines, [1, 1] float32.
    Raises:
        ValueError: see `extended_rope`.
    """
    methods = dict(_methods(cfg))
    # No text is longer than its row, so that the table is not longer either.
    longest = min(cfg.max_len, length.shape[1])
    rope = extended_rope(cfg, longest)
    if "clex" in methods:
        per_token = clex.clex_angles(params, cfg, length, key, **dict(methods["clex"]))
    elif _reads_length(methods):
        table, row = _table(cfg, longest)
        per_token = jnp.asarray(table)[jnp.asarray(row)[length]]
    else:
        per_token = jnp.asarray(_fractions(rope.inv_freq))[None, None]
    if "e2" in methods and key is not None:
        largest = dict(methods["e2"])["largest"]
        scale = jax.random.randint(key, (), 1, largest + 1)
        per_token = per_token // scale.astype(jnp.uint32)
    return per_token, jnp.full((1, 1), rope.attention_factor, jnp.float32)


def local_rope_angles(cfg: EncoderConfig) -> tuple[Array, Array]:
    """The same for local blocks, which have a base of their own and no extension."""
    rope = plain(cfg.rope_theta_local, cfg.rotated)
    return jnp.asarray(_fractions(rope.inv_freq))[None, None], jnp.ones((1, 1))


def training_position(cfg: EncoderConfig, position: Array, key: Key | None) -> Array:
    """Positions [B, S] int32 to be rotated by, which CLEX stretches in training."""
    methods = dict(_methods(cfg))
    if key is None or "clex" not in methods:
        return position
    return clex.stretched(position, key, **dict(methods["clex"]))


def cos_sin(angles: Array, factor: Array) -> tuple[Array, Array]:
    """Cosines and sines, float32, times `factor`.

    Args:
        angles: [..., R/2] uint32 fractions of a turn, or float32 radians.
        factor: of a shape that broadcasts to that of the angles.
    """
    if angles.dtype == jnp.uint32:
        # Signed, so that what float32 rounds is at most half a turn.
        signed = jax.lax.bitcast_convert_type(angles, jnp.int32)
        angles = signed.astype(jnp.float32) * jnp.float32(2 * np.pi / 2**32)
    return jnp.cos(angles) * factor, jnp.sin(angles) * factor


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotates the pairs (x_i, x_{i + R/2}) of the first R channels: Llama's layout.

    Args:
        x: [B, S, H, D/H].
        cos: [B, S, 1|H, R/2] float32.
        sin: [B, S, 1|H, R/2] float32.
    Returns:
        [B, S, H, D/H], in the type of x; rotated in float32.
    """
    pairs = cos.shape[-1]
    turned, rest = x[..., : 2 * pairs], x[..., 2 * pairs :]
    a, b = jnp.split(turned.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


def e2(rope: Rope, length: int, *, largest: int) -> Rope:
    """E2-LLM (Liu et al. 2024): in training, positions divided by 1 ... `largest`.

    The rope itself: one scale is drawn for each batch of the training. Texts s times
    longer are then served by `linear` of scale s. The paper's offset of positions is
    left out, as rotary scores do not depend on it.

    Raises:
        ValueError: `largest` is below 1.
    """
    at_least("e2", "largest", largest, 1)
    return rope


def _methods(cfg: EncoderConfig) -> tuple:
    """The rotary ones among the encoder's extensions."""
    return tuple(row for row in cfg.position_methods if row[0] in ROPE)


def _reads_length(methods: Mapping[str, tuple]) -> bool:
    """Whether the rotation of a text depends on how long it is."""
    by_choice = dict(methods.get("longrope", ())).get("choice") == "length"
    return by_choice or "dynamic_ntk" in methods


def _table(cfg: EncoderConfig, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Turns [N, R/2] uint32, and which row a text of 0 ... longest tokens has."""
    every = [extended_rope(cfg, n).inv_freq for n in range(longest + 1)]
    table = _fractions(np.stack(every))
    new = np.append(True, (table[1:] != table[:-1]).any(-1))
    return table[new], np.cumsum(new) - 1


def _fractions(radians: np.ndarray) -> np.ndarray:
    """Frequencies as uint32 fractions of a turn per token, rounded to 2^-32."""
    fraction = np.round(radians / (2 * np.pi) % 1 * 2**32)
    return (fraction % 2**32).astype(np.uint32)


ROPE = {
    "linear": rope_scaling.linear,
    "ntk_aware": rope_scaling.ntk_aware,
    "rebase": rope_scaling.rebase,
    "dynamic_ntk": rope_scaling.dynamic_ntk,
    "ntk_by_parts": yarn.ntk_by_parts,
    "yarn": yarn.yarn,
    "llama3": yarn.llama3,
    "longrope": rope_scaling.longrope,
    "proportional": rope_scaling.proportional,
    "truncated_basis": rope_scaling.truncated_basis,
    "power_basis": rope_scaling.power_basis,
    "e2": e2,
    "clex": clex.clex,
}

"""Angles of uint32 turns against float64, the rotation, and what depends on a text."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models.config import EncoderConfig
from research.models.positions import rope
from research.models.positions.rope_scaling import (
    E2LLM,
    DynamicNTK,
    LinearInterpolation,
    LongRoPE,
    TruncatedBasis,
)
from research.models.positions.yarn import Yarn

SHORT = EncoderConfig(60, 32, 2, 2, 64, max_len=128, position="rope")  # R = 16
HEAD = EncoderConfig(60, 128, 1, 1, 64, max_len=128, position="rope")  # R = 128
ROUNDING = 2.0**-33 * 2 * np.pi  # of turns, in radians per token
DYNAMIC = DynamicNTK(scale=2.0, original=16)


def with_methods(*methods, cfg=SHORT):
    return replace(cfg, position_methods=methods)


def lengths(*rows):
    return jnp.asarray(rows, jnp.int32)


def angles_of(position, turns):
    """Angles [1, S, 1, R/2] of positions [S]."""
    angles = jnp.asarray(position, jnp.uint32)[None, :, None] * turns
    return angles[:, :, None]


def table(position, cfg=HEAD):
    """Cosines and sines of positions [S]."""
    turns, factor = rope.rope_angles(cfg, lengths([1]), {})
    return rope.cos_sin(angles_of(position, turns), factor[:, :, None, None])


def scores(x, y, start, cfg=HEAD):
    """Products of x and y [S, R] that stand at positions start ... start + S - 1."""
    cos, sin = table(start + np.arange(len(x)), cfg)
    x, y = (rope.rotate(z[None, :, None], cos, sin)[0, :, 0] for z in (x, y))
    return np.asarray(x, np.float64) @ np.asarray(y, np.float64).T


@pytest.mark.parametrize("position", [1, 255, 4_096, 32_768, 131_071])
def test_angles_are_those_of_float64(position):
    cos, sin = table([position])
    exact = position * rope.extended_rope(HEAD, 1).inv_freq
    bound = position * ROUNDING + 3e-7
    assert bound < 1.1e-4
    np.testing.assert_allclose(cos[0, 0, 0], np.cos(exact), rtol=0, atol=bound)
    np.testing.assert_allclose(sin[0, 0, 0], np.sin(exact), rtol=0, atol=bound)


def test_what_bfloat16_angles_do():
    """Positions in bfloat16 fall together; their angles are off by many turns."""
    frequencies = rope.extended_rope(HEAD, 1).inv_freq

    def error(first, last, dtype):
        position = np.arange(first, last + 1)
        product = jnp.outer(
            jnp.asarray(position, dtype), jnp.asarray(frequencies, dtype)
        )
        exact = position[:, None] * frequencies
        return np.abs(np.asarray(product, np.float64) - exact).max()

    assert 0.77 < error(0, 255, jnp.bfloat16) < 0.79
    assert 1.4 < error(0, 300, jnp.bfloat16) < 1.5
    assert 4.8 < error(0, 1_023, jnp.bfloat16) < 4.9
    assert 38 < error(0, 8_191, jnp.bfloat16) < 39
    near = jnp.arange(8_192, 8_192 + 256).astype(jnp.bfloat16)
    assert len(np.unique(np.asarray(near, np.float32))) == 5
    # In float32 they are off by less, but still over 20 times what turns are.
    assert 2.6e-3 < error(131_071, 131_071, jnp.float32) < 2.7e-3


@pytest.mark.parametrize(
    ("start", "bound"), [(7, 1e-5), (1_000, 1e-4), (100_000, 1e-3)]
)
def test_scores_do_not_change_with_a_shift(key, start, bound):
    x, y = jax.random.normal(key, (2, 16, 128))
    np.testing.assert_allclose(scores(x, y, start), scores(x, y, 0), rtol=0, atol=bound)


def test_rotation_at_zero_is_the_identity_and_keeps_lengths(key):
    x = jax.random.normal(key, (1, 3, 2, 128))
    cos, sin = table([0, 5, 77])
    turned = rope.rotate(x, cos, sin)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    norms = (np.linalg.norm(z, axis=-1) for z in (turned, x))
    np.testing.assert_allclose(*norms, rtol=1e-6)
    assert rope.rotate(x.astype(jnp.bfloat16), cos, sin).dtype == jnp.bfloat16


def test_halves_and_interleaved_pairs_are_the_same_rotation(key):
    x = np.asarray(jax.random.normal(key, (1, 3, 2, 128)))
    cos, sin = table([0, 5, 77])
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * (np.asarray(cos) + 1j * np.asarray(sin))
    halves = np.concatenate([pairs.real, pairs.imag], -1)
    permuted = np.concatenate([x[..., ::2], x[..., 1::2]], -1)
    np.testing.assert_allclose(rope.rotate(permuted, cos, sin), halves, atol=1e-6)


def test_partial_rotation_leaves_the_other_channels(key):
    x = jax.random.normal(key, (1, 3, 2, 64))
    half = EncoderConfig(
        60, 128, 1, 2, 64, max_len=128, position="rope", rope_fraction=0.5
    )
    cos, sin = table([1, 2, 3], half)
    assert cos.shape == (1, 3, 1, 16)
    turned = rope.rotate(x, cos, sin)
    np.testing.assert_array_equal(turned[..., 32:], x[..., 32:])
    np.testing.assert_array_equal(turned[..., :32], rope.rotate(x[..., :32], cos, sin))


def test_scores_of_interpolated_positions_are_those_between(key):
    x, y = jax.random.normal(key, (2, 8, 128))
    linear = with_methods(LinearInterpolation(scale=4.0), cfg=HEAD)
    apart = table(4 * np.arange(8), linear)
    for ours, plain in zip(apart, table(np.arange(8)), strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-6)
    zero = with_methods(
        TruncatedBasis(low=1.0, high=2.0), cfg=HEAD
    )  # no pair turns any more: positions do not count
    np.testing.assert_allclose(scores(x, y, 0, zero), np.asarray(x @ y.T), atol=1e-5)


def test_factor_multiplies_cosines_and_sines():
    cfg = with_methods(Yarn(scale=8.0, original=16))
    turns, factor = rope.rope_angles(cfg, lengths([3, 3, 3]), {})
    assert (turns.shape, turns.dtype) == ((1, 1, 8), jnp.uint32)
    cos, sin = rope.cos_sin(angles_of(np.arange(3), turns), factor[:, :, None, None])
    np.testing.assert_allclose(np.hypot(cos, sin), 1.2079441, rtol=1e-6)


def test_dynamic_turns_follow_each_texts_own_length():
    turns, _ = rope.rope_angles(with_methods(DYNAMIC), row_of(100, 16, 3), {})
    alone, _ = rope.rope_angles(with_methods(DYNAMIC), row_of(100), {})
    plain, _ = rope.rope_angles(SHORT, row_of(100, 16, 3), {})
    assert turns.shape == (1, 119, 8)
    np.testing.assert_array_equal(turns[0, 0], alone[0, 0])
    np.testing.assert_array_equal(turns[0, 100:], np.broadcast_to(plain[0], (19, 8)))
    expected = rope.extended_rope(with_methods(DYNAMIC), 100).inv_freq
    measured = np.asarray(turns[0, 0], np.float64) / 2**32 * 2 * np.pi
    np.testing.assert_allclose(measured, expected, rtol=0, atol=ROUNDING)


def test_longrope_chooses_by_each_texts_own_length():
    arguments = {
        "scale": 4.0,
        "original": 16,
        "long": (2.0,) * 8,
        "short": (1.0,) * 8,
        "choice": "length",
    }
    cfg = with_methods(LongRoPE(**arguments))
    turns, factor = rope.rope_angles(cfg, row_of(17, 16), {})
    plain, _ = rope.rope_angles(SHORT, row_of(1), {})
    np.testing.assert_array_equal(turns[0, 17], plain[0, 0])
    halved = np.asarray(turns[0, 0], np.int64) * 2 - np.asarray(plain[0, 0], np.int64)
    assert np.abs(halved).max() <= 1
    assert factor.shape == (1, 1) and factor[0, 0] > 1
    arguments["choice"] = "long"
    fixed, _ = rope.rope_angles(with_methods(LongRoPE(**arguments)), row_of(17, 16), {})
    np.testing.assert_array_equal(fixed[0, 0], turns[0, 0])
    assert fixed.shape == (1, 1, 8)


def test_local_blocks_have_their_base_and_no_extension():
    cfg = EncoderConfig(
        60, 32, 2, 2, 64, position="rope", rope_theta=1.6e5, rope_theta_local=1e4,
        position_methods=(DYNAMIC,), window=4, sliding_window_layers=(False, True),
    )  # fmt: skip
    turns, factor = rope.local_rope_angles(cfg)
    np.testing.assert_array_equal(turns, rope.rope_angles(SHORT, row_of(1), {})[0])
    assert factor == 1


def test_e2_divides_turns_by_a_scale_for_each_text_in_training_only(key):
    cfg = with_methods(E2LLM(largest=4))
    plain = np.asarray(rope.rope_angles(SHORT, row_of(5), {})[0])
    np.testing.assert_array_equal(rope.rope_angles(cfg, row_of(5), {})[0], plain)
    segment = jnp.asarray([np.repeat([1, 2, 3], [3, 2, 4])])

    @jax.jit
    def draw(key):
        return rope.rope_angles(cfg, row_of(3, 2, 4), {}, key, segment)[0]

    draws = []
    for seed in range(40):
        turns = np.asarray(draw(jax.random.key(seed)))[0]  # [S, R/2]
        scales = np.round(plain.max() / turns.max(1)).astype(np.uint32)
        np.testing.assert_array_equal(turns, plain[0] // scales[:, None])
        draws.append(scales[[0, 3, 5]])
        np.testing.assert_array_equal(scales, np.repeat(draws[-1], [3, 2, 4]))
    assert all(set(text) == {1, 2, 3, 4} for text in np.transpose(draws))
    assert abs(np.corrcoef(np.transpose(draws)) - np.eye(3)).max() < 0.5


def test_turns_can_be_traced():
    cfg = with_methods(DYNAMIC)
    row = row_of(100, 16, 3)
    traced = jax.jit(lambda length: rope.rope_angles(cfg, length, {}))(row)
    np.testing.assert_array_equal(traced[0], rope.rope_angles(cfg, row, {})[0])


def row_of(*texts):
    """The lengths [1, S] of the tokens of texts that are packed in one row."""
    return lengths(np.repeat(texts, texts))

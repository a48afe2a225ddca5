"""CLEX: untrained NTK-aware, its integration against scipy's, and its gradient."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp

from research.models import encoder
from research.models.config import EncoderConfig
from research.models.positions import rope
from research.models.positions.clex import Clex, integrate_growth
from research.models.positions.rope import plain_rope
from research.types import Tokens

ROUNDING = 2.0**-33 * 2 * np.pi  # of turns, in radians per token
CLEX = Clex(original=16, max_factor=4)
CFG = EncoderConfig(
    60, 32, 2, 2, 64, max_len=128, position="rope",
    position_methods=(CLEX,),
)  # fmt: skip


def frequencies(cfg, length, params, key=None):
    """[R/2] radians per token of a text of `length` tokens."""
    row = jnp.full((1, length), length, jnp.int32)
    turns = np.asarray(
        rope.rope_angles(cfg, row, {"clex": params}, key)[0], np.float64
    )[0, 0]
    return turns if key is not None else turns / 2**32 * 2 * np.pi


@pytest.fixture
def trained(key):
    up, down = CLEX.init(key, CFG)["up"], jax.random.normal(key, (16, 8)) * 0.02
    return {"up": up, "down": down}


def test_parameters(key):
    params = replace(CLEX, expansion=2).init(key, CFG)
    assert params["up"].shape == (8, 32) and params["down"].shape == (32, 8)
    assert not params["down"].any()
    assert 0.3 < np.abs(params["up"]).max() <= 8**-0.5


@pytest.mark.parametrize(("length", "t"), [(5, 1), (16, 1), (17, 2), (64, 4), (100, 4)])
def test_untrained_frequencies_are_ntk_aware(key, length, t):
    exponent = -2 * np.arange(8) / (16 - 2)
    expected = plain_rope(1e4, 16).inv_freq * (2 * t - 1.0) ** exponent
    found = frequencies(CFG, length, CLEX.init(key, CFG))
    np.testing.assert_allclose(found, expected, rtol=3e-6, atol=ROUNDING)
    np.testing.assert_allclose(
        rope.extended_rope(CFG, length).inv_freq, expected, rtol=1e-12
    )


@pytest.mark.parametrize(("step", "bound"), [(1.0, 1e-2), (0.1, 2e-5), (0.02, 2e-5)])
def test_integration_is_that_of_scipy(trained, step, bound):
    """All of dz/dt integrated in float64, its NTK-aware term too."""
    up, down = (np.asarray(trained[name], np.float64) for name in ("up", "down"))
    j = np.arange(8)

    def log_ntk(t):
        return -2 * j / 16 * np.log(1e4) - 2 * j / 14 * np.log(2 * t - 1)

    def slope(t, z):
        hidden = (z + log_ntk(t)) @ up
        learned = hidden / (1 + np.exp(-hidden)) @ down
        return learned - 4 * j / (14 * (2 * t - 1))

    times = np.arange(1, 5)
    z = solve_ivp(slope, (1, 4), log_ntk(1), t_eval=times, rtol=1e-11, atol=1e-12).y.T
    learned = integrate_growth(
        trained, plain_rope(1e4, 16), max_factor=4, act="silu", step=step
    )
    assert learned.shape == (4, 8) and np.abs(learned).max() > 0.05
    ours = np.stack([log_ntk(t) for t in times]) + np.asarray(learned)
    np.testing.assert_allclose(np.exp(ours), np.exp(z), rtol=bound)


def test_a_text_within_the_original_is_not_changed(trained):
    found = frequencies(CFG, 16, trained)
    np.testing.assert_allclose(
        found, plain_rope(1e4, 16).inv_freq, rtol=3e-6, atol=ROUNDING
    )


def test_gradient_reaches_up_only_after_down_has_changed(key, trained):
    length = jnp.full((1, 16), 16, jnp.int32)
    # A key that draws t above 1, for which alone anything is integrated.
    key = next(
        key
        for key in map(jax.random.key, range(20))
        if frequencies(CFG, 16, trained, key)[-1]
        < plain_rope(1e4, 16).inv_freq[-1] * 0.9
    )

    def loss(params):
        turns, _ = rope.rope_angles(CFG, length, {"clex": params}, key)
        angles = jnp.arange(16.0)[None, :, None] * turns
        cos, sin = rope.cos_sin(angles, jnp.ones((1, 1, 1)))
        return (cos * sin).sum()

    first = jax.jit(jax.grad(loss))(CLEX.init(key, CFG))
    assert first["down"].any() and not first["up"].any()
    assert jax.grad(loss)(trained)["up"].any()


def test_training_draws_one_factor_and_stretches_positions_by_it(trained):
    position = jnp.tile(jnp.arange(16, dtype=jnp.int32), (2, 1))
    length = jnp.full((2, 16), 16, jnp.int32)
    bases = [frequencies(CFG, 16 * t, trained) for t in range(1, 5)]

    @jax.jit
    def drawn(key):
        turns, _ = rope.rope_angles(CFG, length, {"clex": trained}, key)
        return turns, rope.rope_positions(CFG, position, key)

    seen = set()
    for seed in range(20):
        turns, stretched = map(np.asarray, drawn(jax.random.key(seed)))
        errors = [np.abs(turns / base - 1).max() for base in bases]
        t = 1 + int(np.argmin(errors))
        assert errors[t - 1] < 1e-4
        assert (stretched // t == position).all()
        seen.add(t)
    assert seen == {1, 2, 3, 4}
    assert rope.rope_positions(CFG, position, None) is position


def test_longer_texts_of_a_training_are_squeezed_to_the_original(trained, key):
    once, twice = (frequencies(CFG, n, trained, key) for n in (16, 32))
    np.testing.assert_allclose(twice * 2, once, rtol=1e-6)


def test_an_encoder_trains_it(key):
    ones = jnp.ones((1, 24), jnp.int32)
    tokens = Tokens(jnp.arange(24, dtype=jnp.int32)[None], ones, ones > 0)
    cfg = replace(CFG, depth=1, remat="none")
    params = jax.jit(encoder.init, static_argnums=1)(key, cfg)

    def loss(params, key):
        return encoder.forward(params, tokens, cfg, key=key).hidden_states[..., 0].sum()

    gradient = jax.jit(jax.grad(loss))
    drawn = [gradient(params, jax.random.key(seed))["clex"] for seed in range(4)]
    assert any(g["down"].any() for g in drawn)
    assert not any(g["up"].any() for g in drawn)

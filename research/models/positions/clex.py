"""CLEX (Chen et al. 2024): frequencies as the solution of a learned equation.

The logarithm z of the frequencies grows with t, how many times longer than L0 a text
may be:

    dz/dt = act((z + log ntk(t)) up) down + d log ntk(t) / dt,   z(1) = log ntk(1)

where ntk(t) are the NTK-aware frequencies of scale 2t - 1. Its last term integrates to
log ntk(t), so only y = z - log ntk, what was learned, is integrated numerically, by
steps of Runge and Kutta's fourth order: an untrained CLEX is NTK-aware by 2t - 1
exactly. In the paper's code log ntk inside of `act` has base 10,000 whatever the
model's is; here it has the model's.
"""

import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.positions.rope_scaling import Rope, at_least, ntk_aware, plain
from research.types import Array, Key, Params

ACTS = {"silu": jax.nn.silu, "tanh": jnp.tanh}


def clex(
    rope: Rope,
    length: int,
    *,
    original: int,
    max_factor: int,
    expansion: int = 1,
    act: str = "silu",
    step: float = 0.1,
) -> Rope:
    """The frequencies of an untrained CLEX for a text; `clex_turns` are the trained.

    Args:
        rope: rotary positions as trained.
        length: L, tokens of the text: t = ceil(L / L0), at most `max_factor`.
        original: L0, the longest text of the training.
        max_factor: the largest t.
        expansion: the network's hidden units, in rotated channels.
        act: 'silu' or 'tanh'.
        step: of the integration, in t.
    Raises:
        ValueError: an argument is out of range.
    """
    for name, value in (("original", original), ("max_factor", max_factor)):
        at_least("clex", name, value, 1)
    at_least("clex", "expansion", expansion, 1)
    check_option("clex's act", act, ACTS)
    if not 0 < step <= 1 or abs(1 / step - round(1 / step)) > 1e-6:
        raise ValueError(f"clex's step is {step}; it must be 1 over a whole number")
    t = min(max(1, -(-length // original)), max_factor)
    return _ntk(rope, t)


def init_clex(key: Key, cfg: EncoderConfig, *, expansion: int = 1, **_) -> Params:
    """The network: `up` [R/2, f R] uniform as Kaiming's, `down` [f R, R/2] zero.

    Args:
        key: of the random numbers.
        cfg: says R, how many channels of a head are rotated.
        expansion: f; the other arguments of `clex` are not read.
    """
    pairs, hidden = cfg.rotated // 2, expansion * cfg.rotated
    bound = pairs**-0.5  # Kaiming's with a = sqrt(5), torch's default
    up = jax.random.uniform(key, (pairs, hidden), jnp.float32, -bound, bound)
    return {"up": up, "down": jnp.zeros((hidden, pairs), jnp.float32)}


def clex_angles(
    params: Params,
    cfg: EncoderConfig,
    length: Array,
    key: Key | None,
    *,
    original: int,
    max_factor: int,
    expansion: int = 1,
    act: str = "silu",
    step: float = 0.1,
) -> Array:
    """What a token's position is multiplied by; see `rope.turns`.

    Without a key each text has its own t, as in `clex`, and the result is in uint32
    fractions of a turn. In training one t is drawn for the batch, positions are
    `stretched` by it, and the result is float32 radians, for gradients to reach the
    network: angles are then off by 2e-3 at position 32,768.

    Args:
        params: as `init_clex` makes them.
        cfg: the encoder's shape.
        length: [B, S] int32, tokens of the text of each token.
        key: of training; None otherwise.
        original: L0; longer texts of a training are squeezed to it.
        max_factor: the largest t.
        expansion: that of `params`.
        act: see `clex`.
        step: see `clex`.
    Returns:
        [B, S, R/2] uint32, or float32 with a key.
    """
    rope = plain(cfg.rope_theta, cfg.rotated)
    untrained = [_ntk(rope, t).inv_freq for t in range(1, max_factor + 1)]
    learned = growth(params, rope, max_factor=max_factor, act=act, step=step)
    frequencies = jnp.asarray(np.stack(untrained), jnp.float32) * jnp.exp(learned)
    if key is None:
        t = jnp.clip(-(-length // original), 1, max_factor)
        fraction = frequencies[t - 1] / jnp.float32(2 * np.pi) % 1
        return jnp.round(fraction * jnp.float32(2**32)).astype(jnp.uint32)
    t = _drawn(key, max_factor)[0]
    squeezed = jnp.maximum(length // original, 1).astype(jnp.float32)
    return frequencies[t - 1][None, None] / squeezed[..., None]


def stretched(position: Array, key: Key, *, max_factor: int, **_) -> Array:
    """Positions of training texts, spread over t times their length.

    Token p stands anywhere in t p ... t p + t - 1. The paper draws n distinct positions
    of t n and sorts them; both grow by t on average and keep the order.

    Args:
        position: [B, S] int32.
        key: that of `clex_turns`, for the same t.
        max_factor: see `clex`, whose other arguments are not read.
    Returns:
        [B, S] int32.
    """
    t, key = _drawn(key, max_factor)
    return position * t + jax.random.randint(key, position.shape, 0, t)


def growth(
    params: Params, rope: Rope, *, max_factor: int, act: str, step: float
) -> Array:
    """What was learned: y(t) = log(frequencies / ntk(t)), [T, R/2] for t = 1 ... T."""
    per_unit = round(1 / step)
    steps = per_unit * (max_factor - 1)
    starts = 1 + np.arange(steps) / per_unit
    stages = starts[:, None] + np.array([0, 0.5, 1]) / per_unit
    logs = [[np.log(_ntk(rope, t).inv_freq) for t in row] for row in stages]
    pairs = len(rope.inv_freq)
    logs = np.asarray(logs, np.float32).reshape(steps, 3, pairs)
    h = jnp.float32(1 / per_unit)

    def slope(y, log_ntk):
        hidden = jnp.matmul(y + 2 * log_ntk, params["up"], precision="highest")
        return jnp.matmul(ACTS[act](hidden), params["down"], precision="highest")

    def advance(y, log_ntk):
        start, middle, end = log_ntk
        a = slope(y, start)
        b = slope(y + h / 2 * a, middle)
        c = slope(y + h / 2 * b, middle)
        d = slope(y + h * c, end)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
        return y, y

    begin = jnp.zeros(pairs, jnp.float32)
    _, path = jax.lax.scan(advance, begin, logs)
    return jnp.concatenate([begin[None], path[per_unit - 1 :: per_unit]])


def _ntk(rope: Rope, t: float) -> Rope:
    return ntk_aware(rope, 0, scale=2 * t - 1)


def _drawn(key: Key, max_factor: int) -> tuple[Array, Key]:
    """The t of a batch, [] int32 of 1 ... max_factor, and a key for what else."""
    factor_key, key = jax.random.split(key)
    return jax.random.randint(factor_key, (), 1, max_factor + 1), key

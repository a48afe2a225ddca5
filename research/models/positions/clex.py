"""CLEX: RoPE frequencies from a learned ordinary differential equation.

Chen et al. 2024. The logarithm z of the frequencies grows with t, how many times longer
than L0 a text may be:

    dz/dt = act((z + log ntk(t)) up) down + d log ntk(t) / dt,   z(1) = log ntk(1)

where ntk(t) are the NTK-aware frequencies of scale 2t - 1. The last term integrates to
log ntk(t), so only the learned part y = z - log ntk is integrated numerically, by the
fourth-order Runge-Kutta method: an untrained CLEX equals NTK-aware scaling by 2t - 1
exactly. Inside `act`, the authors' code computes log ntk with base 10,000 for every
model; here it uses the model's base.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from research.config_sections import check_option
from research.models.config import EncoderConfig
from research.models.positions.base import PositionMethod, make_bounded_field
from research.models.positions.rope import Rope, plain_rope
from research.models.positions.rope_scaling import RopeMethod, ntk_aware
from research.types import Array, Key, Params

ACTIVATIONS = {"silu": jax.nn.silu, "tanh": jnp.tanh}


@dataclass(frozen=True, kw_only=True)
class Clex(RopeMethod):
    """CLEX (Chen et al. 2024): frequencies as a learned function of the scale t.

    A text of L tokens has t = ceil(L / L0), at most `max_factor`. In training, one t is
    sampled per batch, and positions are stretched by it.

    Attributes:
        original: L0; in training, positions of longer texts are compressed to it.
        max_factor: Largest t.
        expansion: f, the number of hidden units of the network per rotated channel.
        act: Activation: 'silu' or 'tanh'.
        step: Step size of the integration, in t.
    """

    name = "clex"
    original: int | None = make_bounded_field(1, None)
    max_factor: int = make_bounded_field(1)
    expansion: int = make_bounded_field(1, 1)
    act: str = "silu"
    step: float = 0.1

    def __post_init__(self):
        super().__post_init__()
        check_option("clex's act", self.act, ACTIVATIONS)
        steps = 1 / self.step if 0 < self.step <= 1 else 0.5
        if abs(steps - round(steps)) > 1e-6:
            raise ValueError(
                f"clex's step is {self.step}; it must be 1 over a whole number"
            )

    @property
    def prefix_cacheable(self) -> bool:
        return False

    def conflicts_with(self, method: PositionMethod) -> bool:
        # The network is trained for the model's own frequencies only.
        return isinstance(method, RopeMethod)

    def max_context(self, cfg: EncoderConfig) -> int:
        return self.original * self.max_factor

    def init(self, key: Key, cfg: EncoderConfig) -> Params:
        """The network: Kaiming-uniform `up` [R/2, f R] and zero `down` [f R, R/2]."""
        pairs, hidden = cfg.rotary_dim // 2, self.expansion * cfg.rotary_dim
        bound = pairs**-0.5  # Kaiming-uniform with a = sqrt(5), the default of torch
        up = jax.random.uniform(key, (pairs, hidden), jnp.float32, -bound, bound)
        return {"up": up, "down": jnp.zeros((hidden, pairs), jnp.float32)}

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        """Frequencies of an untrained network; `learned_angles` are trained."""
        return _ntk(rope, min(max(1, -(-length // self.original)), self.max_factor))

    def learned_angles(
        self, params: Params, cfg: EncoderConfig, lengths: Array, key: Key | None
    ) -> Array:
        """Angle per token, [B, S, R/2] uint32 fractions of a full rotation.

        In training they are float32 radians, so that the network receives gradients;
        the angle at position 32,768 is then off by 2e-3.
        """
        rope = plain_rope(cfg.rope_theta, cfg.rotary_dim)
        factors = range(1, self.max_factor + 1)
        untrained = np.stack([_ntk(rope, t).inv_freq for t in factors])  # [T, R/2]
        growth = integrate_growth(
            params, rope, max_factor=self.max_factor, act=self.act, step=self.step
        )
        inv_freq = jnp.asarray(untrained, jnp.float32) * jnp.exp(growth)  # [T, R/2]
        # Each text's t; fractions of a full rotation
        if key is None:
            t = jnp.clip(-(-lengths // self.original), 1, self.max_factor)
            fraction = inv_freq[t - 1] / jnp.float32(2 * np.pi) % 1
            return jnp.round(fraction * jnp.float32(2**32)).astype(jnp.uint32)
        # The t of the batch; radians, compressed for texts longer than L0
        t, _ = self._draw_factor(key)
        compression = jnp.maximum(lengths // self.original, 1).astype(jnp.float32)
        return inv_freq[t - 1][None, None] / compression[..., None]

    def training_positions(self, position_ids: Array, key: Key) -> Array:
        """Stretches positions in training to t times the length of the text.

        Token p gets a random position in t p ... t p + t - 1. The paper samples n
        distinct positions out of t n and sorts them; both keep the order, and positions
        grow by t per token on average.
        """
        t, key = self._draw_factor(key)
        return position_ids * t + jax.random.randint(key, position_ids.shape, 0, t)

    def _draw_factor(self, key: Key) -> tuple[Array, Key]:
        """Samples the t of a batch, [] int32, 1 ... max_factor; and a new key."""
        factor_key, key = jax.random.split(key)
        return jax.random.randint(factor_key, (), 1, self.max_factor + 1), key


def integrate_growth(
    params: Params, rope: Rope, *, max_factor: int, act: str, step: float
) -> Array:
    """Integrates the learned part y(t) = log(inv_freq / ntk(t)): [T, R/2], t = 1 ... T.

    Args:
        params: The network, `up` [R/2, f R] and `down` [f R, R/2].
        rope: RoPE of the model's training.
        max_factor: T, the largest t.
        act: Activation of the network, a name in ACTIVATIONS.
        step: Step size of the integration, in t.
    """
    # log ntk at the start, middle and end of every step, [steps, 3, R/2]
    per_unit = round(1 / step)
    steps = per_unit * (max_factor - 1)
    starts = 1 + np.arange(steps) / per_unit
    stages = starts[:, None] + np.array([0, 0.5, 1]) / per_unit
    logs = [[np.log(_ntk(rope, t).inv_freq) for t in row] for row in stages]
    pairs = len(rope.inv_freq)
    logs = np.asarray(logs, np.float32).reshape(steps, 3, pairs)
    h = jnp.float32(1 / per_unit)

    def slope(y, log_ntk):  # [R/2]
        hidden = jnp.matmul(y + 2 * log_ntk, params["up"], precision="highest")
        return jnp.matmul(ACTIVATIONS[act](hidden), params["down"], precision="highest")

    def advance(y, log_ntk):  # one Runge-Kutta step
        start, middle, end = log_ntk
        a = slope(y, start)
        b = slope(y + h / 2 * a, middle)
        c = slope(y + h / 2 * b, middle)
        d = slope(y + h * c, end)
        y = y + h / 6 * (a + 2 * b + 2 * c + d)
        return y, y

    # [T, R/2] y at integer t
    initial = jnp.zeros(pairs, jnp.float32)
    _, path = jax.lax.scan(advance, initial, logs)
    return jnp.concatenate([initial[None], path[per_unit - 1 :: per_unit]])


def _ntk(rope: Rope, t: float) -> Rope:
    return ntk_aware(rope, 2 * t - 1)

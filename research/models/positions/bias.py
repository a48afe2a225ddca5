"""Attention biases by the distance between two tokens: ALiBi, T5, KERPLE, SeqPE."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.models.positions import seqpe
from research.types import Array, Key, Params

# T5: number of buckets, and the distance from which all fall into the last bucket.
BUCKETS = 32
FARTHEST = 128
# KERPLE: lower bound of both parameters, and upper bound of p.
KERPLE_LEAST = 0.01
KERPLE_MOST = 2.0


class AttentionBias(NamedTuple):
    """An attention bias: its parameters and its function of the distance.

    Attributes:
        init: (key, cfg) -> parameters, a dict of arrays; empty if there are none.
        bias: (parameters, cfg, distance [B, q, k] int32) -> [B, H, q, k] float32; the
            distance is the key's position minus the query's.
    """

    init: Callable[[Key, EncoderConfig], Params]
    bias: Callable[[Params, EncoderConfig, Array], Array]


def init_positions(key: Key, cfg: EncoderConfig) -> Params:
    """Parameters of the attention bias and of position methods, if they have any."""
    params = {"position_bias": init_bias(key, cfg)}
    for method in cfg.position_methods:
        params[method.name] = method.init(key, cfg)
    return {name: value for name, value in params.items() if value}


def init_bias(key: Key, cfg: EncoderConfig) -> Params:
    """Initial parameters of `cfg.position_bias`; empty if it has none.

    Raises:
        ValueError: The encoder's texts are too long for the digits of SeqPE.
    """
    if cfg.position_bias == "none":
        return {}
    if cfg.position_bias == "seqpe":
        return seqpe.init_seqpe(key, cfg)
    return POSITION_BIASES[cfg.position_bias].init(key, cfg)


def position_penalty(key: Key, params: Params, cfg: EncoderConfig) -> Array | float:
    """Penalty that every objective adds to its loss: SeqPE's, or 0.0 for other biases.

    Args:
        key: PRNG key of the training step.
        params: The encoder's parameters.
        cfg: The encoder's shape.
    """
    if cfg.position_bias != "seqpe":
        return 0.0
    # Independent of the keys that a step gets by splitting
    key = jax.random.fold_in(key, 2**31 - 1)
    return seqpe.penalty(key, params["position_bias"], cfg)


def alibi_slopes(heads: int) -> np.ndarray:
    """ALiBi's slope of each head (Press et al. 2022, section 3).

    2^(-8h/H), h = 1 ... H, if H is a power of two. Otherwise the slopes for the next
    smaller power, and then every second slope for the next larger power.

    Returns:
        [H] float32.
    """

    def make_geometric(count):
        return 2.0 ** (-8.0 * np.arange(1, count + 1) / count)

    below = 2 ** (heads.bit_length() - 1)
    between = make_geometric(2 * below)[::2][: heads - below]
    return np.concatenate([make_geometric(below), between]).astype(np.float32)


def t5_buckets(distance: np.ndarray, *, causal: bool) -> np.ndarray:
    """T5's bucket of each distance (Raffel et al. 2020, section 2.1).

    Half of the buckets of a direction hold one distance each; the sizes of the others
    grow logarithmically up to `FARTHEST`. Causal models have one direction, others two.

    Args:
        distance: [...] int, the key's position minus the query's.
        causal: Whether keys after the query share the bucket of distance 0.

    Returns:
        [...] int32 in 0 ... BUCKETS - 1.
    """
    count = BUCKETS if causal else BUCKETS // 2
    # Distance to earlier keys, or in both directions
    size = np.maximum(-distance, 0) if causal else np.abs(distance)
    # Distances below this have a bucket each, larger ones share buckets
    exact = count // 2
    # log2 is exact for powers of two, at which buckets begin
    octaves = np.log2(np.maximum(size, exact) / exact) / np.log2(FARTHEST / exact)
    far = np.minimum(exact + (octaves * (count - exact)).astype(int), count - 1)
    bucket = np.where(size < exact, size, far)
    ahead = 0 if causal else count * (distance > 0)
    return (bucket + ahead).astype(np.int32)


def init_nothing(key: Key, cfg: EncoderConfig) -> Params:
    """No parameters: the slopes of ALiBi are fixed."""
    return {}


def alibi(params: Params, cfg: EncoderConfig, distance: Array) -> Array:
    """-slope * |distance| (Press et al. 2022; symmetric as in JinaBERT).

    With causal attention, later keys are masked. The authors' implementation adds slope
    * key position instead, which is equivalent only for a causal softmax.
    """
    return -_by_head(alibi_slopes(cfg.num_heads)) * _absolute(distance)


def init_t5(key: Key, cfg: EncoderConfig) -> Params:
    """A random [BUCKETS, H] table, shared by all blocks."""
    return {"embedding": 0.02 * jax.random.normal(key, (BUCKETS, cfg.num_heads))}


def t5(params: Params, cfg: EncoderConfig, distance: Array) -> Array:
    """A learned value for each head and bucket of distances (see `t5_buckets`)."""
    # [H, 2 * FARTHEST + 1] value of each distance; farther ones are clipped
    distances = np.arange(-FARTHEST, FARTHEST + 1)
    table = params["embedding"][t5_buckets(distances, causal=cfg.causal)].T
    chex.assert_rank(distance, 3)
    column = jnp.clip(distance, -FARTHEST, FARTHEST) + FARTHEST
    return jnp.moveaxis(jnp.take(table, column, axis=1), 0, 1)  # [B, H, q, k]


def init_kerple(key: Key, cfg: EncoderConfig) -> Params:
    """p from U(0, 2) and a from U(0, 1), as in the authors' code."""
    p_key, a_key = jax.random.split(key)
    return {
        "p": jax.random.uniform(
            p_key, (cfg.num_heads,), minval=KERPLE_LEAST, maxval=KERPLE_MOST
        ),
        "a": jax.random.uniform(
            a_key, (cfg.num_heads,), minval=KERPLE_LEAST, maxval=1.0
        ),
    }


def kerple_log(params: Params, cfg: EncoderConfig, distance: Array) -> Array:
    """-p log(1 + a |distance|) (Chi et al. 2022, KERPLE)."""
    p, a = _kerple_parameters(params)
    return -p * jnp.log1p(a * _absolute(distance))


def kerple_power(params: Params, cfg: EncoderConfig, distance: Array) -> Array:
    """-a |distance|^p (Chi et al. 2022, KERPLE)."""
    p, a = _kerple_parameters(params)
    absolute = _absolute(distance)
    # log 0 would make the gradient of p NaN
    return jnp.where(absolute > 0, -a * jnp.maximum(absolute, 1.0) ** p, 0.0)


def _kerple_parameters(params: Params) -> tuple[Array, Array]:
    """p and a [1, H, 1, 1], clipped, with straight-through gradients."""

    def clip_value(x, most):
        return x + jax.lax.stop_gradient(jnp.clip(x, KERPLE_LEAST, most) - x)

    p, a = clip_value(params["p"], KERPLE_MOST), clip_value(params["a"], None)
    return _by_head(p), _by_head(a)


def _absolute(distance: Array) -> Array:
    return jnp.abs(distance).astype(jnp.float32)[:, None]


def _by_head(x) -> Array:
    return jnp.asarray(x)[None, :, None, None]


POSITION_BIASES = {
    "alibi": AttentionBias(init_nothing, alibi),
    "t5": AttentionBias(init_t5, t5),
    "kerple_log": AttentionBias(init_kerple, kerple_log),
    "kerple_power": AttentionBias(init_kerple, kerple_power),
}

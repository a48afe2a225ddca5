"""Rotary frequencies that ramp from unchanged, of fast pairs, to interpolated, of slow.

The notation is that of `frequencies`.
"""

import math

import numpy as np

from research.models.positions.rope_scaling import (
    Rope,
    at_least,
    check_order,
    ntk_aware,
)


def ntk_by_parts(
    rope: Rope,
    length: int,
    *,
    scale: float,
    original: int,
    base_fast: float = 1.25,
    base_slow: float = 0.75,
    fast: float = 16.0,
    slow: float = 2.0,
) -> Rope:
    """What preceded YaRN: slow pairs linear, the middle NTK-aware, fast ones unchanged.

    jquesnelle/yarn, first version. Two ramps over the index of the pairs, as YaRN's:
    from NTK-aware to linear, and from unchanged to that.

    Args:
        rope: the rotation to change.
        length: not read.
        scale: s.
        original: L0.
        base_fast: turns over L0 above which NTK-aware is not blended with linear.
        base_slow: turns below which linear is used alone.
        fast: turns above which a pair is left unchanged.
        slow: turns below which nothing of the unchanged frequency is left.
    Raises:
        ValueError: the scale is below 1, L0 is not positive, or one pair is rotated.
    """
    at_least("ntk_by_parts", "scale", scale, 1)
    at_least("ntk_by_parts", "original", original, 1)
    ramp = _index_ramp(rope, *ramp_bounds(rope, original, base_fast, base_slow))
    slowed = _blend(
        ntk_aware(rope, length, scale=scale).inv_freq, rope.inv_freq / scale, ramp
    )
    ramp = _index_ramp(rope, *ramp_bounds(rope, original, fast, slow))
    return rope._replace(inv_freq=_blend(rope.inv_freq, slowed, ramp))


def yarn(
    rope: Rope,
    length: int,
    *,
    scale: float,
    original: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
    attention: float | None = None,
    mscale: float | None = None,
    mscale_all_dim: float | None = None,
    paper: bool = False,
) -> Rope:
    """YaRN (Peng et al. 2023): fast pairs unchanged, slow ones linear, a ramp between.

    As in the authors' code and all checkpoints the ramp is over the index of the pairs;
    the paper's is over their turns in L0 tokens, which differs by up to 57 % in between
    (d = 64, L0 = 4096, s = 8). Cosines and sines are multiplied by 0.1 ln s + 1.

    Args:
        rope: the rotation to change.
        length: not read.
        scale: s.
        original: L0.
        beta_fast: turns over L0 above which a pair is unchanged.
        beta_slow: turns below which it is divided by s.
        truncate: round the ends of the ramp outwards to whole pairs; gpt-oss does not.
        attention: the factor of cosines and sines, where it is not 0.1 ln s + 1.
        mscale: with `mscale_all_dim`, the factor is (0.1 mscale ln s + 1) over the same
            of `mscale_all_dim` (DeepSeek).
        mscale_all_dim: see `mscale`.
        paper: the paper's ramp.
    Raises:
        ValueError: the scale is below 1, L0 is not positive, or beta_fast is not above
            beta_slow.
    """
    at_least("yarn", "scale", scale, 1)
    at_least("yarn", "original", original, 1)
    check_order("yarn", "beta_slow", beta_slow, "beta_fast", beta_fast)
    if paper:
        ramp = _turns_ramp(rope, original, beta_fast, beta_slow)
    else:
        bounds = ramp_bounds(rope, original, beta_fast, beta_slow, truncate)
        ramp = _index_ramp(rope, *bounds)
    if attention is None:
        attention = 0.1 * math.log(scale) + 1
        if mscale and mscale_all_dim:
            numerator = 0.1 * mscale * math.log(scale) + 1
            attention = numerator / (0.1 * mscale_all_dim * math.log(scale) + 1)
    slowed = _blend(rope.inv_freq, rope.inv_freq / scale, ramp)
    return Rope(rope.base, slowed, rope.attention_factor * attention)


def ramp_bounds(
    rope: Rope, original: int, fast: float, slow: float, truncate: bool = True
) -> tuple[float, float]:
    """The indices of the pairs that make `fast` and `slow` turns over L0 tokens.

    With `truncate` rounded outwards, and never outside 0 ... d-1 (jquesnelle/yarn,
    find_correction_range: d-1, although the last pair is d/2-1).
    """
    channels = 2 * len(rope.inv_freq)

    def index(turns):
        turned = math.log(original / (2 * math.pi * turns))
        return channels * turned / (2 * math.log(rope.base))

    low, high = index(fast), index(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, channels - 1)


def llama3(
    rope: Rope,
    length: int,
    *,
    scale: float,
    original: int,
    low: float = 1.0,
    high: float = 4.0,
) -> Rope:
    """Llama 3.1's: linear below `low` turns over L0, unchanged above `high` turns.

    In between the share of each is linear in the turns (meta-llama/llama-models,
    apply_scaling).

    Raises:
        ValueError: the scale is below 1, L0 is not positive, or high is not above low.
    """
    at_least("llama3", "scale", scale, 1)
    at_least("llama3", "original", original, 1)
    check_order("llama3", "low", low, "high", high)
    ramp = _turns_ramp(rope, original, high, low)
    slowed = _blend(rope.inv_freq, rope.inv_freq / scale, ramp)
    return rope._replace(inv_freq=slowed)


def _index_ramp(rope: Rope, low: float, high: float) -> np.ndarray:
    """0 up to pair `low`, 1 from pair `high` on, linear between them: [R/2]."""
    if low == high:
        high += 0.001  # as the authors' code does; a step
    return np.clip((np.arange(len(rope.inv_freq)) - low) / (high - low), 0, 1)


def _turns_ramp(rope: Rope, original: int, fast: float, slow: float) -> np.ndarray:
    """0 from `fast` turns over L0 tokens, 1 down to `slow`, linear between: [R/2]."""
    turned = original * rope.inv_freq / (2 * math.pi)
    return np.clip((fast - turned) / (fast - slow), 0, 1)


def _blend(first: np.ndarray, second: np.ndarray, ramp: np.ndarray) -> np.ndarray:
    """`first` where the ramp is 0, `second` where it is 1."""
    return first * (1 - ramp) + second * ramp

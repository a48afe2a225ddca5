"""RoPE scaling that keeps high frequencies and interpolates low ones.

NTK-by-parts, YaRN (Peng et al. 2023) and Llama 3.1. The notation is that of
`rope_scaling`; "rotations" of a pair are its full turns within L0 tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from research.models.positions.base import HF_SCALED
from research.models.positions.rope import Rope
from research.models.positions.rope_scaling import ScaledOriginalRope, ntk_aware


@dataclass(frozen=True, kw_only=True)
class NTKByParts(ScaledOriginalRope):
    """YaRN's precursor: slow pairs linear, the middle NTK-aware, fast ones unchanged.

    jquesnelle/yarn, first version. Two ramps over the index of the pairs, as YaRN's:
    from NTK-aware to linear, and from unchanged to that.

    Attributes:
        base_fast: Rotations above which NTK-aware is not blended with linear.
        base_slow: Rotations below which linear is used alone.
        fast: Rotations above which a pair is left unchanged.
        slow: Rotations below which nothing of the unchanged frequency is left.
    """

    name = "ntk_by_parts"
    base_fast: float = 1.25
    base_slow: float = 0.75
    fast: float = 16.0
    slow: float = 2.0

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        bounds = ramp_bounds(rope, self.original, self.base_fast, self.base_slow)
        ntk = ntk_aware(rope, self.scale).inv_freq
        low = _blend(ntk, rope.inv_freq / self.scale, _index_ramp(rope, *bounds))
        bounds = ramp_bounds(rope, self.original, self.fast, self.slow)
        return rope._replace(
            inv_freq=_blend(rope.inv_freq, low, _index_ramp(rope, *bounds))
        )


@dataclass(frozen=True, kw_only=True)
class Yarn(ScaledOriginalRope):
    """YaRN (Peng et al. 2023): fast pairs unchanged, slow ones linear, a ramp between.

    As in the authors' code and all checkpoints the ramp is over the index of the pairs;
    the paper's is over their rotations, which differs by up to 57 % in between (d = 64,
    L0 = 4096, s = 8). Cosines and sines are multiplied by 0.1 ln s + 1.

    Attributes:
        beta_fast: Rotations above which a pair is unchanged.
        beta_slow: Rotations below which it is divided by s.
        truncate: Round the ends of the ramp outwards to whole pairs; gpt-oss does not.
        attention: Factor of cosines and sines; None for 0.1 ln s + 1.
        mscale: With `mscale_all_dim`, the factor is (0.1 mscale ln s + 1) over the same
            of `mscale_all_dim` (DeepSeek).
        mscale_all_dim: See `mscale`.
        paper: Use the paper's ramp.
    """

    name = "yarn"
    hf_type = "yarn"
    hf_fields = {
        **HF_SCALED,
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncate": "truncate",
        "attention": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
    }
    hf_infers_scale = True
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    paper: bool = False

    def __post_init__(self):
        super().__post_init__()
        self.require_above("beta_fast", "beta_slow")

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        fast, slow = self.beta_fast, self.beta_slow
        if self.paper:
            ramp = _rotations_ramp(rope, self.original, fast, slow)
        else:
            bounds = ramp_bounds(rope, self.original, fast, slow, self.truncate)
            ramp = _index_ramp(rope, *bounds)
        return rope._replace(
            inv_freq=_blend(rope.inv_freq, rope.inv_freq / self.scale, ramp),
            attention_factor=rope.attention_factor * self._attention_factor(),
        )

    def _attention_factor(self) -> float:
        if self.attention is not None:
            return self.attention
        log_scale = 0.1 * math.log(self.scale)
        if self.mscale and self.mscale_all_dim:
            return (self.mscale * log_scale + 1) / (self.mscale_all_dim * log_scale + 1)
        return log_scale + 1

    def to_hugging_face(self):
        return None if self.paper else super().to_hugging_face()


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(ScaledOriginalRope):
    """Llama 3.1's: linear below `low` rotations, unchanged above `high` rotations.

    In between the share of each is linear in the rotations (meta-llama/llama-models,
    apply_scaling).
    """

    name = "llama3"
    hf_type = "llama3"
    hf_fields = {**HF_SCALED, "low": "low_freq_factor", "high": "high_freq_factor"}
    low: float = 1.0
    high: float = 4.0

    def __post_init__(self):
        super().__post_init__()
        self.require_above("high", "low")

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        ramp = _rotations_ramp(rope, self.original, self.high, self.low)
        return rope._replace(
            inv_freq=_blend(rope.inv_freq, rope.inv_freq / self.scale, ramp)
        )


def ramp_bounds(
    rope: Rope, original: int, fast: float, slow: float, truncate: bool = True
) -> tuple[float, float]:
    """The indices of the pairs that make `fast` and `slow` rotations in L0 tokens.

    With `truncate` rounded outwards, and never outside 0 ... d-1 (jquesnelle/yarn,
    find_correction_range: d-1, although the last pair is d/2-1).
    """
    channels = 2 * len(rope.inv_freq)

    def pair_index(rotations):
        log_ratio = math.log(original / (2 * math.pi * rotations))
        return channels * log_ratio / (2 * math.log(rope.base))

    low, high = pair_index(fast), pair_index(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, channels - 1)


def _index_ramp(rope: Rope, low: float, high: float) -> np.ndarray:
    """0 up to pair `low`, 1 from pair `high` on, linear between them: [R/2]."""
    if low == high:
        high += 0.001  # as the authors' code does; a step
    return np.clip((np.arange(len(rope.inv_freq)) - low) / (high - low), 0, 1)


def _rotations_ramp(rope: Rope, original: int, fast: float, slow: float) -> np.ndarray:
    """0 from `fast` rotations in L0 up, 1 from `slow` down, linear between: [R/2]."""
    rotations = original * rope.inv_freq / (2 * math.pi)
    return np.clip((fast - rotations) / (fast - slow), 0, 1)


def _blend(first: np.ndarray, second: np.ndarray, ramp: np.ndarray) -> np.ndarray:
    """`first` where the ramp is 0, `second` where it is 1."""
    return first * (1 - ramp) + second * ramp

"""RoPE scaling that keeps high frequencies and interpolates low ones.

NTK-by-parts, YaRN (Peng et al. 2023) and Llama 3.1, in the notation of `rope_scaling`.
The "rotations" of a pair of channels are its full rotations within L0 tokens.
"""

import math
from dataclasses import dataclass

import numpy as np

from research.models.positions.base import HF_SCALED
from research.models.positions.rope import Rope
from research.models.positions.rope_scaling import ScaledOriginalRope, ntk_aware


@dataclass(frozen=True, kw_only=True)
class NTKByParts(ScaledOriginalRope):
    """Predecessor of YaRN: low frequencies linear, middle NTK-aware, high unchanged.

    jquesnelle/yarn, first version. Two ramps over the index of the pairs, as in YaRN:
    the first blends NTK-aware with linear frequencies, the second blends unchanged
    frequencies with the result.

    Attributes:
        base_fast: Rotations above which the first ramp is NTK-aware only.
        base_slow: Rotations below which the first ramp is linear only.
        fast: Rotations above which a frequency is unchanged.
        slow: Rotations below which the second ramp has no unchanged part.
    """

    name = "ntk_by_parts"
    base_fast: float = 1.25
    base_slow: float = 0.75
    fast: float = 16.0
    slow: float = 2.0

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        bounds = ramp_bounds(rope, self.original, self.base_fast, self.base_slow)
        # First ramp: NTK-aware to linear; second ramp: unchanged to the first
        ntk = ntk_aware(rope, self.scale).inv_freq
        low = _blend(ntk, rope.inv_freq / self.scale, _index_ramp(rope, *bounds))
        bounds = ramp_bounds(rope, self.original, self.fast, self.slow)
        return rope._replace(
            inv_freq=_blend(rope.inv_freq, low, _index_ramp(rope, *bounds))
        )


@dataclass(frozen=True, kw_only=True)
class Yarn(ScaledOriginalRope):
    """YaRN (Peng et al. 2023): high frequencies unchanged, low linear, a ramp between.

    As in the authors' code and all checkpoints, the ramp is over the indices of pairs.
    In the paper it is over their rotations; the frequencies differ by up to 57 % within
    the ramp (d = 64, L0 = 4096, s = 8). Cosines and sines are multiplied by
    0.1 ln s + 1.

    Attributes:
        beta_fast: Rotations above which a frequency is unchanged.
        beta_slow: Rotations below which it is divided by s.
        truncate: Whether to round the ends of the ramp outwards to integer indices;
            False in gpt-oss.
        attention: Factor of cosines and sines; None for 0.1 ln s + 1.
        mscale: With `mscale_all_dim`, the factor is (0.1 mscale ln s + 1) /
            (0.1 mscale_all_dim ln s + 1) (DeepSeek).
        mscale_all_dim: See `mscale`.
        paper: Whether to use the paper's ramp.
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
        # [R/2] ramp: 0 for unchanged, 1 for divided by s
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
    """Llama 3.1: linear below `low` rotations, unchanged above `high` rotations.

    In between, the two are blended linearly in the rotations (meta-llama/llama-models,
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
        # [R/2] ramp: 0 for unchanged, 1 for divided by s
        ramp = _rotations_ramp(rope, self.original, self.high, self.low)
        return rope._replace(
            inv_freq=_blend(rope.inv_freq, rope.inv_freq / self.scale, ramp)
        )


def ramp_bounds(
    rope: Rope, original: int, fast: float, slow: float, truncate: bool = True
) -> tuple[float, float]:
    """The indices of the pairs that make `fast` and `slow` rotations in L0 tokens.

    With `truncate` they are rounded outwards. They are clipped to 0 ... d-1, although
    the last pair is d/2-1, as in find_correction_range of jquesnelle/yarn.
    """
    channels = 2 * len(rope.inv_freq)

    def pair_index(rotations):
        # Solve rotations = L0 * base^(-2j/d) / (2 pi) for j
        log_ratio = math.log(original / (2 * math.pi * rotations))
        return channels * log_ratio / (2 * math.log(rope.base))

    low, high = pair_index(fast), pair_index(slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    return max(low, 0), min(high, channels - 1)


def _index_ramp(rope: Rope, low: float, high: float) -> np.ndarray:
    """0 up to pair `low`, 1 from pair `high` on, linear between them: [R/2]."""
    if low == high:
        high += 0.001  # a step function, as in the authors' code
    return np.clip((np.arange(len(rope.inv_freq)) - low) / (high - low), 0, 1)


def _rotations_ramp(rope: Rope, original: int, fast: float, slow: float) -> np.ndarray:
    """0 above `fast` rotations in L0, 1 below `slow`, linear between them: [R/2]."""
    # [R/2] full rotations of each pair within L0 tokens
    rotations = original * rope.inv_freq / (2 * math.pi)
    return np.clip((fast - rotations) / (fast - slow), 0, 1)


def _blend(first: np.ndarray, second: np.ndarray, ramp: np.ndarray) -> np.ndarray:
    """`first` where the ramp is 0, `second` where it is 1."""
    return first * (1 - ramp) + second * ramp

"""RoPE scaling by one rule for all frequencies: linear, NTK, LongRoPE, Giraffe, E2.

Methods can be combined: `rebase`, then `yarn`. All arithmetic is float64 on the host.
In the formulas d is the number of rotated channels, j = 0 ... d/2-1 the index of a pair
of channels, theta_j its frequency, L0 (`original`) the longest text in training, in
tokens, and s (`scale`) the factor by which texts become longer.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from research.models.config import EncoderConfig
from research.models.positions.base import HF_SCALED, PositionMethod, make_bounded_field
from research.models.positions.rope import Rope, plain_rope
from research.models.positions.segment_positions import sample_per_text
from research.types import Array, Key


@dataclass(frozen=True, kw_only=True)
class RopeMethod(PositionMethod):
    """Base class of the methods that change RoPE frequencies."""

    requires = "rope"

    def check(self, cfg: EncoderConfig) -> None:
        self.scale_rope(plain_rope(cfg.rope_theta, cfg.rotary_dim), cfg.max_len)


@dataclass(frozen=True, kw_only=True)
class ScaledRope(RopeMethod):
    """Base class of the methods for texts s times longer than the model's.

    Attributes:
        scale: s, the factor by which texts become longer; at least 1.
    """

    scale: float = make_bounded_field(1)

    def max_context(self, cfg: EncoderConfig) -> int:
        return int(cfg.max_len * self.scale)


@dataclass(frozen=True, kw_only=True)
class ScaledOriginalRope(ScaledRope):
    """Base class of the methods for texts s times longer than L0.

    Attributes:
        original: L0, the longest text in training; None for the model's `max_len`.
    """

    original: int | None = make_bounded_field(1, None)

    def max_context(self, cfg: EncoderConfig) -> int:
        return int(self.original * self.scale)


class LinearInterpolation(ScaledRope):
    """theta_j / s: positions are interpolated (Chen et al. 2023)."""

    name = "linear"
    hf_type = "linear"
    hf_fields = {"scale": "factor"}

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        return rope._replace(inv_freq=rope.inv_freq / self.scale)


class NTKAware(ScaledRope):
    """Base times s^(d/(d-2)): highest frequency unchanged, lowest divided by s.

    By u/bloc97 (2023). LongEmbed's method of this name is `rebase` here.
    """

    name = "ntk_aware"

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        return ntk_aware(rope, self.scale)


@dataclass(frozen=True, kw_only=True)
class RebasedRope(RopeMethod):
    """The base multiplied by `factor`: LongEmbed's NTK (Zhu et al. 2024).

    The authors use factors a little larger than s: 3, 5, 10 for s = 2, 4, 8.
    """

    name = "rebase"
    factor: float = make_bounded_field(1)

    def max_context(self, cfg: EncoderConfig) -> int:
        # The scale for which NTK-aware scaling has the same base
        return int(cfg.max_len * self.factor ** (1 - 2 / cfg.rotary_dim))

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        return rebase(rope, self.factor)


class DynamicNTK(ScaledOriginalRope):
    """NTK-aware scaling by s L/L0 - (s-1) for L > L0 tokens (u/emozilla 2023).

    L is the length of the text itself. In `transformers` (type "dynamic") it is the
    longest row of the batch, so that a text's embedding depends on the other texts, and
    L0 is max_position_embeddings.
    """

    name = "dynamic_ntk"
    bounded = False
    depends_on_length = True
    hf_type = "dynamic"
    hf_fields = {"scale": "factor"}

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        ratio = max(length, self.original) / self.original
        return ntk_aware(rope, self.scale * ratio - (self.scale - 1))

    def max_len_from_hugging_face(self, max_positions: int) -> int:
        return round(self.scale * self.original)  # `transformers` has no limit

    def max_len_to_hugging_face(self, max_len: int) -> int:
        return self.original


@dataclass(frozen=True, kw_only=True)
class LongRoPE(ScaledOriginalRope):
    """LongRoPE (Ding et al. 2024): each frequency divided by a factor found by search.

    Attributes:
        long: R/2 divisors of the frequencies.
        short: R/2 divisors for texts of at most L0 tokens, with choice 'length'.
        choice: 'long' for the same divisors at all lengths; 'length' to choose by the
            length of the text (`transformers` uses the longest row of the batch).
        attention: Factor of cosines and sines for all texts; None for
            sqrt(1 + ln s / ln L0).
    """

    name = "longrope"
    hf_type = "longrope"
    hf_fields = {
        **HF_SCALED,
        "long": "long_factor",
        "short": "short_factor",
        "attention": "attention_factor",
    }
    hf_infers_scale = True
    original: int | None = make_bounded_field(2, None)
    long: tuple[float, ...]
    short: tuple[float, ...] = ()
    choice: str = "long"
    attention: float | None = None

    def __post_init__(self):
        super().__post_init__()
        if self.choice not in ("long", "length"):
            raise ValueError(
                f"longrope's choice is {self.choice!r}; allowed: long, length"
            )

    @property
    def depends_on_length(self) -> bool:
        return self.choice == "length"

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        # Check the divisors [R/2] in use
        used = ("long", "short") if self.choice == "length" else ("long",)
        for name in used:
            self._check_factors(name, len(rope.inv_freq))
        attention = self.attention
        if attention is None:
            attention = math.sqrt(1 + math.log(self.scale) / math.log(self.original))
        # The divisors for this length
        is_short = self.choice == "length" and length <= self.original
        factors = np.asarray(self.short if is_short else self.long, np.float64)
        return rope._replace(
            inv_freq=rope.inv_freq / factors,
            attention_factor=rope.attention_factor * attention,
        )

    def _check_factors(self, name: str, pairs: int) -> None:
        factors = getattr(self, name)
        if len(factors) != pairs or not min(factors) > 0:
            raise ValueError(
                f"longrope's {name} has {len(factors)} factors; it takes {pairs} "
                "positive ones, one for each rotated pair"
            )

    @classmethod
    def from_hugging_face(cls, parameters, max_positions):
        method = super().from_hugging_face(parameters, max_positions)
        # Equal divisors need no choice by length
        if method.short == method.long:
            return dataclasses.replace(method, short=())
        return dataclasses.replace(method, choice="length")

    def to_hugging_face(self):
        written = super().to_hugging_face()
        # `transformers` requires both lists of divisors
        if self.choice == "long":
            written["short_factor"] = written["long_factor"]
        return written


@dataclass(frozen=True, kw_only=True)
class ProportionalRope(RopeMethod):
    """Rotates only the first `fraction` of the pairs, the high frequencies (Gemma).

    Unlike `EncoderConfig.rope_fraction`, which rotates fewer channels, the exponents of
    the frequencies are divided by the full head size.

    Attributes:
        fraction: Fraction of the pairs that are rotated, in 0 ... 1.
        scale: Divisor of their frequencies.
    """

    name = "proportional"
    bounded = False
    hf_type = "proportional"
    hf_fields = {"scale": "factor", "fraction": "partial_rotary_factor"}
    fraction: float = 1.0
    scale: float = make_bounded_field(1, 1.0)

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.fraction <= 1:
            raise ValueError(
                f"proportional's fraction is {self.fraction}; allowed: 0 ... 1"
            )

    def max_context(self, cfg: EncoderConfig) -> int:
        return int(cfg.max_len * self.scale)

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        pairs = len(rope.inv_freq)
        # [R/2] bool, the pairs that are rotated
        is_rotated = np.arange(pairs) < int(self.fraction * 2 * pairs // 2)
        return rope._replace(
            inv_freq=np.where(is_rotated, rope.inv_freq / self.scale, 0.0)
        )


@dataclass(frozen=True, kw_only=True)
class TruncatedBasis(RopeMethod):
    """Frequencies up to `low` become 0; those between `low` and `high` become `middle`.

    Giraffe (Pal et al. 2023), in radians per token. `high` is chosen so that the
    unchanged frequencies complete a full rotation within the texts in training.
    """

    name = "truncated_basis"
    bounded = False
    low: float
    high: float
    middle: float = 0.0

    def __post_init__(self):
        self.require_above("high", "low")

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        truncated = np.where(rope.inv_freq >= self.high, rope.inv_freq, self.middle)
        return rope._replace(
            inv_freq=np.where(rope.inv_freq <= self.low, 0.0, truncated)
        )


@dataclass(frozen=True, kw_only=True)
class PowerBasis(RopeMethod):
    """theta_j (1 - 2j/d)^power: Giraffe (Pal et al. 2023)."""

    name = "power_basis"
    bounded = False
    power: float = make_bounded_field(0)

    def scale_rope(self, rope: Rope, length: int) -> Rope:
        pairs = len(rope.inv_freq)
        # [R/2] factors, smaller for lower frequencies
        weights = (1 - np.arange(pairs) / pairs) ** self.power
        return rope._replace(inv_freq=rope.inv_freq * weights)


@dataclass(frozen=True, kw_only=True)
class E2LLM(RopeMethod):
    """E2-LLM (Liu et al. 2024): divides positions in training by 1 ... `largest`.

    A divisor is sampled for each text. Texts s times longer are then embedded with
    `linear(scale=s)`. The paper also samples an offset of the positions of each text,
    which changes nothing: rotary logits depend on differences of positions.
    """

    name = "e2"
    bounded = False
    largest: int = make_bounded_field(1)

    def training_angles(self, angles: Array, segment_ids: Array, key: Key) -> Array:
        # Dividing the angles per token equals dividing positions
        scale = sample_per_text(key, segment_ids, 1, self.largest + 1)
        return angles // scale.astype(jnp.uint32)[:, :, None]


def ntk_aware(rope: Rope, scale: float) -> Rope:
    """Multiplies the base by scale^(d/(d-2)).

    Raises:
        ValueError: Only one pair is rotated.
    """
    channels = 2 * len(rope.inv_freq)
    # For d = 2 the exponent d/(d-2) is not defined
    if channels < 4:
        raise ValueError(
            f"NTK-aware frequencies need at least 4 rotated channels, not {channels}"
        )
    return rebase(rope, scale ** (channels / (channels - 2)))


def rebase(rope: Rope, factor: float) -> Rope:
    """Multiplies the base by `factor`."""
    pairs = len(rope.inv_freq)
    return rope._replace(
        base=rope.base * factor,
        inv_freq=rope.inv_freq * factor ** (-np.arange(pairs) / pairs),
    )

"""The frequencies of rotary positions, and the methods that change them.

A method takes a Rope and gives another, so methods can follow each other: `rebase`,
then `yarn`. All arithmetic is float64 on the host. In the formulas d is the number of
rotated channels, j = 0 ... d/2-1 a pair of them, theta_j its frequency, L0 (`original`)
the longest text of the training in tokens, and s (`scale`) how many times longer texts
become.
"""

import math
from typing import NamedTuple

import numpy as np


class Rope(NamedTuple):
    """A rotation.

    Attributes:
        base: theta_j = base^(-2j/d) before anything but the base was changed.
        frequencies: [R/2] float64, radians per token.
        factor: multiplies cosines and sines, so that scores get its square.
    """

    base: float
    inv_freq: np.ndarray
    attention_factor: float = 1.0


def plain(base: float, rotated: int) -> Rope:
    """Rotary positions as trained: base^(-2j/d) (Su et al. 2021, section 3.2.2).

    Args:
        base: of the geometric series; 10,000 in the paper.
        rotated: R, the rotated channels of a head.
    Raises:
        ValueError: R is odd or not positive, or the base is not above 1.
    """
    if rotated < 2 or rotated % 2:
        raise ValueError(
            f"{rotated} channels cannot be rotated; it takes an even count"
        )
    if not base > 1:
        raise ValueError(f"the rotary base is {base}; it must be above 1")
    return Rope(base, base ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated))


def linear(rope: Rope, length: int, *, scale: float) -> Rope:
    """theta_j / s: positions are interpolated (Chen et al. 2023).

    Raises:
        ValueError: the scale is below 1.
    """
    at_least("linear", "scale", scale, 1)
    return rope._replace(inv_freq=rope.inv_freq / scale)


def ntk_aware(rope: Rope, length: int, *, scale: float) -> Rope:
    """Base times s^(d/(d-2)): the fastest pair unchanged, the slowest divided by s.

    By u/bloc97 (2023); LongEmbed's method of this name is `rebase`.

    Raises:
        ValueError: the scale is below 1, or only one pair is rotated.
    """
    at_least("ntk_aware", "scale", scale, 1)
    return _ntk(rope, scale)


def rebase(rope: Rope, length: int, *, factor: float) -> Rope:
    """The base multiplied by `factor`, LongEmbed's NTK (Zhu et al. 2024).

    Its authors take a little more than s: 3, 5, 10 for texts 2, 4, 8 times longer.

    Raises:
        ValueError: the factor is below 1.
    """
    at_least("rebase", "factor", factor, 1)
    return _rebased(rope, factor)


def dynamic_ntk(rope: Rope, length: int, *, scale: float, original: int) -> Rope:
    """NTK-aware by s L/L0 - (s-1) for a text of L > L0 tokens (u/emozilla 2023).

    L is the text's own length. In `transformers`, where the type is "dynamic", it is
    that of the batch's longest row, so that texts change their neighbours' vectors.

    Raises:
        ValueError: the scale is below 1, L0 is not positive, or one pair is rotated.
    """
    at_least("dynamic_ntk", "scale", scale, 1)
    at_least("dynamic_ntk", "original", original, 1)
    return _ntk(rope, scale * max(length, original) / original - (scale - 1))


def longrope(
    rope: Rope,
    length: int,
    *,
    scale: float,
    original: int,
    long: tuple[float, ...],
    short: tuple[float, ...] = (),
    choice: str = "long",
    attention: float | None = None,
) -> Rope:
    """LongRoPE (Ding et al. 2024): each pair divided by a factor found by search.

    Args:
        rope: the rotation to change.
        length: tokens of the text.
        scale: s.
        original: L0.
        long: R/2 factors.
        short: R/2 factors of texts of at most L0 tokens, for choice 'length'.
        choice: 'long' for one model at all lengths; 'length' by the text's own length,
            which `transformers` does by the batch's longest row.
        attention: the factor of cosines and sines of all texts, where it is not
            sqrt(1 + ln s / ln L0).
    Raises:
        ValueError: the scale is below 1, L0 is below 2, the choice is unknown, or the
            factors are not one positive number for each pair.
    """
    at_least("longrope", "scale", scale, 1)
    at_least("longrope", "original", original, 2)
    if choice not in ("long", "length"):
        raise ValueError(f"longrope's choice is {choice!r}; allowed: long, length")
    factors = {"long": long, "short": short} if choice == "length" else {"long": long}
    for name, values in factors.items():
        if len(values) != len(rope.inv_freq) or not min(values) > 0:
            raise ValueError(
                f"longrope's {name} has {len(values)} factors; it takes "
                f"{len(rope.inv_freq)} positive ones, one for each rotated pair"
            )
    if attention is None:
        attention = math.sqrt(1 + math.log(scale) / math.log(original))
    used = short if choice == "length" and length <= original else long
    slowed = rope.inv_freq / np.asarray(used, np.float64)
    return Rope(rope.base, slowed, rope.attention_factor * attention)


def proportional(
    rope: Rope, length: int, *, fraction: float = 1.0, scale: float = 1.0
) -> Rope:
    """The slow pairs stand still, the first `fraction` of them turns (Gemma).

    Unlike with `EncoderConfig.rope_fraction`, which rotates fewer channels, exponents
    divide by the whole head.

    Raises:
        ValueError: the fraction is not in 0 ... 1, or the scale is below 1.
    """
    at_least("proportional", "scale", scale, 1)
    if not 0 <= fraction <= 1:
        raise ValueError(f"proportional's fraction is {fraction}; allowed: 0 ... 1")
    pairs = len(rope.inv_freq)
    turning = np.arange(pairs) < int(fraction * 2 * pairs // 2)
    return rope._replace(inv_freq=np.where(turning, rope.inv_freq / scale, 0.0))


def truncated_basis(
    rope: Rope, length: int, *, low: float, high: float, middle: float = 0.0
) -> Rope:
    """Frequencies of at most `low` become 0, those below `high` become `middle`.

    Giraffe (Pal et al. 2023), in radians per token: `high` is chosen so that what is
    kept completes a cycle within the texts of the training.

    Raises:
        ValueError: high is not above low.
    """
    check_order("truncated_basis", "low", low, "high", high)
    kept = np.where(rope.inv_freq >= high, rope.inv_freq, middle)
    return rope._replace(inv_freq=np.where(rope.inv_freq <= low, 0.0, kept))


def power_basis(rope: Rope, length: int, *, power: float) -> Rope:
    """theta_j (1 - 2j/d)^power: Giraffe (Pal et al. 2023).

    Raises:
        ValueError: the power is negative.
    """
    at_least("power_basis", "power", power, 0)
    pairs = len(rope.inv_freq)
    return rope._replace(
        inv_freq=rope.inv_freq * (1 - np.arange(pairs) / pairs) ** power
    )


def _ntk(rope: Rope, scale: float) -> Rope:
    """The base times scale^(d/(d-2))."""
    channels = 2 * len(rope.inv_freq)
    if channels < 4:
        raise ValueError(
            f"NTK-aware frequencies need at least 4 rotated channels, not {channels}"
        )
    return _rebased(rope, scale ** (channels / (channels - 2)))


def _rebased(rope: Rope, factor: float) -> Rope:
    pairs = len(rope.inv_freq)
    return rope._replace(
        base=rope.base * factor,
        inv_freq=rope.inv_freq * factor ** (-np.arange(pairs) / pairs),
    )


def at_least(method: str, name: str, value: float, least: float) -> None:
    """Refuses an argument below `least`, or that is not a number."""
    if not value >= least:
        raise ValueError(f"{method}'s {name} is {value}; it must be at least {least}")


def check_order(
    method: str, low_name: str, low: float, high_name: str, high: float
) -> None:
    """Refuses a lower bound that is not below the upper one."""
    if not low < high:
        raise ValueError(
            f"{method}'s {high_name} is {high}; it must be above {low_name}, {low}"
        )

"""Rotary frequencies of every method: golden numbers, identities, error messages."""

import re

import numpy as np
import pytest

from research.models.positions.methods import POSITION_METHODS
from research.models.positions.rope import plain_rope
from research.models.positions.rope_scaling import RopeMethod
from research.models.positions.yarn import ramp_bounds

DEFAULT = 10.0 ** (-np.arange(8) / 2)
YARN = [1, 0.316228, 0.1, 0.0247053, 0.005625, 0.00108703, 0.000125, 3.95285e-5]
SHARP = [1, 0.316228, 0.1, 0.0281121, 0.00598313, 0.000972858, 0.000125, 3.95285e-5]
LONG = (1, 1.5, 2, 3, 4, 5, 6, 8)
LONGROPE = {"scale": 8, "original": 4096, "long": LONG, "short": (1,) * 8}
# name, arguments, length, factor, frequencies of d = 16 and base 10,000
GOLDEN = [
    (
        "linear",
        {"scale": 4},
        512,
        1,
        [0.25, 0.0790569, 0.025, 0.00790569, 0.0025, 0.000790569, 0.00025, 7.90569e-5],
    ),
    (
        "ntk_aware",
        {"scale": 4},
        512,
        1,
        [
            *(1, 0.259413, 0.067295, 0.0174572, 0.00452862, 0.00117478, 0.000304753),
            7.90569e-5,
        ],
    ),
    (
        "dynamic_ntk",
        {"scale": 2, "original": 4096},
        8192,
        1,
        [
            *(1, 0.270296, 0.07306, 0.0197478, 0.00533776, 0.00144278, 0.000389977),
            0.000105409,
        ],
    ),
    ("dynamic_ntk", {"scale": 2, "original": 4096}, 4096, 1, DEFAULT),
    ("yarn", {"scale": 8, "original": 4096}, 512, 1.2079441541679836, YARN),
    (
        "yarn",
        {"scale": 8, "original": 4096, "truncate": False},
        512,
        1.2079441541679836,
        SHARP,
    ),
    (
        "longrope",
        {**LONGROPE, "choice": "length"},
        8192,
        1.118033988749895,
        [
            *(1, 0.210818, 0.05, 0.0105409, 0.0025, 0.000632456, 0.000166667),
            3.95285e-5,
        ],
    ),
    ("longrope", {**LONGROPE, "choice": "length"}, 4096, 1.118033988749895, DEFAULT),
]
LLAMA3 = [
    *(1, 0.193923, 0.037606, 0.00729267, 0.000524846, 3.4281e-5, 6.64787e-6),
    1.28917e-6,
]
# Arguments with which a method changes nothing.
IDENTITY = {
    "linear": {"scale": 1},
    "ntk_aware": {"scale": 1},
    "rebase": {"factor": 1},
    "dynamic_ntk": {"scale": 2, "original": 4096},
    "ntk_by_parts": {"scale": 1, "original": 512},
    "yarn": {"scale": 1, "original": 512},
    "llama3": {"scale": 1, "original": 512},
    "longrope": {"scale": 1, "original": 512, "long": (1,) * 16},
    "proportional": {"fraction": 1},
    "truncated_basis": {"low": -1, "high": 0},
    "power_basis": {"power": 0},
    "e2": {"largest": 8},
    "clex": {"original": 4096, "max_factor": 4},
}


ROPE_METHODS = {
    name for name, cls in POSITION_METHODS.items() if issubclass(cls, RopeMethod)
}


def scaled_rope(name, rope, length, **arguments):
    """The frequencies that a method of this name makes of `rope`."""
    return POSITION_METHODS[name](**arguments).scale_rope(rope, length)


@pytest.mark.parametrize(("name", "arguments", "length", "factor", "expected"), GOLDEN)
def test_golden_frequencies(name, arguments, length, factor, expected):
    rope = scaled_rope(name, plain_rope(1e4, 16), length, **arguments)
    np.testing.assert_allclose(rope.inv_freq, expected, rtol=1e-5)
    np.testing.assert_allclose(rope.attention_factor, factor, rtol=1e-12)


def test_golden_frequencies_of_llama3_and_the_base_of_ntk():
    rope = scaled_rope("llama3", plain_rope(5e5, 16), 512, scale=8, original=8192)
    np.testing.assert_allclose(rope.inv_freq, LLAMA3, rtol=1e-5)
    base = scaled_rope("ntk_aware", plain_rope(1e4, 16), 512, scale=4).base
    np.testing.assert_allclose(base, 48760.54617, rtol=1e-9)


def test_every_method_has_an_identity():
    assert IDENTITY.keys() == ROPE_METHODS


@pytest.mark.parametrize("name", IDENTITY)
def test_a_method_that_changes_nothing_is_the_identity(name):
    before = plain_rope(1e4, 32)
    after = scaled_rope(name, before, 4096, **IDENTITY[name])
    np.testing.assert_allclose(after.inv_freq, before.inv_freq, rtol=1e-15)
    assert (after.base, after.attention_factor) == (before.base, 1)


def test_ntk_keeps_the_fastest_pair_and_divides_the_slowest():
    before, after = (
        plain_rope(1e4, 64),
        scaled_rope("ntk_aware", plain_rope(1e4, 64), 0, scale=8),
    )
    assert after.inv_freq[0] == before.inv_freq[0]
    np.testing.assert_allclose(after.inv_freq[-1] * 8, before.inv_freq[-1], 1e-12)
    rebased = scaled_rope("rebase", plain_rope(1e4, 64), 0, factor=10)
    np.testing.assert_allclose(rebased.inv_freq, plain_rope(1e5, 64).inv_freq, 1e-12)


def test_dynamic_frequencies_fall_with_length_beyond_the_original():
    def frequencies(length):
        return scaled_rope(
            "dynamic_ntk", plain_rope(1e4, 16), length, scale=2, original=64
        )[1]

    for length in (1, 63, 64):
        assert (frequencies(length) == plain_rope(1e4, 16).inv_freq).all()
    assert (np.diff([frequencies(n)[1:] for n in (64, 65, 100, 500)], axis=0) < 0).all()


@pytest.mark.parametrize(
    ("rotated", "base", "original", "expected"),
    [
        (16, 1e4, 4096, (2, 6)),
        (64, 1e4, 512, (3, 16)),
        (64, 1e4, 4096, (10, 23)),
        (128, 1e4, 4096, (20, 46)),
        (128, 1e6, 32768, (23, 40)),
    ],
)
def test_yarn_ramp(rotated, base, original, expected):
    before = plain_rope(base, rotated)
    low, high = ramp_bounds(before, original, 32, 1)
    assert (low, high) == expected
    after = scaled_rope("yarn", before, 0, scale=8, original=original).inv_freq
    assert (after[: low + 1] == before.inv_freq[: low + 1]).all()
    assert (after[high:] == before.inv_freq[high:] / 8).all()


def test_yarn_of_the_paper_differs_in_the_middle_only():
    before = plain_rope(1e4, 64)
    code, paper = (
        scaled_rope("yarn", before, 0, scale=8, original=4096, paper=paper).inv_freq
        for paper in (False, True)
    )
    difference = np.abs(paper / code - 1)
    assert difference.argmax() == 18 and 0.56 < difference.max() < 0.58
    assert not difference[:8].any() and not difference[24:].any()


def test_yarn_attention_factors():
    def factor(**arguments):
        return scaled_rope(
            "yarn", plain_rope(1e4, 16), 0, original=512, **arguments
        ).attention_factor

    golden = {8: 1.207944, 16: 1.277259, 32: 1.346574}
    for scale, expected in golden.items():
        np.testing.assert_allclose(factor(scale=scale), expected, rtol=1e-6)
    assert factor(scale=8, attention=1.5) == 1.5
    assert factor(scale=8, mscale=0.7, mscale_all_dim=0.7) == 1
    expected = (0.1 * np.log(8) + 1) / (0.05 * np.log(8) + 1)
    np.testing.assert_allclose(factor(scale=8, mscale=1, mscale_all_dim=0.5), expected)


def test_llama3_is_continuous_where_its_ramp_ends():
    for turned in (1, 4):  # turns over the original length of the second pair
        share = []
        for slightly in (1 - 1e-9, 1 + 1e-9):
            original = turned * slightly * 2 * np.pi * 100
            rope = scaled_rope(
                "llama3", plain_rope(1e4, 4), 0, scale=8, original=original
            )
            share.append(rope.inv_freq[1] * 100)
        np.testing.assert_allclose(share, [1 / 8 if turned == 1 else 1] * 2, rtol=1e-6)


def test_ntk_by_parts_goes_from_plain_over_ntk_to_linear():
    before = plain_rope(1e4, 128)
    after = scaled_rope("ntk_by_parts", before, 0, scale=4, original=2048).inv_freq
    fast, _ = ramp_bounds(before, 2048, 16, 2)
    _, slow = ramp_bounds(before, 2048, 1.25, 0.75)
    assert (after[: fast + 1] == before.inv_freq[: fast + 1]).all()
    assert (after[slow:] == before.inv_freq[slow:] / 4).all()
    middle = slice(fast + 1, slow)
    assert (after[middle] < before.inv_freq[middle]).all()
    assert (after[middle] > before.inv_freq[middle] / 4).all()
    assert (np.diff(after) < 0).all()


def test_longrope_factors():
    def rope(scale, **arguments):
        every = {"original": 4096, "long": (scale,) * 8, **arguments}
        return scaled_rope("longrope", plain_rope(1e4, 16), 10, scale=scale, **every)

    np.testing.assert_allclose(rope(8).inv_freq, DEFAULT / 8)
    np.testing.assert_allclose(rope(32).attention_factor, 1.190238, rtol=1e-6)
    assert rope(8, attention=1.2).attention_factor == 1.2


def test_proportional_frequencies_stop():
    rope = scaled_rope("proportional", plain_rope(1e4, 16), 0, fraction=0.25, scale=2)
    np.testing.assert_allclose(rope.inv_freq, [*DEFAULT[:2] / 2, *[0] * 6])


def test_giraffe():
    rope = scaled_rope(
        "truncated_basis", plain_rope(1e4, 16), 0, low=1e-3, high=0.05, middle=0.02
    )
    np.testing.assert_allclose(
        rope.inv_freq, [*DEFAULT[:3], *[0.02] * 3, 0, 0], rtol=1e-12
    )
    rope = scaled_rope("power_basis", plain_rope(1e4, 16), 0, power=2)
    expected = DEFAULT * (1 - np.arange(8) / 8) ** 2
    np.testing.assert_allclose(rope.inv_freq, expected, rtol=1e-12)


def test_methods_follow_each_other():
    rope = plain_rope(1e4, 16)
    for name, arguments in {"rebase": {"factor": 3}, "linear": {"scale": 2}}.items():
        rope = scaled_rope(name, rope, 0, **arguments)
    np.testing.assert_allclose(rope.inv_freq, plain_rope(3e4, 16).inv_freq / 2)
    assert rope.base == 3e4


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("linear", {"scale": 0.5}, "linear's scale is 0.5; it must be at least 1"),
        ("linear", {"scale": float("nan")}, "linear's scale is nan"),
        ("rebase", {"factor": 0.9}, "rebase's factor is 0.9"),
        ("dynamic_ntk", {"scale": 2, "original": 0}, "original is 0; it must be"),
        ("yarn", {"scale": 2, "original": -1}, "yarn's original is -1"),
        ("yarn", {"scale": 0.1, "original": 64}, "yarn's scale is 0.1"),
        (
            "yarn",
            {"scale": 2, "original": 64, "beta_fast": 1},
            "yarn's beta_fast is 1; it must be above beta_slow, 1.0",
        ),
        (
            "llama3",
            {"scale": 2, "original": 64, "low": 5},
            "llama3's high is 4.0; it must be above low, 5",
        ),
        (
            "longrope",
            {"scale": 2, "original": 64, "long": (1, 2)},
            "longrope's long has 2 factors; it takes 8 positive ones",
        ),
        (
            "longrope",
            {"scale": 2, "original": 64, "long": LONG, "choice": "length"},
            "longrope's short has 0 factors",
        ),
        (
            "longrope",
            {"scale": 2, "original": 64, "long": LONG, "choice": "batch"},
            "choice is 'batch'; allowed: long, length",
        ),
        ("proportional", {"fraction": 2}, "fraction is 2; allowed: 0 ... 1"),
        ("truncated_basis", {"low": 1, "high": 0.1}, "high is 0.1; it must be above"),
        ("power_basis", {"power": -1}, "power is -1"),
        ("e2", {"largest": 0}, "e2's largest is 0"),
        ("clex", {"original": 64, "max_factor": 0}, "max_factor is 0"),
        (
            "clex",
            {"original": 64, "max_factor": 2, "act": "relu"},
            "act is 'relu'; allowed: silu, tanh",
        ),
        ("clex", {"original": 64, "max_factor": 2, "step": 0.3}, "step is 0.3"),
    ],
)
def test_arguments_out_of_range(name, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        scaled_rope(name, plain_rope(1e4, 16), 512, **arguments)


def test_what_cannot_be_rotated():
    with pytest.raises(ValueError, match="7 channels cannot be rotated"):
        plain_rope(1e4, 7)
    with pytest.raises(ValueError, match="base is 1; it must be above 1"):
        plain_rope(1, 8)
    with pytest.raises(ValueError, match="at least 4 rotated channels, not 2"):
        scaled_rope("ntk_aware", plain_rope(1e4, 2), 0, scale=2)

"""Factors of the queries: per text, and no change where there should be none."""

import math
from dataclasses import replace

import numpy as np
import pytest

from research.models.config import modern
from research.models.positions import Places
from research.models.temperature import TEMPERATURES, query_factor, score_factor

SHAPE = {"vocab": 60, "width": 32, "depth": 2, "heads": 4, "mlp": 48, "max_len": 64}


def extended(causal=False, **methods):
    extensions = tuple((name, tuple(rest.items())) for name, rest in methods.items())
    return replace(modern(**SHAPE, causal=causal), extensions=extensions)


def row(*lengths, padding=2):
    """The places of texts packed in one row."""
    count = sum(lengths) + padding
    fields = np.zeros((4, 1, count), np.int32)
    fields[3, 0] = np.arange(count)
    start = 0
    for number, length in enumerate(lengths, 1):
        text = fields[:, 0, start : start + length]
        text[0], text[1], text[2] = number, np.arange(length), length
        start += length
    return Places(*fields)


def test_without_a_method_or_with_tau_1_nothing_changes():
    assert query_factor(extended(), row(5)) == 1.0
    assert query_factor(extended(temp_scale={"tau": 1.0}), row(5)) == 1.0
    assert score_factor(extended()) == 1.0


def test_the_log_of_the_length_is_per_text_and_none_up_to_the_original():
    got = query_factor(extended(log_length={"original": 8}), row(5, 8, 9, 16))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0, :13], 1.0)
    np.testing.assert_allclose(got[0, 13:22], math.log(9, 8), rtol=1e-6)
    np.testing.assert_allclose(got[0, 22:38], math.log(16, 8), rtol=1e-6)
    np.testing.assert_array_equal(got[0, 38:], 1.0)


def test_the_log_of_the_position_grows_along_a_text():
    cfg = extended(causal=True, log_position={"original": 4})
    got = query_factor(cfg, row(9, 3))
    expected = [1.0] * 4 + [math.log(n, 4) for n in range(5, 10)] + [1.0] * 5
    np.testing.assert_allclose(got[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(got[0, :4], 1.0)


def test_factors_multiply_and_only_tau_is_for_whole_scores():
    cfg = extended(temp_scale={"tau": 0.5}, log_length={"original": 4}, yarn={})
    np.testing.assert_allclose(query_factor(cfg, row(8))[0, :8], 2 * 1.5, rtol=1e-6)
    assert score_factor(cfg) == 2.0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("temp_scale", {"tau": 0.0}, "tau is 0.0; it must be above 0"),
        ("log_length", {"original": 1}, "original is 1; it must be at least 2"),
        ("log_position", {"original": 4}, "use log_length"),
    ],
)
def test_what_makes_no_sense_is_refused(name, arguments, message):
    assert name in TEMPERATURES
    with pytest.raises(ValueError, match=message):
        query_factor(extended(**{name: arguments}), row(5))

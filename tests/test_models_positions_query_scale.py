"""Factors of the queries: per text, and no change where there should be none."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import encoder
from research.models.config import modern
from research.models.positions.methods import POSITION_METHODS
from research.models.positions.query_scale import logit_scale, query_scale
from research.models.positions.segment_positions import Positions
from research.types import Tokens

FORWARD = jax.jit(encoder.forward, static_argnums=2)
INIT = jax.jit(encoder.init, static_argnums=1)
SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp": 48,
    "max_len": 64,
}


def extended(causal=False, **methods):
    records = [POSITION_METHODS[name](**fields) for name, fields in methods.items()]
    return replace(modern(**SHAPE, causal=causal), position_methods=records)


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
    return Positions(*fields)


def test_without_a_method_or_with_tau_1_nothing_changes():
    assert query_scale(extended(), row(5)) == 1.0
    assert query_scale(extended(temp_scale={"tau": 1.0}), row(5)) == 1.0
    assert logit_scale(extended()) == 1.0


def test_the_log_of_the_length_is_per_text_and_none_up_to_the_original():
    got = query_scale(extended(log_length={"original": 8}), row(5, 8, 9, 16))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got[0, :13], 1.0)
    np.testing.assert_allclose(got[0, 13:22], math.log(9, 8), rtol=1e-6)
    np.testing.assert_allclose(got[0, 22:38], math.log(16, 8), rtol=1e-6)
    np.testing.assert_array_equal(got[0, 38:], 1.0)


def test_the_log_of_the_position_grows_along_a_text():
    cfg = extended(causal=True, log_position={"original": 4})
    got = query_scale(cfg, row(9, 3))
    expected = [1.0] * 4 + [math.log(n, 4) for n in range(5, 10)] + [1.0] * 5
    np.testing.assert_allclose(got[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(got[0, :4], 1.0)


def test_factors_multiply_and_only_tau_is_for_whole_scores():
    cfg = extended(
        temp_scale={"tau": 0.5},
        log_length={"original": 4},
        yarn={"scale": 2.0, "original": 8},
    )
    np.testing.assert_allclose(query_scale(cfg, row(8))[0, :8], 2 * 1.5, rtol=1e-6)
    assert logit_scale(cfg) == 2.0


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("temp_scale", {"tau": 0.0}, "tau is 0.0; it must be above 0"),
        ("log_length", {"original": 1}, "original is 1; it must be at least 2"),
        ("log_position", {"original": 4}, "use log_length"),
    ],
)
def test_what_makes_no_sense_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        POSITION_METHODS[name](**arguments).check(extended())


def states(params, cfg, *lengths):
    """Hidden states of texts of some lengths in one row."""
    segment = jnp.asarray(row(*lengths).segment_ids)
    ids = jnp.arange(segment.size, dtype=jnp.int32)[None] % 59 + 1
    return np.asarray(
        FORWARD(params, Tokens(ids, segment, segment > 0), cfg).hidden_states[0]
    )


@pytest.fixture(scope="module")
def params():
    """Weights large enough for attention to be far from uniform."""
    start = INIT(jax.random.key(5), extended())
    return jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, start)


def test_the_model_at_tau_1_is_the_same_to_the_bit(params):
    plain = states(params, extended(), 12)
    np.testing.assert_array_equal(
        states(params, extended(temp_scale={"tau": 1.0}), 12), plain
    )
    apart = np.abs(states(params, extended(temp_scale={"tau": 0.5}), 12) - plain)
    assert apart.max() > 1e-2


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"position_bias": "t5"},
        {"position_bias": "seqpe"},
        {"attn_logit_softcap": 2.0},
    ],
)
def test_tau_divides_whole_scores(key, change):
    cfg = replace(extended(temp_scale={"tau": 0.5}), **change)
    params = INIT(key, cfg)
    params = jax.tree.map(lambda x: x if (x == 1).all() else 10 * x, params)
    plain = replace(
        cfg, position_methods=(), attn_logit_softcap=2 * cfg.attn_logit_softcap
    )
    layers = params["layers"]
    query = {"kernel": 2 * layers["query"]["kernel"]}
    doubled = {**params, "layers": {**layers, "query": query}}
    if cfg.position_bias == "t5":
        doubled["position_bias"] = jax.tree.map(
            lambda x: 2 * x, params["position_bias"]
        )
    if cfg.position_bias == "seqpe":
        query = jax.tree.map(lambda x: 2 * x, params["position_bias"]["query"])
        doubled["position_bias"] = {**params["position_bias"], "query": query}
    np.testing.assert_allclose(
        states(params, cfg, 12), states(doubled, plain, 12), atol=1e-5
    )


def test_the_length_of_a_text_does_not_change_its_neighbours(params):
    scaled = extended(log_length={"original": 8})
    plain, got = (states(params, cfg, 8, 12, 5) for cfg in (extended(), scaled))
    np.testing.assert_array_equal(got[:8], plain[:8])
    np.testing.assert_array_equal(got[20:25], plain[20:25])
    assert np.abs(got[8:20] - plain[8:20]).max() > 1e-2

"""Methods that extend the context of a model, and what they refuse."""

import dataclasses
import json

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.config_sections import build, section
from research.models.config import EncoderConfig, bert, modern
from research.models.pooling.registry import BASIC_POOLINGS
from research.models.positions.methods import (
    POSITION_METHODS,
    config_fields,
    encoder_config,
    extend_config,
    extend_context,
    format_methods,
    read_methods,
)
from research.types import Tokens

SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 2,
    "num_heads": 4,
    "mlp": 48,
    "max_len": 16,
}
LEARNED, ROPE = bert(**SHAPE), modern(**SHAPE)
CAUSAL = modern(**SHAPE, causal=True)
ALIBI = modern(**SHAPE, position="none", position_bias="alibi")


def texts(*lengths, size=64):
    ids = np.random.default_rng(0).integers(1, 60, (len(lengths), size))
    real = np.arange(size)[None] < np.array(lengths)[:, None]
    return Tokens(jnp.asarray(ids, jnp.int32), jnp.asarray(real, jnp.int32), real)


def vectors(params, cfg, tokens):
    return compiled.encode(params, tokens, cfg, BASIC_POOLINGS["mean"])


@pytest.fixture(scope="module")
def params():
    return {
        cfg: compiled.init(jax.random.key(0), cfg) for cfg in (LEARNED, ROPE, ALIBI)
    }


@pytest.mark.parametrize("name", ["grouped", "recurrent", "interpolated"])
def test_texts_that_fitted_the_table_are_embedded_as_before(name, params):
    new, cfg = extend_context(params[LEARNED], LEARNED, f"{name}(scale=4)")
    assert cfg.max_len == 64 and cfg.position_methods == ()
    short = texts(1, 15, 16, size=16)
    before = vectors(params[LEARNED], LEARNED, short)
    np.testing.assert_array_equal(vectors(new, cfg, short), before)
    # Longer texts beside them change nothing.
    beside = vectors(new, cfg, texts(1, 15, 16, 17, 64))
    assert np.isfinite(beside).all()
    ids = texts(1, 15, 16, 17, 64).token_ids[:3, :16]
    alone = vectors(params[LEARNED], LEARNED, short._replace(token_ids=ids))
    np.testing.assert_allclose(beside[:3], alone, atol=2e-6)


def test_rows_before_position_0_stay_in_front(params):
    cfg = EncoderConfig(**{**SHAPE, "max_len": 14}, position_offset=2)
    table = params[LEARNED]["embed"]["position"]["embedding"]
    new, longer = extend_context(params[LEARNED], cfg, "interpolated(scale=2)")
    rows = new["embed"]["position"]["embedding"]
    assert longer.max_len == 28 and rows.shape == (30, 32)
    np.testing.assert_array_equal(rows[:2], table[:2])
    np.testing.assert_array_equal(rows[2::2], table[2:])


@pytest.mark.parametrize(
    "cfg, text, length",
    [
        (ROPE, "linear(scale=4)", 64),
        (ROPE, "ntk_aware(scale=2.5)", 40),
        (ROPE, "rebase(factor=16)", 128),  # 16 * 16^((8 - 2) / 8)
        (ROPE, "dynamic_ntk(scale=2)", 32),
        (ROPE, "dynamic_ntk(scale=2) | extrapolate(length=100)", 100),
        (ROPE, "yarn(scale=4) | log_length()", 64),
        (ROPE, "yarn(scale=2, original=64)", 128),
        (ROPE, "self_extend(group=4, window=8)", 40),
        (ROPE, "dpe(sizes=(2, 4), window=8)", 40),
        (ROPE, "clex(max_factor=3)", 48),
        (ROPE, "e2(largest=4)", 16),
        (ROPE, "e2(largest=4) | linear(scale=4)", 64),
        (ROPE, "power_basis(power=0.1) | extrapolate(length=40)", 40),
        (ROPE, "temp_scale(tau=0.5)", 16),
        (ROPE, "extrapolate(length=50)", 50),
        (CAUSAL, "lm_infinite(window=16) | extrapolate(length=50)", 50),
        (ALIBI, "extrapolate(length=60) | log_length()", 60),
        (ALIBI, "extrapolate(length=8)", 16),
        (LEARNED, "recurrent(scale=3) | log_length()", 48),
    ],
)
def test_methods_reach(cfg, text, length):
    assert extend_config(cfg, text).max_len == length


def test_a_chain_of_methods_runs_and_survives_json(params):
    text = "ntk_aware(scale=2) | yarn(scale=4) | log_length() | temp_scale(tau=0.9)"
    new, cfg = extend_context(params[ROPE], ROPE, text)
    assert format_methods(cfg.position_methods) == (
        "ntk_aware(scale=2) | yarn(scale=4, original=16) | log_length(original=16) | "
        "temp_scale(tau=0.9)"
    )
    assert new is params[ROPE]
    tokens = texts(10, 64)
    changed = vectors(new, cfg, tokens)
    assert np.abs(changed - vectors(new, ROPE, tokens)).max() > 1e-4
    loaded = encoder_config(json.loads(json.dumps(config_fields(cfg))))
    assert loaded == cfg and hash(loaded) == hash(cfg)


def test_a_scale_of_1_changes_nothing(params):
    tokens = texts(5, 16, size=16)
    before = vectors(params[ROPE], ROPE, tokens)
    for text in ("linear(scale=1) | yarn(scale=1)", "self_extend(group=1, window=16)"):
        new, cfg = extend_context(params[ROPE], ROPE, text)
        np.testing.assert_array_equal(vectors(new, cfg, tokens), before)


def test_clex_gets_a_network_that_starts_at_ntk(params):
    new, cfg = extend_context(params[ROPE], ROPE, "clex(max_factor=2)")
    assert not new["clex"]["down"].any()
    _, ntk = extend_context(params[ROPE], ROPE, "ntk_aware(scale=3)")
    tokens = texts(32, size=32)
    np.testing.assert_allclose(
        vectors(new, cfg, tokens), vectors(params[ROPE], ntk, tokens), atol=1e-5
    )


@pytest.mark.parametrize(
    "cfg, text, message",
    [
        (
            LEARNED,
            "yarn(scale=2)",
            "yarn is for models whose positions are 'rope'; .* "
            "'learned', which .*interpolated, extrapolate fit",
        ),
        (
            ROPE,
            "grouped(scale=2)",
            "positions are 'learned'; those of this one are 'ro",
        ),
        (ALIBI, "self_extend(group=2, window=4)", "positions are 'rope'; .* 'none'"),
        (ROPE, "linear(scale=0.5)", "linear's scale is 0.5; it must be at least 1"),
        (LEARNED, "grouped(scale=0)", "grouped's scale is 0; it must be at least 1"),
        (LEARNED, "grouped(scale=1.5)", "scale is 1.5; it takes a whole number"),
        (ROPE, "rebase(factor=-2)", "rebase's factor is -2; it must be at least 1"),
        (ROPE, "yarn(scale='x')", "yarn's scale is 'x'; it takes a number"),
        (ROPE, "yarn(size=2)", "yarn has no argument size; it has scale, original"),
        (ROPE, "dpe(sizes=4, window=8)", "dpe's sizes is 4; it takes tuple"),
        (ROPE, "dpe(sizes=(2, 'x'), window=8)", "sizes is .*'x'.*; it takes tuple"),
        (ROPE, "dpe(sizes=(2, 2), window=8, key_dims=3)", "key_dims is 3; it takes tu"),
        (ROPE, "self_extend(group=2)", "self_extend needs a value for window"),
        (ROPE, "stretch", "unknown name 'stretch'; known: clex, dpe"),
        (
            ROPE,
            "linear(scale=2) | extrapolate(length=99)",
            "linear allows texts of 32 tokens, "
            r"not of 99; linear\(scale=7\) does",
        ),
        (
            ROPE,
            "self_extend(group=2, window=8) | extrapolate(length=99)",
            r"yarn\(scale=7\) does",
        ),
        (
            LEARNED,
            "extrapolate(length=99)",
            "position table allows texts of 16 tokens, not "
            r"of 99; interpolated\(scale=7\) does",
        ),
        (
            LEARNED,
            "grouped(scale=2) | recurrent(scale=2)",
            "grouped and recurrent cannot be com",
        ),
        (
            ROPE,
            "self_extend(group=2, window=8) | dpe(sizes=(2, 2), window=8)",
            "choose one",
        ),
        (
            ROPE,
            "clex(max_factor=2) | linear(scale=2)",
            "clex and linear cannot be comb",
        ),
        (
            ROPE,
            "linear(scale=2) | clex(max_factor=2)",
            "linear and clex cannot be comb",
        ),
        (
            ROPE,
            "linear(scale=2) | linear(scale=2)",
            "linear extends this model already",
        ),
        (ROPE, "longrope(scale=2, long=(1,))", "it takes 4 positive ones"),
        (ROPE, "log_position", "log_position is for causal models"),
        (ROPE, "lm_infinite(window=8)", "lm_infinite is for causal models"),
        (
            ROPE,
            "extrapolate(length=0)",
            "extrapolate's length is 0; it must be at least 1",
        ),
        (ALIBI, "temp_scale(tau=0)", "tau is 0; it must be above 0"),
    ],
)
def test_what_does_not_fit_is_one_sentence(cfg, text, message):
    with pytest.raises(ValueError, match=message):
        extend_config(cfg, text)


def test_nothing_is_extended_twice_by_the_same_method(params):
    twice = extend_config(ROPE, "yarn(scale=2)")
    with pytest.raises(ValueError, match="yarn extends this model already"):
        extend_config(twice, "yarn(scale=2)")
    table = extend_config(LEARNED, "grouped(scale=2)")
    with pytest.raises(ValueError, match="extended once; this one has been"):
        extend_config(table, "grouped(scale=2)")


def test_call_text_is_read_and_written_back():
    text = "yarn(scale=8, truncate=False) | dpe(window=10, sizes=(2, 8)) | log_length"
    yarn, dpe, log_length = read_methods(text)
    assert (yarn.scale, yarn.truncate, yarn.original) == (8, False, None)
    assert (dpe.sizes, dpe.window, log_length.original) == ((2, 8), 10, None)
    assert format_methods((yarn, dpe, log_length)) == text
    assert read_methods("") == () and format_methods(()) == ""
    for wrong in ("yarn:scale=8", "yarn(8)", "yarn(scale=)", "yarn(scale=8) +"):
        with pytest.raises(ValueError):
            read_methods(wrong)


@pytest.mark.parametrize("name", POSITION_METHODS)
def test_a_config_section_holds_the_arguments_of_a_method(name):
    numbers = {"low": 0.1, "high": 0.2, "tau": 0.5, "long": (1.0,), "sizes": (2, 2)}
    needed = {
        field.name: numbers.get(field.name, 1)
        for field in dataclasses.fields(POSITION_METHODS[name])
        if field.default is dataclasses.MISSING
    }
    method = build(POSITION_METHODS, section(POSITION_METHODS, name, **needed))
    assert (method.name, method) == (name, POSITION_METHODS[name](**needed))
    assert read_methods(format_methods([method])) == (method,)

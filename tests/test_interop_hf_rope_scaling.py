"""Rotary parameters of `transformers`: the same frequencies, and back as they were."""

import json
from dataclasses import replace

import compiled
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.interop.hf.families import read_config, write_config
from research.interop.hf.rope_scaling import (
    ROPE_TYPES,
    from_hugging_face,
    to_hugging_face,
)
from research.interop.hf.safetensors import read_safetensors
from research.models.config import EncoderConfig, modern
from research.models.positions.methods import extend_config
from research.models.positions.query_scale import LogLength
from research.models.positions.rope import extended_rope
from research.models.positions.rope_scaling import LinearInterpolation, NTKAware
from research.models.positions.yarn import Yarn
from research.types import Tokens

ORIGINAL = {"original_max_position_embeddings": 4096}
SHORT, LONG = [1.0] * 8, [1, 1.5, 2, 3, 4, 5, 6, 8.0]
PARAMETERS = [
    {"rope_type": "linear", "factor": 4.0},
    {"rope_type": "dynamic", "factor": 2.0},
    {"rope_type": "yarn", "factor": 8.0, **ORIGINAL},
    {"rope_type": "yarn", "factor": None, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0},
    {"rope_type": "yarn", "factor": 8.0, "truncate": False, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "attention_factor": 1.1, **ORIGINAL},
    {"rope_type": "yarn", "factor": 8.0, "mscale": 0.7, "mscale_all_dim": 1.0}
    | {"beta_fast": 16.0, "beta_slow": 2.0, **ORIGINAL},
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    | {"high_freq_factor": 4.0, **ORIGINAL},
    {"rope_type": "longrope", "factor": 8.0, "long_factor": LONG}
    | {"short_factor": SHORT, **ORIGINAL},
    {"rope_type": "longrope", "long_factor": LONG, "short_factor": SHORT, **ORIGINAL},
    {"rope_type": "longrope", "long_factor": LONG, "short_factor": LONG}
    | {"attention_factor": 1.3, **ORIGINAL},
    {"rope_type": "proportional", "partial_rotary_factor": 0.25},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5, "factor": 2.0},
]
MAX_POSITIONS = 8192


def config(methods, theta=1e4):
    return EncoderConfig(
        60, 32, 2, 2, 64, max_len=16_384, position="rope", rope_theta=theta,
        position_methods=methods,
    )  # fmt: skip


def test_every_rope_type_is_read():
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    assert ROPE_TYPES.keys() == utils.ROPE_INIT_FUNCTIONS.keys()
    assert {p["rope_type"] for p in PARAMETERS} == ROPE_TYPES.keys()


@pytest.mark.parametrize("length", [100, 8_192, 10_000])
@pytest.mark.parametrize("theta", [1e4, 5e5])
@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: p["rope_type"])
def test_frequencies_are_those_of_transformers(parameters, theta, length):
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    theirs = LlamaConfig(
        hidden_size=32,
        num_attention_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={**parameters, "rope_theta": theta},
    )
    compute = utils.ROPE_INIT_FUNCTIONS[parameters["rope_type"]]
    expected, factor = compute(theirs, "cpu", seq_len=length)
    methods = from_hugging_face(parameters, MAX_POSITIONS)
    ours = extended_rope(config(methods, theta), length)
    # Their powers are float32; those of bases in the millions are off by more.
    np.testing.assert_allclose(ours.inv_freq, expected.numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours.attention_factor, factor, rtol=1e-12)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: p["rope_type"])
def test_hidden_states_are_those_of_a_tiny_llama(parameters, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(0)
    if "original_max_position_embeddings" in parameters:
        parameters = {**parameters, "original_max_position_embeddings": 32}
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 60}
    theirs = LlamaConfig(
        **sizes,
        **heads,
        max_position_embeddings=32 if parameters["rope_type"] == "dynamic" else 128,
        initializer_range=0.15,  # so that positions count
        rope_parameters={**parameters, "rope_theta": 1e4},
    )
    model = LlamaModel(theirs).eval()
    model.save_pretrained(tmp_path)
    cfg = read_config(json.loads((tmp_path / "config.json").read_text()))
    params = read_safetensors(tmp_path, cfg)
    for length in (24, 64):
        ids = torch.randint(60, (1, length))
        with torch.no_grad():
            expected = model(ids).last_hidden_state.numpy()
        tokens = Tokens(jnp.asarray(ids.numpy(), jnp.int32), *_whole(length))
        with jax.default_matmul_precision("highest"):
            ours = compiled.forward(params, tokens, cfg).hidden_states
            plain = compiled.forward(
                params, tokens, replace(cfg, position_methods=())
            ).hidden_states
        np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-5)
    assert np.abs(plain - ours).max() > 1e-2


def _whole(length):
    """Segment and pool of a row that one text fills."""
    return jnp.ones((1, length), jnp.int32), jnp.ones((1, length), bool)


@pytest.mark.parametrize("parameters", PARAMETERS, ids=lambda p: p["rope_type"])
def test_reading_back_what_is_written_gives_the_same(parameters):
    methods = from_hugging_face(parameters, MAX_POSITIONS)
    written = to_hugging_face(methods)
    assert from_hugging_face(written, MAX_POSITIONS) == methods
    given = {name: value for name, value in parameters.items() if value is not None}
    assert written.items() >= given.items()
    if hasattr(methods[0], "original") and written["rope_type"] != "dynamic":
        assert from_hugging_face(written, 999) == methods


def test_no_extension():
    assert from_hugging_face({"rope_theta": 1e4}, 512) == ()
    assert from_hugging_face({"rope_type": "default"}, 512) == ()
    assert to_hugging_face(()) == {"rope_type": "default"}


def test_the_type_of_old_files_and_what_is_not_written_out():
    old = from_hugging_face({"type": "linear", "factor": 2.0}, 512)
    assert old == (LinearInterpolation(scale=2.0),)
    assert to_hugging_face([Yarn(original=512, scale=4)]) == {
        "rope_type": "yarn",
        "factor": 4,
        "original_max_position_embeddings": 512,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,
    }


def test_what_cannot_be_read_or_written():
    with pytest.raises(ValueError, match="'axial'; known are default, linear, dynamic"):
        from_hugging_face({"rope_type": "axial"}, 512)
    with pytest.raises(ValueError, match="rope_type llama3 lacks factor"):
        from_hugging_face({"rope_type": "llama3"}, 512)
    with pytest.raises(ValueError, match="no rope_type for ntk_aware"):
        to_hugging_face([NTKAware(scale=2.0)])
    linear = LinearInterpolation(scale=2.0)
    with pytest.raises(ValueError, match="no rope_type for linear, log_length"):
        to_hugging_face([linear, LogLength(original=512)])
    with pytest.raises(ValueError, match="no rope_type for yarn"):
        to_hugging_face([Yarn(scale=2.0, original=512, paper=True)])


def test_a_model_that_was_extended_can_be_written():
    cfg = modern(vocab_size=60, width=32, depth=2, num_heads=4, mlp=48)
    for text, kind in (
        ("yarn(scale=8)", "yarn"),
        ("llama3(scale=8)", "llama3"),
        ("dynamic_ntk(scale=2)", "dynamic"),
    ):
        fields = write_config(extend_config(cfg, text))
        assert fields["rope_parameters"]["rope_type"] == kind

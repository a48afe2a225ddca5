"""The flags that choose a model: --extend and --max_length."""

import compiled
import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from launch import flags as options
from research.inference.model import EmbeddingModel
from research.inference.options import parse_layers, parse_window
from research.interop import load as pretrained
from research.models.config import bert, modern
from research.text.chunking import parse_chunking
from research.text.tokenization import train_tokenizer

SHAPE = {
    "vocab_size": 60,
    "width": 32,
    "depth": 1,
    "num_heads": 2,
    "mlp": 32,
    "max_len": 16,
}
MODELS = {
    "learned": bert(**SHAPE),
    "rope": modern(**SHAPE),
    "alibi": modern(**SHAPE, position="none", position_bias="alibi"),
}


@pytest.fixture(autouse=True)
def tiny_models(monkeypatch):
    flags.FLAGS(["test", "--model=learned"])
    tokenizer = train_tokenizer(["a b c d"], 60, "wordpiece")

    def load(name, merge, lm_head=False):
        params = compiled.init(jax.random.key(0), MODELS[name])
        prompts = {"query": "", "document": ""}
        return EmbeddingModel(
            params, MODELS[name], tokenizer, "mean", 12, prompts, True
        )

    monkeypatch.setattr(pretrained, "load", load)


@pytest.mark.parametrize(
    "model, extend, asked, reach, length",
    [
        ("learned", None, None, 16, 12),
        ("learned", "interpolated(scale=4)", None, 64, 64),
        ("learned", "interpolated(scale=4)", 40, 64, 40),
        ("rope", "temp_scale(tau=0.9)", None, 16, 12),
        ("rope", "log_length", 100, 100, 100),
        ("rope", "yarn(scale=2)", None, 32, 32),
        ("alibi", "extrapolate(length=50)", None, 50, 50),
    ],
)
def test_an_extended_model_embeds_texts_as_long_as_its_context(
    model, extend, asked, reach, length
):
    with flagsaver.flagsaver(model=model, extend=extend, max_length=asked):
        loaded = options.load_model()
        assert loaded.config.max_len == reach
        assert options.document_length(loaded, None) == length
        vectors = options.make_embedder(loaded)(["a b", "c d " * 60], "document")
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    "model, extend, asked, message",
    [
        (
            "rope",
            None,
            40,
            "max_length=40: rope embeds .* 16 .* --extend=yarn.scale=3.",
        ),
        ("alibi", None, 40, "for longer ones use --extend=extrapolate.length=40."),
        (
            "learned",
            "grouped(scale=2)",
            40,
            "grouped allows texts of 32 tokens, not of 40",
        ),
        ("learned", "log_length", 40, "position table allows .* 16 tokens, not of 40"),
        (
            "learned",
            "yarn(scale=4)",
            None,
            "yarn is for models whose positions are 'ro",
        ),
    ],
)
def test_what_cannot_be_extended_is_one_sentence(model, extend, asked, message):
    given = flagsaver.flagsaver(model=model, extend=extend, max_length=asked)
    with given, pytest.raises(ValueError, match=message):
        options.make_embedder(options.load_model())


READ = {"model": "rope", "max_length": None, "extend": None}


@pytest.mark.parametrize(
    "values, pool, has_pst",
    [
        ({}, "mean", None),
        ({"layers": "(0, 1)", "bidirectional": True}, "mean", None),
        ({"prompt": "plain"}, "mean", None),
        ({"prompt": "prompteol"}, "last", False),
        ({"prompt": "prompteol", "prepend": "(0, 1)"}, "last", True),
        ({"prompt": 'echo(pool="last")', "instruction": "Find it"}, "last", False),
        ({"prompt": "prompteol", "pool": "mean"}, "mean", False),
    ],
)
def test_the_flags_change_what_the_model_says(values, pool, has_pst):
    with flagsaver.flagsaver(**READ, **values):
        model = options.make_embedder(options.load_model()).model
    assert model.pool == pool
    assert (model.prompt is None) == (has_pst is None)
    if model.prompt is not None:
        template = model.prompt.templates["query"][0]
        assert any(piece.special == "<PST>" for piece in template) == has_pst


def test_layers_and_windows_are_python_numbers():
    assert parse_layers("-2") == (-2,) and parse_layers("(1, 12)") == (1, 12)
    assert parse_window("(1, 7)") == (1, 7)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"prompt": "ekko"}, "unknown prompt 'ekko'; known: plain, .*echo"),
        ({"prompt": "echo | prompteol"}, "holds 2 calls .echo, prompteol.; write one"),
        ({"prompt": "echo(loud=True)"}, "echo has no argument loud"),
        ({"prompt": "prompteol", "instruction": "x"}, "takes no instruction; .*echo"),
        ({"instruction": "x"}, "the instruction 'x' needs a prompt"),
        (
            {"prompt": "plain", "prepend": "(0, 1)"},
            "plain takes no prepend; prompteol, ",
        ),
        ({"prompt": "echo", "prepend": "(0, 1)"}, "echo takes no prepend"),
        (
            {"prompt": "ke", "prepend": "(0, 2)"},
            "blocks 0:2 needs 0 <= .* <= 1, ",
        ),
        (
            {"prompt": "ke", "prepend": "1"},
            "'1' is not a window of blocks; write .1, 7.",
        ),
        ({"pool": "best"}, "unknown pooling 'best'; known: mean, cls, last"),
        ({"pool": "moee(weight=2)"}, "reads the routers of a mixture of experts"),
        ({"pool": "lexicon(clusters=3)"}, "the model was not trained with it"),
        ({"layers": "2"}, "layer 2 is not in -2 ... 1 of this encoder"),
        ({"layers": "last"}, "'last' names no layers; write -2, or .1, 12."),
        ({"transform_texts": "a"}, "--transform_texts=a needs --transform"),
        ({"transform": "pca(3)", "transform_texts": "no.txt"}, "no.txt"),
        ({"transform": "int8"}, "int8 is fitted to texts; name them by --transform_te"),
        ({"transform": "int9"}, "unknown name 'int9'; known: .*int8"),
    ],
)
def test_what_the_flags_cannot_say_is_one_sentence(given, message):
    with (
        flagsaver.flagsaver(**READ, **given),
        pytest.raises((ValueError, FileNotFoundError), match=message),
    ):
        options.make_embedder(options.load_model())


@pytest.mark.parametrize("name", ["prompt", "instruction", "prepend", "layers"])
def test_chunks_go_with_plain_texts_only(name):
    given = {name: "-2" if name == "layers" else "x"}
    with (
        flagsaver.flagsaver(**READ, **given, chunk="late(4)"),
        pytest.raises(
            ValueError, match=rf"--{name}=.* does not go with --chunk=late\(4\)"
        ),
    ):
        options.make_embedder(options.load_model(), options.parse_single_chunk())


def test_a_transform_is_fitted_to_a_file(tmp_path):
    file = tmp_path / "texts.txt"
    words = ["a", "b", "c", "d", "a b", "b c", "c d", "d a", "a c", "b d"]
    file.write_text("\n".join(words))
    given = {"transform": "whitening(3) | float8()", "transform_texts": str(file)}
    with flagsaver.flagsaver(**READ, **given):
        embed = options.make_embedder(options.load_model(), normalize=False)
        x = embed(words, "document")
        unit = options.make_embedder(options.load_model())(words, "query")
        chunk = options.make_embedder(options.load_model(), parse_chunking("late(4)"))
        described = options.describe_embedder(embed)
    np.testing.assert_allclose(np.cov(x.T), np.eye(3), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-5)
    assert chunk.width == 3 and embed.model.quantizer.width == 3
    assert described["dim"] == 3
    assert described["transform"] == "whitening(3) | float8()"
    assert not {"transform", "transform_texts"} & set(described["options"])

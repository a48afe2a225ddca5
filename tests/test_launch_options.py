"""The flags that choose a model: --extend and --max_length."""

import jax
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

from launch import options
from research import pretrained
from research.data.text import train_tokenizer
from research.models import encoder
from research.models.config import bert, modern

SHAPE = {"vocab": 60, "width": 32, "depth": 1, "heads": 2, "mlp": 32, "max_len": 16}
MODELS = {
    "learned": bert(**SHAPE),
    "rope": modern(**SHAPE),
    "alibi": modern(**SHAPE, position="none", relative="alibi"),
}


@pytest.fixture(autouse=True)
def loaded(monkeypatch):
    flags.FLAGS(["test", "--model=learned"])
    tokenizer = train_tokenizer(["a b c d"], 60, "wordpiece")

    def load(name):
        params = encoder.init(jax.random.key(0), MODELS[name])
        prompts = {"query": "", "document": ""}
        return pretrained.Pretrained(
            params, MODELS[name], tokenizer, "mean", 12, prompts, True
        )

    monkeypatch.setattr(pretrained, "load", load)


@pytest.mark.parametrize(
    "model, extend, asked, reach, length",
    [
        ("learned", None, None, 16, 12),
        ("learned", "interpolated:scale=4", None, 64, 64),
        ("learned", "interpolated:scale=4", 40, 64, 40),
        ("rope", "temp_scale:tau=0.9", None, 16, 12),
        ("rope", "log_length", 100, 100, 100),
        ("rope", "yarn:scale=2", None, 32, 32),
        ("alibi", "reach:length=50", None, 50, 50),
    ],
)
def test_what_is_extended_reads_as_far_as_it_reaches(
    model, extend, asked, reach, length
):
    with flagsaver.flagsaver(model=model, extend=extend, max_length=asked):
        found = options.model()
        assert found.config.max_len == reach
        assert options.embedding(found)["max_length"] == length
        vectors = options.embedder(found, None)(["a b", "c d " * 60], "document")
    assert np.isfinite(vectors).all()


@pytest.mark.parametrize(
    "model, extend, asked, message",
    [
        ("rope", None, 40, "max_length=40: rope reads .* 16 .* --extend=yarn:scale=3"),
        ("alibi", None, 40, "longer ones with --extend=reach:length=40"),
        ("learned", "grouped:scale=2", 40, "reaches texts of 32 tokens, not of 40"),
        ("learned", "log_length", 40, "position table reaches .* 16 tokens, not of 40"),
        ("learned", "yarn:scale=4", None, "yarn is for models whose positions are 'ro"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(model, extend, asked, message):
    given = flagsaver.flagsaver(model=model, extend=extend, max_length=asked)
    with given, pytest.raises(ValueError, match=message):
        options.embedder(options.model(), None)

"""Runs on several sources, each with its loss and its share of the steps."""

import json

import jax
import numpy as np
import pytest
from test_train_loop import Killed, equal, numbers

from configs import mlm, separate
from research.config_sections import section
from research.data.sources import SOURCES
from research.experiment.build import build
from research.experiment.config_keys import replace_section
from research.experiment.workdir import prepare_run
from research.train import loop

WORDS = ("red", "green", "blue", "one", "two", "three", "cat", "dog", "bird", "tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A file of pairs and a file of scores, and the cache of their tokens."""
    folder = tmp_path_factory.mktemp("mixture")
    rng = np.random.default_rng(0)
    for name in ("pairs", "scored"):
        rows = [
            {"anchor": " ".join(texts[:5]), "positive": " ".join(texts[5:])}
            for texts in rng.choice(WORDS, (32, 10)).tolist()
        ]
        if name == "scored":
            rows = [row | {"score": i / 32} for i, row in enumerate(rows)]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def mixture(folder, steps=4, loss="cosent(scale=10)"):
    config = separate.get_config("tiny")
    config.encoder.depth, config.encoder.dropout = 2, 0.0
    config.steps, config.evals, config.save_every = steps, {}, 2
    config.data = {
        name: section(SOURCES, "files", path=f"{folder}/{name}.jsonl", loss=text)
        for name, text in (("pairs", ""), ("scored", loss))
    }
    return config


def losses(workdir):
    rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in r.items() if k.startswith("loss")} for r in rows]


def test_every_batch_has_the_loss_and_the_share_of_its_source(folder):
    config = mixture(folder, steps=100)
    config.data.scored.weight = 3.0
    experiment = build(config, cache=folder / "tokens")
    names = [experiment.batches.source_name(step) for step in range(100)]
    assert names.count("scored") == 75
    for step in range(4):
        name = experiment.batches(step).labels.loss
        assert name == {"pairs": None, "scored": "cosent(scale=10)"}[names[step]]
    notes = "\n".join(experiment.data_notes)
    assert "data 'pairs': 25.0% of the steps; the loss is that of the config" in notes
    assert "75.0% of the steps; the loss is cosent(scale=10)" in notes
    assert "cosent learns from its scores" in notes


def test_what_a_loss_cannot_learn_from_is_one_sentence(folder):
    config = mixture(folder, loss="soft(scale=1)")
    with pytest.raises(ValueError, match="data 'scored': loss: unknown name 'soft'"):
        build(config, cache=folder / "tokens")
    config.data.scored.loss = ""
    config.data.pairs.loss = "cosent()"
    message = "data 'pairs': loss cosent: this loss needs a score"
    with pytest.raises(ValueError, match=message):
        build(config, cache=folder / "tokens")
    config = mlm.get_config("tiny")
    config.data.pairs.loss = "cosent()"
    message = "data 'pairs' has a loss of its own, but mlm trains on rows of text"
    with pytest.raises(ValueError, match=message):
        build(config, cache=folder / "tokens")


def test_a_resumed_mixture_is_bit_equal_and_as_on_eight_devices(
    folder, tmp_path, monkeypatch
):
    cache = folder / "tokens"
    config = mixture(folder)
    replace_section(config, "averaging", "ema(decay=0.9)")
    config.log_every = 1
    experiment = prepare_run(config, tmp_path / "whole", cache=cache)
    whole = loop.train(experiment, tmp_path / "whole")
    logged = losses(tmp_path / "whole")
    assert {frozenset(row) - {"loss"} for row in logged} == {
        frozenset({"loss/pairs"}),
        frozenset({"loss/scored"}),
    }
    # The run dies before its fourth batch, and goes on from the second step
    experiment = prepare_run(config, tmp_path / "cut", cache=cache)
    batches = experiment.batches

    class Dying:
        source_name = batches.source_name

        def __call__(self, step):
            if step == 3:
                raise Killed
            return batches(step)

    with pytest.raises(Killed):
        loop.train(experiment._replace(batches=Dying()), tmp_path / "cut")
    result = loop.train(experiment, tmp_path / "cut")
    equal(result.state, whole.state)
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")
    # The same losses on one device
    config.mesh.data = 1
    parts = [jax.devices()[0]]
    single = build(config, cache=cache, devices=parts, tokenizer=experiment.tokenizer)
    loop.train(single, tmp_path / "one")
    for ours, theirs in zip(losses(tmp_path / "one"), logged, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)

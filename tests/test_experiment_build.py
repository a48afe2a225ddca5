"""Runs with a longer context, and with evaluations of several sizes."""

import chex
import jax
import numpy as np
import pytest

from configs import mse2d, separate, tuned_positions
from configs.common import start_from
from research.config_sections import build, format_call, section
from research.eval.evaluators import EVALS
from research.experiment.initialization import ENCODERS
from research.experiment.workdir import prepare_run
from research.inference.embedder import Embedder
from research.interop import load
from research.interop.sentence_transformers.write import export
from research.text.prompts import PROMPTS
from research.train import loop
from research.train.experiment import abstract_state, initial_state

TABLE = 64  # rows of the position table of common.tiny's encoder
SHAPE = {
    "vocab_size": 512,
    "width": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp": 48,
    "max_len": 64,
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def base(tmp_path_factory, cache):
    """The workdir of a model with learned positions."""
    workdir = tmp_path_factory.mktemp("runs") / "base"
    config = separate.get_config("tiny")
    config.steps, config.evals = 1, {}
    config.encoder.depth = 2
    loop.train(prepare_run(config, workdir, cache=cache), workdir)
    return workdir


def embedder(model):
    return Embedder(model)


def test_evaluations_of_a_run_score_its_sizes(tmp_path, cache):
    config = mse2d.get_config("tiny")
    config.steps, config.encoder.depth, config.eval_sizes = 1, 2, ((1, 16), (2, 24))
    result = loop.train(prepare_run(config, tmp_path, cache=cache), tmp_path)
    scores = result.evals["pydocs"]
    evaluator = build(EVALS, config.evals.pydocs)
    model = load.load(str(tmp_path))
    for depth, dim in ((1, 16), (2, 24)):
        embed = Embedder(model, depth=depth, dim=dim)
        assert scores[f"{depth}x{dim}"] == evaluator(embed)["main_score"]
    assert scores["main_score"] == evaluator(Embedder(model))["main_score"]


@pytest.mark.parametrize("start", ["interpolated", "recurrent"])
def test_only_new_positions_are_trained(start, base, tmp_path, cache):
    config = tuned_positions.get_config(f"tiny,start={start},scale=4")
    start_from(config, str(base))
    config.evals = {}
    parts = prepare_run(config, tmp_path, cache=cache)
    first = initial_state(parts, abstract_state(parts, parts.mesh))
    before, after = (
        jax.device_get(state.params["encoder"])
        for state in (first, loop.train(parts, tmp_path).state)
    )
    old, new = (x["embed"].pop("position")["embedding"] for x in (before, after))
    chex.assert_trees_all_equal(before, after)
    kept = slice(0, None, 4) if start == "interpolated" else slice(0, TABLE)
    changed = (old != new).any(1)
    assert new.shape == (4 * TABLE, 48) and changed.sum() > TABLE
    assert not changed[kept].any()
    loaded, source = load.load(str(tmp_path)), load.load(str(base))
    assert loaded.max_length == loaded.config.max_len == 4 * TABLE
    assert loaded.config.random_offset == 0
    np.testing.assert_array_equal(
        *(
            embedder(model)(["what a model did before"], "query")
            for model in (loaded, source)
        )
    )


@pytest.mark.parametrize(
    "name, arguments, reach",
    [("e2", {"largest": 4}, 32), ("clex", {"max_factor": 3, "original": 64}, 192)],
)
def test_methods_of_training_are_trained(name, arguments, reach, tmp_path, cache):
    config = separate.get_config("tiny")
    config.encoder = section(ENCODERS, "modern", **SHAPE)
    config.position_methods = format_call({"name": name, **arguments})
    config.evals, config.steps = {}, 3
    config.optimizer.learning_rate = 1e-2
    result = loop.train(prepare_run(config, tmp_path, cache=cache), tmp_path)
    loaded = load.load(str(tmp_path))
    assert loaded.max_length == reach
    assert [method.name for method in loaded.config.position_methods] == [name]
    assert np.isfinite(embedder(loaded)(["a text " * 100], "query")).all()
    if name == "clex":
        assert result.state.params["encoder"]["clex"]["down"].any()
        assert loaded.params["clex"]["down"].any()


def test_what_does_not_fit_the_positions_is_one_sentence(tmp_path, cache):
    config = separate.get_config("tiny")
    config.position_methods = "linear(scale=2.0)"
    with pytest.raises(ValueError, match="linear is for .* 'rope'; .* 'learned'"):
        prepare_run(config, tmp_path, cache=cache)
    config.position_methods = "grouped(scale=2) | grouped(scale=2)"
    with pytest.raises(ValueError, match="grouped extends this model already"):
        prepare_run(config, tmp_path / "other", cache=cache)


def test_a_method_is_trained_and_remembered(tmp_path, cache):
    config = separate.get_config("tiny")
    config.prompt = section(PROMPTS, "echo", instruction="Find")
    config.encoder.max_len = config.max_length = 64
    config.encoder.depth = 2
    config.evals, config.steps = {}, 1
    parts = prepare_run(config, tmp_path, cache=cache)
    tokens = parts.batches(0).tokens
    assert (tokens.pooling_mask != (tokens.segment_ids > 0)).any()
    state = loop.train(parts, tmp_path).state
    loaded = load.load(str(tmp_path))
    assert loaded.prompt == PROMPTS["echo"](instruction="Find")
    found = embedder(loaded)(["a text"], "query")
    trained = parts.make_embedder(state.params, {})(["a text"], "query")
    np.testing.assert_allclose(found, trained, atol=1e-6)
    without = embedder(loaded._replace(prompt=None))(["a text"], "query")
    assert abs(found - without).max() > 1e-3
    with pytest.raises(ValueError, match="texts into templates, which sentence-tr"):
        export(loaded, tmp_path / "exported")


def test_a_method_pools_as_the_config_says(tmp_path, cache):
    config = separate.get_config("tiny")
    config.prompt = section(PROMPTS, "prompteol")
    message = "prompteol pools by 'last' and the config by 'mean': set pool.name=last"
    with pytest.raises(ValueError, match=message):
        prepare_run(config, tmp_path, cache=cache)
    config.prompt.name = "prompt"
    with pytest.raises(ValueError, match="unknown name 'prompt'; known: "):
        prepare_run(config, tmp_path / "other", cache=cache)

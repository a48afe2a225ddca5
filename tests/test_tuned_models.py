"""Runs with adapters: trained, resumed, loaded, exported."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import lora_llm
from research.analysis import dry_run
from research.experiment.workdir import prepare_run
from research.inference.embedder import Embedder
from research.interop import load
from research.interop.peft import WEIGHTS, export_adapter
from research.interop.sentence_transformers.write import export
from research.models import lora
from research.train import loop

pytestmark = pytest.mark.usefixtures("one_device")
TEXTS = ["parse a date", "open the file and read its lines", "sum of squares"]


def recipe(**tuning):
    config = lora_llm.get_config("tiny,rank=2")
    config.steps, config.optimizer.learning_rate = 2, 1e-2
    config.encoder.depth, config.evals = 2, {}
    config.tuning.update(tuning)
    return config


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


def trained(workdir, cache, **tuning):
    parts = prepare_run(recipe(**tuning), workdir, cache=cache)
    return parts, jax.device_get(loop.train(parts, workdir).state)


@pytest.fixture(scope="module")
def single(tmp_path_factory, cache):
    workdir = tmp_path_factory.mktemp("single")
    return workdir, *trained(workdir, cache)


def embedder(model):
    return Embedder(model)


def test_one_adapter_loads_merged_and_computes_the_same(single):
    workdir, parts, state = single
    model = load.load(str(workdir))
    beside = load.load(str(workdir), merge=False)
    assert not lora.num_adapters(model.params) and model.adapters == ()
    assert lora.num_adapters(beside.params) == 1 and beside.adapters == ("default",)
    expected = parts.make_embedder(state.params, state.frozen)(TEXTS, "query")
    for loaded in (model, beside):
        got = embedder(loaded)(TEXTS, "query")
        np.testing.assert_allclose(got, expected, atol=1e-6)
    base = beside._replace(params=lora.remove_adapters(beside.params), adapters=())
    assert np.abs(embedder(base)(TEXTS, "query") - expected).max() > 1e-4


def test_adapters_follow_the_role_of_a_text(tmp_path, cache):
    names = ("query", "document")
    parts, state = trained(tmp_path / "run", cache, adapters=names)
    batch = parts.batches(0)
    assert set(np.unique(batch.tokens.adapter_ids)) == {-1, 0, 1}
    assert (batch.tokens.adapter_ids[batch.tokens.segment_ids == 0] == -1).all()
    model = load.load_adapted(str(tmp_path / "run"))
    assert model.adapters == names
    embed = parts.make_embedder(state.params, state.frozen)
    for role in names:
        alone = embedder(load.load_adapted(str(tmp_path / "run"), role))
        for several in (embed, embedder(model)):
            got = several(TEXTS, role)
            np.testing.assert_allclose(got, alone(TEXTS, role), atol=1e-6)
    assert (embed(TEXTS, "query") != embed(TEXTS, "document")).any()
    with pytest.raises(ValueError, match="no adapter 'sts'; it has query, document"):
        load.load_adapted(str(tmp_path / "run"), "sts")
    with pytest.raises(ValueError, match="must be named; it has query, document"):
        export(model, tmp_path / "out")


def test_adapters_follow_the_source_of_a_text(tmp_path, cache):
    config = recipe(adapters=("other", "pairs"))
    batch = prepare_run(config, tmp_path / "a", cache=cache).batches(0)
    assert set(np.unique(batch.tokens.adapter_ids)) == {-1, 1}
    config = recipe(adapters=("other", "query"))
    with pytest.raises(ValueError, match="serve neither the data 'pairs' nor the"):
        prepare_run(config, tmp_path / "b", cache=cache)


def test_an_export_is_the_merged_model_and_an_adapter_its_own(single, tmp_path):
    workdir = single[0]
    beside = load.load(str(workdir), merge=False)
    export(beside, tmp_path / "whole")
    expected = embedder(load.load(str(workdir)))(TEXTS, "query")
    got = embedder(load.load(str(tmp_path / "whole")))(TEXTS, "query")
    np.testing.assert_allclose(got, expected, atol=1e-6)
    report = export_adapter(beside, tmp_path / "adapter")
    assert report["rank"] == 2 and report["adapter"] == "default"
    tensors = load_file(tmp_path / "adapter" / WEIGHTS)
    assert report["parameters"] == sum(x.size for x in tensors.values())
    # The base of its own, and the adapter over it.
    base = beside._replace(params=lora.remove_adapters(beside.params), adapters=())
    export(base, tmp_path / "base")
    model = load.load_adapted(str(tmp_path / "base"), str(tmp_path / "adapter"))
    np.testing.assert_allclose(embedder(model)(TEXTS, "query"), expected, atol=1e-6)


def test_a_dry_run_lists_what_is_frozen(single):
    report = dry_run.dry_run(single[1])
    sizes = report["state_mebibytes_per_device"]
    assert sizes["moments"] == pytest.approx(2 * sizes["trained"], rel=1e-2)
    assert report["frozen_parameters"] > report["parameters"]
    # Kernels and tables are bfloat16.
    assert sizes["frozen"] < 2.2 * report["frozen_parameters"] / 2**20

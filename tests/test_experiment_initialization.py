"""Pre-training, and what runs start from afterwards."""

import dataclasses
import json

import chex
import jax
import numpy as np
import pytest
from tiny_models import make_model

from configs import learned_poolings, mlm, separate, simcse_sup, smae, starbucks_sts
from configs.common import start_from
from research.config_sections import section
from research.data.sources import Source
from research.experiment.initialization import (
    combine_prompts,
    inherit_prompts,
    load_initialization,
)
from research.experiment.workdir import prepare_run
from research.inference.embedder import Embedder
from research.interop import load
from research.interop.hf.families import write_config
from research.interop.hf.safetensors import write_safetensors
from research.interop.sentence_transformers.write import export
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import LOSSES, build_loss
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.registry import OBJECTIVES
from research.text.prompts import template
from research.train import loop
from research.train.experiment import abstract_state, initial_state
from research.types import TokenizerInfo

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


def shortened(config):
    config.evals, config.steps = {}, 1
    config.objective.pairs = ((1, 8), (2, 48))
    return config


@pytest.fixture(scope="module")
def before(tmp_path_factory, cache):
    """The workdir of a pre-training."""
    workdir = tmp_path_factory.mktemp("runs") / "before"
    config = shortened(smae.get_config("tiny"))
    config.encoder.depth = 2
    loop.train(prepare_run(config, workdir, cache=cache), workdir)
    return workdir


def test_a_pooling_into_the_vocabulary_takes_the_head_too(before, tmp_path, cache):
    config = learned_poolings.get_config(f"tiny,pool=dupmae,model={before}")
    config.evals = {}
    parts = prepare_run(config, tmp_path, cache=cache)
    assert parts.note.startswith(f"{before}: its encoder and head are kept, decoder (")
    assert parts.note.endswith(" parameters) dropped") and "head (" not in parts.note
    head = load.load(str(before)).head
    found = first_params(parts)["encoder"]["pooling"]["head"]
    chex.assert_trees_all_equal(found, head)


def test_objectives_of_language_models_start_with_an_untied_output_layer(tmp_path, key):
    model = make_model("modern")
    cfg = dataclasses.replace(model.config, causal=True)
    kernel = np.ones((cfg.vocab_size, cfg.width), np.float32)
    params = {**model.params, "lm_head": {"kernel": kernel}}
    write_safetensors(tmp_path, params, cfg)
    fields = write_config(cfg, lm_head=True)
    (tmp_path / "config.json").write_text(json.dumps(fields))
    model.tokenizer.save(str(tmp_path / "tokenizer.json"))
    cfg = dataclasses.replace(load.load(str(tmp_path)).config, causal=False)
    start = load_initialization(str(tmp_path), cfg, model.tokenizer).params
    chex.assert_trees_all_equal(start, params)
    info = TokenizerInfo(cfg.vocab_size, 4, (0, 1, 2, 3, 4), np.arange(cfg.vocab_size))
    loss = SIZE_LOSSES["full_size"](build_loss({"name": "infonce"}))
    mean = BASIC_POOLINGS["mean"]
    for objective, has_output in (
        (OBJECTIVES["mntp"](cfg, info), True),
        (OBJECTIVES["gritlm"](cfg, mean, loss), True),
        (OBJECTIVES["contrastive"](cfg, mean, loss), False),
        (OBJECTIVES["mlm"](cfg, info), False),
    ):
        shapes = jax.eval_shape(objective.init, key, start)[0]["encoder"]
        assert ("lm_head" in shapes) == has_output


def test_a_kept_head_embeds_in_training_and_afterwards(tmp_path, cache):
    """Supervised SimCSE: tanh(W x + b) of the pooled states x, normalized."""
    config = simcse_sup.get_config("tiny")
    config.evals, config.steps = {}, 1
    parts = prepare_run(config, tmp_path, cache=cache)
    params = loop.train(parts, tmp_path).state.params
    texts = ["a word", "another text"]
    model = load.load(str(tmp_path))
    vectors = Embedder(model)(texts, "query")
    np.testing.assert_allclose(
        parts.make_embedder(params, {})(texts, "query"), vectors, atol=1e-6
    )
    pooled = Embedder(model._replace(dense=(), normalize=False))(texts, "query")
    head = jax.device_get(params["head"])
    expected = np.tanh(pooled @ head["kernel"] + head["bias"])
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert model.dropped == ()


def first_params(parts):
    state = initial_state(parts, abstract_state(parts, parts.mesh))
    return jax.device_get(state.params)


def test_fine_tuning_keeps_the_encoder_and_says_what_it_drops(
    before, tmp_path, cache, capsys
):
    source = load.load(str(before))
    assert (source.pool, source.dims) == ("cls", (48, 8))
    config = starbucks_sts.get_config(f"tiny,model={before}")
    config.evals, config.steps = {}, 1
    assert config.size_loss.pairs[-1] == (2, 48)
    parts = prepare_run(config, tmp_path, cache=cache)
    assert parts.note.startswith(f"{before}: its encoder is kept, decoder (")
    assert "parameters) and head (2,960 parameters) dropped" in parts.note
    first = first_params(parts)
    assert set(first) == {"encoder"}
    chex.assert_trees_all_equal(first["encoder"], source.params)
    loop.train(parts, tmp_path)
    assert parts.note in capsys.readouterr().err
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[0]) == {"step": 0, "note": parts.note}
    assert load.load(str(tmp_path)).dropped == ()


def test_a_decoder_begins_as_the_loaded_encoders_first_block(before, tmp_path, cache):
    config = shortened(smae.get_config("tiny"))
    start_from(config, str(before))
    params = first_params(prepare_run(config, tmp_path, cache=cache))
    layers = params["encoder"]["layers"]
    chex.assert_trees_all_equal(
        params["decoder"]["layers"], jax.tree.map(lambda x: x[:1], layers)
    )
    chex.assert_trees_all_equal(layers, load.load(str(before)).params["layers"])


def test_weights_need_the_tokens_that_they_were_trained_on(before, tmp_path, cache):
    config = mlm.get_config("tiny")
    start_from(config, str(before))
    config.tokenizer = mlm.get_config("tiny").tokenizer
    config.tokenizer.vocab = 400
    with pytest.raises(ValueError, match="the tokenizer is not that of .*before"):
        prepare_run(config, tmp_path, cache=cache)


def test_keys_are_those_of_the_objective(tmp_path):
    config = mlm.get_config("tiny")
    config.loss = section(LOSSES, "infonce")
    with pytest.raises(ValueError, match="unknown config key loss; the keys of mlm"):
        prepare_run(config, tmp_path)
    config.objective.name = "mml"
    with pytest.raises(ValueError, match="unknown objective 'mml'; known: contrastive"):
        prepare_run(config, tmp_path)


def test_prompts_of_the_model_are_kept_unless_the_config_says_otherwise(tmp_path):
    # An E5, whose prompts a run keeps
    prompts = {"query": "query: ", "document": "passage: ", "topic": "topic: "}
    model = make_model(prompts=prompts)
    export(model, tmp_path / "model")
    name, arguments = str(tmp_path / "model"), (model.config, model.tokenizer)
    start = load_initialization(name, *arguments)
    assert "its prompts (document 'passage: ', query 'query: ', topic" in start.note
    assert start.note.endswith("are kept")
    # Sources state both, one or none of the prompts
    own = {"query": "q: ", "document": ""}
    sources = {
        name: Source([], 0, 1.0, stated)
        for name, stated in {"both": own, "one": {"query": ""}, "none": {}}.items()
    }
    inherited = inherit_prompts(sources, start)
    roles = {"query": "query: ", "document": "passage: "}
    assert inherited["both"].prompts == own
    assert inherited["one"].prompts == {"query": "", "document": "passage: "}
    assert inherited["none"].prompts == roles
    # The trained model has the prompts that it was trained with
    alone = {"none": inherited["none"]}
    assert combine_prompts(alone, start) == prompts
    empty = {"query": "", "document": ""}
    assert combine_prompts(inherited, start) == empty | {"topic": "topic: "}
    assert combine_prompts(inherit_prompts({"none": sources["none"]}, None), None) == (
        empty
    )
    # Templates of the config replace the prompts
    start = load_initialization(name, *arguments, prompt=template(query="Q: {text}"))
    assert start.prompts == {}
    assert start.note.endswith("are replaced by the templates of the config")


def test_a_run_trains_with_the_prompts_of_its_model_and_writes_them(tmp_path, cache):
    model = make_model(prompts={"query": "old: ", "document": "why: "})
    export(model, tmp_path / "model")
    config = separate.get_config("tiny")
    start_from(config, str(tmp_path / "model"))
    config.evals = {}
    parts = prepare_run(config, tmp_path / "run", cache=cache)
    card = json.loads((tmp_path / "run" / "model.json").read_text())
    assert card["prompts"] == model.prompts
    assert card["special_tokens"]["pad_token"] == "[PAD]"
    # The first text, a query, and the second one, a document
    table = parts.batches.sources[0].table
    for text, prompt in enumerate(model.prompts.values()):
        tokens = table.token_ids[table.starts[text] : table.starts[text + 1]]
        expected = model.tokenizer.encode(prompt).ids[:-1]
        assert tokens[: len(expected)].tolist() == expected

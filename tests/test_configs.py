"""Every recipe's :tiny trains, is saved, and loads again."""

import importlib
import json
from pathlib import Path

import pytest
from absl import flags

from configs.common import parse_arg
from launch import train
from research.experiment.config_keys import config_keys
from research.experiment.workdir import prepare_run
from research.interop import load
from research.train import loop

ROOT = Path(__file__).parent.parent
RECIPES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "common", "replay")
)
# Recipes that train on eight devices here: a kind of parameters or of objective each.
SPLIT = (
    "cot_mae",
    "electra",
    "gritlm",
    "lora_llm",
    "readouts",
    "smae",
    "starbucks_sts",
)
HEADINGS = ("Source:", "Command:", "Variants:", "Cost:", "Expected:")


def config(name, arg="tiny"):
    return importlib.import_module(f"configs.{name}").get_config(arg)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_trains_two_steps_and_loads(name, tmp_path, cache, request):
    if name not in SPLIT:
        request.getfixturevalue("one_device")
    recipe = config(name)
    recipe.steps = recipe.save_every = recipe.log_every = 2
    parts = prepare_run(recipe, tmp_path, cache=cache)
    result = loop.train(parts, tmp_path)
    assert int(result.state.step) == 2
    assert result.evals["pydocs"]["main_score"] > 0
    model = load.load(str(tmp_path))
    assert model.pool.partition(":")[0] == recipe.pool.name
    assert model.config.depth == 6


@pytest.mark.parametrize("name", RECIPES)
def test_a_header_says_what_a_reader_needs(name):
    text = importlib.import_module(f"configs.{name}").__doc__
    for heading in HEADINGS:
        assert heading in text, f"configs/{name}.py has no line {heading}"


def test_a_run_replays_from_its_config(tmp_path, cache):
    recipe = config("starbucks_sts")
    prepare_run(recipe, tmp_path, cache=cache)
    replayed = config("replay", str(tmp_path / "config.json"))
    assert replayed.to_dict() == recipe.to_dict()
    replayed.loss.temperature = 0.1  # an override


@pytest.mark.parametrize("name", RECIPES)
def test_the_keys_are_those_of_the_objective(name):
    recipe = config(name)
    assert set(recipe) == set(config_keys(recipe.objective.name))


def test_a_workdir_keeps_its_config(tmp_path, cache):
    prepare_run(config("separate"), tmp_path, cache=cache)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["encoder"]["depth"] == 6
    other = config("separate")
    other.batch_size = 16
    with pytest.raises(ValueError, match="batch_size is 16 and was 8"):
        prepare_run(other, tmp_path, cache=cache)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_length": 65}, "max_length 65 is beyond the encoder's 64 positions"),
        ({"steps": 0}, "steps is 0; it should be at least 1"),
        ({"encoder.vocab_size": 100}, "tokens, the encoder's table only 100"),
        ({"mesh.data": 3}, "mesh .* does not fit 8 devices"),
        ({"objective.micro_batch": 3}, "batch_size 8 does not divide by micro_batch 3"),
        ({"data": {}}, "the config names no data"),
    ],
)
def test_a_config_that_does_not_fit_is_one_sentence(change, message, tmp_path, cache):
    recipe = config("separate")
    for name, value in change.items():
        with recipe.unlocked():
            *path, last = name.split(".")
            part = recipe
            for key in path:
                part = part[key]
            part[last] = value
    with pytest.raises(ValueError, match=message):
        prepare_run(recipe, tmp_path, cache=cache)


def test_variants_are_literals_of_their_defaults_types():
    defaults = {"tiny": False, "depth": 6, "dims": (32,), "rate": 0.1, "model": ""}
    variant = "tiny,depth=3,dims=(64,128),rate=1,model=package:a_b/c.d"
    assert parse_arg(variant, **defaults).to_dict() == {
        "tiny": True,
        "depth": 3,
        "dims": (64, 128),
        "rate": 1.0,
        "model": "package:a_b/c.d",
    }
    assert parse_arg("model='a,b',tiny=False", **defaults).model == "a,b"
    for variant, message in (
        ("deep=3", "no variant 'deep'; it has tiny, depth"),
        ("depth=three", "variant depth is 'three'; it takes a int, such as depth=6"),
        ("tiny=yes", "variant tiny is 'yes'; it takes a bool"),
        ("dims=64", "variant dims is '64'; it takes a tuple"),
        ("depth", "variant depth needs a value"),
    ):
        with pytest.raises(ValueError, match=message):
            parse_arg(variant, **defaults)


def test_a_section_is_replaced_by_a_call_on_the_command_line():
    """Every flag that follows it may change the new section."""
    command = ("launch.train", "--config=configs/separate.py:tiny", "--dry_run")
    section = "--config.loss=cosent(scale=30)"
    argv = [
        *command,
        section,
        "--config.evals.a=pydocs_retrieval()",
        "--config.steps=3",
    ]
    parser = flags.FLAGS["config"].parser
    try:
        kept = train.parse_section_flags(argv)
        config = flags.FLAGS["config"].parser.parse("configs/separate.py:tiny")
    finally:
        flags.FLAGS["config"].parser = parser
    assert kept == [*command, "--config.steps=3"]
    assert config.loss.to_dict() == {"name": "cosent", "scale": 30}
    assert set(config.evals) == {"a", "pydocs"} and config.is_locked

"""Every recipe's :tiny builds and traces; some train, are saved, and load again."""

import importlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from configs.common import make_base, parse_arg
from launch.recipes import load_recipe
from research.analysis.dry_run import abstract_batch
from research.config_sections import section
from research.data.sources import SOURCES
from research.experiment.build import build
from research.experiment.config_keys import (
    GROUP_TABLES,
    SECTION_TABLES,
    config_keys,
    replace_section,
)
from research.experiment.initialization import ENCODERS
from research.experiment.workdir import prepare_run
from research.inference.index.shard_files import write_shard
from research.interop import load
from research.models.config import CHOICES
from research.models.positions.methods import POSITION_METHODS
from research.train import loop
from research.train.experiment import abstract_state
from research.train.step import make_step

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
    "learned_poolings",
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
def test_tiny_builds_and_its_step_keeps_the_state(name, cache, one_device):
    """The update is traced and not compiled: its shapes must be those of the state."""
    recipe = config(name)
    assert set(recipe) == set(config_keys(recipe.objective.name))
    experiment = build(recipe, cache=cache)
    assert experiment.model_card["encoder"]["depth"] == 6
    state = abstract_state(experiment, experiment.mesh)
    batch = abstract_batch(experiment.batches(0), experiment.mesh)
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_step(experiment.objective, experiment.tx, shardings)
    new, metrics = jax.eval_shape(step, state, batch, jax.random.key(0))
    assert jax.tree.structure(new) == jax.tree.structure(state)
    shapes = [[x.shape for x in jax.tree.leaves(tree)] for tree in (new, state)]
    assert shapes[0] == shapes[1]
    assert {"loss", "grad_norm", "learning_rate"} <= set(metrics)
    assert all(value.shape == () for value in metrics.values())


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_trains_two_steps_and_loads(name, tmp_path, cache, request):
    if name not in SPLIT:
        request.getfixturevalue("one_device")
    recipe = config(name)
    recipe.steps = recipe.save_every = recipe.log_every = 2
    experiment = prepare_run(recipe, tmp_path, cache=cache)
    result = loop.train(experiment, tmp_path)
    assert int(result.state.step) == 2
    assert result.evals["pydocs"]["main_score"] > 0
    model = load.load(str(tmp_path))
    assert model.pool.partition("(")[0] == recipe.pool.name
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


def test_a_replayed_option_that_was_none_takes_values_of_its_type(tmp_path):
    recipe = make_base()
    recipe.encoder = section(ENCODERS, "pretrained", model="m")
    (tmp_path / "config.json").write_text(recipe.to_json())
    replayed = config("replay", str(tmp_path / "config.json")).lock()
    assert replayed.encoder.causal is None
    replayed.encoder.causal = True
    with pytest.raises(TypeError):
        replayed.encoder.causal = "yes"


@pytest.mark.parametrize(
    "text, message",
    [
        ("[]", "config.json holds a JSON list; it should hold a JSON object"),
        ("{", "config.json is not JSON: Expecting"),
        ('{"loss": 3}', "config.json: loss is no section"),
        ('{"evals": true}', "evals is no section: True is no object of names and"),
        ('{"evals": {"a": {"name": "nosuch"}}}', "evals is no section: unknown name"),
    ],
)
def test_a_file_that_is_no_config_is_named(text, message, tmp_path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        config("replay", str(tmp_path / "config.json"))


def test_a_workdir_with_a_checkpoint_keeps_what_changes_its_result(tmp_path, cache):
    prepare_run(config("separate"), tmp_path, cache=cache)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["encoder"]["depth"] == 6
    other = config("separate")
    other.batch_size = 16
    # Nothing is lost where no step was saved
    prepare_run(other, tmp_path, cache=cache)
    (tmp_path / "checkpoints" / "2").mkdir(parents=True)
    other.log_every, other.encoder.remat, other.evals = 1, "all", {}
    prepare_run(other, tmp_path, cache=cache)
    with pytest.raises(ValueError, match="batch_size is 8 and was 16"):
        prepare_run(config("separate"), tmp_path, cache=cache)
    (tmp_path / "data.json").write_text('{"pairs": "of other packages"}')
    with pytest.raises(ValueError, match="data 'pairs' has changed since"):
        prepare_run(other, tmp_path, cache=cache)


def test_data_may_move_while_a_run_goes_on(tmp_path, cache):
    rows = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(8)]
    content = "\n".join(map(json.dumps, rows))
    recipe, workdir = config("separate"), tmp_path / "run"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pairs.jsonl").write_text(content)
        path = str(tmp_path / folder / "pairs.jsonl")
        recipe.data = {"own": section(SOURCES, "files", path=path)}
        prepare_run(recipe, workdir, cache=cache)
        (workdir / "checkpoints" / "2").mkdir(parents=True, exist_ok=True)
    saved = json.loads((workdir / "config.json").read_text())
    assert saved["data"]["own"]["path"] == path
    (tmp_path / "b" / "pairs.jsonl").write_text(content.replace("q7", "q8"))
    with pytest.raises(ValueError, match="content of data 'own' has changed"):
        prepare_run(recipe, workdir, cache=cache)


def test_vectors_of_a_teacher_may_move_and_not_change(tmp_path, cache):
    rows = [{"query": f"q{i}", "positive": f"p{i}"} for i in range(8)]
    texts = [text for row in rows for text in row.values()]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe, workdir = config("separate"), tmp_path / "run"
    path = str(tmp_path / "pairs.jsonl")
    recipe.data = {"own": section(SOURCES, "files", path=path)}
    vectors = np.random.default_rng(0).normal(size=(16, 48)).astype(np.float32)
    for name in ("a", "b"):
        file = tmp_path / f"{name}.npy"
        write_shard(file, vectors, texts, texts)
        sides = f"queries='{file}', documents='{file}'"
        replace_section(recipe, "teacher", f"vectors({sides})")
        prepare_run(recipe, workdir, cache=cache)
        (workdir / "checkpoints" / "2").mkdir(parents=True, exist_ok=True)
    write_shard(file, vectors + 1, texts, texts)
    with pytest.raises(ValueError, match="content of data 'config.teacher' has chan"):
        prepare_run(recipe, workdir, cache=cache)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"max_length": 65}, "max_length 65 is beyond the encoder's 64 positions"),
        ({"steps": 0}, "steps is 0; it should be at least 1"),
        ({"save_every": -1}, "save_every is -1; it should be at least 0"),
        ({"keep": 0}, "keep is 0; it should be at least 1"),
        ({"patience": 2}, "patience is 2, but keep_best does not name the score"),
        (
            {"keep_best": "dev/main_score"},
            "the config's evaluations are pydocs; it should be pydocs/main_score",
        ),
        ({"keep_best": "pydocs/main_score"}, "eval_every is 0: set it to the number"),
        ({"seed": -1}, "seed is -1; it should be in 0 "),
        ({"seed": 2**32}, "seed is 4294967296; it should be in 0 "),
        ({"encoder.vocab_size": 100}, "tokens, the encoder's table only 100"),
        ({"batch_size": 12}, "batch_size 12 cannot be split evenly over 8 devices"),
        ({"mesh.data": 3}, "mesh .* does not fit 8 devices"),
        ({"data": {}}, "the config names no data"),
        ({"eval_sizes": ((7, 8),)}, r"eval_sizes: size \(7, 8\) is not in the model"),
        ({"eval_sizes": (7, 8)}, "eval_sizes is"),
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
    overrides = (
        "--config.loss=cosent(scale=30)",
        "--config.evals.a=pydocs_retrieval()",
        "--config.steps=3",
        "--config.loss.scale=40",
    )
    config = load_recipe("configs/separate.py:tiny", overrides)
    assert config.loss.to_dict() == {"name": "cosent", "scale": 40}
    assert config.steps == 3
    assert set(config.evals) == {"a", "pydocs"} and config.is_locked


@pytest.mark.parametrize(
    "recipe, override, message",
    [
        ("configs/nosuch.py", "--config.steps=3", "configs/nosuch.py: no such config"),
        ("configs/separate.py:tiny", "--config.stepz=3", "unknown config key.*stepz"),
        ("configs/separate.py:tiny", "--config.steps=x", "steps=x"),
        ("configs/separate.py:tiny", "--config.loss=nosuch()", "unknown name 'nosuch'"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_one_sentence(recipe, override, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe, [override])


# Arguments of the functions that cannot be called without any.
ARGUMENTS = {
    "matryoshka": "dims=(8, 48)",
    "two_dimensional": "pairs=((2, 8), (6, 48))",
    "starbucks_sts": "pairs=((2, 8), (6, 48))",
    "starbucks_retrieval": "pairs=((2, 8), (6, 48))",
    "mse2d_v1": "dims=(8, 48)",
    "mse2d_later": "dims=(8, 48)",
    "st5_adaptive": "dims=(8, 48)",
    "st6_adaptive": "",
    "ese": "dim=8",
    "smae": "pairs=((2, 8), (6, 48))",
    "spans": "kind='cot', min_length=16",
    "template": "query='{text}'",
    "lexicon": "clusters=8",
    "moee": "",
}
# Options that a tiny recipe builds with; other tables need files or other models.
BUILT = [
    (recipe, key, name)
    for recipe, key in (
        ("separate", "loss"),
        ("separate", "size_loss"),
        ("separate", "tuning"),
        ("separate", "optimizer"),
        ("mlm", "row_layout"),
    )
    for name in SECTION_TABLES[key]
]


@pytest.fixture(scope="module")
def tokenizer(cache):
    """The tokenizer of the tiny recipes, trained once."""
    return build(config("separate"), cache=cache).tokenizer


def with_section(recipe, key, name):
    """A tiny recipe with another function for a section, as a flag sets it."""
    new = config(recipe)
    replace_section(new, key, f"{name}({ARGUMENTS.get(name, '')})")
    return new


@pytest.mark.parametrize("recipe, key, name", BUILT)
def test_every_option_builds_by_a_flag(
    recipe, key, name, cache, tokenizer, one_device, tmp_path
):
    new = with_section(recipe, key, name)
    if key == "loss":
        # Scores for the losses that learn from them, hard negatives, a teacher
        texts = {"sentence1": "a", "sentence2": "b", "negative": "c"}
        by_document = name in ("teacher_kl", "margin_mse")
        scores = [[0.5, 0.1]] if by_document else [0, 1]
        rows = [
            json.dumps({**texts, "score": scores[i % len(scores)]}) for i in range(16)
        ]
        path = tmp_path / "pairs.jsonl"
        path.write_text("\n".join(rows))
        count = int("triplet" in name or by_document)
        texts, vectors = ["a", "b", "c"], np.eye(3, 48, dtype=np.float32)
        write_shard(tmp_path / "v.npy", vectors, texts, texts)
        file = str(tmp_path / "v.npy")
        call = f"vectors(queries='{file}', documents='{file}')"
        replace_section(new, "teacher", call)
        replace_section(new, "data.pairs", f"files(path='{path}', negatives={count})")
    if (key, name) == ("row_layout", "spans"):
        replace_section(new, "objective", "cot_mae()")
    if (key, name) == ("loss", "m3"):
        new.similarity = "m3"
        replace_section(new, "pool", "m3()")
        replace_section(new, "size_loss", "full_size()")
    assert new[key].name == name
    build(new, cache=cache, tokenizer=tokenizer)


@pytest.mark.parametrize("key", sorted(SECTION_TABLES | GROUP_TABLES))
def test_every_table_is_reached_by_a_flag(key):
    """Sections are made of the functions' signatures, data and models not read."""
    table = (SECTION_TABLES | GROUP_TABLES)[key]
    recipe = "mlm" if key == "row_layout" else "separate"
    for name in table:
        new = config(recipe)
        entry = f"{key}.new" if key in GROUP_TABLES else key
        try:
            replace_section(new, entry, f"{name}({ARGUMENTS.get(name, '')})")
        except ValueError as error:
            assert "needs a value for" in str(error), error
            continue
        section = new[key].new if key in GROUP_TABLES else new[key]
        assert section.name == name


@pytest.mark.parametrize("bias", CHOICES["position_bias"])
def test_every_position_bias_builds_by_a_flag(bias, cache, tokenizer, one_device):
    new = config("separate")
    sizes = "vocab_size=512, width=48, depth=2, num_heads=2, mlp=64, max_len=64"
    call = f"modern(position='none', position_bias='{bias}', {sizes})"
    replace_section(new, "encoder", call)
    experiment = build(new, cache=cache, tokenizer=tokenizer)
    assert experiment.model_card["encoder"]["position_bias"] == bias


def test_every_position_method_has_call_text():
    assert all(name.isidentifier() for name in POSITION_METHODS)


@pytest.mark.parametrize(
    "key, text, message",
    [
        ("loss", "cosent(scal=3)", "config.loss: cosent has no argument scal"),
        ("loss", "cosent(", "config.loss: 'cosent\\(' is no call"),
        ("loss", "cosent(20)", "cosent\\(20\\): write argument=value"),
        ("loss", "cosent(scale='x')", "cosent's scale is 'x'; it takes a number"),
        ("size_loss", "matryoshka()", "matryoshka needs a value for dims"),
        ("row_layout", "packed()", "this config has no key row_layout"),
        ("data", "pydocs() | pydocs()", "names pydocs twice"),
    ],
)
def test_a_wrong_section_is_one_sentence(key, text, message):
    with pytest.raises(ValueError, match=message):
        replace_section(config("separate"), key, text)

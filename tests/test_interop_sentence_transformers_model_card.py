"""What a model card says of a model and of the run that trained it."""

import json
import re

import pytest
from tiny_models import make_model

from research.interop.sentence_transformers.model_card import make_card
from research.interop.sentence_transformers.write import export

SIZES = {"depth": 3, "dim": 16, "parameters": 1_000}
CONFIG = {
    "steps": 128,
    "batch_size": 64,
    "max_length": 32,
    "encoder": {"name": "bert", "dtype": "bfloat16"},
    "objective": {"name": "contrastive"},
    "loss": {"name": "infonce", "temperature": 0.05, "symmetric": False},
    "size_loss": {"name": "matryoshka", "dims": [8, 16]},
    "data": {
        "mine": {"name": "files", "path": "/home/me/secret/own.jsonl", "weight": 2.0},
        "hub": {"name": "hub", "dataset": "org/pairs", "weight": 1.0},
    },
    "evals": {"dev": {"name": "examples", "data": "/own.jsonl", "part": "held_out"}},
}


def write_run(folder, cells=None, step=128):
    (folder / "evals").mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "versions.json").write_text('{"jax": "9.9"}')
    lines = [
        {"step": 0, "eval/dev/main_score": 1.0, "eval/dev/spearman": 50.1},
        {"step": 64, "loss": 1.5},
        {"step": 128, "eval/dev/main_score": 2.0, "eval/dev/spearman": 70.25},
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    if cells is not None:
        grid = {"task": "sts", "data": "test.tsv", "step": step, "cells": cells}
        (folder / "evals" / "grid.json").write_text(json.dumps(grid))
        (folder / "evals" / "grid.png").write_bytes(b"png")
    return folder


def examples(card):
    return re.search(r"```python\n(.*?)```", card.text, re.S)[1]


def test_models_with_two_prompts_show_the_method_of_each_role():
    model = make_model(prompts={"query": "why: ", "document": "", "topic": "on: "})
    card = make_card(model, SIZES, "me/mine")
    code = examples(card)
    assert 'SentenceTransformer("me/mine")' in code
    assert "model.encode_query(" in code and "model.encode_document(" in code
    assert 'prompt_name="topic"' in code
    assert "* query: `why: `" in card.text and "* document" not in card.text
    compile(code, "card", "exec")


@pytest.mark.parametrize("prompt", ["", "text: "])
def test_models_with_one_prompt_for_all_show_encode(prompt):
    model = make_model(prompts={"query": prompt, "document": prompt})
    code = examples(make_card(model, SIZES, "out"))
    assert "model.encode(" in code and "encode_query" not in code
    compile(code, "card", "exec")


def test_a_smaller_trained_width_is_shown():
    text = make_card(make_model(dims=(16, 8, 4)), SIZES, "out").text
    assert "trained at the widths 4, 8, 16." in text and "truncate_dim=8" in text
    assert "The first 4, 8 numbers of a vector are trained" in text
    assert "truncate_dim" not in make_card(make_model(), SIZES, "out").text


def test_the_training_is_described_without_folders_of_the_machine(tmp_path):
    model = make_model(base="/home/me/secret/nli", step=64)
    text = make_card(model, SIZES, "out", write_run(tmp_path)).text
    assert "* base model: nli\n" in text and "secret" not in text
    assert "* data `mine`: own.jsonl, weight 2\n" in text
    assert "* data `hub`: org/pairs, weight 1\n" in text
    assert "* loss: `infonce(temperature=0.05)`" in text
    assert "* steps: 64 of 128, each of 64 queries" in text
    assert "Trained with Embax" in text and "jax 9.9" in text
    # The papers of this loss and of these sizes, and no others
    papers = re.findall(r"eprint = {([\d.]+)}", text)
    assert papers == ["1908.10084", "1807.03748", "2205.13147"]


@pytest.mark.parametrize(
    ("base", "expected"),
    [("org/model", "org/model"), ("package:name", None), ("runs/nli", None)],
)
def test_only_a_hub_model_is_named_to_the_hub(base, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    card = make_card(make_model(base=base), SIZES, "out")
    assert card.data.to_dict().get("base_model") == expected
    assert f"* base model: {base.removeprefix('runs/')}" in card.text


def test_scores_of_the_run_and_of_every_size(tmp_path):
    cells = [
        {"depth": depth, "dim": dim, "main_score": 10 * depth + dim / 100}
        for depth in (1, 3)
        for dim in (8, 16)
    ]
    run = write_run(tmp_path, cells)
    text = make_card(make_model(step=128), SIZES, "out", run).text
    rows = [re.sub(r"\s+", " ", line) for line in text.splitlines()]
    assert "| dev/spearman | 50.10 (step 0) | 70.25 (step 128) |" in rows
    assert {"| depth | 8 | 16 |", "| 1 | 10.08 | 10.16 |"} <= set(rows)
    assert "| 3 | 30.08 | **30.16** |" in rows
    assert "at full size (`dev` is a held-out part of own.jsonl):" in text
    assert "of the task sts (test.tsv) after step 128, by depth" in text


def test_a_fetched_set_is_named_with_its_license(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = {"repo": "org/sts", "license": "cc-by-4.0", "sha256": {"a/b.jsonl": ""}}
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "fetched.json").write_text(json.dumps({"sts": entry}))
    source = {"name": "files", "path": "data/a/b.jsonl"}
    hub = {"name": "hub", "dataset": "org/pairs"}
    config = {"data": {"sts": source, "pairs": hub}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    card = make_card(make_model(), SIZES, "out", tmp_path)
    assert card.data.datasets == ["org/pairs", "org/sts"]
    assert "`sts`: b.jsonl of org/sts (license: cc-by-4.0), weight 1\n" in card.text
    # Another file beside it is not of the set
    source["path"] = "data/a/c.jsonl"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "org/sts" not in make_card(make_model(), SIZES, "out", tmp_path).text


def test_a_grid_of_another_step_is_not_shown(tmp_path):
    cells = [{"depth": 3, "dim": 16, "main_score": 1.0}]
    (tmp_path / "run").mkdir()
    run = write_run(tmp_path / "run", cells, step=64)
    export(make_model(step=128), tmp_path / "out", workdir=run)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "grid" not in card and "**1.00**" not in card
    assert not (tmp_path / "out" / "grid.png").exists()
    assert "**1.00**" in make_card(make_model(step=64), SIZES, "out", run).text


@pytest.mark.parametrize("cells", [[{"depth": 1}], [], 3])
def test_a_damaged_grid_is_named(cells, tmp_path):
    with pytest.raises(ValueError, match=r"grid\.json is not a grid of"):
        make_card(make_model(step=128), SIZES, "out", write_run(tmp_path, cells))


def test_pictures_of_the_run_come_with_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    run = write_run(tmp_path / "run", [{"depth": 3, "dim": 16, "main_score": 1.0}])
    export(make_model(step=128), tmp_path / "out", workdir=run)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "(grid.png)" in card and "curve.png" not in card
    assert (tmp_path / "out" / "grid.png").read_bytes() == b"png"

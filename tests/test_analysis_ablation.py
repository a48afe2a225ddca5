"""Ablations: which runs there are, and what becomes of their scores."""

import json
import re
import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import context_extension as configs_context_extension
from configs.ablations import context_extension
from research.analysis import ablation as ablations
from research.analysis import ablation_table
from research.config_sections import build
from research.experiment.initialization import ENCODERS
from research.models.positions.methods import extend_config
from research.text import chunking

TWO = ablations.Ablation(
    title="Two sizes",
    rows={"plain": "x.py:depth=2", "separate": "x.py:depth={depth}", "one": "y.py"},
    columns={"1 × 4": {"depth": 1, "dim": 4}, "2 × 8": {"depth": 2, "dim": 8}},
    seeds=(0, 1),
    evals={},
    paper={"one": (50.0, 60.0)},
)


def test_runs_are_distinct_recipes_and_seeds():
    found = {run.name: run for run in ablations.plan_runs(TWO)}
    names = ["plain", "separate-depth1", "one"]
    assert list(found) == [f"{name}-seed{seed}" for seed in (0, 1) for name in names]
    shared = found["plain-seed0"].cells
    assert shared == (
        ("plain", "1 × 4"),
        ("plain", "2 × 8"),
        ("separate", "2 × 8"),
    )
    assert found["separate-depth1-seed1"].config == "x.py:depth=1"


def scores():
    found = {}
    for run in ablations.plan_runs(TWO):
        columns = {column for _, column in run.cells}
        found[run.name] = dict.fromkeys(columns, 10.0 + 2 * run.seed)
    found["one-seed0"] = {"1 × 4": 1.0, "2 × 8": 2.0}
    found["one-seed1"] = "no such file"
    return found


def squeeze(text):
    """The text without the spaces that align a table's columns."""
    return re.sub(" +", " ", text)


def test_the_table_has_means_and_spreads_and_says_what_failed():
    records = ablation_table.summarize_scores(TWO, scores())
    cell = {(r["row"], r["column"]): r for r in records}
    plain = cell["plain", "1 × 4"]
    assert plain["mean"] == 11.0 and plain["runs"] == 2
    np.testing.assert_allclose(plain["spread"], np.std([10, 12], ddof=1))
    one = cell["one", "2 × 8"]
    assert (one["mean"], one["spread"], one["runs"], one["paper"]) == (2.0, None, 1, 60)
    text = squeeze(ablation_table.format_markdown(TWO, records))
    assert "| plain | 11.00 ± 1.41 | 11.00 ± 1.41 |" in text
    assert "| *paper: one* | 50.00 | 60.00 |" in text
    failed = {run.name: "out of memory" for run in ablations.plan_runs(TWO)}
    records = ablation_table.summarize_scores(TWO, failed)
    text = squeeze(ablation_table.format_markdown(TWO, records))
    assert "| one | failed | failed |" in text


def draw(monkeypatch, ablation, records, path):
    """The matplotlib Figure that is written to `path`."""
    pictures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda picture, *_, **__: pictures.append(picture)
    )
    ablation_table.plot_ablation(ablation, records, path)
    return pictures[0]


def test_the_files_are_written(tmp_path, monkeypatch):
    records = ablation_table.summarize_scores(TWO, scores())
    ablation_table.write_csv(records, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 7
    picture = draw(monkeypatch, TWO, records, tmp_path / "table.png")
    (axes,) = picture.axes
    labels = axes.get_legend_handles_labels()[1]
    assert labels == ["paper", "plain", "separate", "one"]
    plain = axes.containers[0].lines[0]
    assert list(plain.get_ydata()) == [11.0, 11.0]
    assert axes.get_ylabel() == "main score, %"


def test_a_finished_run_is_not_repeated_and_a_failed_one_stops_no_other(tmp_path):
    lines = []
    for run in ablations.plan_runs(TWO)[1:]:
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "scores.json").write_text('{"1 × 4": 1.0, "2 × 8": 2.0}')
    found = ablations.run_ablation(TWO, tmp_path, jobs=2, report=lines.append)
    assert "x.py" in found["plain-seed0"]  # the sentence: there is no such config
    assert found["one-seed1"] == {"1 × 4": 1.0, "2 × 8": 2.0}
    assert "one-seed1: done before" in lines


def test_what_others_start_from_can_be_scored_as_it_is(tmp_path, monkeypatch):
    both = ablations.Ablation(
        title="Started",
        rows={
            "before": {"recipe": "model={start}", "start": "first.py", "pool": "mean"},
            "after": {"recipe": "next.py:model={start}", "start": "first.py"},
        },
        columns={"task": {}},
        seeds=(0,),
        evals={},
    )
    trained, loaded = [], []
    monkeypatch.setattr(
        ablations, "_train", lambda _, run, workdir: trained.append(run.name)
    )
    monkeypatch.setattr(
        ablations, "_evaluate_cell", lambda a, model, name, *_: {name: 1.0}
    )
    monkeypatch.setattr(ablations.load, "load", loaded.append)
    ablations.run_ablation(both, tmp_path, jobs=1, report=lambda line: None)
    first = "before-seed0-start"
    assert set(trained) == {first, "after-seed0"}
    assert loaded == [str(tmp_path / first), str(tmp_path / "after-seed0")]


LONGER = ablations.Ablation(
    title="Longer",
    rows={
        "cut": "x.py",
        "linear": {"recipe": "x.py", "extend": "linear(scale={scale})"},
        "windows": {"recipe": "x.py", "chunk": "pcw(8)"},
        "other": "y.py",
    },
    columns={
        "task 8": {"max_length": 8, "scale": 1, "panel": "task"},
        "task 16": {"max_length": 16, "scale": 2, "panel": "task"},
        "other 8": {"max_length": 8, "scale": 1, "panel": "other"},
    },
    seeds=(0,),
    evals={"length": lambda embed: {"main_score": embed.length}},
)


def test_rows_of_a_recipe_share_its_run_and_keep_their_scores(tmp_path, monkeypatch):
    trained, evaluated = [], []

    def train(ablation, run, workdir):
        trained.append(run.name)
        if run.config == "y.py":
            raise ValueError("no such file")
        (workdir / run.name).mkdir(parents=True, exist_ok=True)

    def score(ablation, model, name, row, column):
        evaluated.append((row, column))
        if broken == (row, column):
            raise ValueError("linear reaches texts of 8 tokens")
        return {name: float(len(evaluated))}

    monkeypatch.setattr(ablations, "_train", train)
    monkeypatch.setattr(ablations, "_evaluate_cell", score)
    monkeypatch.setattr(ablations.load, "load", lambda name: name)
    broken = "linear", "task 16"
    said = []
    found = ablations.run_ablation(LONGER, tmp_path, jobs=1, report=said.append)
    assert trained == ["cut-seed0", "other-seed0"] and len(evaluated) == 9
    assert (
        found["cut-seed0"]["task 16 linear(scale=2)"]
        == "linear reaches texts of 8 tokens"
    )
    assert found["cut-seed0"]["task 16 pcw(8)"] == 8
    assert set(ablations.collect_failures(found)) == {
        "other-seed0",
        "cut-seed0: task 16 linear(scale=2)",
    }
    records = ablation_table.summarize_scores(LONGER, found)
    text = squeeze(ablation_table.format_markdown(LONGER, records))
    assert "| cut | 1.00 | 2.00 | 3.00 |" in text
    assert "| linear | 4.00 | failed | 6.00 |" in text
    broken = None
    again = ablations.run_ablation(LONGER, tmp_path, jobs=1, report=said.append)
    assert trained[2:] == ["other-seed0"] and evaluated[9:] == [("linear", "task 16")]
    assert again["cut-seed0"] == json.loads(
        (tmp_path / "cut-seed0" / "scores.json").read_text()
    )
    ablations.run_ablation(LONGER, tmp_path, jobs=1, report=said.append)
    assert len(evaluated) == 10 and "cut-seed0: done before" in said
    records = ablation_table.summarize_scores(LONGER, again)
    picture = draw(monkeypatch, LONGER, records, tmp_path / "table.png")
    assert [axes.get_title() for axes in picture.axes] == ["task", "other"]
    ticks = [label.get_text() for label in picture.axes[0].get_xticklabels()]
    assert ticks == ["8", "16"]


AFTER = ablations.Ablation(
    title="After",
    rows={
        "a": {"recipe": "x.py:model={start}", "start": "pre.py"},
        "b": {"recipe": "x.py:model={start},scratch", "start": "pre.py"},
    },
    columns={"one": {}, "two": {}},
    seeds=(0, 1),
    evals={},
)


def test_a_start_is_trained_once_and_its_workdir_goes_to_the_recipes(
    tmp_path, monkeypatch
):
    commands = []

    def run(command, stdout, stderr):
        commands.append([part for part in command if part.startswith("--config=")][0])
        stderr.write(b"no text" if "scratch" in commands[-1] else b"")
        done = types.SimpleNamespace(returncode=int("scratch" in commands[-1]))
        done.stdout = b'{"finished": true, "step": 1}\n'
        return done

    monkeypatch.setattr(ablations.subprocess, "run", run)
    monkeypatch.setattr(ablations, "_evaluate_cell", lambda *told: {told[2]: 1.0})
    monkeypatch.setattr(ablations.load, "load", lambda name: name)
    found = ablations.run_ablation(AFTER, tmp_path, jobs=2, report=lambda _: None)
    model = {seed: f"model={tmp_path}/a-seed{seed}-start" for seed in (0, 1)}
    assert sorted(commands) == sorted(
        f"--config={recipe}"
        for seed in (0, 1)
        for recipe in ("pre.py", f"x.py:{model[seed]}", f"x.py:{model[seed]},scratch")
    )
    assert found["a-seed1"] == {"one": 1.0, "two": 1.0}
    assert found["b-seed1"] == "no text"


@pytest.mark.parametrize("arg", ["", "tiny"])
def test_every_row_of_context_extension_reaches_its_columns(arg):
    config = context_extension.get_config(arg).to_dict()
    evals = config.pop("evals")
    pairs = {name: dict(config.pop(name)) for name in ("rows", "columns")}
    ablation = ablations.Ablation(**config, **pairs, evals=evals)
    assert [run.config for run in ablations.plan_runs(ablation)] == [
        f"configs/context_extension.py:{arg or 'steps=160'},positions={name}"
        for name in configs_context_extension.POSITIONS
    ]
    for row in ablation.rows:
        for column, fields in ablation.columns.items():
            line = ablations.fill_row(ablation, row, column)
            assert fields["eval"] in evals
            shape = configs_context_extension.get_config(line.recipe.partition(":")[2])
            cfg = build(ENCODERS, shape.encoder)
            assert cfg.max_len == shape.max_length == fields["original"]
            if line.extend:
                new = extend_config(cfg, line.extend)
                assert new.max_len >= fields["max_length"]
            if line.chunk:
                chunking.check_row_length(
                    chunking.parse_chunking(line.chunk), cfg.max_len
                )

"""Ablations: which runs there are, and what becomes of their scores."""

import re
import types

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs import context_extension as configs_context_extension
from configs.ablations import context_extension
from research.analysis import ablation as ablations
from research.analysis import (
    ablation_manifest,
    ablation_plot,
    ablation_runs,
    ablation_table,
)
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
    ablation_plot.plot_ablation(ablation, records, path)
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


def test_rows_of_one_model_with_other_transforms_are_other_evaluations():
    rows = {x: {"recipe": "model=m", "transform": x} for x in ("none", "pca(2) | int8")}
    ablation = ablations.Ablation("", rows, {"sts": {}}, (0,), {})
    names = [ablations.name_evaluation(ablation, row, "sts") for row in rows]
    assert names == ["sts transform=none", "sts transform=pca(2) | int8"]
    (planned,) = ablations.plan_runs(ablation)
    found = {planned.name: dict.fromkeys(names, 1.0)}
    records = ablation_table.summarize_scores(ablation, found)
    assert "| pca(2) \\| int8 |" in ablation_table.format_markdown(ablation, records)


def describe(recipe, overrides):
    return [recipe, *overrides]


def run(ablation, workdir, report=lambda line: None, jobs=1, **options):
    options = {"describe": describe} | options
    return ablation_runs.run_ablation(
        ablation, workdir, jobs=jobs, report=report, **options
    )


@pytest.fixture
def fakes(monkeypatch):
    """Runs that train and evaluate nothing; lists of what they were asked for."""
    trained, evaluated = [], []

    def train(command, stdout, stderr):
        (recipe,) = (part for part in command if part.startswith("--config="))
        trained.append(recipe.removeprefix("--config="))
        code = int("broken" in recipe)
        stderr.write(b"no text" * code)
        stdout = b'{"finished": true, "step": 1}\n'
        return types.SimpleNamespace(returncode=code, stdout=stdout)

    def score(ablation, model, name, row, column, cache):
        evaluated.append((row, column))
        return {name: float(len(evaluated))}

    monkeypatch.setattr(ablation_runs.subprocess, "run", train)
    monkeypatch.setattr(ablation_runs, "_evaluate_cell", score)
    monkeypatch.setattr(ablation_runs.load, "load", lambda name: name)
    return trained, evaluated


ONE = ablations.Ablation(
    title="One",
    rows={"a": "x.py", "b": "model=m"},
    columns={"full": {"depth": 2}},
    seeds=(0,),
    evals={"sts": None},
    eval_settings={"sts": "hash of the file"},
    overrides={"steps": 10},
)


def test_a_score_counts_while_all_that_it_depends_on_is_the_same(fakes, tmp_path):
    trained, evaluated = fakes
    lines = []
    (tmp_path / "b-seed0").mkdir()
    (tmp_path / "b-seed0" / "scores.json").write_text('{"full": 12.5}')
    first = run(ONE, tmp_path, lines.append)
    assert trained == ["x.py"] and evaluated == [("a", "full"), ("b", "full")]
    assert run(ONE, tmp_path, lines.append) == first and len(evaluated) == 2
    assert "a-seed0: done before" in lines
    # Another file, other fields of the column, another model: new scores
    for change in (
        {"eval_settings": {"sts": "hash of another file"}},
        {"columns": {"full": {"depth": 1}}},
        {"rows": {"a": "x.py", "b": "model=m", "c": {"recipe": "x.py", "pool": "cls"}}},
    ):
        before = len(evaluated)
        changed = run(ONE._replace(**change), tmp_path)
        assert len(evaluated) > before and changed != first
    changed = run(ONE, tmp_path, describe=lambda *told: [describe(*told), "new files"])
    assert changed["b-seed0"]["full"] == len(evaluated)
    # A training is not made again, and not taken for another one
    assert "holds a run of other settings or data; delete it" in changed["a-seed0"]
    longer = run(ONE._replace(overrides={"steps": 999}), tmp_path)
    assert "a-seed0 holds a run of other settings" in longer["a-seed0"]
    assert trained == ["x.py"]


def test_a_run_that_fails_stops_no_other(fakes, tmp_path):
    def describe_known(recipe, overrides):
        if recipe == "x.py:depth=2":
            raise FileNotFoundError(f"{recipe}: no such config file")
        return [recipe]

    found = run(TWO, tmp_path, jobs=2, describe=describe_known)
    assert found["plain-seed0"] == "x.py:depth=2: no such config file"
    assert set(found["one-seed1"]) == {"1 × 4", "2 × 8"}


def test_what_others_start_from_can_be_scored_as_it_is(fakes, tmp_path, monkeypatch):
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
    loaded = []
    monkeypatch.setattr(ablation_runs.load, "load", loaded.append)
    run(both, tmp_path)
    first = tmp_path / "before-seed0-start"
    assert fakes[0] == ["first.py", f"next.py:model={first}"]
    assert loaded == [str(first), str(tmp_path / "after-seed0")]


LONGER = ablations.Ablation(
    title="Longer",
    rows={
        "cut": "x.py",
        "linear": {"recipe": "x.py", "extend": "linear(scale={scale})"},
        "windows": {"recipe": "x.py", "chunk": "pcw(8)"},
        "other": "broken.py",
    },
    columns={
        "task 8": {"max_length": 8, "scale": 1, "panel": "task"},
        "task 16": {"max_length": 16, "scale": 2, "panel": "task"},
        "other 8": {"max_length": 8, "scale": 1, "panel": "other"},
    },
    seeds=(0,),
    evals={"length": lambda embed: {"main_score": embed.length}},
)


def test_rows_of_a_recipe_share_its_run_and_keep_their_scores(
    fakes, tmp_path, monkeypatch
):
    trained, evaluated = fakes
    score = ablation_runs._evaluate_cell

    def score_some(ablation, model, name, row, column, cache):
        if broken == (row, column):
            raise ValueError("linear reaches texts of 8 tokens")
        return score(ablation, model, name, row, column, cache)

    monkeypatch.setattr(ablation_runs, "_evaluate_cell", score_some)
    broken = "linear", "task 16"
    lines = []
    found = run(LONGER, tmp_path, lines.append)
    assert trained == ["x.py", "broken.py"] and len(evaluated) == 8
    assert (
        found["cut-seed0"]["task 16 linear(scale=2)"]
        == "linear reaches texts of 8 tokens"
    )
    assert found["cut-seed0"]["task 16 pcw(8)"] == 7
    assert set(ablations.collect_failures(found)) == {
        "other-seed0",
        "cut-seed0: task 16 linear(scale=2)",
    }
    records = ablation_table.summarize_scores(LONGER, found)
    text = squeeze(ablation_table.format_markdown(LONGER, records))
    assert "| cut | 1.00 | 2.00 | 3.00 |" in text
    assert "| linear | 4.00 | failed | 5.00 |" in text
    broken = None
    again = run(LONGER, tmp_path, lines.append)
    assert trained[2:] == ["broken.py"] and evaluated[8:] == [("linear", "task 16")]
    run(LONGER, tmp_path, lines.append)
    assert len(evaluated) == 9 and "cut-seed0: done before" in lines
    records = ablation_table.summarize_scores(LONGER, again)
    picture = draw(monkeypatch, LONGER, records, tmp_path / "table.png")
    assert [axes.get_title() for axes in picture.axes] == ["task", "other"]
    ticks = [label.get_text() for label in picture.axes[0].get_xticklabels()]
    assert ticks == ["8", "16"]


AFTER = ablations.Ablation(
    title="After",
    rows={
        "a": {"recipe": "x.py:model={start}", "start": "pre.py"},
        "b": {"recipe": "x.py:model={start},broken", "start": "pre.py"},
    },
    columns={"one": {}, "two": {}},
    seeds=(0, 1),
    evals={},
)


def test_a_start_is_trained_once_and_its_workdir_goes_to_the_recipes(fakes, tmp_path):
    found = run(AFTER, tmp_path, jobs=2)
    model = {seed: f"model={tmp_path}/a-seed{seed}-start" for seed in (0, 1)}
    assert sorted(fakes[0]) == sorted(
        recipe
        for seed in (0, 1)
        for recipe in ("pre.py", f"x.py:{model[seed]}", f"x.py:{model[seed]},broken")
    )
    assert set(found["a-seed1"]) == {"one", "two"}
    assert found["b-seed1"] == "no text"


SOUP = ablations.Ablation(
    title="Soup",
    rows={
        "soup": {"recipe": "merge=average()", "members": "a | b"},
        "a": "x.py",
        "b": "model=m",
    },
    columns={"task": {}},
    seeds=(0, 1),
    evals={},
)


def test_rows_are_merged_once_their_members_are_trained(fakes, tmp_path, monkeypatch):
    merged, loaded = [], []

    def merge(names, method):
        merged.append((*names, method))
        return "soup", {}

    monkeypatch.setattr(ablation_runs, "merge_models", merge)
    monkeypatch.setattr(ablation_runs, "export", lambda model, folder: None)
    monkeypatch.setattr(ablation_runs.load, "load", loaded.append)
    found = run(SOUP, tmp_path, jobs=2)
    assert list(found)[:3] == ["a-seed0", "b-seed0", "soup-seed0"]
    assert fakes[0] == ["x.py"] * 2  # each member once per seed
    folders = [str(tmp_path / f"a-seed{seed}") for seed in (0, 1)]
    assert sorted(merged) == [(folder, "m", "average()") for folder in folders]
    assert str(tmp_path / "soup-seed1" / "merged") in loaded
    # Nothing is merged again, unless a member is another one
    assert run(SOUP, tmp_path) == found and len(merged) == 2
    assert list(ablations.choose_rows(SOUP.rows, ["soup"])) == ["soup", "a", "b"]
    changed = run(SOUP, tmp_path, describe=lambda *told: [describe(*told), "new"])
    assert "a-seed0 holds a run of other settings" in changed["soup-seed0"]


@pytest.mark.parametrize("ablation, used", [(TWO, 3), (AFTER, 2), (SOUP, 2)])
def test_the_shares_of_hosts_are_all_runs_with_what_they_are_made_of(ablation, used):
    runs = ablations.plan_runs(ablation)
    shares = [ablations.choose_share(runs, index, 3) for index in range(3)]
    assert sorted(run.name for share in shares for run in share) == sorted(
        run.name for run in runs
    )
    hosts = {run.name: index for index, share in enumerate(shares) for run in share}
    assert len(set(hosts.values())) == used
    for run in runs:
        assert {hosts[member.name] for member in run.members} <= {hosts[run.name]}
    starts = [(run.start.name, hosts[run.name]) for run in runs if run.start]
    assert len(dict(starts)) == len(set(starts))


def test_a_host_runs_its_share_only(fakes, tmp_path):
    found = [run(TWO, tmp_path, share=(index, 2)) for index in range(2)]
    assert not found[0].keys() & found[1].keys()
    trained = list(fakes[0])
    # The table finds all of them
    assert run(TWO, tmp_path) == found[0] | found[1]
    assert fakes[0] == trained


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"a": "x.py", "s": {"recipe": "merge=average()"}}, "members go with the rec"),
        ({"s": {"recipe": "merge=average()", "members": "a"}}, "'s' merges 'a', which"),
        ({"s": {"recipe": "merge=average()", "members": "s"}}, "'s' merges 's', which"),
    ],
)
def test_a_row_of_no_members_is_one_sentence(rows, message):
    with pytest.raises(ValueError, match=message):
        ablations.plan_runs(SOUP._replace(rows=rows))


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


def test_rows_are_chosen_by_name_in_the_order_of_the_table():
    rows = {"rope, cut": 1, "rope": 2, "none": 3}
    assert ablations.choose_rows(rows, []) == rows
    assert list(ablations.choose_rows(rows, ["none", "rope, cut"])) == [
        "rope, cut",
        "none",
    ]
    with pytest.raises(ValueError, match="no row 'rope, yarn'; .* 'rope, cut', 'rope'"):
        ablations.choose_rows(rows, ["rope, yarn"])


def test_a_verification_runs_a_row_again_and_compares_its_scores(fakes, tmp_path):
    run(ONE, tmp_path)
    trained, evaluated = fakes

    def verify(tolerance, row="a"):
        options = {"jobs": 1, "report": lambda line: None, "describe": describe}
        return ablation_manifest.verify_row(
            ONE, row, tmp_path, tolerance=tolerance, **options
        )

    # The numbers of these fake scores are 1, 2, 3 ... in their order
    assert verify(5) == {
        "row": "a",
        "seed": 0,
        "scores": {"full": [1.0, 3.0]},
        "largest_difference": 2.0,
    }
    with pytest.raises(ValueError, match="the table has 1.0, and a new run 4.0"):
        verify(2)
    assert trained == ["x.py"] * 3 and len(evaluated) == 4
    assert not list((tmp_path / ablation_manifest.FOLDER).iterdir())
    scores = ablation_runs.read_scores(tmp_path / "a-seed0")
    assert scores["full"]["scores"] == {"full": 1.0}


def test_a_row_without_scores_cannot_be_verified(fakes, tmp_path):
    options = {"jobs": 1, "report": lambda line: None, "describe": describe}
    with pytest.raises(ValueError, match="no score of 'full' to verify"):
        ablation_manifest.verify_row(ONE, "b", tmp_path, tolerance=0, **options)
    assert fakes == ([], [])


def test_a_manifest_tells_what_each_run_was_made_by(fakes, tmp_path, monkeypatch):
    run(ONE, tmp_path)
    monkeypatch.setattr(ablation_manifest, "versions", lambda: {"revision": "f00"})
    manifest = ablation_manifest.make_manifest(ONE, "one.py:x=1", tmp_path)
    assert manifest["config"] == "one.py:x=1"
    assert manifest["evaluators"] == {"sts": "hash of the file"}
    a, b = manifest["runs"]["a-seed0"], manifest["runs"]["b-seed0"]
    assert (a["recipe"], a["seed"], len(a["key"])) == ("x.py", 0, 32)
    assert b["recipe"] == "model=m" and b["key"] is None
    assert manifest["versions"] == {"revision": "f00"}


def test_a_table_for_a_paper_has_the_cells_of_the_page():
    records = ablation_table.summarize_scores(TWO, scores())
    text = squeeze(ablation_table.format_latex(TWO, records))
    assert text.startswith("% Two sizes\n\\begin{tabular}{lrr}\n")
    assert " plain & 11.00 ± 1.41 & 11.00 ± 1.41 \\\\" in text
    assert " paper: one & 50.00 & 60.00 \\\\" in text

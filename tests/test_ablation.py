"""Ablations: which runs there are, and what becomes of their scores."""

import numpy as np

from research import ablation as ablations

TWO = ablations.Ablation(
    title="Two sizes",
    rows={"plain": "x.py:depth=2", "separate": "x.py:depth={depth}", "one": "y.py"},
    columns={"1 × 4": {"depth": 1, "dim": 4}, "2 × 8": {"depth": 2, "dim": 8}},
    seeds=(0, 1),
    evals={},
    paper={"one": (50.0, 60.0)},
)


def test_runs_are_distinct_recipes_and_seeds():
    found = {run.name: run for run in ablations.runs(TWO)}
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
    for run in ablations.runs(TWO):
        columns = {column for _, column in run.cells}
        found[run.name] = dict.fromkeys(columns, 10.0 + 2 * run.seed)
    found["one-seed0"] = {"1 × 4": 1.0, "2 × 8": 2.0}
    found["one-seed1"] = "no such file"
    return found


def test_the_table_has_means_and_spreads_and_says_what_failed():
    records = ablations.table(TWO, scores())
    cell = {(r["row"], r["column"]): r for r in records}
    plain = cell["plain", "1 × 4"]
    assert plain["mean"] == 11.0 and plain["runs"] == 2
    np.testing.assert_allclose(plain["spread"], np.std([10, 12], ddof=1))
    one = cell["one", "2 × 8"]
    assert (one["mean"], one["spread"], one["runs"], one["paper"]) == (2.0, None, 1, 60)
    text = ablations.markdown(TWO, records)
    assert "| plain | 11.00 ± 1.41 | 11.00 ± 1.41 |" in text
    assert "| *paper: one* | 50.00 | 60.00 |" in text
    failed = {run.name: "out of memory" for run in ablations.runs(TWO)}
    assert "| one | failed | failed |" in ablations.markdown(
        TWO, ablations.table(TWO, failed)
    )


def test_the_files_are_written(tmp_path):
    records = ablations.table(TWO, scores())
    ablations.write_csv(records, tmp_path / "table.csv")
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 7
    ablations.plot(TWO, records, tmp_path / "table.png")
    assert (tmp_path / "table.png").stat().st_size > 1_000


def test_a_finished_run_is_not_repeated_and_a_failed_one_stops_no_other(tmp_path):
    lines = []
    for run in ablations.runs(TWO)[1:]:
        (tmp_path / run.name).mkdir()
        (tmp_path / run.name / "scores.json").write_text('{"1 × 4": 1.0, "2 × 8": 2.0}')
    found = ablations.results(TWO, tmp_path, jobs=2, report=lines.append)
    assert "x.py" in found["plain-seed0"]  # the sentence: there is no such config
    assert found["one-seed1"] == {"1 × 4": 1.0, "2 × 8": 2.0}
    assert "one-seed1: done before" in lines

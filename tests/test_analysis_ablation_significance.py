"""Marks in the tables of ablations: which test, against which row, how corrected."""

import csv
import zlib

import numpy as np
import pytest

from research.analysis import ablation as ablations
from research.analysis import ablation_runs, ablation_table
from research.analysis.ablation_significance import compare_rows
from research.types import ItemValues, TaskScores

QUERIES = [f"q{i}" for i in range(40)]


def make_ablation(seeds=(0,), reference=""):
    """Three models that are not trained, each its own evaluator's scores."""
    rows = {"base": "model=base", "same": "model=same", "better": "model=better"}
    return ablations.Ablation(
        title="Marks",
        rows=rows,
        columns={"task": {}},
        seeds=seeds,
        evals={"task": lambda embed: embed},
        reference=reference,
    )


def score_model(name):
    """Scores of queries: two models that differ by noise, and one that is better."""
    ease = np.random.default_rng(0).uniform(20, 70, len(QUERIES))
    noise = np.random.default_rng(zlib.crc32(name.encode())).normal(0, 2, len(QUERIES))
    values = ease + noise - noise.mean() + 5 * (name == "better")
    items = ItemValues(QUERIES, (values,), np.mean)
    return TaskScores({"main_score": float(values.mean())}, items)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an ablation whose models and embedders are their names."""
    monkeypatch.setattr(ablation_runs.load, "load", lambda name: name)
    monkeypatch.setattr(
        ablation_runs, "make_embedder", lambda a, model, *cell: score_model(model)
    )

    def run_both(ablation):
        options = {"jobs": 1, "report": lambda line: None}
        results = ablation_runs.run_ablation(
            ablation, tmp_path, describe=lambda *parts: list(parts), **options
        )
        records = ablation_table.summarize_scores(ablation, results)
        return compare_rows(ablation, results, records, tmp_path)

    return run_both


def test_one_seed_is_compared_over_queries(run, tmp_path):
    ablation = make_ablation()
    for _ in range(2):  # the second time from the files of the first
        base, same, better = run(ablation)
        assert (base["p"], base["test"]) == (None, None)
        assert same["p"] > 0.5 and same["test"] == "t_test"
        assert better["p"] < 1e-6
    text = ablation_table.format_markdown(ablation, [base, same, better])
    assert f"{better['mean']:.2f}*" in text and f"{same['mean']:.2f} " in text
    assert "p < 0.05 against base by a paired t-test over queries" in text
    assert "corrected for 2 comparisons in a column" in text
    ablation_table.write_csv([base, same, better], tmp_path / "table.csv")
    with (tmp_path / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["test"] for row in rows] == ["", "t_test", "t_test"]
    assert float(rows[2]["p"]) == better["p"]


def test_the_reference_may_be_any_row(run):
    base, same, better = run(make_ablation(reference="better"))
    assert better["p"] is None and max(base["p"], same["p"]) < 1e-6
    # With --row the reference may be left out.
    ablation = make_ablation(reference="better")
    fewer = {"base": "model=base", "same": "model=same"}
    assert {record["p"] for record in run(ablation._replace(rows=fewer))} == {None}


def test_the_copies_of_an_untrained_model_are_not_seeds(run):
    records = run(make_ablation(seeds=(0, 1, 2)))
    assert [record["test"] for record in records] == [None, "t_test", "t_test"]


def test_several_seeds_are_compared_over_seeds(tmp_path):
    ablation = make_ablation(seeds=(0, 1, 2))
    means = {"base": 50, "same": 50.2, "better": 60}
    results = {
        run.name: {"task": means[run.config.removeprefix("model=")] + 0.3 * run.seed}
        for run in ablations.plan_runs(ablation)
    }
    records = ablation_table.summarize_scores(ablation, results)
    _, same, better = compare_rows(ablation, results, records, tmp_path)
    assert same["test"] == better["test"] == "seeds"
    assert better["p"] < 0.05 < same["p"] <= 1


def test_a_score_without_items_has_no_mark(tmp_path):
    ablation = make_ablation()
    results = {run.name: {"task": 1.0} for run in ablations.plan_runs(ablation)}
    results["better-seed0"] = "out of memory"
    records = ablation_table.summarize_scores(ablation, results)
    records = compare_rows(ablation, results, records, tmp_path)
    assert {record["p"] for record in records} == {None}
    assert "asterisk" not in ablation_table.format_markdown(ablation, records)

"""The task suite of launch.evaluate: many tasks, and perhaps several models."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from launch import evaluate_embedders as embedders
from launch import flags as options
from launch import main as cli
from launch.evaluate_embedders import quantize_embedder
from launch.evaluate_kinds import check_dense
from research.eval.comparison.significance import compare_items
from research.eval.suites import table as suite_table
from research.eval.suites.tasks import (
    cache_vectors,
    depends_on_role,
    read_suite,
    score_suite,
)
from research.inference.shares import split_over_processes
from research.types import TaskScores

# Results of the models' tasks: {model: {task: scores}}.
Results = Mapping[str, Mapping[str, Any]]


def evaluate_suite(
    path: str, models: list[str], similarity: str | None
) -> tuple[suite_table.SuiteScores, dict[str, Any]]:
    """Scores models on the tasks of a suite file or a folder.

    Args:
        path: The file or the folder, as `read_suite` takes it.
        models: The name of --model, and those of other models.
        similarity: How vectors are compared; None for each model's own way.

    Returns:
        The scores for a table, and the JSON.

    Raises:
        FileNotFoundError, ValueError: A file is malformed, or all tasks of --model
            failed.
    """
    tasks, unknown = read_suite(path)
    if unknown:
        cli.log(f"left out, as no task is known by the files: {'; '.join(unknown)}")
    # All files are read before anything is embedded.
    kind = similarity or "cosine"

    def build(kind):
        return {task.name: task.build(kind) for task in tasks}

    evaluators = {kind: build(kind)}
    results: dict[str, dict[str, Any]] = {}
    # One model after another, each with the vectors of its own texts.
    for name in models:
        model = options.load_model(None if name == options.MODEL.value else name)
        check_dense(model, "--task=suite")
        embedder = options.make_embedder(model, allow_empty=True)
        embed = cache_vectors(
            quantize_embedder(split_over_processes(embedder), embedder.model, "suite"),
            by_role=depends_on_role(embedder),
        )
        kind = similarity or model.similarity
        if kind not in evaluators:
            evaluators[kind] = embedders.build_for_model(build, kind, name)
        cli.log(f"{name}:")
        results[name] = score_suite(evaluators[kind], embed, _report_task)
        # Another model is compared on what it has.
        errors = [scores.get("error") for scores in results[name].values()]
        if name == models[0] and all(errors):
            raise ValueError(f"no task has a score; {errors[0]}")
    # [M, T] main scores
    scores = [
        [results[name][task.name].get("main_score", np.nan) for task in tasks]
        for name in models
    ]
    suite = suite_table.SuiteScores(
        models,
        {task.name: task.type for task in tasks},
        np.array(scores),
        compare_tasks(results, models),
    )
    return suite, _to_record(suite, results)


def _report_task(name: str, scores: Mapping[str, Any], seconds: float) -> None:
    """Prints the row of a task when it is done."""
    score = scores.get("main_score")
    cell = f"failed: {scores['error']}" if score is None else f"{score:6.2f}"
    cli.log(f"  {name:24} {cell}  ({seconds:.1f} s)")


def compare_tasks(results: Results, models: list[str]) -> dict[str, dict[str, float]]:
    """{model: {task: p of its difference from the first model}}.

    A task that failed, or whose models have other items, has no p.
    """
    p_values: dict[str, dict[str, float]] = {}
    for name in models[1:]:
        for task, scores in results[name].items():
            sides = results[models[0]][task], scores
            items = [s.item_values for s in sides if isinstance(s, TaskScores)]
            if len(items) < 2 or None in items:
                continue
            try:
                p_value = compare_items(*items).p_value
            except ValueError as error:  # such as texts without a correlation
                cli.log(f"  {task} has no p: {error}")
                continue
            p_values.setdefault(name, {})[task] = p_value
    return p_values


def _to_record(suite: suite_table.SuiteScores, results: Results) -> dict[str, Any]:
    """The JSON of --model, with the other models' under "against"."""
    records = []
    for row, name in enumerate(suite.models):
        record = {"model": name, **suite_table.to_record(suite, row)}
        records.append(
            record | {"tasks": {k: dict(v) for k, v in results[name].items()}}
        )
    record = records[0]
    if records[1:]:
        record["against"] = records[1:]
    return record

"""Manifest of an ablation, and the verification of its scores by running rows again."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from research.analysis.ablation import (
    Ablation,
    choose_rows,
    collect_failures,
    name_evaluation,
    plan_runs,
)
from research.analysis.ablation_runs import read_scores, run_ablation
from research.atomic_write import read_json
from research.train.logging import versions

# Folder of the runs of a verification, deleted once their scores have been compared
FOLDER = "verification"


def make_manifest(ablation: Ablation, config: str, workdir: Path) -> dict[str, Any]:
    """What the scores of an ablation were made by, as JSON.

    Args:
        ablation: The ablation, after its runs.
        config: The value of --config that it is.
        workdir: Folder that holds the folders of the runs.

    Returns:
        The config; the revision, the packages and the devices of this process, which
        made the table; the settings and the hashes of the evaluators' files; and for
        each run its recipe, its seed, the revision and packages that it was trained
        with, and the hash of all that its model depends on.
    """
    runs = {}
    for run in plan_runs(ablation):
        folder = workdir / run.name
        runs[run.name] = {
            "recipe": run.config,
            "start": run.start and run.start.config,
            "members": [member.name for member in run.members],
            "seed": run.seed,
            "key": read_json(folder / "result.json", missing={}).get("key"),
            "versions": read_json(folder / "versions.json", missing={}),
        }
    return {
        "config": config,
        "overrides": dict(ablation.overrides),
        "versions": versions(),
        "devices": [device.device_kind for device in jax.devices()],
        "evaluators": dict(ablation.eval_settings),
        "runs": runs,
    }


def verify_row(
    ablation: Ablation,
    row: str,
    workdir: Path,
    *,
    tolerance: float,
    jobs: int,
    report: Callable[[str], None],
    describe: Callable[[str, Sequence[str]], Any],
) -> dict[str, Any]:
    """Runs a row of an ablation again, for its first seed, and compares the scores.

    An interrupted verification goes on where it stopped; its runs are deleted at the
    end.

    Args:
        ablation: The ablation.
        row: Name of the row.
        workdir: Folder of the ablation's runs, which have their scores.
        tolerance: Largest difference of a score that is not an error, in points.
        jobs, report, describe: As of `run_ablation`.

    Returns:
        The row, its seed, {column: [score of the table, score of the new run]}, and the
        largest difference.

    Raises:
        ValueError: The row has no scores yet, a run fails, or a score differs by more.
    """
    (seed, *_), columns = ablation.seeds, list(ablation.columns)
    earlier = _read_row(ablation, row, seed, workdir)
    if missing := [column for column in columns if column not in earlier]:
        raise ValueError(
            f"row {row!r} has no score of {missing[0]!r} to verify in {workdir}: run "
            "the ablation without --verify first"
        )
    rows = choose_rows(ablation.rows, [row])
    single = ablation._replace(rows=rows, seeds=(seed,), reference="")
    folder = workdir / FOLDER / row
    results = run_ablation(single, folder, jobs=jobs, report=report, describe=describe)
    for name, message in collect_failures(results).items():
        raise ValueError(f"{name}: {message}")
    repeats = _read_row(single, row, seed, folder)
    shutil.rmtree(folder)
    # Differences in points, the largest one last
    scores = {column: [earlier[column], repeats[column]] for column in columns}
    differences = {name: abs(x - y) for name, (x, y) in scores.items()}
    column = max(differences, key=differences.get)
    if not differences[column] <= tolerance:
        first, second = scores[column]
        raise ValueError(
            f"row {row!r}, {column!r}: the table has {first}, and a new run "
            f"{second}, which differs by {differences[column]:.2g}; --tolerance="
            f"{tolerance} allows less"
        )
    return {
        "row": row,
        "seed": seed,
        "scores": scores,
        "largest_difference": differences[column],
    }


def _read_row(
    ablation: Ablation, row: str, seed: int, workdir: Path
) -> dict[str, float]:
    """{column: score} of a row for one seed, as far as there are scores."""
    runs = [run for run in plan_runs(ablation) if run.seed == seed]
    scores = {}
    for column in ablation.columns:
        run = next(run for run in runs if (row, column) in run.cells)
        name = name_evaluation(ablation, row, column)
        entry = read_scores(workdir / run.name).get(name)
        if entry:
            scores[column] = entry["scores"][name]
    return scores

"""Whether the rows of an ablation differ by more than chance from a reference row."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.ablation import (
    Ablation,
    AblationRun,
    Results,
    name_evaluation,
    plan_runs,
)
from research.analysis.ablation_runs import load_cell_items
from research.eval.comparison.significance import (
    apply_bonferroni,
    compare_items,
    compare_seeds,
)

# Number of resamples: a table has many cells.
RESAMPLES = 1_999


def compare_rows(
    ablation: Ablation,
    results: Results,
    records: Sequence[Mapping[str, Any]],
    workdir: Path,
) -> list[dict[str, Any]]:
    """The records of a table, with the p of the difference from the reference row.

    Rows that were trained with several seeds are compared by Welch's t-test of their
    scores over seeds. Others are compared on the same queries, pairs or texts, as in
    `compare_items`, which says nothing of the spread over seeds. The p is multiplied by
    the number of rows that are compared in a column (Bonferroni).

    Args:
        ablation: The ablation.
        results: Results of `run_ablation`.
        records: Records of `summarize_scores`.
        workdir: Folder of the runs.

    Returns:
        Records with "p" and "test"; both are None for the reference row, without it,
        and where there is nothing to compare.
    """
    reference = ablation.reference or next(iter(ablation.rows))
    runs, compared = plan_runs(ablation), []
    for record in records:
        row, column = record["row"], record["column"]
        p_value, test = None, None
        if row != reference and reference in ablation.rows:
            cells = (row, column), (reference, column)
            p_value, test = _compare_cells(ablation, results, runs, cells, workdir)
        if p_value is not None:
            p_value = apply_bonferroni(p_value, len(ablation.rows) - 1)
        compared.append({**record, "p": p_value, "test": test})
    return compared


def _compare_cells(
    ablation: Ablation,
    results: Results,
    runs: Sequence[AblationRun],
    cells: tuple[tuple[str, str], tuple[str, str]],
    workdir: Path,
) -> tuple[float | None, str | None]:
    """The p of the difference of two cells, and the test that it is of."""
    names = [name_evaluation(ablation, *cell) for cell in cells]
    # For each cell the runs with a score, and their scores.
    scored = []
    for cell, name in zip(cells, names, strict=True):
        done = [run for run in runs if _has_score(results, run, cell, name)]
        scored.append({run: results[run.name][name] for run in done})
    if not all(scored):
        return None, None
    values = [list(scores.values()) for scores in scored]
    # Models that are not trained have equal scores for all seeds.
    if all(len(v) > 1 and np.ptp(v) > 0 for v in values):
        return compare_seeds(*values), "seeds"
    # The first run stands for all: their items are the same, or there is but one.
    items = [
        load_cell_items(workdir, next(iter(scores)), name)
        for scores, name in zip(scored, names, strict=True)
    ]
    if items[0] is None or items[1] is None:
        return None, None
    comparison = compare_items(*items, resamples=RESAMPLES)
    return comparison.p_value, next(iter(comparison.p_values))


def _has_score(
    results: Results, run: AblationRun, cell: tuple[str, str], name: str
) -> bool:
    scores = results[run.name]
    if cell not in run.cells or isinstance(scores, str):
        return False
    return not isinstance(scores[name], str)

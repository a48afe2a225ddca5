"""Tables of suites: scores by task and model, means by type, Borda ranks."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy

from research.eval.comparison.significance import (
    apply_bonferroni,
    apply_corrections,
    mark_p,
)
from research.eval.figures import figure
from research.eval.tables import markdown_page

MIN_WILCOXON = 6  # tasks, with which its smallest p is below 0.05


class SuiteScores(NamedTuple):
    """The main scores of several models on the tasks of a suite.

    Attributes:
        models: M names of models; the others are compared with the first one.
        tasks: {name: type} of T tasks.
        scores: [M, T] main scores; nan where a task failed.
        p_values: {model: {task: p of its difference from the first model}}, for the
            tasks whose items can be compared.
    """

    models: Sequence[str]
    tasks: Mapping[str, str]
    scores: np.ndarray
    p_values: Mapping[str, Mapping[str, float]] = {}


def average_by_type(suite: SuiteScores) -> dict[str, np.ndarray]:
    """{type: [M] mean score of its tasks}; nan where one of them failed."""
    types = list(suite.tasks.values())
    return {
        name: suite.scores[:, [t == name for t in types]].mean(1)
        for name in dict.fromkeys(types)
    }


def rank_by_borda(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Borda's ranks of models over tasks, as mteb computes them.

    For each task a model gets as many points as there are models, minus its rank; equal
    scores share the mean of their ranks. A model without a score gets none.

    Args:
        scores: [M, T] main scores; nan for none.

    Returns:
        [M] sums of points, and [M] ranks from 1, of which equal sums share the best.
    """
    points = np.zeros(len(scores))
    for column in scores.T:
        ranks = scipy.stats.rankdata(-column, nan_policy="omit")  # 1 is best
        points += np.nan_to_num(len(scores) - ranks)
    return points, scipy.stats.rankdata(-points, method="min").astype(int)


def to_record(suite: SuiteScores, row: int) -> dict[str, Any]:
    """The means, the rank and the comparison of a model as JSON.

    Args:
        suite: The scores.
        row: Index of the model.
    """
    # Means over tasks, and over the means by type.
    types = {name: float(means[row]) for name, means in average_by_type(suite).items()}
    record = {
        "main_score": float(suite.scores[row].mean()),
        "mean_over_types": float(np.mean(list(types.values()))),
        "types": types,
    }
    # Against the other models.
    if len(suite.models) > 1:
        points, ranks = rank_by_borda(suite.scores)
        record |= {"borda_rank": int(ranks[row]), "borda_points": float(points[row])}
    if row and (p_values := suite.p_values.get(suite.models[row])):
        # Over the tasks, the share of false discoveries is bounded (FDR).
        corrected = apply_corrections(list(p_values.values()))["fdr"].tolist()
        record["p"] = p_values
        record["p_fdr"] = dict(zip(p_values, corrected, strict=True))
        if len(suite.models) > 2:
            record["p_bonferroni"] = {
                task: apply_bonferroni(p, len(suite.models) - 1)
                for task, p in p_values.items()
            }
    # Over tasks: queries of different sets are never pooled.
    if row and len(suite.tasks) >= MIN_WILCOXON:
        difference = suite.scores[0] - suite.scores[row]
        if np.isfinite(difference).all() and difference.any():
            record["p_wilcoxon"] = float(scipy.stats.wilcoxon(difference).pvalue)
    return record


def format_markdown(suite: SuiteScores, title: str) -> str:
    """A row for each task, then the means by type, over tasks and over types."""
    # A row for each task, with marks at the other models' scores.
    rows, comparisons = [], len(suite.models) - 1
    for i, (task, kind) in enumerate(suite.tasks.items()):
        cells = [_format_score(score) for score in suite.scores[:, i]]
        for row, model in enumerate(suite.models[1:], 1):
            if (p_value := suite.p_values.get(model, {}).get(task)) is not None:
                cells[row] += mark_p(apply_bonferroni(p_value, comparisons))
        rows.append([task, kind, *cells])
    # Means, and with several models their ranks.
    by_type = average_by_type(suite)
    for kind, means in by_type.items():
        rows.append([f"mean of {kind}", "", *map(_format_score, means)])
    means = suite.scores.mean(1), np.mean(list(by_type.values()), axis=0)
    for name, values in zip(("tasks", "types"), means, strict=True):
        rows.append([f"mean over {name}", "", *map(_format_score, values)])
    note = "Main scores in percent."
    if comparisons:
        points, ranks = rank_by_borda(suite.scores)
        cells = [f"{n} ({p:g} points)" for n, p in zip(ranks, points, strict=True)]
        rows.append(["Borda rank", "", *cells])
    if suite.p_values:
        note += (
            f" An asterisk is p < 0.05 against {suite.models[0]}: a paired t-test over "
            "queries or texts (McNemar's test of accuracies, a permutation test of "
            "groups), or a paired bootstrap of a correlation over pairs"
        )
        # Bonferroni's correction is for the other models, not for the tasks.
        note += f", times {comparisons} other models." if comparisons > 1 else "."
    return markdown_page(title, ["", "type", *suite.models], rows, note)


def _format_score(score: float) -> str:
    return f"{score:.2f}" if np.isfinite(score) else "failed"


def plot_suite(suite: SuiteScores, title: str, path: Path):
    """Draws the main scores as bars, one group for each task, as a PNG.

    Returns:
        The matplotlib Figure.
    """
    count, tasks = len(suite.models), len(suite.tasks)
    size = 6.5, 1.2 + 0.18 * tasks * (count + 1)
    with figure(path, size) as (picture, axes):
        # The first task and the first model are at the top.
        places = np.arange(tasks)
        for row, (model, scores) in enumerate(
            zip(suite.models, suite.scores, strict=True)
        ):
            offset = (row + 0.5) / count * 0.8 - 0.4
            axes.barh(places + offset, np.nan_to_num(scores), 0.8 / count, label=model)
        axes.set_yticks(places, list(suite.tasks))
        axes.invert_yaxis()
        axes.set(xlabel="main score, %", title=title)
        axes.grid(axis="x", alpha=0.3)
        if count > 1:
            axes.legend()
    return picture

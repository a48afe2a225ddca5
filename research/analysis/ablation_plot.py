"""Plot of an ablation: every row over the columns, with its spread or its interval."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.ablation import Ablation, fill_row, plan_runs
from research.eval.evaluators import name_main_score
from research.eval.figures import MARKERS, choose_line_style, figure, split_lines

# {field of columns: label of the axis that they are on}
COLUMN_AXES = {"depth": "depth and width", "max_length": "maximum length, tokens"}
Records = Sequence[Mapping[str, Any]]


def plot_ablation(ablation: Ablation, records: Records, path: Path) -> None:
    """Plots every row over the columns; the paper's numbers dashed.

    Rows are lines, a few in each panel. If no two columns share a panel, the rows are
    points below each other instead.

    Args:
        ablation: The ablation.
        records: Its results, from `summarize_scores`.
        path: PNG or SVG file.
    """
    # {panel: names of its columns}
    panels: dict[str, list[str]] = {}
    for column, fields in ablation.columns.items():
        panels.setdefault(fields.get("panel", ""), []).append(column)
    cells = {(record["row"], record["column"]): record for record in records}
    if all(len(columns) == 1 for columns in panels.values()):
        _plot_points(ablation, cells, panels, path)
    else:
        _plot_lines(ablation, cells, panels, path)


def _plot_points(ablation: Ablation, cells, panels, path: Path) -> None:
    """Plots the rows below each other, a panel for each column."""
    size = 2 + 3.4 * len(panels), 1.3 + 0.28 * len(ablation.rows)
    layout = {"columns": len(panels), "squeeze": False, "sharey": True}
    with figure(path, size, title=ablation.title, **layout) as (_, grid):
        for axes, (panel, (column,)) in zip(grid[0], panels.items(), strict=True):
            # Every row has its height; the bars are horizontal
            means, errors, paper = _list_scores(ablation, cells, column)
            names = list(ablation.rows)
            axes.errorbar(means, names, xerr=errors, fmt="o", capsize=3)
            if ablation.paper:
                axes.plot(paper, names, "x", color="C1", label="paper")
                axes.legend()
            axes.set(title=panel, xlabel=_name_metric(ablation, column))
            axes.grid(alpha=0.3)
        grid[0][0].invert_yaxis()  # shared: the first row is at the top everywhere


def _plot_lines(ablation: Ablation, cells, panels, path: Path) -> None:
    """Plots the rows as lines, with at most as many in a panel as there are colors."""
    groups = split_lines(list(ablation.rows))
    size = 2.2 + 5 * len(panels), 0.5 + 3.8 * len(groups)
    layout = {"rows": len(groups), "columns": len(panels), "squeeze": False}
    layout |= {"sharex": "col", "sharey": "col"}
    with figure(path, size, title=ablation.title, **layout) as (_, grid):
        # Panels below each other hold other rows, on the same axes
        for axes_row, rows in zip(grid, groups, strict=True):
            for axes, (panel, columns) in zip(axes_row, panels.items(), strict=True):
                _draw_rows(axes, ablation, cells, rows, panel, columns)
            # Beside the panels, which have the same rows.
            axes_row[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5))
        # Titles at the top, the sizes at the bottom
        for axes, panel in zip(grid[0], panels, strict=True):
            axes.set(title=panel)
        for axes, columns in zip(grid[-1], panels.values(), strict=True):
            fields = ablation.columns[columns[0]]
            labels = [label for name, label in COLUMN_AXES.items() if name in fields]
            axes.set(xlabel=" and ".join(labels))


def _draw_rows(axes, ablation, cells, rows, panel: str, columns) -> None:
    """Draws some rows as lines; those that share a run have the same marker."""
    names = [column.removeprefix(panel).strip() for column in columns]
    recipes = list(dict.fromkeys(run.config for run in plan_runs(ablation)))
    shares_runs = len(recipes) < len(ablation.rows)
    for number, row in enumerate(rows):
        style = {**choose_line_style(number), "markersize": 4}
        if shares_runs:
            recipe = recipes.index(fill_row(ablation, row, columns[0]).recipe)
            style["marker"] = MARKERS[recipe % len(MARKERS)]
        # A line over the columns, [C] and bars [2, C]
        by_column = [_list_scores(ablation, cells, c, [row]) for c in columns]
        means, errors, paper = (
            np.concatenate(x, -1) for x in zip(*by_column, strict=True)
        )
        axes.errorbar(names, means, errors, label=row, capsize=3, **style)
        if row in ablation.paper:
            axes.plot(names, paper, "--", alpha=0.45, **style)
    if ablation.paper:
        axes.plot([], [], "--", color="grey", label="paper")
    axes.set(ylabel=_name_metric(ablation, columns[0]))
    axes.grid(alpha=0.3)


def _list_scores(
    ablation: Ablation, cells, column: str, rows: Sequence[str] = ()
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means [R], lengths of the bars below and above [2, R], and the paper's [R].

    A bar is the standard deviation over seeds or, of a single score, its interval.
    """
    means, errors, paper = [], [], []
    for row in rows or ablation.rows:
        cell = cells[row, column]
        # A failed cell leaves a gap
        mean = np.nan if cell["mean"] is None else cell["mean"]
        bars = (cell["spread"] or 0.0,) * 2
        if cell["low"] is not None:
            bars = (max(0.0, mean - cell["low"]), max(0.0, cell["high"] - mean))
        means.append(mean)
        errors.append(bars)
        paper.append(np.nan if cell["paper"] is None else cell["paper"])
    return np.array(means), np.array(errors).T, np.array(paper)


def _name_metric(ablation: Ablation, column: str) -> str:
    """What the main score of a column's evaluator is."""
    name = ablation.columns[column].get("eval") or next(iter(ablation.evals), None)
    # An evaluator's settings begin with its section of the config
    section, *_ = ablation.eval_settings.get(name, [{}])
    return name_main_score(section.get("name"), section.get("metrics", ()))

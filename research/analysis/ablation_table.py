"""The results of an ablation as a table and as a plot."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.ablation import Ablation, fill_row, name_evaluation, plan_runs

# The bounds of a score's confidence interval.
ENDS = ("low", "high")


def summarize_scores(
    ablation: Ablation, found: Mapping[str, Mapping[str, float | str] | str]
) -> list[dict[str, Any]]:
    """A record for each row and column: mean, spread and number of its scores.

    The spread is the standard deviation over seeds (of a sample); None for one seed,
    which has the bounds of its score's interval instead, if the evaluator gives them.
    """
    plan = plan_runs(ablation)
    records = []
    for row in ablation.rows:
        for i, column in enumerate(ablation.columns):
            name = name_evaluation(ablation, row, column)
            cells = [found[run.name] for run in plan if (row, column) in run.cells]
            cells = [cell for cell in cells if not isinstance(cell, str)]
            values = [c[name] for c in cells if not isinstance(c[name], str)]
            alone = cells[0] if len(values) == 1 else {}
            paper = ablation.paper.get(row)
            records.append(
                {
                    "row": row,
                    "column": column,
                    "mean": float(np.mean(values)) if values else None,
                    "spread": float(np.std(values, ddof=1)) if values[1:] else None,
                    "runs": len(values),
                    **{end: alone.get(f"{name} {end}") for end in ENDS},
                    "paper": None if paper is None else paper[i],
                }
            )
    return records


def format_markdown(ablation: Ablation, records: Sequence[Mapping[str, Any]]) -> str:
    """The table: a line for each row, and one for the paper's numbers below it."""
    columns = list(ablation.columns)
    lines = [f"# {ablation.title}", "", _line(["", *columns])]
    lines.append(_line(["---", *["---:"] * len(columns)]))
    for row in ablation.rows:
        cells = [record for record in records if record["row"] == row]
        lines.append(_line([row, *map(_cell, cells)]))
        if row in ablation.paper:
            published = [f"{cell['paper']:.2f}" for cell in cells]
            lines.append(_line([f"*paper: {row}*", *published]))
    seeds = len(ablation.seeds)
    what = f"Mean ± standard deviation of {seeds} seeds." if seeds > 1 else "One seed."
    if any(record["low"] is not None for record in records):
        what += " In brackets the 95 % interval of a bootstrap over pairs or queries."
    lines += ["", " ".join(filter(None, [what, ablation.note]))]
    return "\n".join(lines) + "\n"


def _cell(record: Mapping[str, Any]) -> str:
    if record["mean"] is None:
        return "failed"
    spread = "" if record["spread"] is None else f" ± {record['spread']:.2f}"
    low, high = (record[end] for end in ENDS)
    interval = "" if low is None else f" ({low:.1f} to {high:.1f})"
    return f"{record['mean']:.2f}{spread}{interval}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_csv(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The records, one a line."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def plot_ablation(
    ablation: Ablation, records: Sequence[Mapping[str, Any]], path: Path
) -> None:
    """Draws every row over the columns, with its spread; the paper's numbers dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels: dict[str, list[str]] = {}
    for column, fields in ablation.columns.items():
        panels.setdefault(fields.get("panel", ""), []).append(column)
    many = len(ablation.rows) > 8
    figure, every = plt.subplots(
        1,
        len(panels),
        figsize=(6 * len(panels) + 1 + many, 4.2 + many),
        layout="constrained",
        squeeze=False,
    )
    for axes, (panel, columns) in zip(every[0], panels.items(), strict=True):
        _panel(axes, ablation, records, panel, columns)
    every[0][0].set(ylabel="main score, %")
    if many:
        figure.legend(*every[0][-1].get_legend_handles_labels(), loc="outside right")
    else:
        every[0][-1].legend()
    figure.suptitle(ablation.title)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(
    axes,
    ablation: Ablation,
    records: Sequence[Mapping[str, Any]],
    panel: str,
    columns: Sequence[str],
) -> None:
    """Draws every row over some columns; rows of one training look alike."""
    import matplotlib

    names = [column.removeprefix(panel).strip() for column in columns]
    colours = matplotlib.colormaps["tab10" if len(ablation.rows) <= 10 else "tab20"]
    recipes = list(dict.fromkeys(run.config for run in plan_runs(ablation)))
    shared = len(recipes) < len(ablation.rows)
    for number, row in enumerate(ablation.rows):
        found = {r["column"]: r for r in records if r["row"] == row}
        cells = [found[column] for column in columns]
        mean = [np.nan if cell["mean"] is None else cell["mean"] for cell in cells]
        spread = [cell["spread"] or 0 for cell in cells]
        recipe = recipes.index(fill_row(ablation, row, columns[0]).recipe)
        look = {
            "color": colours(number % colours.N),
            "marker": "osD^v"[recipe % 5] if shared else "o",
            "markersize": 4,
        }
        axes.errorbar(names, mean, spread, label=row, capsize=3, **look)
        if row in ablation.paper:
            paper = [cell["paper"] for cell in cells]
            axes.plot(names, paper, "--", alpha=0.45, **look)
    if ablation.paper:
        axes.plot([], [], "--", color="grey", label="paper")
    axes.set(title=panel)
    axes.grid(alpha=0.3)

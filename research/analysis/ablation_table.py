"""Results of an ablation as a Markdown table, as LaTeX and as CSV."""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from research.analysis.ablation import (
    Ablation,
    Results,
    name_evaluation,
    plan_runs,
)
from research.eval.comparison.significance import mark_p
from research.eval.tables import markdown_page

# The bounds of a score's confidence interval.
BOUNDS = ("low", "high")


def summarize_scores(ablation: Ablation, results: Results) -> list[dict[str, Any]]:
    """A record per row and column: mean, spread and number of the scores over seeds.

    The spread is the sample standard deviation over seeds. With one seed it is None,
    and the record has the bounds of the score's interval if the evaluator gives them.

    Args:
        ablation: The ablation.
        results: Results of `run_ablation`.
    """
    runs = plan_runs(ablation)
    records = []
    for row in ablation.rows:
        for i, column in enumerate(ablation.columns):
            # Scores of this cell, one per seed, without failed runs.
            name = name_evaluation(ablation, row, column)
            scores = [results[run.name] for run in runs if (row, column) in run.cells]
            scores = [s for s in scores if not isinstance(s, str)]
            values = [s[name] for s in scores if not isinstance(s[name], str)]
            # With a single score, its confidence interval is reported.
            single = scores[0] if len(values) == 1 else {}
            paper = ablation.paper.get(row)
            records.append(
                {
                    "row": row,
                    "column": column,
                    "mean": float(np.mean(values)) if values else None,
                    "spread": float(np.std(values, ddof=1)) if values[1:] else None,
                    "runs": len(values),
                    **{bound: single.get(f"{name} {bound}") for bound in BOUNDS},
                    "paper": None if paper is None else paper[i],
                }
            )
    return records


def format_markdown(ablation: Ablation, records: Sequence[Mapping[str, Any]]) -> str:
    """The Markdown table: a line per row, and below it the paper's numbers, if any."""
    lines = _make_lines(ablation, records, "*paper: {}*")
    # A note on the numbers.
    seeds = len(ablation.seeds)
    note = f"Mean ± standard deviation of {seeds} seeds." if seeds > 1 else "One seed."
    if any(record["low"] is not None for record in records):
        note += " In brackets the 95 % interval of a bootstrap over pairs or queries."
    if tests := {record.get("test") for record in records} - {None}:
        note += f" {_explain_marks(ablation, tests)}"
    note = " ".join(filter(None, [note, ablation.note]))
    return markdown_page(ablation.title, ["", *ablation.columns], lines, note)


def format_latex(ablation: Ablation, records: Sequence[Mapping[str, Any]]) -> str:
    """The same table for a paper, with the rules of LaTeX's package booktabs."""
    lines = _make_lines(ablation, records, "paper: {}")
    table = tabulate(
        lines,
        ["", *ablation.columns],
        tablefmt="latex_booktabs",
        disable_numparse=True,
        colalign=("left", *("right",) * len(ablation.columns)),
    )
    return f"% {ablation.title}\n{table}\n"


def _make_lines(
    ablation: Ablation, records: Sequence[Mapping[str, Any]], paper: str
) -> list[list[str]]:
    """The table's lines; `paper` is the name of one with a paper's numbers."""
    lines = []
    for row in ablation.rows:
        cells = [record for record in records if record["row"] == row]
        lines.append([row, *map(_format_cell, cells)])
        if row in ablation.paper:
            published = [f"{cell['paper']:.2f}" for cell in cells]
            lines.append([paper.format(row), *published])
    return lines


def _format_cell(record: Mapping[str, Any]) -> str:
    if record["mean"] is None:
        return "failed"
    spread = "" if record["spread"] is None else f" ± {record['spread']:.2f}"
    low, high = (record[bound] for bound in BOUNDS)
    interval = "" if low is None else f" ({low:.1f} to {high:.1f})"
    return f"{record['mean']:.2f}{mark_p(record.get('p'))}{spread}{interval}"


def _explain_marks(ablation: Ablation, tests: Collection[str]) -> str:
    """What an asterisk means in the table."""
    words = {
        "seeds": "Welch's t-test over seeds",
        "t_test": "a paired t-test over queries or texts",
        "mcnemar": "McNemar's test over queries or texts",
        "permutation": "a paired permutation test over groups",
        "bootstrap": "a paired bootstrap over pairs",
    }
    reference = ablation.reference or next(iter(ablation.rows))
    count = len(ablation.rows) - 1
    return (
        f"An asterisk is p < 0.05 against {reference} by "
        f"{' or '.join(words[name] for name in words if name in tests)}, corrected for "
        f"{count} comparison{'s' * (count > 1)} in a column (Bonferroni)."
    )


def write_csv(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes the records as CSV, one per line."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)

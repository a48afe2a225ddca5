"""Grids of runs: every recipe at every size, over seeds, in one table."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research import pretrained
from research.eval.embed import make_embedder
from research.eval.sts import Evaluator
from research.train.log import write_json


class Ablation(NamedTuple):
    """What is compared.

    Attributes:
        title: of the table and the plot.
        rows: name -> recipe; "{field}" in it is replaced by the column's field, so that
            a row may have one run for each column.
        columns: name -> fields; depth and dim cut the model, eval names its evaluator
            (else the only one).
        seeds: one run of each recipe for each.
        evals: name -> evaluator.
        paper: row -> the published number of each column.
        note: what the published numbers are.
        overrides: config keys that every run sets, such as {"steps": 100}.
    """

    title: str
    rows: Mapping[str, str]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    evals: Mapping[str, Evaluator]
    paper: Mapping[str, Sequence[float]] = {}
    note: str = ""
    overrides: Mapping[str, Any] = {}


class Run(NamedTuple):
    """One training run, and the columns that it is evaluated for.

    Attributes:
        name: of its folder: the first row that needs it, the fields, the seed.
        config: its recipe.
        seed: config.seed.
        cells: (row, column) of the table.
    """

    name: str
    config: str
    seed: int
    cells: tuple[tuple[str, str], ...]


def runs(ablation: Ablation) -> list[Run]:
    """Every distinct run, seed by seed, so that an early stop leaves whole seeds.

    Rows whose recipes come out equal share a run.
    """
    found: dict[tuple[str, int], Run] = {}
    for seed in ablation.seeds:
        for row, recipe in ablation.rows.items():
            for column, fields in ablation.columns.items():
                config = recipe.format(**fields)
                used = [f"{key}{fields[key]}" for key in re.findall(r"{(\w+)}", recipe)]
                name = "-".join([row, *used, f"seed{seed}"])
                run = found.get((config, seed), Run(name, config, seed, ()))
                cells = (*run.cells, (row, column))
                found[config, seed] = run._replace(cells=cells)
    return list(found.values())


def results(
    ablation: Ablation, workdir: Path, *, jobs: int, report: Callable[[str], None]
) -> dict[str, dict[str, float] | str]:
    """The scores of every run by column, or the sentence that says why it failed.

    A run that has its scores already is not repeated; one that was interrupted resumes.

    Args:
        ablation: what is compared.
        workdir: a folder for each run.
        jobs: runs at a time.
        report: called with a line when a run starts and ends.
    """

    def one(run: Run) -> dict[str, float] | str:
        done = workdir / run.name / "scores.json"
        if done.exists():
            report(f"{run.name}: done before")
            return json.loads(done.read_text())
        report(f"{run.name}: training {run.config}")
        try:
            _train(ablation, run, workdir)
            scores = _scores(ablation, run, workdir)
        except (ValueError, OSError) as error:
            report(f"{run.name}: failed: {error}")
            return str(error)
        write_json(done, scores)
        report(f"{run.name}: {', '.join(f'{k} {v:.2f}' for k, v in scores.items())}")
        return scores

    plan = runs(ablation)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip([run.name for run in plan], pool.map(one, plan), strict=True))


def _train(ablation: Ablation, run: Run, workdir: Path) -> None:
    """Trains in a process of its own, whose output goes to log.txt of the run."""
    folder = workdir / run.name
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**ablation.overrides, "seed": run.seed}
    command = [
        *(sys.executable, "-m", "launch.train", f"--config={run.config}"),
        *(f"--workdir={folder}", f"--cache={workdir / 'tokens'}"),
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    with (folder / "log.txt").open("a") as log:
        status = subprocess.run(command, stdout=log, stderr=log).returncode
    if status:
        lines = (folder / "log.txt").read_text().strip().splitlines()
        raise ValueError(lines[-1] if lines else f"training exited with {status}")


def _scores(ablation: Ablation, run: Run, workdir: Path) -> dict[str, float]:
    """The main score of each of the run's columns."""
    model = pretrained.load(str(workdir / run.name))
    scores = {}
    for column in dict.fromkeys(column for _, column in run.cells):
        fields = ablation.columns[column]
        evaluator = ablation.evals[fields.get("eval") or next(iter(ablation.evals))]
        settings = pretrained.settings(model)
        settings |= {k: fields[k] for k in ("depth", "dim") if k in fields}
        embed = make_embedder(model.params, model.config, **settings)
        scores[column] = evaluator(embed)["main_score"]
    return scores


def table(
    ablation: Ablation, found: Mapping[str, Mapping[str, float] | str]
) -> list[dict[str, Any]]:
    """A record for each row and column: mean, spread and number of its scores.

    The spread is the standard deviation over seeds (of a sample); None for one seed.
    """
    plan = runs(ablation)
    records = []
    for row in ablation.rows:
        for i, column in enumerate(ablation.columns):
            values = [
                found[run.name][column]
                for run in plan
                if (row, column) in run.cells and not isinstance(found[run.name], str)
            ]
            paper = ablation.paper.get(row)
            records.append(
                {
                    "row": row,
                    "column": column,
                    "mean": float(np.mean(values)) if values else None,
                    "spread": float(np.std(values, ddof=1)) if values[1:] else None,
                    "runs": len(values),
                    "paper": None if paper is None else paper[i],
                }
            )
    return records


def markdown(ablation: Ablation, records: Sequence[Mapping[str, Any]]) -> str:
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
    lines += ["", " ".join(filter(None, [what, ablation.note]))]
    return "\n".join(lines) + "\n"


def _cell(record: Mapping[str, Any]) -> str:
    if record["mean"] is None:
        return "failed"
    spread = "" if record["spread"] is None else f" ± {record['spread']:.2f}"
    return f"{record['mean']:.2f}{spread}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def write_csv(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The records, one a line."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def plot(ablation: Ablation, records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws every row over the columns, with its spread; the paper's numbers dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = list(ablation.columns)
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, row in enumerate(ablation.rows):
        cells = [record for record in records if record["row"] == row]
        mean = [np.nan if cell["mean"] is None else cell["mean"] for cell in cells]
        spread = [cell["spread"] or 0 for cell in cells]
        look = {"color": f"C{number}", "marker": "o", "markersize": 4}
        axes.errorbar(columns, mean, spread, label=row, capsize=3, **look)
        if row in ablation.paper:
            axes.plot(columns, ablation.paper[row], "--", alpha=0.45, **look)
    if ablation.paper:
        axes.plot([], [], "--", color="grey", label="paper")
    axes.set(title=ablation.title, ylabel="main score, %")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)

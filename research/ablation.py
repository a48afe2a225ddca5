"""Grids of runs: every recipe at every size or length, over seeds, in one table."""

import csv
import json
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from research import pretrained
from research.data import chunking
from research.eval.chunks import make_chunk_embedder
from research.eval.embed import make_embedder
from research.eval.sts import Evaluator
from research.models import context
from research.structs import EmbedFn
from research.train.log import write_json

# What a recipe begins with that names a model instead of a training.
MODEL = "model="


class Row(NamedTuple):
    """A line of the table; "{field}" in it is replaced by the column's field.

    Attributes:
        recipe: what is trained, or `model=NAME`, a model that is scored as it is; one
            run for each column if it names a field. Rows of the same recipe share its
            runs.
        extend: what `context.parse` reads, for texts longer than those of the training;
            without it longer texts are cut.
        chunk: what `chunking.parse` reads: how documents are cut into chunks.
    """

    recipe: str
    extend: str = ""
    chunk: str = ""


class Ablation(NamedTuple):
    """What is compared.

    Attributes:
        title: of the table and the plot.
        rows: name -> the fields of a Row, or its recipe alone.
        columns: name -> fields; depth and dim cut the model, max_length its texts, eval
            names its evaluator (else the only one), and columns of a `panel`, whose
            name theirs begin with, have a plot of their own.
        seeds: one run of each recipe for each.
        evals: name -> evaluator.
        paper: row -> the published number of each column.
        note: what the published numbers are.
        overrides: config keys that every run sets, such as {"steps": 100}.
    """

    title: str
    rows: Mapping[str, str | Mapping[str, str]]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    evals: Mapping[str, Evaluator]
    paper: Mapping[str, Sequence[float]] = {}
    note: str = ""
    overrides: Mapping[str, Any] = {}


class Run(NamedTuple):
    """One training run, and the cells that it is evaluated for.

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


def filled(ablation: Ablation, row: str, column: str) -> Row:
    """A line of the table with the fields of a column."""
    fields = ablation.rows[row]
    whole = Row(fields) if isinstance(fields, str) else Row(**fields)
    return Row(*(part.format(**ablation.columns[column]) for part in whole))


def evaluation(ablation: Ablation, row: str, column: str) -> str:
    """The name of what a cell's run is evaluated for; equal cells have the same."""
    _, *how = filled(ablation, row, column)
    return " ".join([column, *filter(None, how)])


def runs(ablation: Ablation) -> list[Run]:
    """Every distinct run, seed by seed, so that an early stop leaves whole seeds.

    Rows whose recipes come out equal share a run.
    """
    found: dict[tuple[str, int], Run] = {}
    for seed in ablation.seeds:
        for row, fields in ablation.rows.items():
            recipe = fields if isinstance(fields, str) else fields["recipe"]
            for column, values in ablation.columns.items():
                config = filled(ablation, row, column).recipe
                used = [f"{key}{values[key]}" for key in re.findall(r"{(\w+)}", recipe)]
                name = re.sub(r"[^\w.-]+", "_", "-".join([row, *used, f"seed{seed}"]))
                run = found.get((config, seed), Run(name, config, seed, ()))
                cells = (*run.cells, (row, column))
                found[config, seed] = run._replace(cells=cells)
    return list(found.values())


def results(
    ablation: Ablation, workdir: Path, *, jobs: int, report: Callable[[str], None]
) -> dict[str, dict[str, float | str] | str]:
    """Run -> evaluation -> score, or the sentence that says why it, or all, failed.

    A score that is in a run's scores.json is not computed again; a run that was
    interrupted resumes.

    Args:
        ablation: what is compared.
        workdir: a folder for each run.
        jobs: runs at a time.
        report: called with a line when a run or an evaluation starts or ends.
    """

    def one(run: Run) -> dict[str, float | str] | str:
        wanted = {evaluation(ablation, *cell): cell for cell in run.cells}
        path = workdir / run.name / "scores.json"
        scores = json.loads(path.read_text()) if path.exists() else {}
        if set(wanted) <= set(scores):
            report(f"{run.name}: done before")
            return scores
        try:
            model = _model(ablation, run, workdir, report, trained=bool(scores))
        except (ValueError, OSError) as error:
            report(f"{run.name}: failed: {error}")
            return str(error)
        failed = {}
        for name in [name for name in wanted if name not in scores]:
            try:
                scores[name] = _score(ablation, model, *wanted[name])
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, scores)
            except ValueError as error:
                failed[name] = str(error)
            report(f"{run.name}: {name}: {scores.get(name, failed.get(name))}")
            # Programs of hundreds of evaluations would use up the process's mappings.
            jax.clear_caches()
        return scores | failed

    plan = runs(ablation)
    with ThreadPoolExecutor(jobs) as pool:
        return dict(zip([run.name for run in plan], pool.map(one, plan), strict=True))


def _model(
    ablation: Ablation,
    run: Run,
    workdir: Path,
    report: Callable[[str], None],
    *,
    trained: bool,
) -> pretrained.Pretrained:
    """The model of a run, which is trained unless it was or is one already."""
    if run.config.startswith(MODEL):
        return pretrained.load(run.config.removeprefix(MODEL))
    if not trained:
        report(f"{run.name}: training {run.config}")
        _train(ablation, run, workdir)
    return pretrained.load(str(workdir / run.name))


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


def _score(
    ablation: Ablation, model: pretrained.Pretrained, row: str, column: str
) -> float:
    """The main score of a cell."""
    fields = ablation.columns[column]
    evaluator = ablation.evals[fields.get("eval") or next(iter(ablation.evals))]
    return float(evaluator(_embedder(ablation, model, row, column))["main_score"])


def _embedder(
    ablation: Ablation, model: pretrained.Pretrained, row: str, column: str
) -> EmbedFn:
    """The trained model as the cell's row and column have it."""
    fields, line = ablation.columns[column], filled(ablation, row, column)
    settings = pretrained.settings(model)
    cut = ("depth", "dim", "max_length")
    settings |= {name: fields[name] for name in cut if name in fields}
    encoder = model.params, model.config
    if line.extend:
        encoder = context.extended(*encoder, context.parse(line.extend))
    if line.chunk:
        chunk = chunking.parse(line.chunk)
        return make_chunk_embedder(*encoder, chunk=chunk, **settings)
    if not line.extend:
        settings["max_length"] = min(settings["max_length"], model.config.max_len)
    return make_embedder(*encoder, **settings)


def table(
    ablation: Ablation, found: Mapping[str, Mapping[str, float | str] | str]
) -> list[dict[str, Any]]:
    """A record for each row and column: mean, spread and number of its scores.

    The spread is the standard deviation over seeds (of a sample); None for one seed.
    """
    plan = runs(ablation)
    records = []
    for row in ablation.rows:
        for i, column in enumerate(ablation.columns):
            name = evaluation(ablation, row, column)
            cells = [found[run.name] for run in plan if (row, column) in run.cells]
            cells = [cell if isinstance(cell, str) else cell[name] for cell in cells]
            values = [cell for cell in cells if not isinstance(cell, str)]
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


def failures(found: Mapping[str, Mapping[str, float | str] | str]) -> dict[str, str]:
    """Why a run failed, or some of its evaluations."""
    whole = {run: why for run, why in found.items() if isinstance(why, str)}
    parts = {
        f"{run}: {name}": why
        for run, cells in found.items()
        if run not in whole
        for name, why in cells.items()
        if isinstance(why, str)
    }
    return whole | parts


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
    recipes = list(dict.fromkeys(run.config for run in runs(ablation)))
    shared = len(recipes) < len(ablation.rows)
    for number, row in enumerate(ablation.rows):
        found = {r["column"]: r for r in records if r["row"] == row}
        cells = [found[column] for column in columns]
        mean = [np.nan if cell["mean"] is None else cell["mean"] for cell in cells]
        spread = [cell["spread"] or 0 for cell in cells]
        recipe = recipes.index(filled(ablation, row, columns[0]).recipe)
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

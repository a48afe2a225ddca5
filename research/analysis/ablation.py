"""Ablations: every recipe at every size or length, over seeds, in one table."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax

from research.atomic_write import write_json
from research.inference.embedder import Embedder
from research.inference.model import EmbeddingModel
from research.inference.options import embedder_options
from research.interop import load
from research.models.positions.methods import extend_context
from research.text import chunking
from research.types import Evaluator

# Prefix of a recipe that names a model instead of a training.
MODEL = "model="
# Fields of a row that choose how the model embeds.
EMBEDDING_FIELDS = ("prompt", "prepend", "layers", "bidirectional", "pool")


class AblationRow(NamedTuple):
    """A row of the table; "{field}" in it is replaced by the column's field.

    Attributes:
        recipe: Recipe to train, or `model=NAME`, a model that is scored as it is; one
            run for each column if it names a field. Rows of the same recipe share its
            runs.
        extend: Position methods as call text, "yarn(scale=8)", for texts longer than
            those of the training; without it longer texts are cut.
        chunk: Chunking of documents as call text, see `parse_chunking`.
        start: Recipe that is trained first; "{start}" in `recipe` is its workdir, which
            `model={start}` scores as it is. Rows of the same start share it.
        prompt: Prompt of the texts; here and below "" for the model's own.
        prepend: Layers of token prepending.
        layers: Layers that are pooled.
        bidirectional: Whether attention is bidirectional.
        pool: Pooling.
    """

    recipe: str
    extend: str = ""
    chunk: str = ""
    start: str = ""
    prompt: str = ""
    prepend: str = ""
    layers: str = ""
    bidirectional: str = ""
    pool: str = ""


# {run: {evaluation: score}}; a sentence in place of either says why it failed.
Results = Mapping[str, Mapping[str, float | str] | str]


class Ablation(NamedTuple):
    """Recipes (rows) that are compared by evaluations (columns).

    Attributes:
        title: Title of the table and the plot.
        rows: Fields of an AblationRow, or its recipe alone, by its name.
        columns: Fields by the column's name. depth and dim cut the model, max_length
            its texts, eval names its evaluator (else the only one), and columns of one
            `panel`, with which their names begin, have a plot of their own.
        seeds: Seeds; each recipe runs once with each.
        evals: Evaluators by their names.
        paper: The published number of each column, by row.
        note: What the published numbers are.
        overrides: Config keys that every run sets, such as {"steps": 100}.
    """

    title: str
    rows: Mapping[str, str | Mapping[str, str]]
    columns: Mapping[str, Mapping[str, Any]]
    seeds: Sequence[int]
    evals: Mapping[str, Evaluator]
    paper: Mapping[str, Sequence[float]] = {}
    note: str = ""
    overrides: Mapping[str, Any] = {}


class AblationRun(NamedTuple):
    """One training run, and the cells that it is evaluated for.

    Attributes:
        name: Name of its folder: the first row that needs it, the fields, the seed.
        config: Its recipe.
        seed: Value of config.seed.
        cells: (row, column) of every cell of the table that it serves.
        start: AblationRun whose workdir is "{start}" in `config`.
    """

    name: str
    config: str
    seed: int
    cells: tuple[tuple[str, str], ...] = ()
    start: "AblationRun | None" = None


def fill_row(ablation: Ablation, row: str, column: str) -> AblationRow:
    """A row of the table with the fields of a column filled in."""
    fields = ablation.rows[row]
    template = AblationRow(fields) if isinstance(fields, str) else AblationRow(**fields)
    values = {**ablation.columns[column], "start": "{start}"}  # known when it is run
    return AblationRow(*(part.format(**values) for part in template))


def name_evaluation(ablation: Ablation, row: str, column: str) -> str:
    """Name of the evaluation of a cell's run; equal evaluations have equal names."""
    line = fill_row(ablation, row, column)._asdict()
    settings = [line[name] for name in ("extend", "chunk")]
    settings += [f"{name}={line[name]}" for name in EMBEDDING_FIELDS if line[name]]
    return " ".join([column, *filter(None, settings)])


def plan_runs(ablation: Ablation) -> list[AblationRun]:
    """Every distinct run, seed by seed, so that an early stop leaves whole seeds.

    Rows whose recipes come out equal share a run.
    """
    planned: dict[tuple[str, str, int], AblationRun] = {}
    starts: dict[tuple[str, int], AblationRun] = {}
    for seed in ablation.seeds:
        for row, fields in ablation.rows.items():
            recipe = fields if isinstance(fields, str) else fields["recipe"]
            for column, values in ablation.columns.items():
                line = fill_row(ablation, row, column)
                # Named by the fields of the column that the recipe depends on.
                keys = [key for key in re.findall(r"{(\w+)}", recipe) if key in values]
                used = [f"{key}{values[key]}" for key in keys]
                name = re.sub(r"[^\w.-]+", "_", "-".join([row, *used, f"seed{seed}"]))
                # Runs of the same start share it, runs of the same recipe are one.
                start = None
                if line.start:
                    start = AblationRun(f"{name}-start", line.start, seed)
                    start = starts.setdefault((line.start, seed), start)
                run = AblationRun(name, line.recipe, seed, start=start)
                run = planned.setdefault((line.recipe, line.start, seed), run)
                cells = (*run.cells, (row, column))
                planned[line.recipe, line.start, seed] = run._replace(cells=cells)
    return list(planned.values())


def run_ablation(
    ablation: Ablation, workdir: Path, *, jobs: int, report: Callable[[str], None]
) -> Results:
    """Runs and evaluates what has no score yet.

    A score that is in a run's scores.json is not computed again; a run that was
    interrupted resumes. A run that several others start from is trained once.

    Args:
        ablation: What is compared.
        workdir: Folder of the runs' folders.
        jobs: Number of runs at a time.
        report: Function that takes a line when a run or an evaluation starts or ends.
    """

    def score_run(run: AblationRun) -> dict[str, float | str] | str:
        wanted = {name_evaluation(ablation, *cell): cell for cell in run.cells}
        path = workdir / run.name / "scores.json"
        scores = json.loads(path.read_text()) if path.exists() else {}
        if set(wanted) <= set(scores):
            report(f"{run.name}: done before")
            return scores
        # Train, unless that was done before.
        try:
            if run.start and not scores:
                with locks[run.start.name]:
                    report(f"{run.name}: starts from {run.start.config}")
                    _train(ablation, run.start, workdir)
            model = _load_or_train(ablation, run, workdir, report, trained=bool(scores))
        except (ValueError, OSError) as error:
            report(f"{run.name}: failed: {error}")
            return str(error)
        # Evaluate; every score is written at once, failures are tried again later.
        failed = {}
        for name in [name for name in wanted if name not in scores]:
            try:
                scores |= _evaluate_cell(ablation, model, name, *wanted[name])
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, scores)
            except ValueError as error:
                failed[name] = str(error)
            report(f"{run.name}: {name}: {scores.get(name, failed.get(name))}")
            # Programs of hundreds of evaluations would use up the process's mappings.
            jax.clear_caches()
        return scores | failed

    plan = plan_runs(ablation)
    locks = {run.start.name: threading.Lock() for run in plan if run.start}
    with ThreadPoolExecutor(jobs) as pool:
        return dict(
            zip([run.name for run in plan], pool.map(score_run, plan), strict=True)
        )


def _load_or_train(
    ablation: Ablation,
    run: AblationRun,
    workdir: Path,
    report: Callable[[str], None],
    *,
    trained: bool,
) -> EmbeddingModel:
    """The model of a run, trained first unless that was done or it names a model."""
    if run.config.startswith(MODEL):
        return load.load(_resolve_recipe(run, workdir).removeprefix(MODEL))
    if not trained:
        report(f"{run.name}: training {run.config}")
        _train(ablation, run, workdir)
    return load.load(str(workdir / run.name))


def _train(ablation: Ablation, run: AblationRun, workdir: Path) -> None:
    """Trains in a process of its own, unless the run's folder has a result.json.

    Its messages go to log.txt there; what it prints at the end is the result.
    """
    folder = workdir / run.name
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**ablation.overrides, "seed": run.seed}
    command = [
        sys.executable,
        "-m",
        "launch.train",
        f"--config={_resolve_recipe(run, workdir)}",
        f"--workdir={folder}",
        f"--cache={workdir / 'tokens'}",
        *(f"--config.{key}={value}" for key, value in settings.items()),
    ]
    with (folder / "log.txt").open("ab") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log)
    if done.returncode:
        lines = (folder / "log.txt").read_text().strip().splitlines()
        raise ValueError(lines[-1] if lines else f"training exited {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    if not result["finished"]:
        raise ValueError(f"training stopped at step {result['step']}")
    write_json(folder / "result.json", result)


def _resolve_recipe(run: AblationRun, workdir: Path) -> str:
    """The run's recipe with the workdir of the run that it starts from."""
    if run.start is None:
        return run.config
    return run.config.format(start=workdir / run.start.name)


def _evaluate_cell(
    ablation: Ablation,
    model: EmbeddingModel,
    name: str,
    row: str,
    column: str,
) -> dict[str, float]:
    """{name: main score} of a cell, and the bounds of its interval as "{name} low"."""
    fields = ablation.columns[column]
    evaluator = ablation.evals[fields.get("eval") or next(iter(ablation.evals))]
    scores = evaluator(_make_embedder(ablation, model, row, column))
    bounds = {f"{name} {end}": scores[end] for end in ("low", "high") if end in scores}
    return {name: float(scores["main_score"]), **bounds}


def _make_embedder(
    ablation: Ablation, model: EmbeddingModel, row: str, column: str
) -> Embedder:
    """The embedder that a cell's row and column ask for."""
    fields, line = ablation.columns[column], fill_row(ablation, row, column)
    # The column cuts the model and its texts, the row chooses how it embeds.
    options = {"max_length": model.max_length}
    for name in ("depth", "dim", "max_length"):
        if name in fields:
            options[name] = fields[name]
    options |= embedder_options(**{n: getattr(line, n) for n in EMBEDDING_FIELDS})
    # Longer texts are extended to, chunked, or cut.
    if line.extend:
        params, cfg = extend_context(model.params, model.config, line.extend)
        model = model._replace(params=params, config=cfg)
    if line.chunk:
        options["chunk"] = chunking.parse_chunking(line.chunk)
    elif not line.extend:
        options["max_length"] = min(options["max_length"], model.config.max_len)
    return Embedder(model, **options)


def collect_failures(
    results: Results,
) -> dict[str, str]:
    """{run, or "run: evaluation": sentence that says why it failed}."""
    runs = {run: why for run, why in results.items() if isinstance(why, str)}
    evaluations = {
        f"{run}: {name}": why
        for run, cells in results.items()
        if run not in runs
        for name, why in cells.items()
        if isinstance(why, str)
    }
    return runs | evaluations

"""Ablations: trains recipes over several seeds, and scores them in every column."""

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

# Prefix of a recipe that is an existing model instead of a training run.
MODEL = "model="
# Fields of a row that are options of the embedder.
EMBEDDING_FIELDS = ("prompt", "prepend", "layers", "bidirectional", "pool")


class AblationRow(NamedTuple):
    """A row of the table. "{field}" in any value is replaced by the column's field.

    Attributes:
        recipe: Recipe to train, or `model=NAME` for a model that is scored without
            training. A recipe that contains a field is trained for each value of it.
            Rows with the same recipe share its runs.
        extend: Position methods for longer texts, such as "yarn(scale=8)"; without
            them, texts longer than the model's maximum are cut.
        chunk: Chunking of documents; see `parse_chunking`.
        start: Recipe that is trained first. "{start}" in `recipe` is replaced by its
            workdir, so that `model={start}` scores it without further training. Rows
            with the same start share its run.
        prompt: Prompt of the texts; here and below, "" is the model's own.
        prepend: Blocks of token prepending.
        layers: Layers that are pooled.
        bidirectional: Whether attention is bidirectional, "True" or "False".
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


# {run: {evaluation: score}}; an error message replaces whatever failed.
Results = Mapping[str, Mapping[str, float | str] | str]


class Ablation(NamedTuple):
    """Recipes (rows) that are compared by evaluations (columns).

    Attributes:
        title: Title of the table and the plot.
        rows: {name: fields of an AblationRow, or only its recipe}.
        columns: {name: fields}. The fields "depth" and "dim" truncate the model,
            "max_length" its texts; "eval" names the evaluator (the first one if
            missing); columns with the same "panel", with which their names begin, share
            a plot. Further fields are values for the rows.
        seeds: Seeds; each recipe is trained once per seed.
        evals: Evaluators by their names.
        paper: {row: published number for each column}.
        note: Explanation of the published numbers.
        overrides: Config values for every run, such as {"steps": 100}.
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
    """One training run, and the cells of the table that it is evaluated for.

    Attributes:
        name: Name of the run's folder, made from the first row that needs it, the
            fields in its recipe and the seed.
        config: The recipe.
        seed: Value of config.seed.
        cells: (row, column) of every cell that the run is evaluated for.
        start: Run whose workdir replaces "{start}" in `config`; None if there is none.
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
    """Name of a cell's evaluation in its run; equal evaluations have equal names."""
    line = fill_row(ablation, row, column)._asdict()
    settings = [line[name] for name in ("extend", "chunk")]
    settings += [f"{name}={line[name]}" for name in EMBEDDING_FIELDS if line[name]]
    return " ".join([column, *filter(None, settings)])


def plan_runs(ablation: Ablation) -> list[AblationRun]:
    """All distinct runs, seed by seed, so that an early stop leaves complete seeds.

    Rows with equal recipes, after their fields are filled in, share a run.
    """
    planned: dict[tuple[str, str, int], AblationRun] = {}
    starts: dict[tuple[str, int], AblationRun] = {}
    for seed in ablation.seeds:
        for row, fields in ablation.rows.items():
            recipe = fields if isinstance(fields, str) else fields["recipe"]
            for column, values in ablation.columns.items():
                line = fill_row(ablation, row, column)
                # The name contains the fields that the recipe depends on.
                keys = [key for key in re.findall(r"{(\w+)}", recipe) if key in values]
                used = [f"{key}{values[key]}" for key in keys]
                name = re.sub(r"[^\w.-]+", "_", "-".join([row, *used, f"seed{seed}"]))
                # Equal starts are one run, and so are equal recipes.
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
    """Trains and evaluates everything that has no score yet.

    Scores in a run's scores.json are not computed again, and an interrupted run
    resumes. A run from which several others start is trained once.

    Args:
        ablation: The ablation.
        workdir: Folder that holds the folders of the runs.
        jobs: Number of runs at a time.
        report: Function that is called with a line of text when a run or an evaluation
            starts or ends.
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
        # Evaluate. Each score is saved immediately; failures are retried next time.
        failed = {}
        for name in [name for name in wanted if name not in scores]:
            try:
                scores |= _evaluate_cell(ablation, model, name, *wanted[name])
                path.parent.mkdir(parents=True, exist_ok=True)
                write_json(path, scores)
            except ValueError as error:
                failed[name] = str(error)
            report(f"{run.name}: {name}: {scores.get(name, failed.get(name))}")
            # Hundreds of compiled programs would exhaust the process's memory maps.
            jax.clear_caches()
        return scores | failed

    # A lock per start, so that it is trained only once.
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
    """Loads the model of a run; trains it first if that is necessary."""
    if run.config.startswith(MODEL):
        return load.load(_resolve_recipe(run, workdir).removeprefix(MODEL))
    if not trained:
        report(f"{run.name}: training {run.config}")
        _train(ablation, run, workdir)
    return load.load(str(workdir / run.name))


def _train(ablation: Ablation, run: AblationRun, workdir: Path) -> None:
    """Trains a run in a separate process, unless its folder has a result.json.

    Messages go to log.txt in that folder; the last line of output is the result.
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
    # The last line of the log is the error message if the training fails.
    with (folder / "log.txt").open("ab") as log:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log)
    if done.returncode not in (0, 143):  # 143: a signal stopped it, with a result
        lines = (folder / "log.txt").read_text().strip().splitlines()
        raise ValueError(lines[-1] if lines else f"training exited {done.returncode}")
    result = json.loads(done.stdout.splitlines()[-1])
    if not result["finished"]:
        raise ValueError(f"training stopped at step {result['step']}")
    write_json(folder / "result.json", result)


def _resolve_recipe(run: AblationRun, workdir: Path) -> str:
    """The run's recipe, with the workdir of the run that it starts from filled in."""
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
    """{name: main score} of a cell, with its interval as "{name} low" and "high"."""
    fields = ablation.columns[column]
    evaluator = ablation.evals[fields.get("eval") or next(iter(ablation.evals))]
    scores = evaluator(_make_embedder(ablation, model, row, column))
    bounds = {f"{name} {end}": scores[end] for end in ("low", "high") if end in scores}
    return {name: float(scores["main_score"]), **bounds}


def _make_embedder(
    ablation: Ablation, model: EmbeddingModel, row: str, column: str
) -> Embedder:
    """Makes the embedder for a cell from its row and column."""
    fields, line = ablation.columns[column], fill_row(ablation, row, column)
    # The column truncates the model and its texts; the row sets how it embeds.
    options = {"max_length": model.max_length}
    for name in ("depth", "dim", "max_length"):
        if name in fields:
            options[name] = fields[name]
    options |= embedder_options(**{n: getattr(line, n) for n in EMBEDDING_FIELDS})
    # For longer texts, extend the context, use chunks, or cut the texts.
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
    """Error messages of all failures: {"run" or "run: evaluation": message}."""
    # Runs that failed as a whole, then single evaluations.
    runs = {run: why for run, why in results.items() if isinstance(why, str)}
    evaluations = {
        f"{run}: {name}": why
        for run, cells in results.items()
        if run not in runs
        for name, why in cells.items()
        if isinstance(why, str)
    }
    return runs | evaluations

"""Grids of runs: every recipe at every size or length, over seeds, in one table."""

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
from research.types import EmbedFn, Evaluator

# What a recipe begins with that names a model instead of a training.
MODEL = "model="
# Fields of a Row that say how the model is read.
READ = ("prompt", "prepend", "layers", "bidirectional", "pool")


class AblationRow(NamedTuple):
    """A line of the table; "{field}" in it is replaced by the column's field.

    Attributes:
        recipe: what is trained, or `model=NAME`, a model that is scored as it is; one
            run for each column if it names a field. Rows of the same recipe share its
            runs.
        extend: Position methods as call text, "yarn(scale=8)", for texts longer than
            those of the training; without it longer texts are cut.
        chunk: how documents are cut into chunks, as `parse_chunking` reads it.
        start: a recipe that is trained first; "{start}" in `recipe` is its workdir,
            which `model={start}` scores as it is. Rows of the same start share it.
        prompt, prepend, layers, bidirectional, pool: as `embedder_options` reads
            them; "" where it is as the model has it.
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
        start: the run whose workdir is "{start}" in `config`.
    """

    name: str
    config: str
    seed: int
    cells: tuple[tuple[str, str], ...] = ()
    start: "Run | None" = None


def fill_row(ablation: Ablation, row: str, column: str) -> AblationRow:
    """A line of the table with the fields of a column."""
    fields = ablation.rows[row]
    whole = AblationRow(fields) if isinstance(fields, str) else AblationRow(**fields)
    values = {**ablation.columns[column], "start": "{start}"}  # known when it is run
    return AblationRow(*(part.format(**values) for part in whole))


def name_evaluation(ablation: Ablation, row: str, column: str) -> str:
    """The name of what a cell's run is evaluated for; equal cells have the same."""
    line = fill_row(ablation, row, column)._asdict()
    how = [line[name] for name in ("extend", "chunk")]
    how += [f"{name}={line[name]}" for name in READ if line[name]]
    return " ".join([column, *filter(None, how)])


def plan_runs(ablation: Ablation) -> list[Run]:
    """Every distinct run, seed by seed, so that an early stop leaves whole seeds.

    Rows whose recipes come out equal share a run.
    """
    found: dict[tuple[str, str, int], Run] = {}
    starts: dict[tuple[str, int], Run] = {}
    for seed in ablation.seeds:
        for row, fields in ablation.rows.items():
            recipe = fields if isinstance(fields, str) else fields["recipe"]
            for column, values in ablation.columns.items():
                line = fill_row(ablation, row, column)
                keys = [key for key in re.findall(r"{(\w+)}", recipe) if key in values]
                used = [f"{key}{values[key]}" for key in keys]
                name = re.sub(r"[^\w.-]+", "_", "-".join([row, *used, f"seed{seed}"]))
                start = None
                if line.start:
                    start = Run(f"{name}-start", line.start, seed)
                    start = starts.setdefault((line.start, seed), start)
                run = Run(name, line.recipe, seed, start=start)
                run = found.setdefault((line.recipe, line.start, seed), run)
                cells = (*run.cells, (row, column))
                found[line.recipe, line.start, seed] = run._replace(cells=cells)
    return list(found.values())


def run_ablation(
    ablation: Ablation, workdir: Path, *, jobs: int, report: Callable[[str], None]
) -> dict[str, dict[str, float | str] | str]:
    """Run -> evaluation -> score, or the sentence that says why it, or all, failed.

    A score that is in a run's scores.json is not computed again; a run that was
    interrupted resumes. What several runs start from is trained once.

    Args:
        ablation: what is compared.
        workdir: a folder for each run.
        jobs: runs at a time.
        report: called with a line when a run or an evaluation starts or ends.
    """

    def one(run: Run) -> dict[str, float | str] | str:
        wanted = {name_evaluation(ablation, *cell): cell for cell in run.cells}
        path = workdir / run.name / "scores.json"
        scores = json.loads(path.read_text()) if path.exists() else {}
        if set(wanted) <= set(scores):
            report(f"{run.name}: done before")
            return scores
        try:
            if run.start and not scores:
                with locks[run.start.name]:
                    report(f"{run.name}: starts from {run.start.config}")
                    _train(ablation, run.start, workdir)
            model = _model(ablation, run, workdir, report, trained=bool(scores))
        except (ValueError, OSError) as error:
            report(f"{run.name}: failed: {error}")
            return str(error)
        failed = {}
        for name in [name for name in wanted if name not in scores]:
            try:
                scores |= _scores(ablation, model, name, *wanted[name])
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
        return dict(zip([run.name for run in plan], pool.map(one, plan), strict=True))


def _model(
    ablation: Ablation,
    run: Run,
    workdir: Path,
    report: Callable[[str], None],
    *,
    trained: bool,
) -> EmbeddingModel:
    """The model of a run, which is trained unless it was or is one already."""
    if run.config.startswith(MODEL):
        return load.load(_config(run, workdir).removeprefix(MODEL))
    if not trained:
        report(f"{run.name}: training {run.config}")
        _train(ablation, run, workdir)
    return load.load(str(workdir / run.name))


def _train(ablation: Ablation, run: Run, workdir: Path) -> None:
    """Trains in a process of its own, unless the run's folder has a result.json.

    Its messages go to log.txt there, what it prints at the end is the result.
    """
    folder = workdir / run.name
    if (folder / "result.json").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    settings = {**ablation.overrides, "seed": run.seed}
    command = [
        *(sys.executable, "-m", "launch.train", f"--config={_config(run, workdir)}"),
        *(f"--workdir={folder}", f"--cache={workdir / 'tokens'}"),
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


def _config(run: Run, workdir: Path) -> str:
    """The run's recipe with the folder of what it starts from."""
    if run.start is None:
        return run.config
    return run.config.format(start=workdir / run.start.name)


def _scores(
    ablation: Ablation,
    model: EmbeddingModel,
    name: str,
    row: str,
    column: str,
) -> dict[str, float]:
    """The main score of a cell by its name; the bounds of an interval by "name low"."""
    fields = ablation.columns[column]
    evaluator = ablation.evals[fields.get("eval") or next(iter(ablation.evals))]
    found = evaluator(_embedder(ablation, model, row, column))
    bounds = {f"{name} {end}": found[end] for end in ("low", "high") if end in found}
    return {name: float(found["main_score"]), **bounds}


def _embedder(
    ablation: Ablation, model: EmbeddingModel, row: str, column: str
) -> EmbedFn:
    """The trained model as the cell's row and column have it."""
    fields, line = ablation.columns[column], fill_row(ablation, row, column)
    options = {"max_length": model.max_length}
    for name in ("depth", "dim", "max_length"):
        if name in fields:
            options[name] = fields[name]
    options |= embedder_options(**{name: getattr(line, name) for name in READ})
    if line.extend:
        params, cfg = extend_context(model.params, model.config, line.extend)
        model = model._replace(params=params, config=cfg)
    if line.chunk:
        options["chunk"] = chunking.parse_chunking(line.chunk)
    elif not line.extend:
        options["max_length"] = min(options["max_length"], model.config.max_len)
    return Embedder(model, **options)


def collect_failures(
    found: Mapping[str, Mapping[str, float | str] | str],
) -> dict[str, str]:
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

"""Runs of an ablation: training, evaluation, and the scores that are kept of them."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax

from research.analysis.ablation import (
    MERGE,
    MODEL,
    Ablation,
    AblationRun,
    Results,
    choose_share,
    fill_row,
    name_evaluation,
    plan_runs,
)
from research.analysis.ablation_embedders import make_embedder
from research.analysis.model_merging import merge_models
from research.atomic_write import read_json, write_json
from research.eval.comparison.item_values import load_items, save_items
from research.eval.compression import make_stored_embedder
from research.eval.vector_cache import VectorCache
from research.inference.model import EmbeddingModel
from research.interop import load
from research.interop.sentence_transformers.write import export
from research.types import ItemValues, TaskScores


def run_ablation(
    ablation: Ablation,
    workdir: Path,
    *,
    jobs: int,
    report: Callable[[str], None],
    describe: Callable[[str, Sequence[str]], Any],
    share: tuple[int, int] = (0, 1),
) -> Results:
    """Trains and evaluates everything that has no score yet.

    Scores in a run's scores.json are not computed again unless something that they
    depend on has changed, and an interrupted run resumes. A run from which several
    others start is trained once.

    Args:
        ablation: The ablation.
        workdir: Folder that holds the folders of the runs.
        jobs: Number of runs at a time.
        report: Function that is called with a line of text when a run or an evaluation
            starts or ends.
        describe: (recipe, flags of launch.train) -> all that its model depends on, as
            JSON; the recipe may be `model=NAME`.
        share: Index and number of a share of the runs; see `choose_share`.
    """

    def make_model(run: AblationRun) -> str:
        # What this run is made of, then this run, unless that was done before.
        if run.start:
            make_model(run.start)
        keys = [make_model(member) for member in run.members]
        with locks[run.name]:
            if run.members:
                return _merge(run, keys, workdir, report)
            return _train(ablation, run, workdir, report, describe)

    def score_run(run: AblationRun) -> dict[str, float | str] | str:
        try:
            model_key = make_model(run)
            stored = read_scores(workdir / run.name)
        except (ValueError, OSError) as error:
            report(f"{run.name}: failed: {error}")
            return str(error)
        # Earlier scores count if they depend on the same things.
        cells = {name_evaluation(ablation, *cell): cell for cell in run.cells}
        keys = {n: _hash_evaluation(ablation, model_key, *c) for n, c in cells.items()}
        missing = [
            name for name in cells if stored.get(name, {}).get("key") != keys[name]
        ]
        scores, failed, model, cache = {}, {}, None, {}
        for name in cells:
            if name not in missing:
                scores |= stored[name]["scores"]
        if not missing:
            report(f"{run.name}: done before")
            return scores
        # Evaluate. Each score is saved immediately; failures are retried next time.
        for name in missing:
            try:
                model = model or _load(run, workdir)
                new = _evaluate_cell(ablation, model, name, *cells[name], cache)
                scores |= new
                # The items come first: scores count as soon as they are there.
                if isinstance(new, TaskScores) and new.item_values is not None:
                    path = _get_items_path(workdir, run, keys[name])
                    save_items(new.item_values, path)
                stored[name] = {"key": keys[name], "scores": new}
                write_json(workdir / run.name / "scores.json", stored)
            except (ValueError, OSError) as error:
                failed[name] = str(error)
            report(f"{run.name}: {name}: {scores.get(name, failed.get(name))}")
            # Hundreds of compiled programs would exhaust the process's memory maps.
            jax.clear_caches()
        return scores | failed

    # A lock per run, so that what others need is made only once.
    plan = choose_share(plan_runs(ablation), *share)
    starts = [run.start for run in plan if run.start]
    locks = {run.name: threading.Lock() for run in (*plan, *starts)}
    with ThreadPoolExecutor(jobs) as pool:
        return dict(
            zip([run.name for run in plan], pool.map(score_run, plan), strict=True)
        )


def _load(run: AblationRun, workdir: Path) -> EmbeddingModel:
    """Loads the model of a run."""
    return load.load(_locate_model(run, workdir))


def _locate_model(run: AblationRun, workdir: Path) -> str:
    """Name of a run's model."""
    if run.config.startswith(MODEL):
        return _resolve_recipe(run, workdir).removeprefix(MODEL)
    return str(workdir / run.name / ("merged" if run.members else ""))


def _merge(
    run: AblationRun,
    keys: Sequence[str],
    workdir: Path,
    report: Callable[[str], None],
) -> str:
    """Merges the models of a run's members, unless its folder has a result.json.

    Args:
        run: The run.
        keys: Keys of its members' models.
        workdir: Folder that holds the folders of the runs.
        report: Function that is called with a line of text.

    Returns:
        Key of the model.

    Raises:
        ValueError: The models do not fit, or the folder holds a run of another key.
    """
    folder, key = workdir / run.name, _hash([run.config, *keys])
    if _is_made(folder, key):
        return key
    report(f"{run.name}: merging {', '.join(member.name for member in run.members)}")
    # A folder without a result is half written
    names = [_locate_model(member, workdir) for member in run.members]
    model, record = merge_models(names, run.config.removeprefix(MERGE))
    shutil.rmtree(folder / "merged", ignore_errors=True)
    export(model, folder / "merged")
    write_json(folder / "result.json", {"key": key, **record})
    return key


def _is_made(folder: Path, key: str) -> bool:
    """Whether a folder holds the result of a run.

    Raises:
        ValueError: It is the result of a run of another key.
    """
    if not (folder / "result.json").exists():
        return False
    if read_json(folder / "result.json").get("key") != key:
        raise ValueError(
            f"{folder} holds a run of other settings or data; delete it, or use "
            "another --workdir"
        )
    return True


def _train(
    ablation: Ablation,
    run: AblationRun,
    workdir: Path,
    report: Callable[[str], None],
    describe: Callable[[str, Sequence[str]], Any],
) -> str:
    """Trains a run in a separate process, unless its folder has a result.json.

    Messages go to log.txt in that folder; the last line of output is the result.

    Returns:
        Key of the model: a hash of all that it depends on.

    Raises:
        ValueError: The training failed, or the folder holds a run of another key.
    """
    recipe, folder = _resolve_recipe(run, workdir), workdir / run.name
    settings = {**ablation.overrides, "seed": run.seed}
    overrides = [f"--config.{key}={value}" for key, value in settings.items()]
    key = _hash(describe(recipe, overrides))
    if recipe.startswith(MODEL):
        return key
    if _is_made(folder, key):
        return key
    report(f"{run.name}: training {recipe}")
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "launch.train",
        f"--config={recipe}",
        f"--workdir={folder}",
        f"--cache={workdir / 'tokens'}",
        *overrides,
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
    write_json(folder / "result.json", {"key": key, **result})
    return key


def read_scores(folder: Path) -> dict[str, Any]:
    """{evaluation: {"key": ..., "scores": ...}} of the scores.json of a run."""
    entries = read_json(folder / "scores.json", missing={})
    # Scores without a key may depend on anything.
    return {
        name: entry
        for name, entry in entries.items()
        if isinstance(entry, dict) and entry.keys() == {"key", "scores"}
    }


def load_cell_items(workdir: Path, run: AblationRun, name: str) -> ItemValues | None:
    """The scores of single items of an evaluation; None if there are none.

    Args:
        workdir: Folder of the ablation.
        run: One of its runs.
        name: Name of the evaluation, as `name_evaluation` makes it.
    """
    entry = read_scores(workdir / run.name).get(name)
    return entry and load_items(_get_items_path(workdir, run, entry["key"]))


def _get_items_path(workdir: Path, run: AblationRun, key: str) -> Path:
    """The file of an evaluation's items, named by all that they depend on."""
    return workdir / run.name / "items" / f"{key}.json"


def _hash_evaluation(ablation: Ablation, model_key: str, row: str, column: str) -> str:
    """Hash of all that the score of a cell depends on."""
    fields, line = ablation.columns[column], fill_row(ablation, row, column)
    # A field that rows get later leaves the scores of those without it
    options = {name: value for name, value in line._asdict().items() if value}
    evaluator = _evaluator_name(ablation, fields)
    settings = ablation.eval_settings.get(evaluator)
    return _hash([model_key, fields, options, settings])


def _evaluator_name(ablation: Ablation, fields: Mapping[str, Any]) -> str | None:
    """Name of a column's evaluator; None if the ablation has none."""
    return fields.get("eval") or next(iter(ablation.evals), None)


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
    cache: dict[str, VectorCache],
) -> TaskScores:
    """{name: main score} of a cell, with its interval as "{name} low" and "high"."""
    fields = ablation.columns[column]
    evaluator = ablation.evals[_evaluator_name(ablation, fields)]
    embed = make_embedder(ablation, model, row, column, cache)
    if transform := fill_row(ablation, row, column).transform:
        normalize = model.normalize
        embed = make_stored_embedder(evaluator, embed, transform, normalize=normalize)
    scores = evaluator(embed)
    bounds = {f"{name} {end}": scores[end] for end in ("low", "high") if end in scores}
    items = scores.item_values if isinstance(scores, TaskScores) else None
    return TaskScores({name: float(scores["main_score"]), **bounds}, items)

"""The task mteb of launch.evaluate: tasks and benchmarks of the mteb package."""

import re
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from launch import flags as options
from launch import main as cli
from launch.evaluate_embedders import quantize_embedder
from launch.evaluate_kinds import check_dense
from research import processes
from research.eval.suites.mteb_tasks import make_mteb_task
from research.eval.suites.table import SuiteScores, to_record
from research.eval.suites.tasks import read_suite
from research.inference.model import EmbeddingModel, hash_model
from research.inference.shares import split_over_processes
from research.interop.mteb import (
    check_mteb,
    find_mteb_tasks,
    make_mteb_model,
    run_mteb,
)
from research.models.lora import num_params

BENCHMARK = flags.DEFINE_string(
    "benchmark",
    "",
    "A benchmark of mteb, such as 'MTEB(eng, v2)' or NanoBEIR, with --task=mteb.",
)
# Options of the embedder by their names in mteb's experiments.
EXPERIMENT_NAMES = {"dim": "embed_dim"}


def evaluate_mteb(
    names: list[str], data: str | None, folder: Path
) -> tuple[SuiteScores, dict[str, Any]]:
    """Scores the model on tasks of mteb, and keeps the results in mteb's layout.

    Args:
        names: Names of tasks of mteb.
        data: A suite file or a folder, whose local tasks are run by mteb; None for
            none.
        folder: The folder of mteb's ResultCache.

    Returns:
        The scores for a table, and the JSON.

    Raises:
        ValueError: mteb is not installed, there is no task, or all of them failed.
    """
    check_mteb()
    tasks = find_mteb_tasks(names, BENCHMARK.value)
    if data:
        local_tasks, unknown = read_suite(data)
        if unknown:
            cli.log(f"left out, as no task is known by the files: {'; '.join(unknown)}")
        for task in local_tasks:
            tasks.append(make_mteb_task(task.task, task.name, **task.arguments))
    if not tasks:
        raise ValueError(
            "--task=mteb needs --tasks, such as --tasks=STS12,STS13, --benchmark, such "
            "as --benchmark='MTEB(eng, v2)', or --data with local files"
        )
    titles = [task.metadata.name for task in tasks]
    if twice := [title for i, title in enumerate(titles) if title in titles[:i]]:
        raise ValueError(f"two tasks have the name {twice[0]}: give one of them")
    # The model, by a name and a revision of its own, and its options.
    model = options.load_model()
    check_dense(model, "--task=mteb")
    embedder = options.make_embedder(model, allow_empty=True)
    name, revision = name_model(options.MODEL.value, model)
    experiment = list_experiment(model)
    mteb_model = make_mteb_model(
        quantize_embedder(split_over_processes(embedder), embedder.model, "mteb"),
        name=name,
        revision=revision,
        dim=embedder.width,
        max_length=model.max_length,
        similarity=model.similarity,
        prompts=embedder.model.prompts,
        num_params=num_params(model.params),
        experiment=experiment,
    )
    # All processes compute all tasks; the first one stores the results.
    storage = folder if processes.is_first() else None
    results = run_mteb(mteb_model, tasks, storage, reuse=jax.process_count() == 1)
    scores, failed, start = {}, {}, time.perf_counter()
    for task, score, error in results:
        title = task.metadata.name
        scores[title] = np.nan if score is None else score
        if error:
            failed[title] = error
        seconds = time.perf_counter() - start
        cell = f"{scores[title]:6.2f}" if not error else f"failed: {error}"
        cli.log(f"  {title:32} {cell}  ({seconds:.1f} s)")
        start = time.perf_counter()
    if len(failed) == len(scores):
        raise ValueError(f"no task has a score; {next(iter(failed.values()))}")
    # The table, and the JSON with the place of mteb's files.
    types = {task.metadata.name: task.metadata.type for task in tasks}
    suite = SuiteScores([name], types, np.array([list(scores.values())]))
    record = {
        **to_record(suite, 0),
        "tasks": scores,
        "results": str(folder / "results"),
        "name": name,
        "revision": revision,
    }
    if experiment:
        record["experiment"] = experiment
    return suite, record | ({"failed": failed} if failed else {})


def name_model(model_name: str, model: EmbeddingModel) -> tuple[str, str]:
    """The "organization/model" and the revision of a model in mteb's results.

    The revision has a hash of the weights, so that results of another model of the same
    name are not taken for its own.
    """
    name = model_name.removeprefix("package:").rstrip("/")
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or Path(name).exists():
        path = Path(name).expanduser().resolve()
        is_checkpoint = path.name.isdigit() and path.parent.name == "checkpoints"
        # A workdir has the name of its folder, as its checkpoints do.
        name = f"embax/{(path.parent.parent if is_checkpoint else path).name}"
    step = "" if model.step is None else f"step-{model.step}-"
    return name, f"{step}{hash_model(model)[:8]}"


def list_experiment(model: EmbeddingModel) -> dict[str, Any]:
    """The flags of the embedder that are set, and the precision, by mteb's names."""
    experiment = {
        EXPERIMENT_NAMES.get(flag.name, flag.name): flag.value
        for flag in flags.FLAGS.flags_by_module_dict()[options.__name__]
        if flag.name not in ("model", "model_parallel") and flag.value != flag.default
    }
    if model.transform is not None:
        experiment.setdefault("transform", model.transform.text)
    if model.config.dtype != "float32":
        experiment["dtype"] = model.config.dtype
    return experiment

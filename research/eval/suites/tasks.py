"""Suites: many tasks on local files, scored by one command and one embedder."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.atomic_write import read_json
from research.config_sections import bind, check_option, keyword_parameters
from research.data.files import STS_FIELDS, read_records
from research.eval.evaluators import EVALS
from research.eval.tasks.files import LABEL_FIELDS, PAIR_FIELDS, TEXT_FIELDS, TOP_RANKED
from research.eval.tasks.splits import TEST, TRAIN, is_table, list_tables, remove_ending
from research.inference.embedder import Embedder
from research.types import EmbedFn, Evaluator

# {task of a suite: its type in tables, as mteb writes it}
TYPES = {
    "bitext_mining": "BitextMining",
    "classification": "Classification",
    "clustering": "Clustering",
    "multilabel": "MultilabelClassification",
    "pair_classification": "PairClassification",
    "reranking": "Reranking",
    "retrieval": "Retrieval",
    "sts": "STS",
    "summarization": "Summarization",
}


class SuiteTask(NamedTuple):
    """A task of a suite.

    Attributes:
        name: Its name in tables.
        task: A key of TYPES.
        arguments: Keyword arguments of its evaluator.
    """

    name: str
    task: str
    arguments: Mapping[str, Any]

    @property
    def type(self) -> str:
        """The type of the task."""
        return TYPES[self.task]

    def build(self, similarity: str) -> Evaluator:
        """The evaluator for a model that compares vectors by `similarity`.

        Raises:
            FileNotFoundError, ValueError: As the evaluator's function.
        """
        arguments = {"name": self.task, **self.arguments}
        try:
            if "similarity" in keyword_parameters(EVALS, self.task, self.arguments):
                arguments.setdefault("similarity", similarity)
            return bind(EVALS, arguments)()
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None


def read_suite(path: str | Path) -> tuple[list[SuiteTask], list[str]]:
    """Reads a suite from a JSON file, or finds the tasks in a folder.

    Args:
        path: A file with {name: {"task": ..., "data": ..., further arguments}}, in
            which paths are relative to the file; or a folder, each file or folder of
            which is a task if `find_task` knows it.

    Returns:
        The tasks, and the names in the folder that are none, with the reason if a file
        is malformed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is malformed, or the folder has no task, or two of one
            name.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return _read_suite_file(path), []
    # A task for each file or folder in it that is known.
    tasks: dict[str, SuiteTask] = {}
    unknown = []
    for entry in sorted(path.iterdir()):
        # Other files, such as a README, and hidden ones are passed over.
        if entry.name.startswith(".") or not (entry.is_dir() or is_table(entry)):
            continue
        name = entry.name if entry.is_dir() else remove_ending(entry.name)
        try:
            arguments = find_task(entry)
        except ValueError as error:
            unknown.append(f"{name} ({error})")
            continue
        if arguments is None:
            unknown.append(name)
        elif name in tasks:
            raise ValueError(f"{path} has two tasks {name!r}: rename {entry.name}")
        else:
            tasks[name] = SuiteTask(name, arguments.pop("task"), arguments)
    if not tasks:
        raise ValueError(
            f"{path} has no task that is known by its files; found "
            f"{', '.join(unknown) or 'nothing'}"
        )
    return list(tasks.values()), unknown


def _read_suite_file(path: Path) -> list[SuiteTask]:
    tasks = []
    for name, fields in read_json(path).items():
        # Errors name the file and the task.
        place = f"{path}: {name}"
        if not isinstance(fields, dict) or not {"task", "data"} <= fields.keys():
            raise ValueError(
                f'{place} should be an object with "task" and "data", such as '
                '{"task": "sts", "data": "stsb/test.jsonl"}'
            )
        # JSON has lists for Python's tuples.
        arguments = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        task = arguments.pop("task")
        check_option(f"{place}: task", task, TYPES)
        arguments["data"] = str(path.parent / Path(arguments["data"]).expanduser())
        tasks.append(SuiteTask(name, task, arguments))
    if not tasks:
        raise ValueError(f"{path} names no task")
    return tasks


def find_task(path: Path) -> dict[str, Any] | None:
    """The task that fits a file or a folder: {"task", "data", ...}; None if none does.

    A folder is a BEIR folder, or has a test split (with a train split for a
    classification), or files of translations. The fields of the first row decide.

    Raises:
        ValueError: A first row cannot be read, or two files have one name.
    """
    if not path.is_dir():
        return _find_row_task(path, path, None) if is_table(path) else None
    # A BEIR folder, the test split of which is preferred.
    if (path / "qrels").is_dir():
        splits = list(list_tables(path / "qrels"))
        if not splits:
            return None
        split = TEST if TEST in splits else splits[0]
        is_ranked = any(path.glob(f"{TOP_RANKED}*"))
        task = "reranking" if is_ranked else "retrieval"
        return {"task": task, "data": str(path), "split": split}
    files = list_tables(path)  # {split: its file}
    if TEST in files:
        return _find_row_task(path, files[TEST], files.get(TRAIN))
    # A file for each pair of languages.
    kinds = [_find_row_task(path, file, None) for file in files.values()]
    is_bitext = kinds and all(k and k["task"] == "bitext_mining" for k in kinds)
    return {"task": "bitext_mining", "data": str(path)} if is_bitext else None


def _find_row_task(data: Path, file: Path, train: Path | None) -> dict[str, Any] | None:
    """The task of a file by its first row, as `find_task` returns it."""
    _, row = next(read_records(file))
    label = next((row[name] for name in LABEL_FIELDS if name in row), None)
    # The fields of each type of task, the rarest first.
    task = None
    if {"human_summaries", "machine_summaries"} <= row.keys():
        task = "summarization"
    elif {"query", "positive", "negative"} <= row.keys():
        task, data = "reranking", file
    elif set(PAIR_FIELDS) <= row.keys():
        # A label is 0 or 1; a score has one of the other names.
        is_scored = any(name in row for name in STS_FIELDS["score"][:-1])
        task = "sts" if is_scored else "pair_classification"
        task = "bitext_mining" if label is None and not is_scored else task
    elif label is not None and any(name in row for name in TEXT_FIELDS):
        # Without texts to learn from, labels are clusters.
        task = "clustering"
        if train is not None:
            task = "multilabel" if isinstance(label, list) else "classification"
    return task and {"task": task, "data": str(data)}


def cache_vectors(embed: EmbedFn, *, by_role: bool) -> EmbedFn:
    """An embedder that embeds a text only once, and keeps its vector in memory.

    Args:
        embed: Function (texts, role) -> [N, D].
        by_role: Whether the vector of a text depends on its role.
    """
    vectors: dict[str, dict[str, np.ndarray]] = {}  # {role: {text: [D]}}

    def embed_new(texts, role):
        known = vectors.setdefault(role if by_role else "", {})
        # Equal texts of one call are embedded once, too.
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            known.update(zip(missing, embed(missing, role), strict=True))
        return np.stack([known[text] for text in texts])  # [N, D]

    return embed_new


def depends_on_role(embedder: Embedder) -> bool:
    """Whether an embedder embeds a text as a query and as a document differently."""
    model = embedder.model
    prompts = {model.prompts.get(role, "") for role in ("query", "document")}
    has_adapters = bool({"query", "document"} & set(model.adapters))
    return model.prompt is not None or has_adapters or len(prompts) > 1


def score_suite(
    evaluators: Mapping[str, Evaluator],
    embed: EmbedFn,
    report: Callable[[str, Mapping[str, Any], float], object],
) -> dict[str, Mapping[str, Any]]:
    """Scores the tasks one after another; a task that fails stops no other.

    Args:
        evaluators: {name of a task: its evaluator}.
        embed: The embedder.
        report: Function of the name, the scores and the seconds of a task, which is
            called when it is done.

    Returns:
        {name: scores}; {"error": sentence} of a task that failed.
    """
    results = {}
    for name, evaluate in evaluators.items():
        start = time.perf_counter()
        try:
            results[name] = evaluate(embed)
        except ValueError as error:
            results[name] = {"error": str(error)}
        report(name, results[name], time.perf_counter() - start)
    return results

"""Local files as tasks of the `mteb` package, for the tasks of a suite.

mteb and datasets are imported when a task is made.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from research.config_sections import keyword_parameters
from research.data.files import READERS, read_beir, read_sts
from research.eval.evaluators import EVALS
from research.eval.suites.tasks import TYPES
from research.eval.tasks import files as task_files


class TaskParts(NamedTuple):
    """What makes a task of mteb.

    Attributes:
        base: Name of its class in `mteb.abstasks`.
        main_score: Name of mteb's main score.
        dataset: Function () -> the value of the task's attribute `dataset`.
        attributes: Further attributes of the class.
        subsets: Names of its subsets, of which each has the splits; () for none.
    """

    base: str
    main_score: str
    dataset: Callable[[], Any]
    attributes: Mapping[str, Any] = {}
    subsets: tuple[str, ...] = ()


def make_mteb_task(task: str, name: str, **arguments):
    """The task of mteb with the data and the arguments of one of our evaluators.

    Its data set has a hash of the files for a revision, so that mteb's stored results
    count while the files are the same.

    Args:
        task: Name of the evaluator, a key of PARTS.
        name: Name of the task.
        **arguments: Arguments of the evaluator, of which those that mteb knows hold;
            others are attributes of mteb's class.

    Returns:
        An object for `mteb.evaluate`.

    Raises:
        FileNotFoundError, ValueError: There is no such file, or, when mteb loads the
            data, it is malformed.
    """
    import mteb.abstasks
    from mteb.abstasks.task_metadata import TaskMetadata

    data, split = arguments["data"], arguments.get("split", "test")
    parts = PARTS[task](arguments, split)
    # mteb wants languages, which files do not tell.
    languages = {subset: ["eng-Latn", "eng-Latn"] for subset in parts.subsets}
    metadata = TaskMetadata(
        name=name,
        description=f"Local files: {Path(data).name}",
        type=TYPES[task],
        main_score=parts.main_score,
        dataset={"path": data, "revision": hash_files(Path(data).expanduser())},
        eval_langs=languages or ["eng-Latn"],
        eval_splits=[split],
        category="t2t",
        modalities=["text"],
    )

    # mteb loads the data before a task and drops them after it.
    def load_data(self, **options):
        del options
        if not self.data_loaded:
            self.dataset, self.data_loaded = parts.dataset(), True

    # The class, with what our evaluator does not know for attributes.
    known = keyword_parameters(EVALS, task, {})
    further = {key: x for key, x in arguments.items() if key not in known}
    fields = {"metadata": metadata, "load_data": load_data}
    base = getattr(mteb.abstasks, parts.base)
    return type(name, (base,), fields | dict(parts.attributes) | further)()


def hash_files(path: Path) -> str:
    """A hash of a file, or of all files in a folder and their names."""
    # The names count, too: they are the splits and subsets.
    digest = hashlib.blake2b(digest_size=8)
    files = (
        [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    )
    for file in files:
        digest.update(str(file.relative_to(path.parent)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _make_dataset(columns: Mapping[str, Any]):
    from datasets import Dataset

    return Dataset.from_dict({name: list(values) for name, values in columns.items()})


def _make_splits(**splits: Mapping[str, Any]):
    """{split: columns} as mteb reads it."""
    from datasets import DatasetDict

    return DatasetDict({name: _make_dataset(rows) for name, rows in splits.items()})


def make_sts(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Pairs with scores."""
    path = task_files.find_split(arguments["data"], split)
    # mteb wants the bounds of the scores, on which no correlation depends.
    scores = read_sts(path)[2]

    def read_pairs():
        names = ("sentence1", "sentence2", "score")
        return _make_splits(**{split: dict(zip(names, read_sts(path), strict=True))})

    bounds = {"min_score": min(scores), "max_score": max(scores)}
    return TaskParts("AbsTaskSTS", "cosine_spearman", read_pairs, bounds)


def make_pair_classification(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Pairs labeled 0 or 1."""
    path = task_files.find_split(arguments["data"], split)

    def read_pairs():
        first, second, labels = task_files.read_binary_pairs(path)
        rows = {"sentence1": first, "sentence2": second, "labels": labels.tolist()}
        return _make_splits(**{split: rows})

    return TaskParts("AbsTaskPairClassification", "max_ap", read_pairs)


def make_classification(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Texts with one label."""
    label = arguments.get("label", "label")

    def read_splits():
        splits = {}
        for name in ("train", split):
            file = task_files.find_split(arguments["data"], name)
            rows = task_files.read_labels(file, label)
            splits[name] = {"text": rows.texts, "label": rows.labels.tolist()}
        return _make_splits(**splits)

    attributes = _read_experiments(arguments)
    return TaskParts("AbsTaskClassification", "accuracy", read_splits, attributes)


def make_multilabel(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Texts with lists of labels."""
    label = arguments.get("label", "labels")

    def read_splits():
        splits = {}
        for name in ("train", split):
            file = task_files.find_split(arguments["data"], name)
            texts, labels = task_files.read_label_lists(file, label)
            splits[name] = {"text": texts, "label": labels}
        return _make_splits(**splits)

    attributes = _read_experiments(arguments)
    if "max_texts" in arguments:
        attributes["max_eval_samples"] = arguments["max_texts"] or None
    return TaskParts(
        "AbsTaskMultilabelClassification", "accuracy", read_splits, attributes
    )


def _read_experiments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """mteb's attributes for the arguments of a classification."""
    names = {"samples_per_label": "samples_per_label", "experiments": "n_experiments"}
    return {names[key]: value for key, value in arguments.items() if key in names}


def make_clustering(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Texts with clusters; or sets of them, mteb's older form."""
    path = task_files.find_split(arguments["data"], split)
    label = arguments.get("label", "")
    # Sets of texts are another class.
    is_sets = bool(task_files.read_clusters(path, label).sets)

    def read_texts():
        texts, labels, sets = task_files.read_clusters(path, label)
        # Lists of lists for sets; a single level of labels is no list.
        if sets:
            texts, labels = map(list, zip(*sets, strict=True))
        elif all(len(row) == 1 for row in labels):
            labels = [row[0] for row in labels]
        return _make_splits(**{split: {"sentences": texts, "labels": labels}})

    if is_sets:
        return TaskParts("AbsTaskClusteringLegacy", "v_measure", read_texts)
    # All texts are clustered, however many there are.
    limits = {"max_document_to_embed": None, "max_fraction_of_documents_to_embed": None}
    return TaskParts("AbsTaskClustering", "v_measure", read_texts, limits)


def make_bitext_mining(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Translations: a file, or a subset for each file of a folder."""
    path = Path(arguments["data"]).expanduser()
    # {subset: its file}
    files = {"default": path}
    if path.is_dir():
        files = {
            file.name.split(".")[0]: file
            for file in sorted(path.iterdir())
            if file.name.removesuffix(".gz").endswith(tuple(READERS))
        }

    def read_pairs():
        subsets = {}
        for name, file in files.items():
            first, second = task_files.read_bitext(file)
            rows = {"sentence1": first, "sentence2": second}
            subsets[name] = _make_splits(**{split: rows})
        return subsets if path.is_dir() else subsets["default"]

    subsets = tuple(files) if path.is_dir() else ()
    return TaskParts("AbsTaskBitextMining", "f1", read_pairs, subsets=subsets)


def make_retrieval(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """A corpus, queries and judgments."""
    ignore = arguments.get("ignore_identical_ids", False)

    def read_folder():
        data = read_beir(arguments["data"], split)
        return _make_search(split, data.corpus, data.queries, data.qrels, None)

    attributes = {"ignore_identical_ids": ignore}
    return TaskParts("AbsTaskRetrieval", "ndcg_at_10", read_folder, attributes)


def make_reranking(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Queries with candidates."""

    def read_queries():
        data = task_files.read_candidates(arguments["data"], split)
        return _make_search(
            split, data.documents, data.queries, data.qrels, data.ranked
        )

    return TaskParts("AbsTaskRetrieval", "map_at_1000", read_queries)


def _make_search(split: str, corpus, queries, qrels, ranked) -> dict[str, Any]:
    # The titles are in our texts already.
    documents = {"id": corpus, "title": [""] * len(corpus), "text": corpus.values()}
    data = {
        "corpus": _make_dataset(documents),
        "queries": _make_dataset({"id": queries, "text": queries.values()}),
        "relevant_docs": {q: dict(grades) for q, grades in qrels.items()},
        "top_ranked": ranked,
    }
    return {"default": {split: data}}


def make_summarization(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Summaries of texts, by people and by machines, with grades."""
    path = task_files.find_split(arguments["data"], split)
    grades = [g for text in task_files.read_summaries(path) for g in text.relevance]

    def read_summaries():
        texts = task_files.read_summaries(path)
        # The text itself is not embedded.
        rows = {
            "text": [""] * len(texts),
            "human_summaries": [list(text.human) for text in texts],
            "machine_summaries": [list(text.machine) for text in texts],
            "relevance": [text.relevance for text in texts],
        }
        return _make_splits(**{split: rows})

    bounds = {"min_score": min(grades), "max_score": max(grades)}
    return TaskParts("AbsTaskSummarization", "cosine_spearman", read_summaries, bounds)


# {task of a suite: function of its arguments and its split}
PARTS: Mapping[str, Callable[[Mapping[str, Any], str], TaskParts]] = {
    "bitext_mining": make_bitext_mining,
    "classification": make_classification,
    "clustering": make_clustering,
    "multilabel": make_multilabel,
    "pair_classification": make_pair_classification,
    "reranking": make_reranking,
    "retrieval": make_retrieval,
    "sts": make_sts,
    "summarization": make_summarization,
}

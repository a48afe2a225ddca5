"""Local files as tasks of the `mteb` package, for the tasks of a suite.

mteb and datasets are imported when a task is made.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from research.atomic_write import to_json
from research.config_sections import keyword_parameters
from research.data.files import read_beir, read_sts
from research.eval.evaluators import EVALS
from research.eval.suites.tasks import TYPES
from research.eval.tasks import files as task_files
from research.eval.tasks.bitext_mining import find_pairs
from research.eval.tasks.splits import TEST, TRAIN, find_split, find_train_and_test

# Arguments of our evaluators that change no score of mteb's, or that `PARTS` reads.
OWN_ARGUMENTS = (
    *("data", "split", "label", "max_texts"),
    *("samples", "abstention", "lexical"),
)
# {argument of our evaluators: mteb's attribute of the task}
ATTRIBUTES = {
    "samples_per_label": "samples_per_label",
    "experiments": "n_experiments",
    "ignore_identical_ids": "ignore_identical_ids",
    "texts_per_repetition": "max_documents_per_cluster",
    "repetitions": "n_clusters",
}


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

    Its data set has a hash of the files and the arguments for a revision, so that
    mteb's stored results count while both are the same.

    Args:
        task: Name of the evaluator, a key of PARTS.
        name: Name of the task.
        **arguments: Arguments of the evaluator.

    Returns:
        An object for `mteb.evaluate`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: mteb has no such argument; or, when it loads the data, a file is
            malformed.
    """
    import mteb.abstasks
    from mteb.abstasks.task_metadata import TaskMetadata

    attributes = convert_arguments(task, name, arguments)
    data, split = arguments["data"], arguments.get("split", TEST)
    parts = PARTS[task](arguments, split)
    # mteb wants languages, which files do not tell.
    languages = {subset: ["eng-Latn", "eng-Latn"] for subset in parts.subsets}
    metadata = TaskMetadata(
        name=name,
        description=f"Local files: {Path(data).name}",
        type=TYPES[task],
        main_score=parts.main_score,
        dataset={"path": data, "revision": hash_data(arguments)},
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

    fields = {"metadata": metadata, "load_data": load_data, **parts.attributes}
    base = getattr(mteb.abstasks, parts.base)
    return type(name, (base,), fields | attributes)()


def convert_arguments(
    task: str, name: str, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """mteb's attributes of a task for the arguments of our evaluator.

    Raises:
        ValueError: The evaluator has no such argument, or mteb has none for it, so that
            it would score another task.
    """
    keyword_parameters(EVALS, task, arguments)  # checks the names
    unknown = arguments.keys() - {*OWN_ARGUMENTS, *ATTRIBUTES}
    if unknown:
        raise ValueError(
            f"{name}: {', '.join(sorted(unknown))} of {task} has no counterpart in mteb"
        )
    attributes = {
        ATTRIBUTES[key]: x for key, x in arguments.items() if key in ATTRIBUTES
    }
    if task == "clustering":
        # mteb clusters a share of the texts, unless it is told not to.
        attributes["max_fraction_of_documents_to_embed"] = None
        attributes["max_document_to_embed"] = arguments.get("max_texts") or None
    elif "max_texts" in arguments:
        attributes["max_eval_samples"] = arguments["max_texts"] or None
    return attributes


def hash_data(arguments: Mapping[str, Any]) -> str:
    """A hash of the arguments of a task, and of its file or all files in its folder."""
    path = Path(arguments["data"]).expanduser()
    options = {key: x for key, x in arguments.items() if key != "data"}
    digest = hashlib.blake2b(to_json(options, sort_keys=True).encode(), digest_size=8)
    # The names count, too: they are the splits and subsets.
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
    path = find_split(arguments["data"], split)
    # mteb wants the bounds of the scores, on which no correlation depends.
    scores = read_sts(path)[2]

    def read_pairs():
        names = ("sentence1", "sentence2", "score")
        return _make_splits(**{split: dict(zip(names, read_sts(path), strict=True))})

    bounds = {"min_score": min(scores), "max_score": max(scores)}
    return TaskParts("AbsTaskSTS", "cosine_spearman", read_pairs, bounds)


def make_pair_classification(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Pairs labeled 0 or 1."""
    path = find_split(arguments["data"], split)

    def read_pairs():
        first, second, labels = task_files.read_binary_pairs(path)
        rows = {"sentence1": first, "sentence2": second, "labels": labels.tolist()}
        return _make_splits(**{split: rows})

    return TaskParts("AbsTaskPairClassification", "max_ap", read_pairs)


def make_classification(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Texts with one label."""
    label = arguments.get("label", "label")
    files = _find_splits(arguments, split)

    def read_splits():
        splits = {}
        for name, file in files.items():
            rows = task_files.read_labels(file, label)
            splits[name] = {"text": rows.texts, "label": rows.labels.tolist()}
        return _make_splits(**splits)

    return TaskParts("AbsTaskClassification", "accuracy", read_splits)


def make_multilabel(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Texts with lists of labels."""
    label = arguments.get("label", "labels")
    files = _find_splits(arguments, split)

    def read_splits():
        splits = {}
        for name, file in files.items():
            texts, labels = task_files.read_label_lists(file, label)
            splits[name] = {"text": texts, "label": labels}
        return _make_splits(**splits)

    return TaskParts("AbsTaskMultilabelClassification", "accuracy", read_splits)


def _find_splits(arguments: Mapping[str, Any], split: str) -> dict[str, Path]:
    """{split: its file} of a classification."""
    files = find_train_and_test(arguments["data"], split)
    return dict(zip((TRAIN, split), files, strict=True))


def make_clustering(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Texts with clusters; or sets of them, mteb's older form."""
    path = find_split(arguments["data"], split)
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
    return TaskParts("AbsTaskClustering", "v_measure", read_texts)


def make_bitext_mining(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """Translations: a file, or a subset for each file of a folder."""
    files = find_pairs(arguments["data"])  # {subset: its file}
    is_folder = Path(arguments["data"]).expanduser().is_dir()

    def read_pairs():
        subsets = {}
        for name, file in files.items():
            first, second = task_files.read_bitext(file)
            rows = {"sentence1": first, "sentence2": second}
            subsets[name] = _make_splits(**{split: rows})
        return subsets if is_folder else next(iter(subsets.values()))

    subsets = tuple(files) if is_folder else ()
    return TaskParts("AbsTaskBitextMining", "f1", read_pairs, subsets=subsets)


def make_retrieval(arguments: Mapping[str, Any], split: str) -> TaskParts:
    """A corpus, queries and judgments."""

    def read_folder():
        data = read_beir(arguments["data"], split)
        return _make_search(split, data.corpus, data.queries, data.qrels, None)

    return TaskParts("AbsTaskRetrieval", "ndcg_at_10", read_folder)


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
    path = find_split(arguments["data"], split)
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

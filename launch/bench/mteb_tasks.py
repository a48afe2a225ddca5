"""Files of evaluation tasks as tasks of mteb, to compare its scores with ours."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict
from mteb.abstasks import clustering, clustering_legacy, sts
from mteb.abstasks.classification import AbsTaskClassification
from mteb.abstasks.multilabel_classification import AbsTaskMultilabelClassification
from mteb.abstasks.pair_classification import AbsTaskPairClassification
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.text.bitext_mining import AbsTaskBitextMining
from mteb.abstasks.text.summarization import AbsTaskSummarization

from research.data.files import read_beir, read_sts
from research.eval.tasks import files as task_files

SPLIT = "test"  # of every task here


class TaskType(NamedTuple):
    """A type of task in mteb.

    Attributes:
        base: Class of its tasks.
        name: mteb's name of the type.
        main_score: mteb's name of the main score of most such tasks.
        read: Function (**arguments of our evaluator) -> the data as the class has them.
        attributes: Attributes of the class.
    """

    base: type
    name: str
    main_score: str
    read: Callable[..., Any]
    attributes: Mapping[str, Any] = {}


def make_mteb_task(kind: str, name: str, **arguments):
    """The task of mteb for the files that one of our evaluators reads.

    Args:
        kind: Name of the evaluator, a key of TASK_TYPES.
        name: Name of the task.
        **arguments: `data` and, for classification, `label` of the evaluator; further
            arguments are attributes of mteb's class.
    """
    reader_arguments = {
        n: arguments.pop(n) for n in ("data", "label") if n in arguments
    }
    task_type = TASK_TYPES[kind]
    dataset = task_type.read(**reader_arguments)
    if kind == "clustering" and isinstance(dataset[SPLIT]["sentences"][0], list):
        task_type = TASK_TYPES["clustering_sets"]
    # What mteb asks of a task, beside its data.
    card = TaskMetadata(
        name=name,
        description="A set of local files.",
        type=task_type.name,
        main_score=task_type.main_score,
        dataset={"path": "local", "revision": "1"},
        eval_langs=["eng-Latn"],
        eval_splits=[SPLIT],
        category="t2t",
        modalities=["text"],
    )

    class LocalTask(task_type.base):
        metadata = card

        def load_data(self, **kwargs):
            self.dataset = self.dataset if self.data_loaded else dataset
            self.data_loaded = True

    for key, value in (task_type.attributes | arguments).items():
        setattr(LocalTask, key, value)
    return LocalTask()


def _read_classification(data: str, label: str = "label") -> DatasetDict:
    splits = {}
    for split in ("train", SPLIT):
        path = task_files.find_split(data, split)
        _, texts, labels = task_files.read_labels(path, label)
        splits[split] = Dataset.from_dict({"text": texts, "label": labels.tolist()})
    return DatasetDict(splits)


def _read_multilabel(data: str, label: str = "labels") -> DatasetDict:
    splits = {}
    for split in ("train", SPLIT):
        path = task_files.find_split(data, split)
        texts, labels = task_files.read_label_lists(path, label)
        splits[split] = Dataset.from_dict({"text": texts, "label": labels})
    return DatasetDict(splits)


def _read_clustering(data: str, label: str = "") -> DatasetDict:
    path = task_files.find_split(data, SPLIT)
    texts, labels, sets = task_files.read_clusters(path, label)
    if sets:
        texts, labels = map(list, zip(*sets, strict=True))
    elif all(len(row) == 1 for row in labels):
        labels = [row[0] for row in labels]
    return _make_split(sentences=texts, labels=labels)


def _read_pairs(data: str) -> DatasetDict:
    path = task_files.find_split(data, SPLIT)
    first, second, labels = task_files.read_binary_pairs(path)
    return _make_split(sentence1=first, sentence2=second, labels=labels.tolist())


def _read_sts(data: str) -> DatasetDict:
    first, second, scores = read_sts(task_files.find_split(data, SPLIT))
    return _make_split(sentence1=first, sentence2=second, score=scores)


def _read_bitext(data: str) -> DatasetDict:
    first, second = task_files.read_bitext(data)
    return _make_split(sentence1=first, sentence2=second)


def _read_summaries(data: str) -> DatasetDict:
    rows = task_files.read_summaries(task_files.find_split(data, SPLIT))
    return _make_split(
        text=[""] * len(rows),
        human_summaries=[list(row.human) for row in rows],
        machine_summaries=[list(row.machine) for row in rows],
        relevance=[row.relevance for row in rows],
    )


def _read_retrieval(data: str) -> dict:
    corpus, queries, qrels, *_ = read_beir(data, SPLIT)
    return _make_search(corpus, queries, qrels)


def _read_reranking(data: str) -> dict:
    queries, documents, qrels, ranked = task_files.read_candidates(data, SPLIT)
    return _make_search(documents, queries, qrels, ranked)


def _make_split(**columns) -> DatasetDict:
    return DatasetDict({SPLIT: Dataset.from_dict(columns)})


def _make_search(corpus, queries, qrels, ranked=None) -> dict:
    def make_table(texts, **columns):
        ids, values = list(texts), list(texts.values())
        return Dataset.from_dict({"id": ids, "text": values, **columns})

    data = {
        "corpus": make_table(corpus, title=[""] * len(corpus)),
        "queries": make_table(queries),
        "relevant_docs": qrels,
        "top_ranked": ranked,
    }
    return {"default": {SPLIT: data}}


# {our evaluator: its type in mteb}; sets of texts to cluster are a type of their own.
TASK_TYPES = {
    "classification": TaskType(
        AbsTaskClassification, "Classification", "accuracy", _read_classification
    ),
    "multilabel": TaskType(
        AbsTaskMultilabelClassification,
        "MultilabelClassification",
        "accuracy",
        _read_multilabel,
    ),
    "clustering": TaskType(
        clustering.AbsTaskClustering,
        "Clustering",
        "v_measure",
        _read_clustering,
        {"max_fraction_of_documents_to_embed": None},
    ),
    "clustering_sets": TaskType(
        clustering_legacy.AbsTaskClusteringLegacy,
        "Clustering",
        "v_measure",
        _read_clustering,
    ),
    "pair_classification": TaskType(
        AbsTaskPairClassification, "PairClassification", "max_ap", _read_pairs
    ),
    "sts": TaskType(sts.AbsTaskSTS, "STS", "cosine_spearman", _read_sts),
    "bitext_mining": TaskType(AbsTaskBitextMining, "BitextMining", "f1", _read_bitext),
    "retrieval": TaskType(AbsTaskRetrieval, "Retrieval", "ndcg_at_10", _read_retrieval),
    "reranking": TaskType(
        AbsTaskRetrieval, "Reranking", "map_at_1000", _read_reranking
    ),
    "summarization": TaskType(
        AbsTaskSummarization,
        "Summarization",
        "cosine_spearman",
        _read_summaries,
        {"min_score": 0, "max_score": 5},
    ),
}

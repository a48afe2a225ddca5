"""Training data of every kind as a Source: rows of texts, a weight and prompts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from research.data import examples
from research.data import files as readers
from research.data.examples import Example

CHUNK = 1024  # records read at once


@dataclass(frozen=True)
class Source:
    """Rows to train on.

    Attributes:
        rows: a sequence of Row; it need not be in memory.
        negatives: hard negatives a query gets in every step.
        weight: share of the steps, relative to the other sources.
        prompts: what is put before the texts, for "query" and "document".
        identity: names the rows' content where that is known without reading them.
    """

    examples: Sequence[Example]
    negatives_per_query: int
    weight: float
    prompts: Mapping[str, str]
    identity: str = ""


@dataclass(frozen=True)
class LazyExamples(Sequence):
    """Rows made of a data source's records when they are asked for."""

    data: Any
    convert: Callable[[Mapping[str, Any]], Example]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index):
        if isinstance(index, slice):
            indices = list(range(*index.indices(len(self))))
            return [self.convert(record) for record in self.data.__getitems__(indices)]
        return self.convert(self.data[index])

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), CHUNK):
            yield from self[start : start + CHUNK]


def load_files(
    *,
    path: str,
    negatives: int = -1,
    corpus: str = "",
    score_range: float = 1.0,
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """Rows of a jsonl, tsv or csv file, plain or .gz.

    Columns as sentence-transformers (anchor | query | question | sentence1; positive |
    answer | sentence2; negative, negative_1..n; score | label), FlagEmbedding (query,
    pos, neg) or Tevatron (query | query_text; positive_passages, negative_passages, or
    positive_document_ids, negative_document_ids with `corpus`) have them; `group` too.

    Args:
        negatives: hard negatives a query gets, -1 for as many as every row has.
        corpus: Tevatron's file of docid and document_text.
        score_range: scores are divided by it (5 for STS-B).
    """
    documents = examples.read_tevatron_corpus(corpus) if corpus else None
    rows = []
    for line, record in readers.read_records(path):
        row = examples.parse_example(path, line, record, documents)
        if row.score is not None:
            row = row._replace(score=row.score / score_range)
        rows.append(row)
        if len(row.negatives) < negatives:
            raise ValueError(
                f"{path} line {line} has {len(row.negatives)} negatives, "
                f"not the {negatives} asked for"
            )
    if negatives < 0:
        negatives = min(len(row.negatives) for row in rows)
    return _source(rows, negatives, weight, query_prompt, document_prompt)


def load_labeled_texts(
    *,
    path: str,
    positives: int = 4,
    negatives: int = 1,
    seed: int = 0,
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """Texts of classes: some of the same class as positives, some of others as hard
    negatives (NV-Embed, Lee et al. 2024).

    They are drawn once for each text. A class of one text gives only negatives.

    Args:
        path: a jsonl, tsv or csv file with the fields text and label.
        positives: that a step draws one of, at most.
        negatives: hard negatives a query gets.
        seed: of the draws.
    """
    found, labels = examples.read_labeled_texts(path)
    _, kinds = np.unique(labels, return_inverse=True)
    draw = np.random.default_rng(seed)
    rows = []
    for kind in range(kinds.max() + 1):
        same, other = np.flatnonzero(kinds == kind), np.flatnonzero(kinds != kind)
        if len(other) < negatives:
            raise ValueError(
                f"{path}: {len(other)} texts are not of the class {labels[same[0]]!r}, "
                f"fewer than the {negatives} negatives asked for"
            )
        for own in same if len(same) > 1 else ():
            near = draw.permutation(same[same != own])[:positives]
            far = draw.choice(other, negatives, replace=False)
            good, bad = (tuple(found[i] for i in part) for part in (near, far))
            rows.append(Example(found[own], good, bad))
    if not rows:
        raise ValueError(f"{path}: no class has two texts")
    return _source(rows, negatives, weight, query_prompt, document_prompt)


def load_texts(
    *,
    path: str,
    unit: str = "line",
    shortest: int = 0,
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """Every text as its own positive (unsupervised SimCSE, Gao et al. 2021).

    Args:
        path: a .txt file, the field `text` of a jsonl, tsv or csv file, each plain or
            .gz, or a folder of such files, those in its folders too.
        unit: what is a text of a .txt file: a "line", a "block" between blank lines or
            the whole "file". Empty ones are skipped.
        shortest: texts of fewer characters are left out.
    """
    found = map(str.strip, examples.read_texts(path, unit))
    rows = [Example(text, (text,)) for text in found if text and len(text) >= shortest]
    if not rows:
        raise ValueError(f"{path} holds no texts")
    return _source(rows, 0, weight, query_prompt, document_prompt)


def load_beir(
    *,
    path: str,
    split: str = "train",
    negatives: int = 0,
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """The judged queries of a BEIR folder; graded documents are the positives.

    Args:
        negatives: hard negatives a query gets, from its documents of grade 0.
    """
    corpus, queries, qrels = readers.read_beir(path, split)
    rows = []
    for identifier, grades in qrels.items():
        good = tuple(corpus[d] for d, grade in grades.items() if grade > 0)
        bad = tuple(corpus[d] for d, grade in grades.items() if grade <= 0)
        if good:
            rows.append(Example(queries[identifier], good, bad))
            if len(bad) < negatives:
                raise ValueError(
                    f"{path}: query {identifier!r} has {len(bad)} documents of "
                    f"grade 0, not the {negatives} negatives asked for"
                )
    return _source(rows, negatives, weight, query_prompt, document_prompt)


def load_pydocs(
    *,
    split: str = "train",
    limit: int = 0,
    cache: str = "",
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """Docstring and code of the functions of the installed Python packages.

    Args:
        split: "train" or "test", which share no package.
        limit: only so many of the pairs; 0 is all.
        cache: folder of TFDS data sets, ~/.cache/embax/tfds if empty.
    """
    from research.data import pydocs as builder

    data = builder.load(split, cache=cache or builder.CACHE)
    convert = partial(_named, query="query", document="document")
    rows, identity = (
        LazyExamples(data, convert),
        f"{data.dataset_info.data_dir} {split}",
    )
    if limit:
        rows, identity = rows[:limit], f"{identity} {limit}"
    return _source(rows, 0, weight, query_prompt, document_prompt, identity)


def load_tfds(
    *,
    dataset: str,
    split: str,
    query: str,
    document: str,
    negatives: tuple[str, ...] = (),
    score: str = "",
    score_range: float = 1.0,
    data_dir: str = "",
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """Any TFDS data set of texts, read at random with no TensorFlow installed.

    Args:
        dataset: its name and, after a slash, its config.
        split: such as "train" or "train[:10%]".
        query, document, negatives, score: the features that hold them.
        score_range: scores are divided by it.
        data_dir: TFDS' folder, its own choice if empty.
    """
    import tensorflow_datasets as tfds

    data = tfds.data_source(
        dataset,
        split=split,
        data_dir=data_dir or None,
        builder_kwargs={"file_format": "array_record"},
    )
    names = {"query": query, "document": document, "score": score}
    convert = partial(_named, **names, negatives=negatives, score_range=score_range)
    rows = _checked(dataset, data, convert, (query, document, *negatives, score))
    # The converted columns are part of the content, the data set alone is not.
    identity = repr((str(data.dataset_info.data_dir), split, convert.keywords))
    return _source(
        rows, len(negatives), weight, query_prompt, document_prompt, identity
    )


def load_hub(
    *,
    dataset: str,
    split: str,
    query: str,
    document: str,
    negatives: tuple[str, ...] = (),
    score: str = "",
    score_range: float = 1.0,
    subset: str = "",
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """A data set of the Hugging Face hub, or a local folder in its formats.

    Args:
        dataset: its name or path.
        subset: its config, if it has several.
        query, document, negatives, score: the columns that hold them.
        score_range: scores are divided by it.
    """
    try:
        import datasets
    except ImportError:
        raise ValueError(
            f"data set {dataset!r} needs the package datasets: pip install datasets"
        ) from None
    data = datasets.load_dataset(dataset, subset or None, split=split)
    names = {"query": query, "document": document, "score": score}
    convert = partial(_named, **names, negatives=negatives, score_range=score_range)
    rows = _checked(dataset, data, convert, (query, document, *negatives, score))
    return _source(rows, len(negatives), weight, query_prompt, document_prompt)


def _named(
    record: Mapping[str, Any],
    *,
    query: str,
    document: str,
    negatives: Sequence[str] = (),
    score: str = "",
    score_range: float = 1.0,
) -> Example:
    def text(name: str) -> str:
        value = record[name]
        return value.decode() if isinstance(value, bytes) else str(value)

    return Example(
        text(query),
        (text(document),),
        tuple(text(name) for name in negatives),
        float(record[score]) / score_range if score else None,
    )


def _checked(dataset: str, data, convert, names: tuple[str, ...]) -> LazyExamples:
    if not len(data):
        raise ValueError(f"data set {dataset!r} has no rows in this split")
    found = set(data[0])
    missing = [name for name in names if name and name not in found]
    if missing:
        raise ValueError(
            f"data set {dataset!r} has no column {', '.join(missing)}; "
            f"found {', '.join(sorted(found))}"
        )
    return LazyExamples(data, convert)


def _source(
    rows, negatives, weight, query_prompt, document_prompt, identity=""
) -> Source:
    if not weight > 0:
        raise ValueError(f"weight {weight} should be positive")
    prompts = {"query": query_prompt, "document": document_prompt}
    return Source(rows, negatives, weight, prompts, identity)


SOURCES: Mapping[str, Callable[..., Source]] = {
    "files": load_files,
    "labeled_texts": load_labeled_texts,
    "texts": load_texts,
    "beir": load_beir,
    "pydocs": load_pydocs,
    "tfds": load_tfds,
    "hub": load_hub,
}

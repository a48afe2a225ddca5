"""Readers of the files of evaluation tasks: labels, pairs, candidates, summaries."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from research.data.fields import Record, check_name
from research.data.files import Qrels, read_beir, read_records
from research.eval.tasks.splits import find_split

# Names of a field, of which a row has one.
TEXT_FIELDS = ("text", "sentences", "sentence")
LABEL_FIELDS = ("label", "labels")
PAIR_FIELDS = ("sentence1", "sentence2")
TOP_RANKED = "top_ranked.jsonl"


class LabeledTexts(NamedTuple):
    """The texts of a split and their labels.

    Attributes:
        place: Name of the file.
        texts: N texts.
        labels: [N] integers or texts.
    """

    place: str
    texts: list[str]
    labels: np.ndarray


class Clusters(NamedTuple):
    """Texts to cluster: in one set with several levels of labels, or in many sets.

    Attributes:
        texts: N texts; none if there are sets.
        labels: N lists of labels, from the coarsest to the finest.
        sets: (texts, labels) of each set, with one label for each text; or none.
    """

    texts: list[str]
    labels: list[list[int | str]]
    sets: list[tuple[list[str], list[int | str]]]


class Candidates(NamedTuple):
    """What a reranking task ranks.

    Attributes:
        queries: {query id: text}.
        documents: {document id: text}, the candidates of all queries.
        qrels: {query id: {document id: grade}}.
        ranked: {query id: ids of its candidates}, for the same queries.
        groups: Groups of queries that depend on each other, in the order of `qrels`;
            None for none.
    """

    queries: dict[str, str]
    documents: dict[str, str]
    qrels: Qrels
    ranked: dict[str, list[str]]
    groups: list[str] | None = None


class SummarizedText(NamedTuple):
    """A text's summaries.

    Attributes:
        human: Texts of people's summaries.
        machine: Texts of M summaries by machines.
        relevance: M grades of the latter.
    """

    human: tuple[str, ...]
    machine: tuple[str, ...]
    relevance: list[float]


def read_groups(path: Path, names: Sequence[str], key: str = "") -> list[str] | None:
    """The group of each item of a task, from the optional field `group` of its rows.

    Items of one group, such as queries about one document, depend on each other.

    Args:
        path: The file.
        names: Names of the items.
        key: The field of these names; "" if they are the numbers of the rows, from 0.

    Returns:
        The group of each item, those without one apart; None if no row has the field.
    """
    groups = {}
    rows = itertools.chain.from_iterable(map(_split_lists, _read_rows(path)))
    for number, record in enumerate(rows):
        if record.has("group"):
            name = record.read_name(key) if key else str(number)
            groups[name] = record.read_name("group")
    if not groups:
        return None
    return [groups.get(name, f"{path.name}:{name} alone") for name in names]


def read_labels(path: Path, label: str = "label") -> LabeledTexts:
    """Reads texts with one label each, of the fields text and `label`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row has no text or no label.
    """
    texts, labels = [], []
    for record in _read_rows(path):
        texts.append(record.read_text(*TEXT_FIELDS, allow_blank=True))
        record.read_name(label)  # refuses null and others that are no label
        labels.append(record.values[label])
    return LabeledTexts(str(path), texts, np.array(labels))


def read_label_lists(
    path: Path, label: str = "labels"
) -> tuple[list[str], list[list[int | str]]]:
    """Reads texts with a list of labels each: (N texts, N lists of labels).

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row has no text, or its labels are no list.
    """
    texts, labels = [], []
    for record in _read_rows(path):
        texts.append(record.read_text("text", allow_blank=True))
        if label not in record.values:
            record.read_name(label)  # raises an error with the fields that are there
        labels.append(_read_label_list(record, label))
    return texts, labels


def read_clusters(path: Path, label: str = "") -> Clusters:
    """Reads texts and the clusters that they belong to.

    A row is a text with a label, or with a list of labels from the coarsest to the
    finest; or it is a set of its own, with lists of texts and of labels.

    Args:
        path: A file with the fields text (or sentences) and label (or labels).
        label: Name of the field of the labels; "" for label or labels.

    Returns:
        Texts with labels, or sets.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row has no text or no label, or lists of two lengths.
    """
    label_fields = (label,) if label else LABEL_FIELDS
    texts, labels, sets = clusters = Clusters([], [], [])
    for record in _read_rows(path):
        text_field = next((n for n in TEXT_FIELDS if n in record.values), "text")
        name = next((n for n in label_fields if n in record.values), label_fields[0])
        if isinstance(record.values.get(text_field), list):
            row_texts = list(record.read_texts(text_field))
            row_labels = _read_label_list(record, name)
            if len(row_texts) != len(row_labels):
                raise ValueError(
                    f"{record.place} has {len(row_texts)} texts and "
                    f"{len(row_labels)} labels"
                )
            sets.append((row_texts, row_labels))
            continue
        texts.append(record.read_text(text_field, allow_blank=True))
        if isinstance(record.values.get(name), list):
            labels.append(_read_label_list(record, name))
        else:
            record.read_name(name)  # refuses null and others that are no label
            labels.append([record.values[name]])
    if sets and texts:
        raise ValueError(f"{path} has rows of one text and rows of several")
    return clusters


def read_binary_pairs(path: Path) -> tuple[list[str], list[str], np.ndarray]:
    """Reads pairs labeled 0 or 1: (N first texts, N second texts, [N] labels).

    The fields are sentence1, sentence2 and label or labels; a row may hold lists of
    them.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A field is missing, or a label is neither 0 nor 1.
    """
    first, second, labels = [], [], []
    for row in _read_rows(path):
        for record in _split_lists(row):
            first.append(record.read_text(PAIR_FIELDS[0], allow_blank=True))
            second.append(record.read_text(PAIR_FIELDS[1], allow_blank=True))
            label = record.read_number(*LABEL_FIELDS)
            if label not in (0, 1):
                raise ValueError(f"{record.place}: the label is {label:g}, not 0 or 1")
            labels.append(int(label))
    return first, second, np.array(labels)


def read_bitext(path: Path, *, allow_blank: bool = True) -> tuple[list[str], list[str]]:
    """Reads translations: (N texts in one language, N in the other).

    Args:
        path: The file.
        allow_blank: Whether a text may be blank, as in mteb.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row lacks sentence1 or sentence2.
    """
    rows = list(_read_rows(path))
    first, second = (
        [row.read_text(name, allow_blank=allow_blank) for row in rows]
        for name in PAIR_FIELDS
    )
    return first, second


def read_candidates(data: str, split: str) -> Candidates:
    """Reads the candidates of a reranking.

    Args:
        data: A BEIR folder with top_ranked.jsonl too (query-id, corpus-ids); or a file
            with a query and lists of its positive and negative texts in each row, of
            which rows with an empty list are left out, as in mteb.
        split: Name of the file in the folder's qrels/.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A file is malformed, or a query has no candidates; or `data` is a
            file, and another split is named.
    """
    path = Path(data).expanduser()
    if path.is_dir():
        return _read_ranked_folder(path, split)
    return _read_ranked_rows(find_split(path, split))


def _read_ranked_folder(path: Path, split: str) -> Candidates:
    corpus, queries, qrels, *_ = read_beir(path, split)
    file = next((p for p in path.glob(f"{TOP_RANKED}*")), path / TOP_RANKED)
    ranked: dict[str, list[str]] = {}
    for record in _read_rows(file):
        query = record.read_name("query-id")
        names = [str(name) for name in record.read_list("corpus-ids")]
        if unknown := [name for name in names if name not in corpus]:
            raise ValueError(f"{record.place}: the corpus has no {unknown[0]!r}")
        if query in ranked:
            raise ValueError(f"{record.place}: query {query!r} occurs twice")
        ranked[query] = names
    # Every judged query needs candidates.
    if empty := [query for query in queries if not ranked.get(query)]:
        raise ValueError(
            f"{file} has no documents for {len(empty)} of {len(queries)} queries, such "
            f"as {empty[0]!r}"
        )
    ranked = {query: ranked[query] for query in queries}
    names = dict.fromkeys(name for names in ranked.values() for name in names)
    documents = {name: corpus[name] for name in names}
    groups = read_groups(find_split(path, "queries"), list(qrels), "_id")
    return Candidates(queries, documents, qrels, ranked, groups)


def _read_ranked_rows(path: Path) -> Candidates:
    candidates, rows = Candidates({}, {}, {}, {}), []
    for row, record in enumerate(_read_rows(path)):
        query = record.read_text("query", allow_blank=True)
        positives, negatives = map(record.read_texts, ("positive", "negative"))
        if not (positives and negatives):
            continue
        # mteb's ids: of equal scores, trec_eval puts the last id first, a negative.
        number = f"query{len(candidates.queries)}"
        grades = {f"apositive_{number}_{i:05d}": 1 for i in range(len(positives))}
        grades |= {f"negative_{number}_{i:05d}": 0 for i in range(len(negatives))}
        candidates.queries[number] = query
        candidates.qrels[number] = grades
        candidates.ranked[number] = list(grades)
        texts = (*positives, *negatives)
        candidates.documents.update(zip(grades, texts, strict=True))
        rows.append(str(row))
    if not candidates.queries:
        raise ValueError(f"{path} has no query with positive and with negative texts")
    return candidates._replace(groups=read_groups(path, rows))


def read_summaries(path: Path) -> list[SummarizedText]:
    """Reads human and machine summaries of texts, and grades of the latter.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A field is missing, or there is not one grade for each summary.
    """
    texts = []
    for record in _read_rows(path):
        human, machine = map(
            record.read_texts, ("human_summaries", "machine_summaries")
        )
        place = f"{record.place}: relevance"
        relevance = [
            Record(record.place, {"relevance": grade}).read_number("relevance")
            for grade in record.read_list("relevance")
        ]
        if not (human and machine) or len(machine) != len(relevance):
            raise ValueError(
                f"{place} has {len(relevance)} grades for {len(machine)} machine "
                f"summaries, and there are {len(human)} human_summaries"
            )
        texts.append(SummarizedText(human, machine, relevance))
    return texts


def _read_label_list(record: Record, name: str) -> list[int | str]:
    labels = record.read_list(name)
    for index, label in enumerate(labels):
        check_name(f"{record.place}: {name}[{index}]", label)
    return labels


def _read_rows(path: Path) -> Iterator[Record]:
    for number, values in read_records(path):
        yield Record(f"{path} line {number}", values)


def _split_lists(record: Record) -> Iterator[Record]:
    """The rows of a record that holds them as lists; the record itself otherwise."""
    if not isinstance(record.values.get(PAIR_FIELDS[0]), list):
        yield record
        return
    columns = {name: v for name, v in record.values.items() if isinstance(v, list)}
    lengths = {len(values) for values in columns.values()}
    if len(lengths) > 1:
        raise ValueError(f"{record.place} has lists of {sorted(lengths)} items")
    for row in zip(*columns.values(), strict=True):
        yield Record(record.place, dict(zip(columns, row, strict=True)))

"""Training data of every kind as a Source: rows of texts, a weight and prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from research.data import files as readers

QUERIES = ("anchor", "query", "question", "sentence1")
POSITIVES = ("positive", "answer", "sentence2")
SCORES = ("score", "label")


class Row(NamedTuple):
    """One training example.

    Attributes:
        query: the text that searches.
        positives: texts that answer it, at least one; a step draws one of them.
        negatives: texts that do not; a step draws the source's number of them.
        score: graded similarity of the query and its positive, if known.
        group: rows with the same group are never each other's negatives.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    score: float | None = None
    group: str | None = None


@dataclass(frozen=True)
class Source:
    """Rows to train on.

    Attributes:
        rows: a sequence of Row; it need not be in memory.
        negatives: hard negatives a query gets in every step.
        weight: share of the steps, relative to the other sources.
        prompts: what is put before the texts, for "query" and "document".
    """

    rows: Sequence[Row]
    negatives: int
    weight: float
    prompts: Mapping[str, str]


def files(
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
    documents = _read_corpus(corpus) if corpus else None
    rows = []
    for line, record in readers.read_records(path):
        row = _row(path, line, record, documents)
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


def texts(
    *,
    path: str,
    weight: float = 1.0,
    query_prompt: str = "",
    document_prompt: str = "",
) -> Source:
    """Every text as its own positive (unsupervised SimCSE, Gao et al. 2021).

    One text a line in a .txt file, or the field `text` of a jsonl, tsv or csv file;
    each plain or .gz. Empty lines are skipped.
    """
    if Path(path.removesuffix(".gz")).suffix == ".txt":
        with readers.open_text(path) as file:
            lines = [line.strip() for line in file]
    else:
        lines = [
            _text(path, line, record, ("text",))
            for line, record in readers.read_records(path)
        ]
    rows = [Row(line, (line,)) for line in lines if line]
    if not rows:
        raise ValueError(f"{path} is empty: it holds no texts")
    return _source(rows, 0, weight, query_prompt, document_prompt)


def beir(
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
            rows.append(Row(queries[identifier], good, bad))
            if len(bad) < negatives:
                raise ValueError(
                    f"{path}: query {identifier!r} has {len(bad)} documents of "
                    f"grade 0, not the {negatives} negatives asked for"
                )
    return _source(rows, negatives, weight, query_prompt, document_prompt)


def _source(rows, negatives, weight, query_prompt, document_prompt) -> Source:
    if not weight > 0:
        raise ValueError(f"weight {weight} should be positive")
    prompts = {"query": query_prompt, "document": document_prompt}
    return Source(rows, negatives, weight, prompts)


def _row(path: str, line: int, record: Mapping, documents: Mapping | None) -> Row:
    """The row of a record in any of the three conventions."""
    group = record.get("group")
    group = None if group in (None, "") else str(group)
    if "pos" in record:  # FlagEmbedding
        query = _text(path, line, record, ("query",))
        good, bad = record["pos"], record.get("neg") or ()
        score = None
    elif "positive_passages" in record:  # Tevatron, texts inside
        query = _text(path, line, record, ("query", "query_text"))
        good, bad = (
            [f"{p.get('title') or ''} {p['text']}".strip() for p in record.get(k) or ()]
            for k in ("positive_passages", "negative_passages")
        )
        score = None
    elif "positive_document_ids" in record:  # Tevatron, texts in the corpus file
        query = _text(path, line, record, ("query_text", "query"))
        good, bad = (
            _documents(path, line, record.get(k) or (), documents)
            for k in ("positive_document_ids", "negative_document_ids")
        )
        score = None
    else:  # sentence-transformers
        query = _text(path, line, record, QUERIES)
        good = (_text(path, line, record, POSITIVES),)
        bad = [v for k, v in record.items() if _is_negative(k) and v not in (None, "")]
        score = next((record[k] for k in SCORES if record.get(k) is not None), None)
        score = None if score is None else readers.to_number(path, line, score)
    good, bad = _strings(path, line, good), _strings(path, line, bad)
    if not good:
        raise ValueError(f"{path} line {line} has no positive")
    return Row(query, good, bad, score, group)


def _is_negative(name: str) -> bool:
    return name == "negative" or name.removeprefix("negative").strip("_").isdigit()


def _strings(path: str, line: int, values: Any) -> tuple[str, ...]:
    values = (values,) if isinstance(values, str) else tuple(values)
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{path} line {line}: {value!r} is not a text")
    return values


def _text(path: str, line: int, record: Mapping, names: tuple[str, ...]) -> str:
    for name in names:
        if record.get(name) is not None:
            return _strings(path, line, [record[name]])[0]
    raise ValueError(
        f"{path} line {line}: no column {' or '.join(names)}; "
        f"found {', '.join(record) or 'none'}"
    )


def _read_corpus(path: str) -> dict[str, str]:
    names = ("document_text", "text")
    return {
        str(record.get("docid")): _text(path, line, record, names)
        for line, record in readers.read_records(path)
    }


def _documents(path: str, line: int, ids, documents: Mapping | None) -> list[str]:
    if documents is None:
        raise ValueError(f"{path} names documents by id: set `corpus` to their file")
    for identifier in ids:
        if str(identifier) not in documents:
            raise ValueError(
                f"{path} line {line}: the corpus has no document {identifier!r}"
            )
    return [documents[str(identifier)] for identifier in ids]


SOURCES: Mapping[str, Callable[..., Source]] = {
    "files": files,
    "texts": texts,
    "beir": beir,
}

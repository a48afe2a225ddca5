"""Training examples, and their parsing from records in three column conventions.

The conventions are those of sentence-transformers, FlagEmbedding and Tevatron.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from research.data import files

QUERIES = ("anchor", "query", "question", "sentence1")
POSITIVES = ("positive", "answer", "sentence2")
SCORES = ("score", "label")
NEGATIVE = re.compile(r"negative(_?\d+)?")


class Example(NamedTuple):
    """One training example.

    Attributes:
        query: The query.
        positives: Relevant texts, at least one; each step draws one of them.
        negatives: Hard negatives; each step draws as many as the source asks for.
        score: Graded similarity of the query and its positive, if known.
        group: Examples of the same group are never each other's negatives.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    score: float | None = None
    group: str | None = None


class LoadedExamples(NamedTuple):
    """The examples of a source, before it gets its weight and its prompts.

    Attributes:
        examples: Sequence of Example; it need not be in memory.
        negatives_per_query: Number of hard negatives per query in every step.
        identity: Name of the content, if it is known without reading the examples.
    """

    examples: Sequence[Example]
    negatives_per_query: int = 0
    identity: str = ""


def parse_example(
    path: str, line: int, record: Mapping, documents: Mapping | None
) -> Example:
    """Parses a record in any of the three conventions.

    Args:
        path: File of the record, for error messages.
        line: Line number of the record, for error messages.
        record: Values by column.
        documents: Tevatron's corpus {id: text}, for records that name documents by id.

    Raises:
        ValueError: A column is missing or holds no text, or there is no positive.
    """
    # The columns that are present decide the convention.
    group = record.get("group")
    group = None if group in (None, "") else str(group)
    if "pos" in record:  # FlagEmbedding
        query = read_field(path, line, record, ("query",))
        positives, negatives = record["pos"] or (), record.get("neg") or ()
        score = None
    elif "positive_passages" in record:  # Tevatron, texts inside
        query = read_field(path, line, record, ("query", "query_text"))
        positives, negatives = (
            [_read_passage(path, line, p) for p in record.get(k) or ()]
            for k in ("positive_passages", "negative_passages")
        )
        score = None
    elif "positive_document_ids" in record:  # Tevatron, texts in the corpus file
        query = read_field(path, line, record, ("query_text", "query"))
        positives, negatives = (
            _find_documents(path, line, record.get(k) or (), documents)
            for k in ("positive_document_ids", "negative_document_ids")
        )
        score = None
    else:  # sentence-transformers
        query = read_field(path, line, record, QUERIES)
        positives = (read_field(path, line, record, POSITIVES),)
        negatives = [v for k, v in record.items() if NEGATIVE.fullmatch(k) and v]
        score = next((record[k] for k in SCORES if record.get(k) is not None), None)
        score = None if score is None else files.to_number(path, line, score)
    # All values must be strings, and one of them a positive.
    positives, negatives = (
        _check_texts(path, line, texts) for texts in (positives, negatives)
    )
    if not positives:
        raise ValueError(f"{path} line {line} has no positive")
    return Example(query, positives, negatives, score, group)


def read_field(path: str, line: int, record: Mapping, names: tuple[str, ...]) -> str:
    """The text in the first of the columns `names` that the record has."""
    for name in names:
        if record.get(name) is not None:
            return _check_texts(path, line, [record[name]])[0]
    raise ValueError(
        f"{path} line {line}: no column {' or '.join(names)}; "
        f"found {', '.join(record) or 'none'}"
    )


def read_tevatron_corpus(path: str) -> dict[str, str]:
    """Reads {id: text} from Tevatron's corpus file, columns docid and document_text."""
    return {
        read_field(path, line, record, ("docid",)): _read_passage(path, line, record)
        for line, record in files.read_records(path)
    }


def read_texts(path: str, unit: str) -> Iterator[str]:
    """Yields the texts of a file or folder, as `sources.load_texts` describes."""
    if unit not in UNITS:
        raise ValueError(f"unit {unit!r}; known: {', '.join(UNITS)}")
    top = Path(path).expanduser()
    endings = tuple(files.READERS)
    for file in sorted(top.rglob("*")) if top.is_dir() else [top]:
        name = file.name.removesuffix(".gz")
        # Text files are split into units; other files have a text per record.
        if name.endswith(".txt"):
            yield from _read_units(file, unit)
        elif file == top or name.endswith(endings):
            for line, record in files.read_records(file):
                yield read_field(str(file), line, record, ("text",))


def read_labeled_texts(path: str) -> tuple[list[str], list[str]]:
    """Reads (texts, labels) from a file of records with the fields text and label."""
    texts, labels = [], []
    for line, record in files.read_records(path):
        texts.append(read_field(path, line, record, ("text",)))
        if record.get("label") is None:
            raise ValueError(f"{path} line {line}: no column label")
        labels.append(str(record["label"]))
    return texts, labels


def _read_units(file: Path, unit: str) -> Iterator[str]:
    with files.open_text(file) as lines:
        try:
            yield from UNITS[unit](lines)
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} cannot be read as text: {error}") from error


def _split_blocks(lines: Iterable[str]) -> Iterator[str]:
    """Yields the blocks of lines between blank lines."""
    for filled, block in groupby(lines, key=lambda line: bool(line.strip())):
        if filled:
            yield "".join(block)


def _read_passage(path: str, line: int, record: Mapping) -> str:
    text = read_field(path, line, record, ("text", "document_text"))
    return f"{record.get('title') or ''} {text}".strip()


def _check_texts(path: str, line: int, values: Any) -> tuple[str, ...]:
    values = (values,) if isinstance(values, str) else tuple(values)
    for value in values:
        if not isinstance(value, str):
            raise ValueError(f"{path} line {line}: {value!r} is not a text")
    return values


def _find_documents(path: str, line: int, ids, documents: Mapping | None) -> list[str]:
    if documents is None:
        raise ValueError(f"{path} names documents by id: set `corpus` to their file")
    for identifier in ids:
        if str(identifier) not in documents:
            raise ValueError(
                f"{path} line {line}: the corpus has no document {identifier!r}"
            )
    return [documents[str(identifier)] for identifier in ids]


# What one text of a .txt file is.
UNITS = {"block": _split_blocks, "line": iter, "file": lambda lines: ["".join(lines)]}

"""Readers of text files: records of jsonl, tsv and csv, STS pairs, BEIR folders."""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

# The longest field of a csv or tsv file; the default of 131,072 characters is less than
# a long document.
csv.field_size_limit(1 << 30)
# {field of an STS file: the names that it may have}
STS_FIELDS = {
    "sentence1": ("sentence1", "text1", "sent1", "s1"),
    "sentence2": ("sentence2", "text2", "sent2", "s2"),
    "score": ("score", "similarity_score", "similarity", "label"),
}


def open_text(path: str | Path) -> IO[str]:
    """Opens a UTF-8 text file, gzipped if its name ends in .gz.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return open(path, encoding="utf-8-sig", newline="")


def read_records(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, record) for every row of a jsonl, tsv or csv file.

    The ending of the name decides the format: .jsonl or .json with one object per line,
    .tsv (tabs, no quoting) or .csv with a header line. Each may be gzipped (.gz). Empty
    lines are skipped.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The format is unknown, a line is malformed, or there are no rows.
    """
    path = Path(path).expanduser()
    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in READERS:
        raise ValueError(f"{path} should end in {', '.join(READERS)} (or these + .gz)")
    yield from _parse_file(path, READERS[suffix])


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without spaces around it) of a text file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8 text, or is empty.
    """
    yield from _parse_file(Path(path).expanduser(), _parse_lines)


def read_sts(path: str | Path) -> tuple[list[str], list[str], list[float]]:
    """Reads (first sentences, second sentences, scores) from a file of scored pairs.

    The fields are sentence1, sentence2 and score, or their aliases in STS_FIELDS.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, or a score is not a number.
    """
    # Three lists of N values, one per pair.
    first, second, scores = [], [], []
    for number, record in read_records(path):
        first.append(str(_read_field(path, number, record, STS_FIELDS["sentence1"])))
        second.append(str(_read_field(path, number, record, STS_FIELDS["sentence2"])))
        value = _read_field(path, number, record, STS_FIELDS["score"])
        scores.append(to_number(path, number, value))
    return first, second, scores


def read_beir(
    path: str | Path, split: str
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, int]]]:
    """Reads (corpus {id: text}, queries {id: text}, qrels {query id: {id: grade}}).

    A BEIR folder holds corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and
    qrels/SPLIT.tsv (a header line, then query id, document id, grade), plain or .gz.
    The text of a document is its title, a space and its text. Only queries with judged
    documents in the split are returned.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed or empty, or qrels name an unknown id.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    # Grades of the split decide which queries are kept.
    qrels = _read_qrels(_find_file(path, f"qrels/{split}.tsv"))
    # A title is put before its text.
    corpus = {}
    for identifier, record in _read_texts_by_id(_find_file(path, "corpus.jsonl")):
        title = record.get("title") or ""
        corpus[identifier] = f"{title} {record['text']}".strip()
    queries = {
        identifier: record["text"]
        for identifier, record in _read_texts_by_id(_find_file(path, "queries.jsonl"))
        if identifier in qrels
    }
    # Every judged id should exist.
    for query, grades in qrels.items():
        if query not in queries:
            raise ValueError(f"{path}/qrels/{split} names unknown query {query!r}")
        for document in grades:
            if document not in corpus:
                raise ValueError(
                    f"{path}/qrels/{split} names unknown document {document!r}"
                )
    return corpus, queries, qrels


def to_number(path: str | Path, line: int, value) -> float:
    """The number in a field.

    Raises:
        ValueError: The field holds no number; the message gives its file and line.
    """
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(
            f"{path} line {line}: score {value!r} is not a number"
        ) from None


def _read_field(path, line: int, record: Mapping, names: tuple[str, ...]):
    for name in names:
        if record.get(name) is not None:
            return record[name]
    raise ValueError(
        f"{path} line {line}: no column {' or '.join(names)}; found {', '.join(record)}"
    )


def _parse_file(
    path: Path, parse: Callable[[Path, IO[str]], Iterator[tuple]]
) -> Iterator[tuple]:
    """Yields what `parse` reads; errors name the file."""
    empty = True
    with open_text(path) as file:
        try:
            for row in parse(path, file):
                empty = False
                yield row
        except (UnicodeDecodeError, EOFError, OSError, zlib.error, csv.Error) as error:
            raise ValueError(f"{path} cannot be read as text: {error}") from error
    if empty:
        raise ValueError(f"{path} is empty: it holds no rows")


def _parse_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, str]]:
    del path
    yield from ((number, line.strip()) for number, line in enumerate(file, 1))


def _parse_jsonl(path: Path, file: IO[str]) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        # A line may be valid JSON and still no record.
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} line {number} is a JSON {type(record).__name__}, not an object"
            )
        yield number, record


def _parse_csv(path: Path, file: IO[str]) -> Iterator[tuple[int, dict]]:
    yield from _parse_table(path, csv.reader(file))


def _parse_tsv(path: Path, file: IO[str]) -> Iterator[tuple[int, dict]]:
    yield from _parse_table(
        path, csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
    )


def _parse_table(path: Path, reader) -> Iterator[tuple[int, dict]]:
    header = next(reader, [])  # names of the columns
    for row in reader:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{path} line {reader.line_num} has {len(row)} columns, "
                f"the header has {len(header)}"
            )
        yield reader.line_num, dict(zip(header, row, strict=True))


def _find_file(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    # The files that are there may show a misspelled name.
    siblings = sorted(p.name for p in (folder / name).parent.glob("*"))
    raise FileNotFoundError(
        f"there is no {folder / name}(.gz); found {', '.join(siblings) or 'nothing'}"
    )


def _read_texts_by_id(path: Path) -> Iterator[tuple[str, dict]]:
    for number, record in read_records(path):
        for name in ("_id", "text"):
            if name not in record:
                raise ValueError(
                    f"{path} line {number}: no {name}; found {', '.join(record)}"
                )
        yield str(record["_id"]), {**record, "text": str(record["text"])}


def _read_qrels(path: Path) -> dict[str, dict[str, int]]:
    qrels: dict[str, dict[str, int]] = {}
    for number, record in read_records(path):
        values = list(record.values())
        if len(values) != 3:
            raise ValueError(
                f"{path} line {number} has {len(values)} columns, not query id, "
                "document id and score"
            )
        query, document, grade = values
        grades = qrels.setdefault(query, {})
        grades[document] = int(to_number(path, number, grade))
    return qrels


# {ending of the file name: its parser}
READERS = {
    ".jsonl": _parse_jsonl,
    ".json": _parse_jsonl,
    ".tsv": _parse_tsv,
    ".csv": _parse_csv,
}

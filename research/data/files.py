"""Readers of text files: records of jsonl, tsv and csv, STS pairs, BEIR folders."""

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

from research.data.fields import Record, check_number
from research.progress import show_note

# The longest field of a csv file; the default of 131,072 characters is less than a
# long document.
csv.field_size_limit(1 << 30)
# {field of an STS file: the names that it may have}
STS_FIELDS = {
    "sentence1": ("sentence1", "text1", "sent1", "s1"),
    "sentence2": ("sentence2", "text2", "sent2", "s2"),
    "score": ("score", "similarity_score", "similarity", "label"),
}
# Fields of the one object in a file of LlamaIndex's EmbeddingQAFinetuneDataset.
LLAMA_INDEX_FIELDS = {"queries", "corpus", "relevant_docs"}
# {query id: {document id: grade}}
Qrels = dict[str, dict[str, int]]


class RetrievalData(NamedTuple):
    """A corpus, the judged queries of a split, and their judgments.

    Attributes:
        corpus: {document id: text}; a text may be empty.
        queries: {query id: text} of the judged queries.
        qrels: {query id: {document id: grade}} of these queries.
        unknown_documents: Judged ids that the corpus lacks. They stay in `qrels`, where
            they count as relevant documents that no search finds.
        unknown_queries: Judged ids that have no text. They are left out of `qrels`.
    """

    corpus: dict[str, str]
    queries: dict[str, str]
    qrels: Qrels
    unknown_documents: tuple[str, ...] = ()
    unknown_queries: tuple[str, ...] = ()


def open_text(path: str | Path) -> IO[str]:
    r"""Opens a UTF-8 text file, gzipped if its name ends in .gz.

    Its lines end at \n alone: a \r within a line is a character of the line.

    Raises:
        FileNotFoundError: There is no such file.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return open(path, encoding="utf-8-sig", newline="\n")


def read_records(path: str | Path) -> Iterator[tuple[int, dict]]:
    """Yields (line number from 1, record) for every row of a jsonl, tsv or csv file.

    The ending of the name decides the format: .jsonl with one object per line, .json
    with the same, a list of objects or LlamaIndex's EmbeddingQAFinetuneDataset, .tsv
    (tabs, no quoting) or .csv with a header line. Each may be gzipped (.gz). Empty
    lines are skipped. In a .json file that is one value, records are counted for lines.

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
    """Yields (line number from 1, line without its end) of a text file.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is not UTF-8 text, or is empty.
    """
    yield from _parse_file(Path(path).expanduser(), _parse_lines)


def remove_line_end(line: str) -> str:
    r"""A line without the \n or \r\n at its end."""
    return line.removesuffix("\n").removesuffix("\r")


def read_sts(path: str | Path) -> tuple[list[str], list[str], list[float]]:
    """Reads (first sentences, second sentences, scores) from a file of scored pairs.

    The fields are sentence1, sentence2 and score, or their aliases in STS_FIELDS.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A column is missing, a sentence is not a text, or a score is not a
            finite number.
    """
    # Three lists of N values, one per pair.
    first, second, scores = [], [], []
    for number, values in read_records(path):
        record = Record(f"{path} line {number}", values)
        first.append(record.read_text(*STS_FIELDS["sentence1"], allow_blank=True))
        second.append(record.read_text(*STS_FIELDS["sentence2"], allow_blank=True))
        scores.append(record.read_number(*STS_FIELDS["score"]))
    return first, second, scores


def read_beir(path: str | Path, split: str) -> RetrievalData:
    """Reads a BEIR folder, with the queries that are judged in a split.

    It holds corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and
    qrels/SPLIT.tsv (query id, document id, grade; with or without a header line), plain
    or .gz. The text of a document is its title, a space and its text, without spaces
    around it, as mteb joins them. A document that occurs twice with the same text is
    one document.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed or empty, two texts or grades have one id, or
            none of the judged queries or documents is there.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}")
    # Grades of the split decide which queries are kept.
    judgments = find_file(path, f"qrels/{split}.tsv")
    qrels = _read_qrels(judgments)
    corpus = _read_texts_by_id(find_file(path, "corpus.jsonl"), join_title)
    texts = _read_texts_by_id(find_file(path, "queries.jsonl"), read_query)
    queries = {name: text for name, text in texts.items() if name in qrels}
    if ungraded := len(texts) - len(queries):
        show_note(
            f"{path}: {ungraded:,} of {len(texts):,} queries have no grades in "
            f"{judgments.name} and are left out"
        )
    # Judged ids that are not there; the files of other data sets share none at all.
    unknown_queries = tuple(name for name in qrels if name not in queries)
    qrels = {name: qrels[name] for name in qrels if name in queries}
    judged = dict.fromkeys(name for grades in qrels.values() for name in grades)
    unknown_documents = tuple(name for name in judged if name not in corpus)
    for kind, unknown, known in (
        ("queries", unknown_queries, queries),
        ("documents", unknown_documents, judged.keys() & corpus.keys()),
    ):
        if unknown and not known:
            raise ValueError(
                f"{judgments} names {kind}, such as {unknown[0]!r}, none of which is "
                f"in {path}"
            )
    return RetrievalData(corpus, queries, qrels, unknown_documents, unknown_queries)


def join_title(record: Record) -> str:
    """The title of a document, a space and its text, without spaces around them."""
    text = record.read_text("text", allow_blank=True)
    return f"{record.read_title()} {text}".strip()


def read_query(record: Record) -> str:
    """The text of a query."""
    return record.read_text("text", allow_blank=True)


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
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as text: {error}") from error
    if empty:
        raise ValueError(f"{path} is empty: it holds no rows")


def _parse_lines(path: Path, file: IO[str]) -> Iterator[tuple[int, str]]:
    del path
    yield from ((number, remove_line_end(line)) for number, line in enumerate(file, 1))


def _parse_json(path: Path, file: IO[str]) -> Iterator[tuple[int, dict]]:
    """Yields the records of a JSON list, of LlamaIndex's object, or of JSON lines."""
    text = file.read()
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    if isinstance(content, list):
        yield from enumerate(content, 1)
    elif isinstance(content, dict) and content.keys() >= LLAMA_INDEX_FIELDS:
        yield from enumerate(_join_llama_index(path, content), 1)
    else:
        yield from _parse_jsonl(path, io.StringIO(text, newline="\n"))


def _join_llama_index(path: Path, content: dict) -> Iterator[dict]:
    """Yields the query and the positives of each query, from texts by id."""
    queries, corpus, relevant = (
        content[name] for name in ("queries", "corpus", "relevant_docs")
    )
    for name, documents in relevant.items():
        unknown = [d for d in documents if d not in corpus]
        if name not in queries or unknown:
            raise ValueError(
                f"{path}: relevant_docs has the query {name!r} with {documents}, which "
                "queries or corpus lack"
            )
        positives = [corpus[document] for document in documents]
        yield {"query": queries[name], "positives": positives}


def _parse_jsonl(path: Path, file: IO[str]) -> Iterator[tuple[int, dict]]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        # Besides broken JSON: numbers of too many digits, too many nested lists.
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} line {number} is not JSON: {error}") from error
        # A line may be valid JSON and still no record.
        if not isinstance(record, dict):
            raise ValueError(
                f"{path} line {number} is a JSON {type(record).__name__}, not an object"
            )
        yield number, record


def _parse_csv(path: Path, file: IO[str]) -> Iterator[tuple[int, dict]]:
    # Strict: a quote that is never closed would take in all lines after it.
    reader = csv.reader(file, strict=True)
    try:
        yield from _parse_table(path, ((reader.line_num, row) for row in reader))
    except csv.Error as error:
        raise ValueError(f"{path} line {reader.line_num} is not CSV: {error}") from None


def _parse_tsv(path: Path, file: IO[str]) -> Iterator[tuple[int, dict]]:
    yield from _parse_table(path, _split_tabs(path, file))


def _split_tabs(path: Path, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of the lines of a tsv file that are not empty."""
    for number, line in _parse_lines(path, file):
        if line:
            yield number, line.split("\t")


def _parse_table(
    path: Path, rows: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, dict]]:
    """Yields the records of rows of fields, the first of which names the columns."""
    _, header = next(rows, (0, []))
    if twice := [name for i, name in enumerate(header) if name in header[:i]]:
        raise ValueError(f"{path} has two columns {twice[0]!r}")
    for number, row in rows:
        if not row:
            continue
        if len(row) != len(header):
            raise ValueError(
                f"{path} line {number} has {len(row)} columns, "
                f"the header has {len(header)}"
            )
        yield number, dict(zip(header, row, strict=True))


def find_file(folder: Path, name: str) -> Path:
    """A file of a folder, plain or gzipped; an error lists those that are there."""
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    # The files that are there may show a misspelled name.
    siblings = sorted(p.name for p in (folder / name).parent.glob("*"))
    raise FileNotFoundError(
        f"there is no {folder / name}(.gz); found {', '.join(siblings) or 'nothing'}"
    )


def _read_texts_by_id(path: Path, read: Callable[[Record], str]) -> dict[str, str]:
    """{id: text} of the corpus or the queries of a BEIR folder."""
    texts: dict[str, str] = {}
    for number, values in read_records(path):
        record = Record(f"{path} line {number}", values)
        name, text = record.read_name("_id"), read(record)
        if texts.setdefault(name, text) != text:
            raise ValueError(f"{record.place}: another text has the _id {name!r}, too")
    return texts


def _read_qrels(path: Path) -> Qrels:
    qrels: Qrels = {}
    for number, (query, document, value) in _parse_file(path, _parse_qrels):
        grade = check_number(f"{path} line {number}: the grade", value)
        if grade != int(grade):
            raise ValueError(
                f"{path} line {number}: the grade {value} is not a whole number"
            )
        grades = qrels.setdefault(query, {})
        if grades.setdefault(document, int(grade)) != grade:
            raise ValueError(
                f"{path} line {number}: document {document!r} has another grade for "
                f"query {query!r}, too"
            )
    return qrels


def _parse_qrels(path: Path, file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields (line, [query id, document id, grade]); a header line is left out."""
    for index, (number, fields) in enumerate(_split_tabs(path, file)):
        if len(fields) != 3:
            raise ValueError(
                f"{path} line {number} has {len(fields)} columns, not query id, "
                "document id and score"
            )
        # A first line whose grade is a word names the columns.
        if index or _is_number(fields[2]):
            yield number, fields


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


# {ending of the file name: its parser}
READERS = {
    ".jsonl": _parse_jsonl,
    ".json": _parse_json,
    ".tsv": _parse_tsv,
    ".csv": _parse_csv,
}

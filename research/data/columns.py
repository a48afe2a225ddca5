"""Files of examples: their named columns, and the deterministic part that is held out.

A file that is asked for several times is read once: a recipe counts its examples, a
source trains on some of them, and an evaluator takes those that are held out.
"""

import fnmatch
import functools
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from research.data.examples import (
    Example,
    parse_example,
    read_score_list,
    read_tevatron_corpus,
)
from research.data.fields import Record, check_text
from research.data.files import read_records
from research.progress import show_progress

# Fields of an example that a column can be named for.
FIELDS = ("query", "positive", "negative", "score", "group", "context")
# Parts of a file; the last two share no query.
PARTS = ("all", "train", "held_out")
# Share of the queries that is held out, and the largest number of them.
HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 1_000

Columns = Mapping[str, tuple[str, ...]]


class ExampleFile(NamedTuple):
    """The content of a file of examples.

    Attributes:
        examples: One per row.
        lines: Number of the line of each example.
        unused: Names of the columns that no example is made of, sorted.
    """

    examples: tuple[Example, ...]
    lines: tuple[int, ...]
    unused: tuple[str, ...]


def read_examples(path: str, columns: str = "", corpus: str = "") -> ExampleFile:
    """Reads a file of examples, or takes it from memory if it has not changed.

    Args:
        path: A jsonl, tsv or csv file, plain or .gz.
        columns: Names of the columns, as `parse_columns` reads them; "" for the usual
            ones.
        corpus: Tevatron's corpus file, for rows that name documents by id.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is malformed.
    """
    with show_progress(f"reading {path}"):
        digests = tuple(_hash_content(file) for file in (path, corpus) if file)
        return _parse_file(path, columns, corpus, digests)


def drop_examples() -> None:
    """Frees the memory of the files that have been read."""
    _parse_file.cache_clear()


def parse_columns(text: str) -> Columns:
    """Parses {field: its columns} from "query=question, negative=bad*, negative=worse".

    Args:
        text: FIELD=COLUMN between commas; a * in a column's name stands for any text.
            A field may have several columns.

    Raises:
        ValueError: An item is not of that form, a field is unknown, or query or
            positive is missing.
    """
    columns: dict[str, tuple[str, ...]] = {}
    for item in text.split(","):
        field, equals, column = (part.strip() for part in item.partition("="))
        if not equals or not column or field not in FIELDS:
            raise ValueError(
                f"columns: {item.strip()!r} is not FIELD=COLUMN, with a field of "
                f"{', '.join(FIELDS)}"
            )
        columns[field] = (*columns.get(field, ()), column)
    if missing := [field for field in FIELDS[:2] if field not in columns]:
        raise ValueError(
            f"columns {text!r} names no {' and no '.join(missing)}: where columns are "
            "named, the others of the file are not used"
        )
    return columns


def read_named_columns(record: Record, columns: Columns) -> Example:
    """The example in the named columns of a record.

    Args:
        record: The record.
        columns: {field: its columns}.

    Raises:
        ValueError: A column is missing, or holds a value of another type.
    """
    query, positives, negatives, scores, groups, contexts = (
        _find_columns(record, columns.get(field, ())) for field in FIELDS
    )
    texts = tuple(t for name in positives for t in record.read_texts(name))
    if not texts:
        raise ValueError(f"{record.place} has no positive")
    others = tuple(t for name in negatives for t in record.read_texts(name))
    # A number is the pair's score, a list holds a teacher's scores of the documents
    lists = [name for name in scores if isinstance(record.values[name], list | tuple)]
    return Example(
        query=record.read_text(*query),
        positives=texts,
        negatives=others,
        score=record.read_number(*scores) if scores and not lists else None,
        group=record.read_name(*groups) if groups else None,
        document_scores=(
            read_score_list(record, lists, len(texts), len(others)) if lists else ()
        ),
        contexts=find_contexts(record, contexts, (*texts, *others)),
    )


def find_contexts(
    record: Record, names: Sequence[str], documents: Sequence[str]
) -> tuple[tuple[str, str], ...]:
    """The text before and after each document in the contexts of a record.

    Args:
        record: The record.
        names: Columns with one text for all documents, or a list of one for each, ""
            for a document alone.
        documents: The positives, then the negatives.

    Returns:
        A pair of texts for each document, by its first place; () without columns.

    Raises:
        ValueError: There are more or fewer contexts than documents, or a document does
            not occur in its context.
    """
    if not names:
        return ()
    # One text for all documents, or one for each
    contexts = [
        check_text(f"{record.place}: {name}", text, allow_blank=True)
        for name in names
        for text in (
            record.read_list(name)
            if isinstance(record.values[name], list | tuple)
            else [record.read_text(name)]
        )
    ]
    if len(contexts) == 1:
        contexts *= len(documents)
    if len(contexts) != len(documents):
        raise ValueError(
            f"{record.place}: {' and '.join(names)} should have one context for all of "
            f"{len(documents)} documents or one for each, not {len(contexts)}"
        )
    # What is before and after the first place of each document
    parts = []
    for context, document in zip(contexts, documents, strict=True):
        before, found, after = context.partition(document)
        if context and not found:
            raise ValueError(
                f"{record.place}: the document {document[:60]!r} does not occur in its "
                "context"
            )
        parts.append((before, after) if context else ("", ""))
    return tuple(parts)


def select_part(
    examples: Sequence[Example], part: str, place: str
) -> Sequence[Example]:
    """The part of the examples to train on, or the part that is held out.

    A tenth of the queries is held out, 1,000 at most: those with the smallest hashes.
    The choice depends on the queries alone, not on their order, and all examples of a
    query are in one part.

    Args:
        examples: All examples.
        part: One of PARTS.
        place: Name of the file, for error messages.

    Raises:
        ValueError: There is no such part, or there are fewer than two queries.
    """
    if part not in PARTS:
        raise ValueError(f"part is {part!r}; allowed: {', '.join(PARTS)}")
    if part == "all":
        return examples
    queries = sorted({example.query for example in examples}, key=_hash_text)
    if len(queries) < 2:
        raise ValueError(f"{place} has one query, of which no part can be held out")
    count = min(MAX_HELD_OUT, max(1, round(HELD_OUT_SHARE * len(queries))))
    held_out = set(queries[:count])
    wanted = part == "held_out"
    return [e for e in examples if (e.query in held_out) == wanted]


@functools.cache
def _parse_file(
    path: str, columns: str, corpus: str, digests: tuple[str, ...]
) -> ExampleFile:
    """Parses a file whose content, and that of the corpus, has these digests."""
    del digests  # a part of the key
    named = parse_columns(columns) if columns else None
    # {id: text}, for rows that name documents by id.
    documents = read_tevatron_corpus(corpus) if corpus else None
    examples, lines, unused = [], [], set()
    score_lines: dict[bool | None, int] = {}  # first line of each kind of scores
    for line, values in read_records(path):
        record = Record(f"{path} line {line}", values)
        if named:
            examples.append(read_named_columns(record, named))
        else:
            examples.append(parse_example(record, documents))
        lines.append(line)
        score_lines.setdefault(record.has_margins, line)
        unused |= values.keys() - record.used
    # A list that lacks a score would pass for margins
    if {True, False} <= score_lines.keys():
        raise ValueError(
            f"{path} line {score_lines[True]} has one score fewer than documents and "
            f"line {score_lines[False]} has a score for each: lists are of scores, or "
            "in every line of margins to the negatives"
        )
    return ExampleFile(tuple(examples), tuple(lines), tuple(sorted(unused)))


def _hash_content(path: str) -> str:
    """A digest of the bytes; "" for a missing file, which the reader reports."""
    file = Path(path).expanduser()
    if not file.is_file():
        return ""
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "blake2b").hexdigest()


def _find_columns(record: Record, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of the record's columns that match, in the order of the patterns.

    Raises:
        ValueError: No column matches one of the patterns.
    """
    names, matches = list(map(str, record.values)), []
    for pattern in patterns:
        hits = [name for name in names if fnmatch.fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(
                f"{record.place}: no column {pattern}; found {', '.join(names)}"
            )
        matches += hits
    return tuple(dict.fromkeys(matches))


def _hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()

"""Named columns of a file of examples, and the deterministic part that is held out."""

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence

from research.data.examples import Example
from research.data.fields import Record

# Fields of an example that a column can be named for.
FIELDS = ("query", "positive", "negative", "score", "group")
# Parts of a file; the last two share no query.
PARTS = ("all", "train", "held_out")
# Share of the queries that is held out, and the largest number of them.
HELD_OUT_SHARE = 0.1
MAX_HELD_OUT = 1_000

Columns = Mapping[str, tuple[str, ...]]


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
    query, positives, negatives, scores, groups = (
        _find_columns(record, columns.get(field, ())) for field in FIELDS
    )
    texts = tuple(t for name in positives for t in record.read_texts(name))
    if not texts:
        raise ValueError(f"{record.place} has no positive")
    return Example(
        query=record.read_text(*query),
        positives=texts,
        negatives=tuple(t for name in negatives for t in record.read_texts(name)),
        score=record.read_number(*scores) if scores else None,
        group=record.read_name(*groups) if groups else None,
    )


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


def _find_columns(record: Record, patterns: Sequence[str]) -> tuple[str, ...]:
    """The names of the record's columns that match, in its order.

    Raises:
        ValueError: No column matches one of the patterns.
    """
    names = list(map(str, record.values))
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(
                f"{record.place}: no column {pattern}; found {', '.join(names)}"
            )
    return tuple(
        name
        for name in names
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )


def _hash_text(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()

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
from research.data.fields import Record, check_name

# The usual names of each field, in the order in which they are looked for.
QUERIES = ("anchor", "query", "question", *files.STS_FIELDS["sentence1"], "premise")
POSITIVES = (
    "positive",
    "answer",
    *files.STS_FIELDS["sentence2"],
    "hypothesis",
    "document",
    "passage",
    *("positives", "answers", "documents", "passages"),
)
SCORES = files.STS_FIELDS["score"]
# Lists of a teacher's scores: one for all documents, or one for each side.
SCORE_LISTS = (*SCORES, "scores", "teacher_scores")
SIDE_SCORES = (("pos_scores", "neg_scores"), ("positive_scores", "negative_scores"))
NEGATIVE = re.compile(r"(hard_?)?neg(ative)?s?(_?\d+)?")


class Example(NamedTuple):
    """One training example.

    Attributes:
        query: The query.
        positives: Relevant texts, at least one; each step draws one of them.
        negatives: Hard negatives; each step draws as many as the source asks for.
        score: Graded similarity of the query and its positive, if known.
        group: Examples of the same group are never each other's negatives.
        document_scores: A teacher's scores of the positives, then of the negatives; ()
            if they are unknown.
        contexts: The text before and after each of the positives, then of the
            negatives, within which it is read; () for documents alone.
    """

    query: str
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    score: float | None = None
    group: str | None = None
    document_scores: tuple[float, ...] = ()
    contexts: tuple[tuple[str, str], ...] = ()


class LoadedExamples(NamedTuple):
    """The examples of a source, before it gets its weight and its prompts.

    Attributes:
        examples: Sequence of Example; it need not be in memory.
        negatives_per_query: Number of hard negatives per query in every step.
        identity: Name of the content, if it is known without reading the examples.
        note: What was read and what was left out, for the start of a run.
    """

    examples: Sequence[Example]
    negatives_per_query: int = 0
    identity: str = ""
    note: str = ""


def parse_example(record: Record, documents: Mapping[str, str] | None) -> Example:
    """Parses a record in any of the three conventions.

    Args:
        record: The record.
        documents: Tevatron's corpus {id: text}, for records that name documents by id.

    Raises:
        ValueError: A column is missing or holds no text, or there is no positive.
    """
    # The columns that are present decide the convention.
    columns, score = record.values, None
    if "pos" in columns:  # FlagEmbedding
        query = record.read_text("query")
        positives, negatives = record.read_texts("pos"), record.read_texts("neg")
    elif "positive_passages" in columns:  # Tevatron, texts inside
        query = record.read_text("query", "query_text")
        positives, negatives = (
            _read_passages(record, name)
            for name in ("positive_passages", "negative_passages")
        )
    elif "positive_document_ids" in columns:  # Tevatron, texts in the corpus file
        query = record.read_text("query_text", "query")
        positives, negatives = (
            _find_documents(record, name, documents)
            for name in ("positive_document_ids", "negative_document_ids")
        )
    else:  # sentence-transformers
        query = record.read_text(*QUERIES)
        positives = _read_positives(record)
        names = [name for name in columns if NEGATIVE.fullmatch(name)]
        negatives = tuple(t for name in names for t in record.read_texts(name))
        numbers = [name for name in SCORES if not _is_list(columns.get(name))]
        if any(record.has(name) for name in numbers):
            score = record.read_number(*numbers)
    if not positives:
        raise ValueError(f"{record.place} has no positive")
    group = record.read_name("group") if record.has("group") else None
    document_scores = _read_document_scores(record, len(positives), len(negatives))
    return Example(query, positives, negatives, score, group, document_scores)


def read_score_list(
    record: Record, names: Sequence[str], positives: int, negatives: int
) -> tuple[float, ...]:
    """A teacher's scores of an example's documents, from lists in some columns.

    Args:
        record: The record.
        names: The columns, whose lists are joined.
        positives: Number of positives.
        negatives: Number of negatives.

    Returns:
        A score for each positive and each negative; () if the lists are empty. One list
        of as many numbers as a single positive has negatives holds the differences from
        the positive's score, which is then taken for 0; a list named for negatives
        alone holds their scores, never differences.

    Raises:
        ValueError: The lists have another number of numbers.
    """
    numbers = tuple(x for name in names for x in record.read_numbers(name))
    if not numbers:
        return ()
    may_be_margins = len(names) == 1 and not NEGATIVE.match(names[0])
    is_shorter = positives == 1 and len(numbers) == negatives
    record.has_margins = may_be_margins and is_shorter
    if record.has_margins:
        return (0.0, *(-margin for margin in numbers))
    if len(numbers) != positives + negatives:
        margins = ", or for one positive its margin to each negative"
        raise ValueError(
            f"{record.place}: {' and '.join(names)} should have a score for each of "
            f"{positives} positives and {negatives} negatives"
            f"{margins if may_be_margins else ''}, not {len(numbers)} numbers (scores "
            "that should not be read: leave them out in the option columns)"
        )
    return numbers


def read_tevatron_corpus(path: str) -> dict[str, str]:
    """Reads {id: text} from Tevatron's corpus file, columns docid and document_text."""
    records = (Record(f"{path} line {line}", v) for line, v in files.read_records(path))
    return {record.read_name("docid"): _read_passage(record) for record in records}


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
            for line, values in files.read_records(file):
                record = Record(f"{file} line {line}", values)
                yield record.read_text("text", allow_blank=True)


def read_labeled_texts(path: str) -> tuple[list[str], list[str]]:
    """Reads (texts, labels) from a file of records with the fields text and label."""
    texts, labels = [], []
    for line, values in files.read_records(path):
        record = Record(f"{path} line {line}", values)
        texts.append(record.read_text("text"))
        labels.append(record.read_name("label"))
    return texts, labels


def _read_document_scores(
    record: Record, positives: int, negatives: int
) -> tuple[float, ...]:
    """A teacher's scores in columns of the usual names; () without any."""
    for names in SIDE_SCORES:
        if any(record.has(name) for name in names):
            return read_score_list(record, names, positives, negatives)
    names = [n for n in SCORE_LISTS if _is_list(record.values.get(n))]
    return read_score_list(record, names[:1], positives, negatives) if names else ()


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _read_positives(record: Record) -> tuple[str, ...]:
    """The text or the list of texts in the first column of POSITIVES with any."""
    filled = (name for name in POSITIVES if record.values.get(name) is not None)
    name = next(filled, "")
    if _is_list(record.values.get(name)):
        return record.read_texts(name)
    return (record.read_text(*POSITIVES),)


def _read_units(file: Path, unit: str) -> Iterator[str]:
    with files.open_text(file) as lines:
        try:
            yield from UNITS[unit](lines)
        except (UnicodeDecodeError, EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{file} cannot be read as text: {error}") from error


def _split_lines(lines: Iterable[str]) -> Iterator[str]:
    """Yields the lines without their ends."""
    return map(files.remove_line_end, lines)


def _split_blocks(lines: Iterable[str]) -> Iterator[str]:
    """Yields the blocks of lines between blank lines."""
    for filled, block in groupby(lines, key=lambda line: bool(line.strip())):
        if filled:
            yield files.remove_line_end("".join(block))


def _read_passage(record: Record) -> str:
    text = record.read_text("text", "document_text")
    return f"{record.read_title()} {text}".strip()


def _read_passages(record: Record, name: str) -> tuple[str, ...]:
    """The texts of a list of {"title", "text"}."""
    passages = []
    for index, item in enumerate(record.read_list(name)):
        passage = Record(f"{record.place}: {name}[{index}]", item)
        passages.append(_read_passage(passage))
    return tuple(passages)


def _find_documents(
    record: Record, name: str, documents: Mapping[str, str] | None
) -> tuple[str, ...]:
    """The texts of the documents whose ids a field lists."""
    if documents is None:
        raise ValueError(
            f"{record.place} names documents by id: set `corpus` to their file"
        )
    texts = []
    for item in record.read_list(name):
        identifier = check_name(f"{record.place}: {name}", item)
        if identifier not in documents:
            raise ValueError(
                f"{record.place}: the corpus has no document {identifier!r}"
            )
        texts.append(documents[identifier])
    return tuple(texts)


# What one text of a .txt file is.
UNITS = {
    "block": _split_blocks,
    "line": _split_lines,
    "file": lambda lines: ["".join(lines)],
}

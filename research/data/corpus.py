"""Corpora: texts to embed or to search, each with its name, read one at a time."""

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from research.data.columns import read_examples
from research.data.fields import Record, check_text
from research.data.files import (
    join_title,
    read_lines,
    read_records,
    remove_line_end,
)
from research.data.sources import SOURCES

PYDOCS = Path("pydocs")
# Endings of the files whose lines can be read alone: neither packed nor with a header.
SEEKABLE = (".txt", ".jsonl")


class CorpusText(NamedTuple):
    """A text of a corpus.

    Attributes:
        name: Its `_id`, or else its line number; FILE:LINE in several files.
        text: The text, with its title before it.
        path: Its file.
        line: Its line in the file, from 1.
    """

    name: str
    text: str
    path: Path
    line: int

    @property
    def place(self) -> str:
        """The file and the line, for error messages."""
        return f"{self.path} line {self.line}"


def read_corpus(path: str | Path) -> tuple[list[str], list[str]]:
    """Reads (names, texts) of a corpus, in order; blank lines of .txt files are none.

    Args:
        path: A file, a BEIR folder, a pattern or "pydocs", as in `find_corpus`.

    Raises:
        FileNotFoundError: As in `find_corpus`.
        ValueError: As in `find_corpus` and `read_texts`, or there is no text.
    """
    texts = list(read_texts(find_corpus([path]), skip_blank=True))
    if not texts:
        raise ValueError(f"{path} has blank lines only")
    return [text.name for text in texts], [text.text for text in texts]


def find_corpus(paths: Iterable[str | Path]) -> list[Path]:
    """The files of a corpus.

    Args:
        paths: Files; BEIR folders, whose corpus.jsonl is read; patterns such as
            "texts/*.jsonl.gz", whose matches are sorted; or "pydocs", which stands for
            the code of those installed Python packages that are held out from training.

    Raises:
        FileNotFoundError: There is no such file, or nothing matches a pattern.
        ValueError: A file is named twice.
    """
    files = []
    for path in map(Path, paths):
        path = path.expanduser()
        if path.is_dir():
            plain = path / "corpus.jsonl"
            path = plain if plain.is_file() else path / "corpus.jsonl.gz"
        if path == PYDOCS or path.is_file():
            files.append(path)
        elif glob.has_magic(str(path)) and (matches := glob.glob(str(path))):
            files += map(Path, sorted(matches))
        else:
            raise FileNotFoundError(f"there is no file {path}")
    if twice := [path for i, path in enumerate(files) if path in files[:i]]:
        raise ValueError(f"{twice[0]} is named twice among the files of a corpus")
    return files


def read_texts(
    files: Sequence[Path], *, allow_blank: bool = False, skip_blank: bool = False
) -> Iterator[CorpusText]:
    """Yields the texts of a corpus in order, without holding them in memory.

    A .txt file has one text per line. A jsonl, tsv or csv file has the field `text` and
    optionally `_id` and `title`; a title is put before its text. Files may be gzipped
    (.gz).

    Args:
        files: The files of `find_corpus`.
        allow_blank: Whether a text may be empty, or all spaces.
        skip_blank: Whether such lines of .txt files are left out.

    Raises:
        ValueError: A line is empty, malformed or has no text; the message gives the
            file and the number of the line.
    """
    # Several files are told apart by their paths below the folder that holds all.
    root = Path(os.path.commonpath([file.absolute().parent for file in files]))
    for file in files:
        prefix = f"{file.absolute().relative_to(root)}:" if files[1:] else ""
        for line, values in _read_file(file, skip_blank):
            record = Record(f"{file} line {line}", values)
            name = record.read_name("_id") if "_id" in values else f"{prefix}{line}"
            text = _join_text(record, allow_blank)
            yield CorpusText(name, text, file, line)


def locate_texts(
    files: Sequence[Path], texts: Iterable[CorpusText]
) -> Iterator[tuple[CorpusText, int, int]]:
    """Yields texts, each with where `read_text_at` finds it again.

    Args:
        files: The files of the texts.
        texts: The texts in order, as `read_texts` yields them.

    Returns:
        (text, number of its file, byte at which its line begins); the byte is -1 in a
        file whose lines cannot be read alone.
    """
    numbers = {file: number for number, file in enumerate(files)}
    path, offsets = None, iter(())
    for text in texts:
        if text.path != path:
            path, offsets = text.path, _iterate_offsets(text.path)
        # Lines without a text lie between
        starts = (offset for line, offset in offsets if line == text.line)
        yield text, numbers[text.path], next(starts, -1)


def read_text_at(path: Path, line: int, offset: int) -> CorpusText:
    """Reads one text of a file of `SEEKABLE` lines, without those before it.

    Args:
        path: The file.
        line: Number of the line, which names a text without an id.
        offset: Byte at which it begins, from `locate_texts`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: There is no text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    place = f"{path} line {line}"
    with path.open("rb") as file:
        file.seek(offset)
        content = file.readline()
    try:
        text = remove_line_end(content.decode("utf-8-sig" if not offset else "utf-8"))
        values = {"text": text} if path.suffix == ".txt" else json.loads(text)
        record = Record(place, values)
        name = record.read_name("_id") if "_id" in values else ""
        return CorpusText(name, _join_text(record, True), path, line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place} has changed since it was embedded") from error


def read_example_texts(
    files: Sequence[Path], role: str, columns: str = ""
) -> Iterator[CorpusText]:
    """Yields the texts that files of training examples have in a role.

    The texts of each file are yielded once, and named by their lines and numbers.

    Args:
        files: The files, as the source `files` reads them.
        role: "query", or "document" for positives and negatives.
        columns: Names of the columns, as `parse_columns` reads them; "" for the usual
            ones.

    Raises:
        FileNotFoundError, ValueError: As in `columns.read_examples`.
    """
    for file in files:
        content, texts = read_examples(str(file), columns), set()
        for example, line in zip(content.examples, content.lines, strict=True):
            documents = (*example.positives, *example.negatives)
            for i, text in enumerate([example.query] if role == "query" else documents):
                if text not in texts:
                    texts.add(text)
                    yield CorpusText(f"{file.name}:{line}.{i}", text, file, line)


def describe_corpus(
    files: Sequence[Path],
    *,
    allow_blank: bool = False,
    read: Callable[[Sequence[Path]], Iterable[CorpusText]] | None = None,
) -> list[dict[str, Any]]:
    """The path, the number of texts and a hash of the texts of each file of a corpus.

    Args:
        files: The files of `find_corpus`.
        allow_blank: As in `read_texts`.
        read: Function of some files that yields their texts; None for `read_texts`.

    Raises:
        ValueError: As in `read`, which reads every text once.
    """
    read = read or partial(read_texts, allow_blank=allow_blank)
    described = []
    for file in files:
        count, digest = 0, hashlib.blake2b(digest_size=16)
        for text in read([file]):
            count += 1
            # The lengths keep names and texts apart; UTF-8 has no lone surrogates.
            sizes = f"{len(text.name)} {len(text.text)} "
            line = f"{sizes}{text.name}{text.text}"
            digest.update(line.encode("utf-8", "surrogatepass"))
        path = str(file if file == PYDOCS else file.absolute())
        described.append({"path": path, "texts": count, "digest": digest.hexdigest()})
    return described


def _iterate_offsets(path: Path) -> Iterator[tuple[int, int]]:
    """Yields (line from 1, byte at which it begins) of a file of SEEKABLE lines."""
    if path.suffix not in SEEKABLE:
        return
    offset = 0
    with path.open("rb") as file:
        for number, content in enumerate(file, 1):
            yield number, offset
            offset += len(content)


def _read_file(path: Path, skip_blank: bool) -> Iterator[tuple[int, dict]]:
    """Yields (line, record with the field `text`) of a file."""
    if path == PYDOCS:
        # Held-out packages: the code of each function is a text.
        held_out = SOURCES["pydocs"](split="test").examples
        for number, example in enumerate(held_out):
            yield number, {"text": example.positives[0]}
    elif Path(path.name.removesuffix(".gz")).suffix == ".txt":
        for number, line in read_lines(path):
            if line.strip() or not skip_blank:
                yield number, {"text": line}
    else:
        yield from read_records(path)


def _join_text(record: Record, allow_blank: bool) -> str:
    """The text of a record as it is or, with a title, as BEIR joins them.

    Raises:
        ValueError: There is no text or, unless `allow_blank`, nothing but spaces.
    """
    if not record.has("title"):
        return record.read_text("text", allow_blank=allow_blank)
    label = f"{record.place}: text"
    return check_text(label, join_title(record), allow_blank=allow_blank)

"""The texts of hits: read from the files of the corpus that an index was made of."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from research.data.corpus import CorpusText, find_corpus, read_text_at, read_texts
from research.inference.index.shard_files import format_hashes
from research.inference.index.vector_shards import read_manifest, read_text_rows


def find_texts(
    folder: Path, rows: Iterable[int]
) -> tuple[dict[int, str], dict[int, str]]:
    """({number: name}, {number: text}) of some texts of a folder of vectors.

    A text whose byte is known is read alone; others need a pass over the corpus.

    Raises:
        FileNotFoundError, ValueError: The files of the corpus have changed.
    """
    stored = read_text_rows(folder, rows)
    files = [Path(file["path"]) for file in read_manifest(folder)["files"]]
    names = {number: row["id"] for number, row in stored.items()}
    if all(row.get("offset", -1) >= 0 for row in stored.values()):
        return names, _read_lines(stored, files)
    # A pass over the corpus, as far as the last hit
    texts = {}
    for number, text in enumerate(read_texts(find_corpus(files), allow_blank=True)):
        if number in names:
            texts[number] = text.text
            _check_text(text, stored[number])
            if len(texts) == len(names):
                break
    if missing := names.keys() - texts.keys():
        raise ValueError(f"{files[-1]} lacks {len(missing)} texts that were embedded")
    return names, texts


def read_all_texts(folder: Path) -> list[str]:
    """All texts of the corpus that a folder of vectors was made of."""
    files = [Path(file["path"]) for file in read_manifest(folder)["files"]]
    return [text.text for text in read_texts(find_corpus(files), allow_blank=True)]


def _read_lines(
    stored: Mapping[int, Mapping[str, Any]], files: list[Path]
) -> dict[int, str]:
    """The texts of rows whose files, lines and bytes are known."""
    texts = {}
    for number, row in stored.items():
        text = read_text_at(files[row["file"]], row["line"], row["offset"])
        _check_text(text, row)
        texts[number] = text.text
    return texts


def _check_text(text: CorpusText, row: Mapping[str, Any]) -> None:
    """Raises ValueError if a text is not the one that a row was made of."""
    # A text without a name has that of its line; rows of chunks have no hash
    is_same = text.name in ("", row["id"])
    if "hash" in row:
        is_same &= [row["hash"]] == format_hashes([text.text])
    if not is_same:
        raise ValueError(f"{text.place} has changed since it was embedded")

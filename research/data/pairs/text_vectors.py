"""A teacher's vectors of texts, found by the hashes of the texts."""

import textwrap
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from research.data.pairs.pair_cache import PairTable
from research.data.sources import Source
from research.transforms.normalize import l2_normalize_rows

# Characters of a text that a message shows.
MAX_SHOWN = 60


class TextVectors(NamedTuple):
    """Vectors of texts on disk.

    Attributes:
        path: The file or folder, for error messages.
        hashes: [N, 2] uint32 hash of each text, as `tokenization.hash_texts` makes it.
        vectors: [N, E] float32, with the attribute `shape` and the method
            `take(rows [n], axis=0) -> [n, E]`.
    """

    path: str
    hashes: np.ndarray
    vectors: Any


class VectorLookup(NamedTuple):
    """The vectors of one role's texts of a source.

    Attributes:
        files: Vectors of one teacher each.
        rows: For each of them [T], the row of each text of the source; -1 for texts of
            the other role.
    """

    files: tuple[TextVectors, ...]
    rows: tuple[np.ndarray, ...]

    @property
    def width(self) -> int:
        """E, the width of the vectors of all teachers together."""
        return sum(file.vectors.shape[1] for file in self.files)

    def take_texts(self, texts: np.ndarray) -> np.ndarray:
        """The vectors [n, E] of texts [n] of the source.

        Those of several teachers are normalized, concatenated and normalized again
        (Stella, Zhang et al. 2024).
        """
        parts = [
            file.vectors.take(rows[texts], axis=0)
            for file, rows in zip(self.files, self.rows, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        return l2_normalize_rows(np.concatenate(list(map(l2_normalize_rows, parts)), 1))


def find_vectors(
    files: Sequence[TextVectors], table: PairTable, source: Source, role: str
) -> VectorLookup | None:
    """Finds a teacher's vector of each text that a source has in a role.

    Args:
        files: The vectors of one or several teachers.
        table: The source's texts.
        source: The source, whose texts are named in messages.
        role: "query" or "document".

    Returns:
        The lookup; None without files.

    Raises:
        ValueError: A file lacks some of the texts.
    """
    if not files:
        return None
    # Texts of the role among the T texts of the table
    is_text = np.zeros(len(table.text_hashes), bool)
    is_text[table.query_text] = True
    if role == "document":
        is_text = ~is_text
    numbers = np.flatnonzero(is_text)
    rows = []
    for file in files:
        row = np.full(len(is_text), -1)
        row[numbers] = find_rows(file.hashes, table.text_hashes[numbers])
        missing = numbers[row[numbers] < 0]
        if len(missing):
            texts, of_role = (
                len(np.unique(table.text_hashes[x], axis=0)) for x in (missing, numbers)
            )
            kind = "queries" if role == "query" else "documents"
            shown = read_text(table, source, int(missing[0]))
            shown = textwrap.shorten(shown, MAX_SHOWN, placeholder=" ...")
            raise ValueError(
                f"{file.path} has no vector of {texts:,} of the source's {of_role:,} "
                f"{kind}; the first is {shown!r}"
            )
        rows.append(row)
    return VectorLookup(tuple(files), tuple(rows))


def find_rows(hashes: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The first row of each hash among others.

    Args:
        hashes: [N, 2] uint32, in any order.
        queries: [M, 2] uint32.

    Returns:
        [M] int64 rows of `hashes`; -1 where there is none.
    """
    keys, values = (
        x[:, 0].astype(np.uint64) << np.uint64(32) | x[:, 1] for x in (hashes, queries)
    )
    if not len(keys):
        return np.full(len(values), -1)
    order = np.argsort(keys, kind="stable")
    position = np.searchsorted(keys[order], values)
    rows = order[np.minimum(position, len(keys) - 1)]
    return np.where(keys[rows] == values, rows, -1)


def read_text(table: PairTable, source: Source, number: int) -> str:
    """The text with this number in a table, without its prompt."""
    row = int(np.searchsorted(table.query_text, number, side="right")) - 1
    example = source.examples[row]
    texts = (example.query, *example.positives, *example.negatives)
    return texts[number - int(table.query_text[row])]

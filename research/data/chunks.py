"""The chunks of texts, and the rows of tokens that an encoder reads for them.

Opening special tokens and the prompt belong to the first chunk of `late`, closing ones
to the last (Guenther et al. 2024); `naive` and `pcw` put them around every piece. The
windows of LongEmbed's own pcw are decoded to text and tokenised again with the prompt,
so that each loses its last few tokens; ours are the tokens themselves, and lose none.
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

from research.data.chunking import Chunking
from research.data.text import CHUNK

# What sentences end with, or an empty line; the space after it starts the next one.
ENDS = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』]*|\n\s*\n")


class Row(NamedTuple):
    """A row of tokens for the encoder, and the pieces that are pooled from it.

    Attributes:
        ids: [S] int32.
        piece: [S] int32, m >= 1 for the tokens of the row's m-th piece, 0 for none.
        chunk: [M] which chunk of the text each piece belongs to; the vector of a chunk
            is the mean of its pieces', weighted by their tokens.
    """

    ids: np.ndarray
    piece: np.ndarray
    chunk: np.ndarray


class Split(NamedTuple):
    """The chunks of a text.

    Attributes:
        rows: what is read, in the order of the text.
        start, end: [C] characters of each chunk, from its first token to its last.
    """

    rows: list[Row]
    start: np.ndarray
    end: np.ndarray


class _Text(NamedTuple):
    """A text, its tokens, those around it, and the characters [start, end) of each."""

    text: str
    head: np.ndarray
    body: np.ndarray
    tail: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @property
    def around(self) -> int:
        """How many tokens are not of the text itself."""
        return len(self.head) + len(self.tail)


def split(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    chunking: Chunking,
    *,
    reach: int,
    max_length: int | None = None,
    prompt: str = "",
) -> list[Split]:
    """The chunks of texts.

    Args:
        tokenizer: without truncation and padding.
        texts: what is cut.
        chunking: how.
        reach: tokens of the longest row that the encoder reads.
        max_length: longer texts lose what comes after these tokens, special ones and
            the prompt's included; None reads all.
        prompt: put before each text; no character of it is counted.

    Raises:
        ValueError: a text has no tokens, or the prompt leaves it no room.
    """
    out = []
    for text in _read(tokenizer, texts, prompt, max_length):
        chunk = _chunks(text, chunking, reach)
        rows = ROWS[chunking.kind](text, chunk, chunking)
        first = np.flatnonzero(np.diff(chunk, prepend=-1))
        last = np.append(first[1:], len(chunk)) - 1
        out.append(Split(rows, text.start[first], text.end[last]))
    return out


def _read(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    prompt: str,
    max_length: int | None,
) -> Iterator[_Text]:
    mask = tokenizer.encode("a").special_tokens_mask
    around = mask.index(0), mask[::-1].index(0)
    for first in range(0, len(texts), CHUNK):
        part = texts[first : first + CHUNK]
        encodings = tokenizer.encode_batch([prompt + text for text in part])
        for row, (text, encoding) in enumerate(
            zip(part, encodings, strict=True), first
        ):
            read = _text(text, encoding, *around, len(prompt))
            if not len(read.body) or not text.strip():
                raise ValueError(f"text {row} has no tokens: {text!r}")
            if max_length is not None:
                kept = slice(_room(f"max_length {max_length}", max_length, read.around))
                cut = (read.body[kept], read.tail, read.start[kept], read.end[kept])
                read = _Text(text, read.head, *cut)
            yield read


def _text(
    text: str,
    encoding: tokenizers.Encoding,
    opening: int,
    closing: int,
    prompt: int,
) -> _Text:
    """The parts of an encoded text with `prompt` characters before it."""
    ids = np.array(encoding.ids, np.int32)
    stop = len(ids) - closing
    offsets = np.array(encoding.offsets).reshape(-1, 2) - prompt
    ends = offsets[opening:stop, 1]
    start = opening + (np.count_nonzero(ends <= 0) if prompt else 0)
    characters = np.maximum(offsets[start:stop], 0).T
    return _Text(text, ids[:start], ids[start:stop], ids[stop:], *characters)


def _room(name: object, size: int, around: int) -> int:
    """Tokens of the text among `size` tokens."""
    if size <= around:
        beside = f"{around} tokens of the prompt and special ones"
        raise ValueError(f"{name} leaves no room beside {beside}")
    return size - around


def _chunks(text: _Text, chunking: Chunking, reach: int) -> np.ndarray:
    """[n] which chunk each token of a text belongs to, from 0 without gaps."""
    place = np.arange(len(text.body))
    if chunking.kind == "pcw":
        return np.zeros_like(place)
    if chunking.unit == "tokens":
        chunk = place // chunking.size
    else:
        ends = [match.end() for match in ENDS.finditer(text.text)]
        sentence = _numbered(np.searchsorted(ends, text.start, side="right"))
        chunk = sentence // chunking.size
    if chunking.kind == "naive":
        room = _room(f"a reach of {reach} tokens", reach, text.around)
        if chunking.unit == "tokens" and chunking.size > room:
            raise ValueError(
                f"chunk {chunking}: with {text.around} tokens around a chunk, this "
                f"encoder reaches sizes 1 ... {room}"
            )
        # Sentences that the encoder does not reach are cut further.
        inside = place - np.searchsorted(chunk, chunk)
        chunk = _numbered(chunk * len(place) + inside // room)
    return chunk


def _numbered(values: np.ndarray) -> np.ndarray:
    """Runs of equal values numbered from 0."""
    return np.cumsum(np.diff(values, prepend=values[0]) != 0)


def _late(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[Row]:
    ids, owner = _whole(text, chunk)
    return _windows(ids, owner, chunking)


def _landmark(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[Row]:
    ids, owner = _whole(text, chunk)
    last = np.diff(owner, append=-1) != 0
    return _windows(ids, np.where(last, owner, -1), chunking)


def _naive(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[Row]:
    del chunking
    first = np.flatnonzero(np.diff(chunk)) + 1
    bodies = np.split(text.body, first)
    return [_alone(text, body, number) for number, body in enumerate(bodies)]


def _pcw(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[Row]:
    """Windows side by side, the last one moved back to be as long as the others."""
    del chunk
    room = _room(f"chunk {chunking}", chunking.size, text.around)
    count = len(text.body)
    starts = [*range(0, count - room, room), max(0, count - room)]
    return [_alone(text, text.body[start : start + room], 0) for start in starts]


def _whole(text: _Text, chunk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All tokens of a text and the chunk of each; what is around joins the nearest."""
    ids = np.concatenate([text.head, text.body, text.tail])
    return ids, np.pad(chunk, (len(text.head), len(text.tail)), mode="edge")


def _windows(ids: np.ndarray, owner: np.ndarray, chunking: Chunking) -> list[Row]:
    """The rows of a text; of a token that two windows hold, the first one's counts."""
    window, rows = chunking.window or len(ids), []
    overlap = chunking.overlap
    for start in range(0, max(1, len(ids) - overlap), window - overlap):
        part = owner[start : start + window].copy()
        part[: overlap if start else 0] = -1
        chunk = np.unique(part[part >= 0])
        if len(chunk):
            piece = np.where(part >= 0, np.searchsorted(chunk, part) + 1, 0)
            row = ids[start : start + window]
            rows.append(Row(row, piece.astype(np.int32), chunk))
    return rows


def _alone(text: _Text, body: np.ndarray, chunk: int) -> Row:
    """A piece with the same tokens around it as a whole text has."""
    ids = np.concatenate([text.head, body, text.tail])
    return Row(ids, np.ones_like(ids), np.array([chunk]))


ROWS = {"late": _late, "landmark": _landmark, "naive": _naive, "pcw": _pcw}

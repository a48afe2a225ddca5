"""The chunks of texts, and the rows of tokens that an encoder reads for them.

Opening special tokens and the prompt belong to the first chunk of `late`, closing ones
to the last (Guenther et al. 2024); `naive` and `pcw` put them around every piece. The
windows of LongEmbed's own pcw are decoded to text and tokenised again with the prompt,
so that each loses its last few tokens; ours are the tokens themselves, and lose none.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import tokenizers

from research.text.tokenization import ENCODE_BATCH_SIZE

KINDS = ("late", "landmark", "naive", "pcw")
# jina-ai/late-chunking run_chunked_eval.py: its command's default.
OVERLAP = 256


@dataclass(frozen=True)
class Chunking:
    """How texts are cut.

    Attributes:
        kind: one of KINDS.
        size: tokens or sentences of a chunk; of pcw, tokens of a window.
        unit: "tokens" or "sentences".
        window: tokens that late and landmark read at a time; None for the whole text.
        overlap: tokens of the window before that a window reads again.

    Raises:
        ValueError: these do not go together.
    """

    kind: str
    size: int
    unit: str = "tokens"
    window: int | None = None
    overlap: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            raise ValueError(f"unknown chunking {self.kind!r}; known: {known}")
        for name, tokens in (("size", self.size), ("window", self.window)):
            if tokens is not None and tokens < 1:
                raise ValueError(f"chunk {self}: {name} {tokens} is below 1")
        if self.kind == "pcw" and self.unit != "tokens":
            raise ValueError(f"chunk {self}: pcw takes a number of tokens, as pcw:512")
        if self.kind in ("naive", "pcw") and self.window is not None:
            raise ValueError(f"chunk {self}: window fits late and landmark only")
        if self.window is None and self.overlap:
            raise ValueError(f"chunk {self}: overlap needs a window")
        if self.window is not None and not 0 <= self.overlap < self.window:
            allowed = f"allowed: 0 ... {self.window - 1}, below the window"
            raise ValueError(f"chunk {self}: overlap {self.overlap}; {allowed}")

    def __str__(self) -> str:
        unit = "sentences=" if self.unit == "sentences" else ""
        long = "" if self.window is None else f",window={self.window}"
        again = f",overlap={self.overlap}" if self.overlap else ""
        return f"{self.kind}:{unit}{self.size}{long}{again}"

    @property
    def reads_full_text(self) -> bool:
        """Whether a text is read in one row, so that the encoder's reach cuts it."""
        return self.kind in ("late", "landmark") and self.window is None


# What sentences end with, or an empty line; the space after it starts the next one.
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』]*|\n\s*\n")


class ChunkRow(NamedTuple):
    """A row of tokens for the encoder, and the pieces that are pooled from it.

    Attributes:
        ids: [S] int32.
        piece: [S] int32, m >= 1 for the tokens of the row's m-th piece, 0 for none.
        chunk: [M] which chunk of the text each piece belongs to; the vector of a chunk
            is the mean of its pieces', weighted by their tokens.
    """

    token_ids: np.ndarray
    span_ids: np.ndarray
    chunk_numbers: np.ndarray


class ChunkedText(NamedTuple):
    """The chunks of a text.

    Attributes:
        rows: what is read, in the order of the text.
        start, end: [C] characters of each chunk, from its first token to its last.
    """

    rows: list[ChunkRow]
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


def split_texts(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    chunking: Chunking,
    *,
    encoder_max_len: int,
    max_length: int | None = None,
    prompt: str = "",
) -> list[ChunkedText]:
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
        chunk = _chunks(text, chunking, encoder_max_len)
        rows = ROWS[chunking.kind](text, chunk, chunking)
        first = np.flatnonzero(np.diff(chunk, prepend=-1))
        last = np.append(first[1:], len(chunk)) - 1
        out.append(ChunkedText(rows, text.start[first], text.end[last]))
    return out


def _read(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    prompt: str,
    max_length: int | None,
) -> Iterator[_Text]:
    mask = tokenizer.encode("a").special_tokens_mask
    around = mask.index(0), mask[::-1].index(0)
    for first in range(0, len(texts), ENCODE_BATCH_SIZE):
        part = texts[first : first + ENCODE_BATCH_SIZE]
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
        ends = [match.end() for match in SENTENCE_END.finditer(text.text)]
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


def _late(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[ChunkRow]:
    ids, owner = _whole(text, chunk)
    return _windows(ids, owner, chunking)


def _landmark(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[ChunkRow]:
    ids, owner = _whole(text, chunk)
    last = np.diff(owner, append=-1) != 0
    return _windows(ids, np.where(last, owner, -1), chunking)


def _naive(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[ChunkRow]:
    del chunking
    first = np.flatnonzero(np.diff(chunk)) + 1
    bodies = np.split(text.body, first)
    return [_alone(text, body, number) for number, body in enumerate(bodies)]


def _pcw(text: _Text, chunk: np.ndarray, chunking: Chunking) -> list[ChunkRow]:
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


def _windows(ids: np.ndarray, owner: np.ndarray, chunking: Chunking) -> list[ChunkRow]:
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
            rows.append(ChunkRow(row, piece.astype(np.int32), chunk))
    return rows


def _alone(text: _Text, body: np.ndarray, chunk: int) -> ChunkRow:
    """A piece with the same tokens around it as a whole text has."""
    ids = np.concatenate([text.head, body, text.tail])
    return ChunkRow(ids, np.ones_like(ids), np.array([chunk]))


def parse_chunking(text: str) -> Chunking:
    """The chunking that the option names, as at the head of this file.

    Raises:
        ValueError: it names none, or arguments that do not fit it.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in KINDS:
        raise ValueError(f"unknown chunking {kind!r}; known: {', '.join(KINDS)}")
    fields = {}
    for argument in rest.split(",") if rest else ():
        name, equals, number = argument.rpartition("=")
        name = name if equals else "tokens"
        if name not in ("tokens", "sentences", "window", "overlap") or name in fields:
            allowed = "a number of tokens, sentences=, window= and overlap="
            raise ValueError(f"chunk {text!r} has {argument!r}; allowed: {allowed}")
        if not re.fullmatch(r"-?\d+", number):
            raise ValueError(f"chunk {text!r}: {argument!r} is not a whole number")
        fields[name] = int(number)
    units = [name for name in ("tokens", "sentences") if name in fields]
    if len(units) != 1:
        raise ValueError(f"chunk {text!r} needs one size, as {kind}:512")
    size = fields.pop(units[0])
    if "window" in fields:
        fields = {"overlap": OVERLAP, **fields}
    return Chunking(kind, size, units[0], **fields)


def parse_chunkings(text: str) -> list[Chunking | None]:
    """The chunkings between semicolons: late:64;128;256 or none;naive:256;late:256.

    A number alone is the one before with that size; none is no chunks (None).

    Raises:
        ValueError: as `parse`.
    """
    found: list[Chunking | None] = []
    for part in map(str.strip, text.split(";")):
        if part == "none":
            found.append(None)
        elif part.isdecimal() and found and found[-1] is not None:
            found.append(replace(found[-1], size=int(part)))
        else:
            found.append(parse_chunking(part))
    return found


def check_row_length(chunking: Chunking, reach: int) -> None:
    """Whether what is read at a time fits an encoder of `reach` tokens.

    Raises:
        ValueError: it does not.
    """
    read = chunking.window or (chunking.size if chunking.kind == "pcw" else 1)
    if read > reach:
        raise ValueError(
            f"chunk {chunking} reads {read} tokens at a time; "
            f"this encoder reaches 1 ... {reach}"
        )


ROWS = {"late": _late, "landmark": _landmark, "naive": _naive, "pcw": _pcw}

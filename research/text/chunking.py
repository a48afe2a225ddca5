"""Chunking of documents: late chunking, landmarks, naive chunks and parallel windows.

A chunking is written as a call, `late(256, window=8192)`. It decides which chunk each
token of a document belongs to, and which rows of tokens the encoder embeds.

late      the encoder embeds the full text; the vector of a chunk is the mean of its
          token states (Guenther et al. 2024)
landmark  the same, but the vector of a chunk is the state of its last token
naive     each chunk is embedded as a text of its own
pcw       parallel context windows that together cover the text; the text has one
          vector, the mean of the windows' vectors (LongEmbed, Zhu et al. 2024)

With `late`, the prompt and opening special tokens belong to the first chunk, closing
ones to the last; `naive` and `pcw` repeat them in every row. LongEmbed's code tokenizes
each window again with the prompt and thereby loses a few tokens; here they are kept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import tokenizers

from research.config_sections import build_call, parse_call, parse_calls
from research.text.chunk_rows import (
    ChunkedText,
    ChunkRow,
    TokenizedText,
    check_size,
    compute_room,
    make_row,
    make_windows,
    number_chunks,
    number_runs,
    tokenize_documents,
)

# The default of run_chunked_eval.py in jina-ai/late-chunking.
DEFAULT_OVERLAP = 256


class Chunking:
    """Base class: where a text is cut, and the rows that the encoder embeds for it.

    Attributes:
        name: Name in CHUNKINGS.
        span_pooling: Name of the pooling of each span; None for the model's own.
        one_vector_per_text: Whether the vectors of all rows are averaged, so that the
            text has one vector.
    """

    name: ClassVar[str]
    span_pooling: ClassVar[str | None] = None
    one_vector_per_text: ClassVar[bool] = False

    @property
    def row_length(self) -> int | None:
        """Number of tokens in a row; None if it depends on the text."""
        return None

    @property
    def reads_full_text(self) -> bool:
        """Whether a text is one row, which the encoder's maximum length may cut."""
        return self.span_pooling is not None and self.row_length is None

    def assign_chunks(self, text: TokenizedText, encoder_max_len: int) -> np.ndarray:
        """[N] int, the chunk of each token, numbered from 0 without gaps."""
        raise NotImplementedError

    def make_rows(
        self, text: TokenizedText, chunk_numbers: np.ndarray
    ) -> list[ChunkRow]:
        """The rows of tokens that the encoder embeds for a text."""
        raise NotImplementedError

    def __str__(self) -> str:
        """The call that `parse_chunking` reads; the number of tokens comes first."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        arguments = [
            f"{value}" if name == "tokens" else f"{name}={value}"
            for name, value in values.items()
            if value is not None
        ]
        return f"{self.name}({', '.join(arguments)})"


@dataclass(frozen=True)
class Late(Chunking):
    """Late chunking (Guenther et al. 2024): the mean of token states in context.

    Attributes:
        tokens: Number of tokens per chunk.
        sentences: Number of sentences per chunk, instead of `tokens`.
        window: Number of tokens per row; None for the full text in one row.
        overlap: Number of tokens that a window shares with the window before it; None
            for DEFAULT_OVERLAP.

    Raises:
        ValueError: Not exactly one of `tokens` and `sentences` is given, or a number is
            out of range.
    """

    tokens: int | None = None
    sentences: int | None = None
    window: int | None = None
    overlap: int | None = None

    name = "late"
    span_pooling = "mean"

    def __post_init__(self):
        check_size(self, self.tokens, self.sentences)
        # Without a window the full text is one row, and nothing overlaps.
        if self.window is None:
            if self.overlap is not None:
                raise ValueError(f"{self}: overlap needs a window")
            return
        if self.window < 1:
            raise ValueError(f"{self}: window {self.window} is below 1")
        if not 0 <= self.overlap_length < self.window:
            raise ValueError(
                f"{self}: overlap {self.overlap_length}; allowed: 0 ... "
                f"{self.window - 1}, below the window"
            )

    @property
    def row_length(self) -> int | None:
        """The window."""
        return self.window

    @property
    def overlap_length(self) -> int:
        """Number of tokens that a window shares with the window before it."""
        if self.window is None:
            return 0
        return DEFAULT_OVERLAP if self.overlap is None else self.overlap

    def assign_chunks(self, text: TokenizedText, encoder_max_len: int) -> np.ndarray:
        """[N] int, the chunk of each token, by number of tokens or sentences."""
        del encoder_max_len
        return number_chunks(text, self.tokens, self.sentences)

    def make_rows(
        self, text: TokenizedText, chunk_numbers: np.ndarray
    ) -> list[ChunkRow]:
        """The full text, or overlapping windows of it."""
        token_ids = text.surround(text.body_ids)
        # Special tokens and the prompt join the first or the last chunk: [S].
        chunk_numbers = np.pad(
            chunk_numbers, (len(text.opening_ids), len(text.closing_ids)), mode="edge"
        )
        chunk_numbers = self.select_pooled(chunk_numbers)
        window = self.window or len(token_ids)
        return make_windows(token_ids, chunk_numbers, window, self.overlap_length)

    def select_pooled(self, chunk_numbers: np.ndarray) -> np.ndarray:
        """[S] the chunk that each token is pooled into, -1 for none."""
        return chunk_numbers


@dataclass(frozen=True)
class Landmark(Late):
    """The vector of a chunk is its last token's state; arguments as for `Late`."""

    name = "landmark"

    def select_pooled(self, chunk_numbers: np.ndarray) -> np.ndarray:
        """[S] the chunk for the last token of each chunk, -1 for all other tokens."""
        # A token is the last of its chunk where the next token's number differs.
        is_last = np.diff(chunk_numbers, append=-1) != 0
        return np.where(is_last, chunk_numbers, -1)


@dataclass(frozen=True)
class Naive(Chunking):
    """Every chunk is embedded as a text of its own.

    Attributes:
        tokens: Number of tokens per chunk.
        sentences: Number of sentences per chunk, instead of `tokens`. Chunks that are
            longer than the encoder's maximum length are cut further.
    """

    tokens: int | None = None
    sentences: int | None = None

    name = "naive"

    def __post_init__(self):
        check_size(self, self.tokens, self.sentences)

    def assign_chunks(self, text: TokenizedText, encoder_max_len: int) -> np.ndarray:
        """[N] int: as in `Late`, but chunks that are longer than a row are cut."""
        limit = f"an encoder of {encoder_max_len} tokens"
        room = compute_room(limit, encoder_max_len, text.num_surrounding)
        if self.tokens is not None and self.tokens > room:
            raise ValueError(
                f"{self}: with {text.num_surrounding} tokens around a chunk, this "
                f"encoder reads chunks of 1 ... {room} tokens"
            )
        numbers = number_chunks(text, self.tokens, self.sentences)
        # Cut long chunks of sentences: number the pairs (chunk, part of the chunk).
        indices = np.arange(len(numbers))
        offsets = indices - np.searchsorted(numbers, numbers)  # [N] within the chunk
        return number_runs(numbers * len(numbers) + offsets // room)

    def make_rows(
        self, text: TokenizedText, chunk_numbers: np.ndarray
    ) -> list[ChunkRow]:
        """One row for each chunk."""
        # The first token of every chunk but the first one.
        starts = np.flatnonzero(np.diff(chunk_numbers)) + 1
        bodies = np.split(text.body_ids, starts)
        return [make_row(text, body, number) for number, body in enumerate(bodies)]


@dataclass(frozen=True)
class ParallelWindows(Chunking):
    """Parallel context windows (LongEmbed): a text's vector is the mean over windows.

    Attributes:
        tokens: Number of tokens per window, special tokens and the prompt included.
    """

    tokens: int

    name = "pcw"
    one_vector_per_text = True

    def __post_init__(self):
        check_size(self, self.tokens, None)

    @property
    def row_length(self) -> int | None:
        """Number of tokens per window."""
        return self.tokens

    def assign_chunks(self, text: TokenizedText, encoder_max_len: int) -> np.ndarray:
        """[N] int, all 0, because the text has one vector."""
        del encoder_max_len
        return np.zeros(len(text.body_ids), np.int64)

    def make_rows(
        self, text: TokenizedText, chunk_numbers: np.ndarray
    ) -> list[ChunkRow]:
        """Adjacent windows; the last one starts earlier, so that it is full as well."""
        del chunk_numbers
        # A window holds the surrounding tokens and `room` tokens of the text.
        room = compute_room(self, self.tokens, text.num_surrounding)
        final = max(0, len(text.body_ids) - room)
        starts = [*range(0, final, room), final]
        bodies = [text.body_ids[start : start + room] for start in starts]
        return [make_row(text, body, 0) for body in bodies]


def keep_text() -> None:
    """The chunking "none": documents are not cut."""


def parse_chunking(text: str) -> Chunking | None:
    """Reads one chunking, such as "late(256, window=8192)"; None for "none".

    Raises:
        ValueError: The text is not a call of one of CHUNKINGS, or its arguments exclude
            each other.
    """
    return build_call(CHUNKINGS, parse_call(text))


def parse_chunkings(text: str) -> list[Chunking | None]:
    """Reads chunkings with | between them, such as "none | late(sentences=5)".

    Raises:
        ValueError: As in `parse_chunking`.
    """
    return [build_call(CHUNKINGS, call) for call in parse_calls(text)]


def check_row_length(chunking: Chunking, encoder_max_len: int) -> None:
    """Checks that a chunking's rows are not longer than the encoder allows.

    Raises:
        ValueError: They are longer.
    """
    if (chunking.row_length or 1) > encoder_max_len:
        raise ValueError(
            f"{chunking} reads {chunking.row_length} tokens at a time; this encoder "
            f"reads 1 ... {encoder_max_len}"
        )


def split_texts(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    chunking: Chunking,
    *,
    encoder_max_len: int,
    max_length: int | None = None,
    prompt: str = "",
    allow_empty: bool = False,
    label: Callable[[int], str] = "text {}".format,
) -> list[ChunkedText]:
    """Cuts texts into chunks.

    Args:
        tokenizer: Tokenizer without truncation and padding.
        texts: The documents.
        chunking: How the documents are cut.
        encoder_max_len: Maximum number of tokens per row of the encoder.
        max_length: Maximum number of tokens, special tokens and the prompt included;
            longer texts are cut. None keeps all tokens.
        prompt: Prefix of each document, which character offsets do not count.
        allow_empty: Whether a document may have no tokens of its own: it is one chunk
            of the special tokens and the prompt.
        label: Function from the index of a document to its name in error messages.

    Raises:
        ValueError: A text has no tokens, or the prompt leaves no room for it.
    """
    chunked = []
    for text in tokenize_documents(
        tokenizer, texts, prompt, max_length, allow_empty, label
    ):
        if not len(text.body_ids):
            row, edge = make_row(text, text.body_ids, 0), np.array([0])
            chunked.append(ChunkedText([row], edge, edge))
            continue
        numbers = chunking.assign_chunks(text, encoder_max_len)
        rows = chunking.make_rows(text, numbers)
        # The first and the last token of each chunk: [C] each.
        first = np.flatnonzero(np.diff(numbers, prepend=-1))
        last = np.append(first[1:], len(numbers)) - 1
        chunked.append(ChunkedText(rows, text.start[first], text.end[last]))
    return chunked


# {name in a call: class of the chunking}
CHUNKINGS: dict[str, Callable[..., Chunking | None]] = {
    "none": keep_text,
    "late": Late,
    "landmark": Landmark,
    "naive": Naive,
    "pcw": ParallelWindows,
}

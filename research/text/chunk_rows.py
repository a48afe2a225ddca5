"""Token rows for chunked documents: tokens with character offsets, and windows of them.

`chunking` decides which chunk a token belongs to; this file makes the rows.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from research.text.tokenization import ENCODE_BATCH_SIZE

# The end of a sentence, or an empty line; a space after it starts the next sentence.
SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[”’」』]*|\n\s*\n")


class ChunkRow(NamedTuple):
    """A row of tokens for the encoder, and the spans that are pooled from it.

    Attributes:
        token_ids: [S] int32 token ids.
        span_ids: [S] int32, m >= 1 for the tokens of the m-th span of the row, 0 for
            tokens that are not pooled.
        chunk_numbers: [M] int, the chunk of the text that each span belongs to. The
            vector of a chunk is the mean of its spans' vectors, weighted by their
            numbers of tokens.
    """

    token_ids: np.ndarray
    span_ids: np.ndarray
    chunk_numbers: np.ndarray


class ChunkedText(NamedTuple):
    """The chunks of one text.

    Attributes:
        rows: The rows that the encoder reads, in the order of the text.
        start, end: [C] int, the range of characters [start, end) of each chunk, from
            its first token to its last.
    """

    rows: list[ChunkRow]
    start: np.ndarray
    end: np.ndarray


class TokenizedText(NamedTuple):
    """A text, its N tokens, and the special tokens and the prompt around them.

    Attributes:
        text: The characters, without the prompt.
        opening_ids: [P] int32 ids of the opening special tokens and the prompt.
        body_ids: [N] int32 ids of the text itself.
        closing_ids: [Q] int32 ids of the closing special tokens.
        start, end: [N] int, the range of characters [start, end) of each token.
    """

    text: str
    opening_ids: np.ndarray
    body_ids: np.ndarray
    closing_ids: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @property
    def num_surrounding(self) -> int:
        """Number of special tokens and tokens of the prompt."""
        return len(self.opening_ids) + len(self.closing_ids)

    def surround(self, body_ids: np.ndarray) -> np.ndarray:
        """Puts the surrounding tokens of the text around some of its tokens."""
        return np.concatenate([self.opening_ids, body_ids, self.closing_ids])


def tokenize_documents(
    tokenizer: tokenizers.Tokenizer,
    texts: Sequence[str],
    prompt: str,
    max_length: int | None,
    allow_empty: bool = False,
    label: Callable[[int], str] = "text {}".format,
) -> Iterator[TokenizedText]:
    """Tokenizes documents, and separates the text from special tokens and the prompt.

    Args:
        tokenizer: Tokenizer without truncation and padding.
        texts: The documents.
        prompt: Prefix of each document.
        max_length: Maximum number of tokens, special tokens and the prompt included;
            longer documents are cut. None keeps all tokens.
        allow_empty: Whether a document may have no tokens of its own.
        label: Function from the index of a document to its name in error messages.

    Raises:
        ValueError: A text has no tokens, or the prompt leaves no room for it.
    """
    # How many special tokens the tokenizer adds before and after a text.
    special = tokenizer.encode("a").special_tokens_mask
    num_special = special.index(0), special[::-1].index(0)
    for start in range(0, len(texts), ENCODE_BATCH_SIZE):
        batch = texts[start : start + ENCODE_BATCH_SIZE]
        encodings = tokenizer.encode_batch([prompt + text for text in batch])
        for number, (text, encoding) in enumerate(
            zip(batch, encodings, strict=True), start
        ):
            tokenized = _split_encoding(text, encoding, *num_special, len(prompt))
            is_filled = len(tokenized.body_ids) and text.strip()
            if not (is_filled or allow_empty and tokenized.num_surrounding):
                raise ValueError(f"{label(number)} has no tokens: {text!r}")
            yield _truncate(tokenized, max_length)


def tokenize_passages(
    tokenizer: tokenizers.Tokenizer,
    passages: Sequence[tuple[str, tuple[str, str]]],
    *,
    prompt: str,
    max_length: int,
    label: Callable[[int], str],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tokens of N passages within the texts around them, and which are their own.

    Args:
        tokenizer: Tokenizer without truncation and padding.
        passages: Passages, each with the text before and after it.
        prompt: Prefix of the text before.
        max_length: Maximum number of tokens; what is far from the passage is cut.
        label: Function from the index of a passage to its name in error messages.

    Returns:
        Token ids [S] int32 and pooling mask [S] bool of each passage.

    Raises:
        ValueError: A passage has no tokens.
    """
    # Each text as a whole once, of which windows around its passages are taken
    places: dict[str, list[int]] = {}
    for index, (text, (before, after)) in enumerate(passages):
        places.setdefault(before + text + after, []).append(index)
    groups = list(places.values())
    rows = tokenize_documents(
        *(tokenizer, list(places), prompt, None),
        label=lambda number: label(groups[number][0]),
    )
    windows: list = [None] * len(passages)
    for group, row in zip(groups, rows, strict=True):
        for index in group:
            text, (before, _) = passages[index]
            span = len(before), len(before) + len(text)
            try:
                windows[index] = select_span(row, span, max_length)
            except ValueError as error:
                raise ValueError(f"{label(index)}: {error}") from None
    return [ids for ids, _ in windows], [mask for _, mask in windows]


def _split_encoding(
    text: str,
    encoding: tokenizers.Encoding,
    num_opening: int,
    num_closing: int,
    prompt_length: int,
) -> TokenizedText:
    """Separates the tokens of a text from special tokens and those of the prompt."""
    token_ids = np.array(encoding.ids, np.int32)
    # Character offsets in the text itself; those of the prompt are negative.
    stop = len(token_ids) - num_closing
    offsets = np.array(encoding.offsets).reshape(-1, 2) - prompt_length  # [S, 2]
    # Tokens that end before the first character of the text are the prompt's.
    num_prompt = np.count_nonzero(offsets[num_opening:stop, 1] <= 0)
    start = num_opening + (num_prompt if prompt_length else 0)
    characters = np.maximum(offsets[start:stop], 0).T
    parts = token_ids[:start], token_ids[start:stop], token_ids[stop:]
    return TokenizedText(text, *parts, *characters)


def _truncate(text: TokenizedText, max_length: int | None) -> TokenizedText:
    """Cuts the tokens of a text so that its row has at most max_length tokens."""
    if max_length is None:
        return text
    room = compute_room(f"max_length {max_length}", max_length, text.num_surrounding)
    return text._replace(
        body_ids=text.body_ids[:room], start=text.start[:room], end=text.end[:room]
    )


def compute_room(limit: object, length: int, num_surrounding: int) -> int:
    """Number of tokens of the text itself that fit into a row of `length` tokens.

    Args:
        limit: Name of the limit, for the error message.
        length: Number of tokens in the row.
        num_surrounding: Number of special tokens and tokens of the prompt.
    """
    if length <= num_surrounding:
        raise ValueError(
            f"{limit} leaves no room beside {num_surrounding} tokens of the prompt and "
            "special ones"
        )
    return length - num_surrounding


def select_span(
    text: TokenizedText, span: tuple[int, int], max_length: int
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens around a span of a text, and which of them are the span's.

    The prompt and opening special tokens belong to a span at the beginning of the text,
    closing ones to one at its end.

    Args:
        text: The tokenized text, N tokens.
        span: The span's characters [start, end).
        max_length: Most tokens to take, with the span in the middle; a longer span is
            cut at its end.

    Returns:
        Token ids [S] int32 and pooling mask [S] bool.

    Raises:
        ValueError: The span has no tokens, or `max_length` leaves no room for any.
    """
    # [N] tokens with a character of the span
    inside = (text.start < span[1]) & (text.end > span[0])
    if not inside.any():
        raise ValueError(f"{text.text[slice(*span)]!r} has no tokens in its context")
    numbers = np.flatnonzero(inside)
    first, end = int(numbers[0]), int(numbers[-1]) + 1
    # The window begins so far before the span that as much fits after it
    room = compute_room(f"max_length {max_length}", max_length, text.num_surrounding)
    count = len(inside)
    start = first - max(0, room - (end - first)) // 2
    start = max(0, min(start, count - room))
    window = slice(start, start + room)
    # Special tokens are pooled with the first and the last token of the text
    opening = np.full(len(text.opening_ids), first == 0)
    closing = np.full(len(text.closing_ids), end == count)
    mask = np.concatenate([opening, inside[window], closing])
    return text.surround(text.body_ids[window]), mask


def number_chunks(
    text: TokenizedText, tokens: int | None, sentences: int | None
) -> np.ndarray:
    """The chunk of each token, [N] int, for chunks of a number of tokens or sentences.

    Args:
        text: The tokenized text.
        tokens: Number of tokens per chunk; None to count sentences.
        sentences: Number of sentences per chunk.
    """
    if tokens is not None:
        return np.arange(len(text.body_ids)) // tokens
    ends = [match.end() for match in SENTENCE_END.finditer(text.text)]
    # A sentence without tokens has no number.
    sentence = number_runs(np.searchsorted(ends, text.start, side="right"))
    return sentence // sentences


def number_runs(values: np.ndarray) -> np.ndarray:
    """Numbers runs of equal values from 0."""
    return np.cumsum(np.diff(values, prepend=values[0]) != 0)


def make_windows(
    token_ids: np.ndarray, chunk_numbers: np.ndarray, window: int, overlap: int
) -> list[ChunkRow]:
    """Overlapping rows; a token in two windows is pooled in the first one.

    Args:
        token_ids: [S] all tokens of the text.
        chunk_numbers: [S] the chunk that each token is pooled into, -1 for none.
        window: Number of tokens per row.
        overlap: Number of tokens that a row shares with the row before it.
    """
    rows = []
    for start in range(0, max(1, len(token_ids) - overlap), window - overlap):
        numbers = chunk_numbers[start : start + window].copy()
        # Tokens that are also in the window before are pooled there.
        if start:
            numbers[:overlap] = -1
        chunks = np.unique(numbers[numbers >= 0])  # [M]
        # A window without pooled tokens, such as between landmarks, is left out.
        if len(chunks):
            span_ids = np.where(numbers >= 0, np.searchsorted(chunks, numbers) + 1, 0)
            row = token_ids[start : start + window]
            rows.append(ChunkRow(row, span_ids.astype(np.int32), chunks))
    return rows


def make_row(text: TokenizedText, body_ids: np.ndarray, number: int) -> ChunkRow:
    """A row of one span: some tokens of a text, with its prompt and special tokens."""
    token_ids = text.surround(body_ids)
    return ChunkRow(token_ids, np.ones_like(token_ids), np.array([number]))


def check_size(chunking: Any, tokens: int | None, sentences: int | None) -> None:
    """Checks that a chunking has exactly one size, and that it is at least 1."""
    # The sizes that are set.
    sizes = {"tokens": tokens, "sentences": sentences}
    sizes = {name: size for name, size in sizes.items() if size is not None}
    if len(sizes) != 1:
        name = chunking.name
        raise ValueError(
            f"{chunking} needs one size, such as {name}(512) or {name}(sentences=5)"
        )
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{chunking}: {name} {size} is below 1")

"""Documents of a given length, joined from texts of a corpus, and edits of them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

MIN_DOCUMENTS = 10  # fewer give no meaningful statistics
# A text with so many characters per required token is long enough by itself.
ENOUGH_CHARS = 6
# Maximum number of characters per required token; the rest of a text is not tokenized.
MAX_CHARS = 40


class Document(NamedTuple):
    """A document as a sequence of pieces, which edits never split.

    Attributes:
        pieces: P words, each with the white space after it; joined, they are the text.
        sizes: [P] number of tokens of each piece.
        source: [P] index of the corpus text that each piece comes from: 0, 1, ...
    """

    pieces: tuple[str, ...]
    sizes: np.ndarray
    source: np.ndarray


def make_documents(
    texts: Sequence[str],
    tokenizer: tokenizers.Tokenizer,
    *,
    length: int,
    count: int,
    seed: int = 0,
) -> list[Document]:
    """Makes `count` documents of at least `length` tokens, which share no text.

    Texts are taken in random order, but those that are long enough by themselves come
    first; shorter ones are joined. A document ends with the text that reaches the
    length; use `truncate_document` to cut it.

    Args:
        texts: Texts of a corpus.
        tokenizer: Tokenizer that counts the tokens, special tokens excluded.
        length: Minimum number of tokens of a document.
        count: Number of documents.
        seed: Seed of the order.

    Raises:
        ValueError: The corpus is too short.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    is_short = [len(texts[i]) < ENOUGH_CHARS * length for i in order]
    documents, parts, total = [], [], 0
    # Texts are joined until their tokens reach the length.
    for i in order[np.argsort(is_short, kind="stable")]:
        pieces = _split_pieces(texts[i][: MAX_CHARS * length], tokenizer)
        if not pieces:  # such as a text of zero-width spaces
            continue
        parts.append(pieces)
        total += sum(size for _, size in pieces)
        if total >= length:
            documents.append(_join_texts(parts))
            parts, total = [], 0
        if len(documents) == count:
            return documents
    raise ValueError(
        f"the corpus of {len(texts)} texts gives {len(documents)} documents of "
        f"{length} tokens and {count} are needed: give more text, or ask for fewer or "
        "shorter documents"
    )


def check_count(items: Sequence, name: str) -> None:
    """Raises ValueError if there are too few items for statistics."""
    if len(items) < MIN_DOCUMENTS:
        raise ValueError(
            f"{len(items)} {name} are too few: {MIN_DOCUMENTS} or more are needed"
        )


def sample_texts(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """At most `count` of different texts, drawn at random.

    Raises:
        ValueError: There are too few.
    """
    order = np.random.default_rng(seed).permutation(len(texts))[:count]
    check_count(order, "different texts")
    return [texts[i] for i in order]


def make_word_tokenizer() -> tokenizers.Tokenizer:
    """A tokenizer whose tokens are words and signs, for lengths without a model."""
    words = tokenizers.models.WordLevel({"[UNK]": 0}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def truncate_document(document: Document, length: int) -> Document:
    """Keeps the first pieces: at most `length` tokens, but at least one piece."""
    end = max(1, _count_pieces(document, length))
    return Document(*(field[:end] for field in document))


def rotate_document(document: Document, position: float) -> Document:
    """Moves everything before a relative position in [0, 1) to the end."""
    split = _count_pieces(document, position * document.sizes.sum())
    return Document(
        pieces=(*document.pieces[split:], *document.pieces[:split]),
        sizes=np.roll(document.sizes, -split),
        source=np.roll(document.source, -split),
    )


def join_pieces(document: Document) -> str:
    """The document as one string."""
    return "".join(document.pieces).strip()


def insert_text(document: Document, text: str, position: float) -> str:
    """Inserts a text at a relative position: 0 the start, 1 the end."""
    split = _count_pieces(document, position * document.sizes.sum())
    return _join_with_spaces(document.pieces[:split], (text,), document.pieces[split:])


def remove_tokens(document: Document, size: int, position: float) -> str:
    """Removes about `size` tokens at a relative position: 0 the start, 1 the end.

    It removes the pieces between the borders nearest to the first and the last token,
    so that neither end loses more than the other: of two borders that are as near, the
    outer ones, which remove more.
    """
    start = position * (document.sizes.sum() - size)
    borders = np.append(0, np.cumsum(document.sizes))  # [P + 1] tokens
    first = int(np.argmin(abs(borders - start)))
    last = len(borders) - 1 - int(np.argmin(abs(borders - (start + size))[::-1]))
    return _join_with_spaces(document.pieces[:first], document.pieces[last:])


def _split_pieces(text: str, tokenizer: tokenizers.Tokenizer) -> list[tuple[str, int]]:
    """Splits a text between words into [(piece, number of its tokens)].

    If the tokenizer does not number words (SentencePiece), text is split at spaces.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    if not encoding.offsets:
        return []
    starts, sizes, word = [], [], None
    for (start, end), number in zip(encoding.offsets, encoding.word_ids, strict=True):
        # A new piece begins where the word number changes, or after a space.
        after_space = text[start:end][:1].isspace() or text[start - 1 : start].isspace()
        if not starts or end > start and (number != word or after_space):
            starts.append(start)
            sizes.append(0)
        sizes[-1] += 1
        word = number
    ends = [*starts[1:], len(text)]
    pieces = [text[start:end] for start, end in zip(starts, ends, strict=True)]
    return list(zip(pieces, sizes, strict=True))


def _join_texts(texts: Sequence[Sequence[tuple[str, int]]]) -> Document:
    """Joins several texts, given as pieces, with a line break after each text."""
    pieces, sizes, source = [], [], []
    for number, text in enumerate(texts):
        pieces += [piece for piece, _ in text]
        pieces[-1] += "\n"
        sizes += [size for _, size in text]
        source += [number] * len(text)
    return Document(tuple(pieces), np.array(sizes), np.array(source))


def _count_pieces(document: Document, tokens: float) -> int:
    """Number of leading pieces that together have at most `tokens` tokens."""
    return int(np.searchsorted(np.cumsum(document.sizes), tokens, side="right"))


def _join_with_spaces(*parts: Iterable[str]) -> str:
    """Joins parts with spaces, so that words at the borders stay separate."""
    return " ".join("".join(part) for part in parts).strip()

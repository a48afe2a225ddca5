"""Documents of a chosen length, cut and joined from a corpus, and edits of them."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import tokenizers

# A text of so many characters for each token wanted is long enough on its own, and
# what comes after the second number of characters need not be tokenised.
ENOUGH, AT_MOST = 6, 40


class Document(NamedTuple):
    """A document in pieces that an edit leaves whole.

    Attributes:
        pieces: words with what follows them; joined, they are the document.
        sizes: [P] tokens of each piece.
        source: [P] which of the texts that were joined a piece is from: 0, 1, ...
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
    """`count` documents of `length` tokens or more, which share no text.

    Texts are taken in an order shuffled by `seed`, those that look long enough on their
    own first; shorter ones are joined. A document ends where the text does in which
    the length is reached: `prefix` cuts it.

    Args:
        texts: a corpus.
        tokenizer: counts the tokens, special ones not included.
        length: in tokens.
        count: of documents.
        seed: of the order.

    Raises:
        ValueError: the corpus is too short.
    """
    order = np.random.default_rng(seed).permutation(len(texts))
    short = [len(texts[i]) < ENOUGH * length for i in order]
    found, parts, total = [], [], 0
    for i in order[np.argsort(short, kind="stable")]:
        parts.append(_pieces(texts[i][: AT_MOST * length], tokenizer))
        total += sum(size for _, size in parts[-1])
        if total >= length:
            found.append(_joined(parts))
            parts, total = [], 0
        if len(found) == count:
            return found
    raise ValueError(
        f"the corpus of {len(texts)} texts gives {len(found)} documents of {length} "
        f"tokens and {count} are needed: give more text, or ask for fewer or shorter "
        "documents"
    )


def truncate_document(document: Document, length: int) -> Document:
    """The first pieces, `length` tokens at most but one piece at least."""
    end = max(1, _index(document, length))
    return Document(*(field[:end] for field in document))


def rotate_document(document: Document, place: float) -> Document:
    """The document from a place in [0, 1) on, and then its beginning."""
    at = _index(document, place * document.sizes.sum())
    pieces = (*document.pieces[at:], *document.pieces[:at])
    return Document(pieces, np.roll(document.sizes, -at), np.roll(document.source, -at))


def join_pieces(document: Document) -> str:
    """The document as one string."""
    return "".join(document.pieces).strip()


def insert_text(document: Document, extra: str, place: float) -> str:
    """The document with `extra` put in at a place: 0 the start, 1 the end."""
    at = _index(document, place * document.sizes.sum())
    return _spaced(document.pieces[:at], (extra,), document.pieces[at:])


def remove_tokens(document: Document, size: int, place: float) -> str:
    """The document without about `size` tokens: 0 its first ones, 1 its last."""
    start = place * (document.sizes.sum() - size)
    first, last = _index(document, start), _index(document, start + size)
    return _spaced(document.pieces[:first], document.pieces[last:])


def _pieces(text: str, tokenizer: tokenizers.Tokenizer) -> list[tuple[str, int]]:
    """(piece, its tokens): tokens of a word stay together.

    A tokeniser that does not split words first (SentencePiece's own) has spaces for it.
    """
    encoding = tokenizer.encode(text, add_special_tokens=False)
    starts, sizes, word = [], [], None
    for (start, end), number in zip(encoding.offsets, encoding.word_ids, strict=True):
        after_space = text[start:end][:1].isspace() or text[start - 1 : start].isspace()
        if not starts or end > start and (number != word or after_space):
            starts.append(start)
            sizes.append(0)
        sizes[-1] += 1
        word = number
    ends = [*starts[1:], len(text)]
    return [
        (text[start:end], size)
        for start, end, size in zip(starts, ends, sizes, strict=True)
    ]


def _joined(parts: Sequence[Sequence[tuple[str, int]]]) -> Document:
    rows = [
        (piece + "\n" * (place == len(part) - 1), size, source)
        for source, part in enumerate(parts)
        for place, (piece, size) in enumerate(part)
    ]
    pieces, sizes, source = zip(*rows, strict=True)
    return Document(pieces, np.array(sizes), np.array(source))


def _index(document: Document, tokens: float) -> int:
    """How many of the first pieces have `tokens` tokens or fewer together."""
    return int(np.searchsorted(np.cumsum(document.sizes), tokens, side="right"))


def _spaced(*parts: Iterable[str]) -> str:
    """The parts with a space between, so that no two words grow together."""
    return " ".join("".join(part) for part in parts).strip()

"""Token cache of documents for pre-training, with the starts of words and sentences."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import chex
import numpy as np
import tokenizers

from research.data import token_cache
from research.data.sources import Source
from research.text import tokenization
from research.text.chunk_rows import SENTENCE_END
from research.text.tokens import find_end_token
from research.types import TokenizerInfo

MASKS = ("[MASK]", "<mask>")  # BERT's, and RoBERTa's
BLANK = "_"  # LLM2Vec's mask for tokenizers that have none
COUNT_CHUNK = 1 << 24  # tokens counted at once
# Longer "words" are text written without spaces: each of their tokens counts as a word.
MAX_WORD_TOKENS = 16
WORD_START, SENTENCE_START = 1, 2  # bits of `DocumentTable.boundaries`
PREFIXES = ("\u2581", "\u0120")  # SentencePiece's and byte-level BPE's leading space


class DocumentTable(NamedTuple):
    """N documents without special tokens.

    Attributes:
        token_ids: [tokens] uint16 or uint32, all documents end to end.
        boundaries: [tokens] uint8 of two bits: WORD_START where a word begins, and
            SENTENCE_START where a sentence begins. Every document begins with both.
        starts: [N+1] int64; document n is token_ids[starts[n]:starts[n+1]].
    """

    token_ids: np.ndarray
    boundaries: np.ndarray
    starts: np.ndarray


def tokenize_documents(
    source: Source, tokenizer: tokenizers.Tokenizer, cache: Path
) -> DocumentTable:
    """The token table of a source, read from the cache or written there first.

    Every text of an example is a document, without the source's prompts. A text that
    occurs twice in an example is one document. Text that looks like a special token is
    tokenized as ordinary text.

    Raises:
        ValueError: No text has any tokens.
    """
    # A copy of the tokenizer that never truncates and takes special tokens as text.
    plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    name = token_cache.fingerprint(source, tokenizer, "documents")
    folder = token_cache.write_once(
        cache, name, lambda draft: _write_table(source, plain, draft)
    )
    arrays = token_cache.load_arrays(folder, "starts")
    boundaries = token_cache.map_binary(folder / "boundaries.bin", np.uint8)
    return DocumentTable(boundaries=boundaries, **arrays)


def last_word_start(
    table: DocumentTable, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """The last position in each interval (low, high] at which a word begins: [M].

    The result is `high` if no word begins in the interval, or if `high` is the end of
    the table.

    Args:
        table: Tokenized documents.
        low: [M] positions in `table.token_ids`.
        high: [M] positions after them.
    """
    chex.assert_equal_shape([low, high])
    size = len(table.token_ids)
    candidates = high[:, None] - np.arange(MAX_WORD_TOKENS + 1)  # [M, 17], descending
    # The first candidate that is inside the interval and starts a word.
    inside = (candidates > low[:, None]) & (candidates < size)
    starts_word = table.boundaries[np.where(inside, candidates, 0)] > 0
    valid = inside & starts_word
    use_candidate = valid.any(1) & (high != size)
    return np.where(use_candidate, high - valid.argmax(1), high)


def _write_table(source: Source, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    dtype = token_cache.token_dtype(tokenizer)
    lengths = []
    with (
        open(folder / "token_ids.bin", "wb") as ids_file,
        open(folder / "boundaries.bin", "wb") as boundary_file,
    ):
        for token_ids, boundaries in _tokenize_texts(source, tokenizer):
            ids_file.write(token_ids.astype(dtype).tobytes())
            boundary_file.write(boundaries.tobytes())
            lengths.append(len(token_ids))
    if not lengths:
        raise ValueError("there is no usable document: no text has any tokens")
    token_cache.save_arrays(folder, dtype, starts=token_cache.cumulate(lengths))


def _tokenize_texts(
    source: Source, tokenizer: tokenizers.Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (token_ids [T] int64, boundaries [T] uint8) of documents with tokens."""
    # Some tokenizers (SentencePiece) do not number the words of a text.
    word_ids = tokenizer.encode("a a", add_special_tokens=False).word_ids
    knows_words = len(set(word_ids)) > 1
    for _, examples in token_cache.iterate_chunks(source):
        # All distinct texts of each example are documents.
        texts = [
            text
            for example in examples
            for text in dict.fromkeys(
                (example.query, *example.positives, *example.negatives)
            )
        ]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.ids:
                boundaries = _find_boundaries(text, encoding, knows_words)
                yield np.array(encoding.ids), boundaries


def _find_boundaries(
    text: str, encoding: tokenizers.Encoding, knows_words: bool
) -> np.ndarray:
    """Starts of words and sentences of a document: [T] uint8 as in DocumentTable.

    Args:
        text: Text of the document.
        encoding: Encoding of the text, T tokens.
        knows_words: Whether the tokenizer splits text into words first. Otherwise the
            first token of each word is marked by a leading space.
    """
    # Words: [T] bool, true at their first tokens.
    if knows_words:
        words = np.array(encoding.word_ids, np.float64)  # None is NaN: its own word
        word_starts = np.diff(words, prepend=-1) != 0
    else:
        word_starts = np.array(
            [token.startswith(PREFIXES) for token in encoding.tokens]
        )
    word_starts[0] = True
    number = np.cumsum(word_starts)
    word_starts |= np.bincount(number)[number] > MAX_WORD_TOKENS
    # Sentences: [T] bool, true at the first token after each end of a sentence.
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    sentence_starts = np.zeros(len(word_starts), bool)
    if ends:
        characters = np.array(encoding.offsets)[:, 0]
        ends_before = np.searchsorted(ends, characters, side="right")
        sentence_starts = np.diff(ends_before, prepend=0) > 0
    sentence_starts[0] = True
    word_starts |= sentence_starts
    bits = word_starts * WORD_START + sentence_starts * SENTENCE_START
    return bits.astype(np.uint8)


def tokenizer_info(
    tokenizer: tokenizers.Tokenizer, tables: Iterable[DocumentTable]
) -> TokenizerInfo:
    """Ids of a tokenizer's special tokens, and counts of all tokens in the tables."""
    # Special tokens: {id: text}
    special = {
        number: token.content
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token.special
    }
    masks = [number for number, name in special.items() if name in MASKS]
    # [V] count of each token, from a part of a table at a time to save memory.
    vocab_size = tokenizer.get_vocab_size()
    counts = np.zeros(vocab_size, np.int64)
    for table in tables:
        for start in range(0, len(table.token_ids), COUNT_CHUNK):
            part = table.token_ids[start : start + COUNT_CHUNK]
            counts += np.bincount(part, minlength=vocab_size)
    special_tokens = tokenization.enclosing_tokens(tokenizer)
    return TokenizerInfo(
        vocab_size=vocab_size,
        mask_id=masks[0] if masks else None,
        special_ids=tuple(special),
        token_counts=counts,
        blank_id=tokenizer.token_to_id(BLANK),
        end_id=_find_end_id(tokenizer),
        min_length=1 + sum(map(len, special_tokens)),
    )


def _find_end_id(tokenizer: tokenizers.Tokenizer) -> int | None:
    """Id of the token that ends a text; None if there is none."""
    try:
        return find_end_token(tokenizer)
    except ValueError:
        return None

"""The documents of a source tokenised once, with the places where their words begin."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tokenizers
from tqdm import tqdm

from research.data import token_cache
from research.data.sources import Source
from research.text import tokenization
from research.text.chunk_rows import SENTENCE_END
from research.text.tokens import find_end_token
from research.types import TokenizerInfo

MASKS = ("[MASK]", "<mask>")  # BERT's, and RoBERTa's
BLANK = "_"  # LLM2Vec's mask of tokenizers without one
CHUNK = 1 << 24  # tokens counted at once
# A longer "word" is text written without spaces: each of its tokens becomes a word.
MAX_WORD_TOKENS = 16
WORD_START, SENTENCE_START = 1, 2  # bits of a mark
PREFIXES = ("\u2581", "\u0120")  # SentencePiece's and byte-level BPE's leading space


class DocumentTable(NamedTuple):
    """N documents without special tokens.

    Attributes:
        ids: [tokens] uint16 or uint32, all documents end to end.
        marks: [tokens] uint8; WORD where a word begins, SENTENCE too where a sentence
            does. Every document begins with both.
        starts: [N+1] int64; document n is ids[starts[n]:starts[n+1]].
    """

    token_ids: np.ndarray
    boundaries: np.ndarray
    starts: np.ndarray


def tokenize_documents(
    source: Source, tokenizer: tokenizers.Tokenizer, cache: Path
) -> DocumentTable:
    """The source's table, from the folder in `cache` that holds it, or written there.

    Every text of a row is a document, without the source's prompts; a text that a row
    holds twice is one. What looks like a special token in a text is text.

    Raises:
        ValueError: no text has any tokens.
    """
    plain = tokenizers.Tokenizer.from_str(tokenizer.to_str())
    plain.no_truncation()
    plain.no_padding()
    plain.encode_special_tokens = True
    name = token_cache.fingerprint(source, tokenizer, "documents")
    return _read(
        token_cache.kept(cache, name, lambda draft: _write(source, plain, draft))
    )


def last_word_start(
    table: DocumentTable, low: np.ndarray, high: np.ndarray
) -> np.ndarray:
    """[M] the last place in (low, high] where a word begins; `high` if there is none.

    All places are in `table.ids`; a `high` of the table's end is returned as it is.
    """
    back = high[:, None] - np.arange(MAX_WORD_TOKENS + 1)
    inside = (back > low[:, None]) & (back < len(table.token_ids))
    begins = table.boundaries[np.where(inside, back, 0)] > 0
    found = inside & begins
    end = high == len(table.token_ids)
    return np.where(found.any(1) & ~end, high - found.argmax(1), high)


def _write(source: Source, tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    dtype = np.uint16 if tokenizer.get_vocab_size() <= 2**16 else np.uint32
    lengths = []
    with open(folder / "ids.bin", "wb") as ids, open(folder / "marks.bin", "wb") as out:
        for document, marks in _documents(source, tokenizer):
            ids.write(document.astype(dtype).tobytes())
            out.write(marks.tobytes())
            lengths.append(len(document))
    if not lengths:
        raise ValueError("there is no usable document: no text has any tokens")
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    np.save(folder / "starts.npy", starts)
    (folder / "ids.json").write_text(json.dumps({"dtype": np.dtype(dtype).name}))


def _read(folder: Path) -> DocumentTable:
    dtype = json.loads((folder / "ids.json").read_text())["dtype"]
    # Plain views of the maps: indexing a np.memmap costs several microseconds more.
    return DocumentTable(
        np.asarray(np.memmap(folder / "ids.bin", dtype=dtype, mode="r")),
        np.asarray(np.memmap(folder / "marks.bin", dtype=np.uint8, mode="r")),
        np.asarray(np.load(folder / "starts.npy", mmap_mode="r")),
    )


def _documents(
    source: Source, tokenizer: tokenizers.Tokenizer
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids [T] int64, marks [T] uint8) of every document that has tokens."""
    numbered = len(set(tokenizer.encode("a a", add_special_tokens=False).word_ids)) > 1
    size = len(source.examples)
    for start in tqdm(
        range(0, size, token_cache.CHUNK),
        "tokenising",
        delay=5,
        leave=False,
        disable=None,
    ):
        texts = [
            text
            for row in source.examples[start : start + token_cache.CHUNK]
            for text in dict.fromkeys((row.query, *row.positives, *row.negatives))
        ]
        encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            if encoding.ids:
                yield np.array(encoding.ids), _marks(text, encoding, numbered)


def _marks(text: str, encoding: tokenizers.Encoding, numbered: bool) -> np.ndarray:
    """[T] uint8, see DocumentTable.

    Args:
        numbered: whether the tokeniser tells words apart; else the leading space that
            its tokens are written with does.
    """
    if numbered:
        words = np.array(encoding.word_ids, np.float64)  # None is NaN: its own word
        begins = np.diff(words, prepend=-1) != 0
    else:
        begins = np.array([token.startswith(PREFIXES) for token in encoding.tokens])
    begins[0] = True
    number = np.cumsum(begins)
    begins |= np.bincount(number)[number] > MAX_WORD_TOKENS
    ends = [match.end() for match in SENTENCE_END.finditer(text)]
    if not ends:
        sentence = np.zeros(len(begins), bool)
    else:
        character = np.array(encoding.offsets)[:, 0]
        after = np.searchsorted(ends, character, side="right")
        sentence = np.diff(after, prepend=0) > 0
    sentence[0] = True
    return ((begins | sentence) * WORD_START + sentence * SENTENCE_START).astype(
        np.uint8
    )


def tokenizer_info(
    tokenizer: tokenizers.Tokenizer, tables: Iterable[DocumentTable]
) -> TokenizerInfo:
    """The tokenizer's ids, and how often each occurs in the tables."""
    special = {
        number: token.content
        for number, token in sorted(tokenizer.get_added_tokens_decoder().items())
        if token.special
    }
    masks = [number for number, name in special.items() if name in MASKS]
    vocab = tokenizer.get_vocab_size()
    counts = np.zeros(vocab, np.int64)
    for table in tables:
        for start in range(0, len(table.token_ids), CHUNK):
            part = table.token_ids[start : start + CHUNK]
            counts += np.bincount(part, minlength=vocab)
    mask_id = masks[0] if masks else None
    return TokenizerInfo(
        vocab,
        mask_id,
        tuple(special),
        counts,
        blank_id=tokenizer.token_to_id(BLANK),
        end_id=_end(tokenizer),
        min_length=1 + sum(map(len, tokenization.enclosing_tokens(tokenizer))),
    )


def _end(tokenizer: tokenizers.Tokenizer) -> int | None:
    """The id of the token that ends a text, if there is one."""
    try:
        return find_end_token(tokenizer)
    except ValueError:
        return None

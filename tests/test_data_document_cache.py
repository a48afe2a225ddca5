"""Documents tokenised once: words, sentences, and what looks like a special token."""

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers

from research.data import document_cache, token_cache
from research.data.document_cache import (
    MAX_WORD_TOKENS,
    SENTENCE_START,
    DocumentTable,
    last_word_start,
    tokenize_documents,
    tokenizer_info,
)
from research.data.examples import Example
from research.data.sources import Source
from research.text.tokenization import train_tokenizer

TEXTS = (
    "Tokens are pieces. Words are not! Are they",
    "one [MASK] two [CLS]\n\nthree",
    "x" * (2 * MAX_WORD_TOKENS) + " end",
)


def source(*rows):
    return Source(rows, 0, 1.0, {"query": "never: ", "document": ""})


def documents(table):
    return [
        (table.token_ids[a:b], table.boundaries[a:b])
        for a, b in zip(table.starts[:-1], table.starts[1:], strict=True)
    ]


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_words_and_sentences(tmp_path, kind):
    tokenizer = train_tokenizer(TEXTS, 300, kind)
    table = tokenize_documents(source(Example(TEXTS[0], TEXTS)), tokenizer, tmp_path)
    found = documents(table)
    assert len(found) == 3  # the query is one of the positives
    ids, marks = found[0]
    encoding = tokenizer.encode(TEXTS[0], add_special_tokens=False)
    assert ids.tolist() == encoding.ids
    words = np.cumsum(marks > 0) - 1
    np.testing.assert_array_equal(words, encoding.word_ids)
    starts = [encoding.offsets[i][0] for i in np.flatnonzero(marks & SENTENCE_START)]
    assert [TEXTS[0][i:].split()[0] for i in starts] == ["Tokens", "Words", "Are"]


def test_text_is_never_a_special_token(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    table = tokenize_documents(source(Example(TEXTS[1], ())), tokenizer, tmp_path)
    special = {tokenizer.token_to_id(t) for t in ("[MASK]", "[CLS]", "[SEP]", "[PAD]")}
    assert not special & set(table.token_ids.tolist())
    assert (
        table.boundaries & SENTENCE_START
    ).sum() // SENTENCE_START == 2  # the empty line


def test_a_text_without_spaces_is_cut_anywhere(tmp_path):
    tokenizer = train_tokenizer([TEXTS[0], "x xx"], 60, "bpe")
    table = tokenize_documents(source(Example(TEXTS[2], ())), tokenizer, tmp_path)
    long = len(tokenizer.encode("x" * (2 * MAX_WORD_TOKENS)).ids) - 2
    assert (table.boundaries > 0)[:long].all() == (long > MAX_WORD_TOKENS)
    words = tokenize_documents(
        source(Example("y" * MAX_WORD_TOKENS, ())), tokenizer, tmp_path
    )
    assert (words.boundaries > 0).sum() == 1


def test_words_by_their_prefix(tmp_path):
    """A SentencePiece tokeniser that has no pre-tokeniser knows no words."""
    vocab = {"<unk>": 0, "\u2581": 1, "a": 2, "b": 3, "\u2581a": 4}
    model = models.BPE(vocab, [("\u2581", "a")], unk_token="<unk>")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    table = tokenize_documents(source(Example("ab ba a", ())), tokenizer, tmp_path)
    assert table.token_ids.tolist() == [4, 3, 1, 3, 2, 4]
    assert (table.boundaries > 0).tolist() == [True, False, True, False, False, True]


def test_a_table_is_made_once(tmp_path, monkeypatch):
    tokenizer = train_tokenizer(TEXTS, 300)
    rows = source(*(Example(text, ()) for text in TEXTS))
    monkeypatch.setattr(token_cache, "CHUNK", 2)
    first = tokenize_documents(rows, tokenizer, tmp_path)
    monkeypatch.setattr(document_cache, "SENTENCE_END", None)  # nothing is tokenized
    again = tokenize_documents(rows, tokenizer, tmp_path)
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_no_usable_document(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 300)
    with pytest.raises(ValueError, match="no usable document"):
        tokenize_documents(source(Example(" ", ("\x00",))), tokenizer, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_last_word():
    marks = np.array([3, 0, 0, 1, 0, 0, 0, 3, 0], np.uint8)
    table = document_cache.DocumentTable(np.zeros(9), marks, np.array([0, 7, 9]))
    low = np.array([0, 0, 0, 3, 0, 7])
    high = np.array([2, 3, 5, 6, 7, 9])
    assert last_word_start(table, low, high).tolist() == [2, 3, 3, 6, 7, 9]


@pytest.mark.parametrize("kind, vocab", [("wordpiece", 40), ("bpe", 300)])
def test_ids_and_counts(kind, vocab):
    tokenizer = train_tokenizer(["a cat and a dog"] * 3, vocab, kind)
    ids = np.array([10, 11, 10, 4], np.uint16)
    tables = [DocumentTable(ids, None, None), DocumentTable(ids[:1], None, None)]
    found = tokenizer_info(tokenizer, tables)
    assert found.vocab_size == tokenizer.get_vocab_size()
    assert found.mask_id == tokenizer.token_to_id("[MASK]")
    assert {tokenizer.token_to_id(name) for name in ("[CLS]", "[SEP]", "[PAD]")} < set(
        found.special_ids
    )
    assert found.mask_id in found.special_ids
    counted = np.flatnonzero(found.token_counts)
    assert counted.tolist() == [4, 10, 11]
    assert found.token_counts[counted].tolist() == [1, 3, 1]

import re

import numpy as np
import pytest

from research.text.chunking import (
    Landmark,
    Late,
    Naive,
    ParallelWindows,
    check_row_length,
    parse_chunking,
    parse_chunkings,
    split_texts,
)
from research.text.tokenization import train_tokenizer

LONG = Late(256, window=8192, overlap=512)
WORDS = re.findall(r"\w+|\S", "the quick brown fox jumps over a lazy dog runs away .!?")
TEXT = 'The quick fox jumps.  "Over a dog!" And runs\naway? The lazy dog\n\nruns away'
SENTENCES = ["The quick fox jumps.", '"Over a dog!"', "And runs\naway?"]
SENTENCES += ["The lazy dog", "runs away"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(WORDS * 9, 80)


def split_text(tokenizer, chunk, text=TEXT, **options):
    options = {"encoder_max_len": 128, **options}
    return split_texts(tokenizer, [text], parse_chunking(chunk), **options)[0]


def chunk_texts(chunked, text=TEXT):
    return [text[a:b] for a, b in zip(chunked.start, chunked.end, strict=True)]


@pytest.mark.parametrize("kind", ["late", "landmark", "naive"])
@pytest.mark.parametrize("size", ["1", "3", "7", "100", "sentences=1", "sentences=2"])
def test_characters_cover_the_text(tokenizer, kind, size):
    chunked = split_text(tokenizer, f"{kind}({size})")
    squeezed = ["".join(piece.split()) for piece in chunk_texts(chunked)]
    assert "".join(squeezed) == "".join(TEXT.split())
    assert all(squeezed)
    assert (chunked.start[1:] >= chunked.end[:-1]).all()


def test_sentences(tokenizer):
    assert chunk_texts(split_text(tokenizer, "late(sentences=1)")) == SENTENCES
    two = split_text(tokenizer, "late(sentences=2)")
    assert [len(piece.split("\n\n")) for piece in chunk_texts(two)] == [1, 1, 1]
    assert chunk_texts(two)[2] == SENTENCES[4]


def test_prompt_and_special_tokens_join_the_first_and_last_chunk(tokenizer):
    chunked = split_text(tokenizer, "late(4)", prompt="a dog: ")
    plain = split_text(tokenizer, "late(4)")
    np.testing.assert_array_equal(chunked.start, plain.start)
    np.testing.assert_array_equal(chunked.end, plain.end)
    prompt = len(tokenizer.encode("a dog: ", add_special_tokens=False).ids)
    (row,), (bare,) = chunked.rows, plain.rows
    np.testing.assert_array_equal(row.token_ids, tokenizer.encode("a dog: " + TEXT).ids)
    counts, without = np.bincount(row.span_ids)[1:], np.bincount(bare.span_ids)[1:]
    assert counts[0] == 1 + prompt + 4
    assert (counts[1:] == without[1:]).all()
    assert len(row.token_ids) == counts.sum()


@pytest.mark.parametrize("window,overlap", [(8, 3), (9, 0), (20, 19), (64, 10)])
def test_every_state_counts_once_in_long_late_chunks(tokenizer, window, overlap):
    chunk = f"late(5, window={window}, overlap={overlap})"
    chunked, full = split_text(tokenizer, chunk), split_text(tokenizer, "late(5)")
    ids = tokenizer.encode(TEXT).ids
    pooled_ids = np.concatenate(
        [row.token_ids[row.span_ids > 0] for row in chunked.rows]
    )
    owner = np.concatenate(
        [row.chunk_numbers[row.span_ids[row.span_ids > 0] - 1] for row in chunked.rows]
    )
    np.testing.assert_array_equal(pooled_ids, ids)
    np.testing.assert_array_equal(owner, full.rows[0].span_ids - 1)
    assert all(len(row.token_ids) <= window for row in chunked.rows)
    skipped = [np.argmax(row.span_ids > 0) for row in chunked.rows]
    assert skipped == [0] + [overlap] * (len(chunked.rows) - 1)
    if window >= len(ids):
        np.testing.assert_array_equal(chunked.rows[0].span_ids, full.rows[0].span_ids)


def test_landmarks_are_the_last_tokens(tokenizer):
    (late,), (chunked,) = (
        split_text(tokenizer, f"{k}(6)").rows for k in ("late", "landmark")
    )
    landmarks = np.flatnonzero(chunked.span_ids)
    assert (chunked.span_ids[landmarks] == np.arange(1, len(landmarks) + 1)).all()
    last = [
        np.flatnonzero(late.span_ids == m).max() for m in chunked.span_ids[landmarks]
    ]
    np.testing.assert_array_equal(landmarks, last)
    assert landmarks[-1] == len(chunked.token_ids) - 1
    parts = split_text(tokenizer, "landmark(6, window=9, overlap=4)").rows
    assert sum((row.span_ids > 0).sum() for row in parts) == len(landmarks)


def test_naive_rows_are_the_tokens_of_the_pieces(tokenizer):
    chunked = split_text(tokenizer, "naive(sentences=1)", prompt="a dog: ")
    for row, sentence in zip(chunked.rows, SENTENCES, strict=True):
        np.testing.assert_array_equal(
            row.token_ids, tokenizer.encode("a dog: " + sentence).ids
        )
    long = split_text(tokenizer, "naive(sentences=9)", encoder_max_len=8)
    assert max(len(row.token_ids) for row in long.rows) == 8
    with pytest.raises(
        ValueError, match=r"naive\(7\): with 2 tokens .* of 1 ... 6 tokens"
    ):
        split_text(tokenizer, "naive(7)", encoder_max_len=8)


def test_parallel_windows_are_full_and_the_last_one_moves_back(tokenizer):
    ids = tokenizer.encode(TEXT).ids
    body, count = np.array(ids[1:-1]), len(ids) - 2
    chunked = split_text(tokenizer, "pcw(9)")
    starts = [*range(0, count - 7, 7), count - 7]
    assert len(chunked.rows) == len(starts) > 2
    for row, start in zip(chunked.rows, starts, strict=True):
        expected = [ids[0], *body[start : start + 7], ids[-1]]
        np.testing.assert_array_equal(row.token_ids, expected)
    assert chunk_texts(chunked) == [TEXT]
    (row,) = split_text(tokenizer, f"pcw({len(ids)})").rows
    np.testing.assert_array_equal(row.token_ids, ids)
    with pytest.raises(ValueError, match=r"pcw\(2\) leaves no room beside 2 tokens"):
        split_text(tokenizer, "pcw(2)")


def test_long_texts_are_cut_first(tokenizer):
    ids = tokenizer.encode(TEXT).ids
    (row,) = split_text(tokenizer, "late(4)", max_length=9).rows
    np.testing.assert_array_equal(row.token_ids, [*ids[:8], ids[-1]])
    rows = split_text(tokenizer, "pcw(6)", max_length=10).rows
    assert [list(row.token_ids[1:-1]) for row in rows] == [ids[1:5], ids[5:9]]
    with pytest.raises(ValueError, match="max_length 2 leaves no room"):
        split_text(tokenizer, "naive(4)", max_length=2)


def test_texts_without_tokens(tokenizer):
    with pytest.raises(ValueError, match="text 1 has no tokens"):
        split_texts(
            tokenizer, ["dog", " "], parse_chunking("late(4)"), encoder_max_len=64
        )


@pytest.mark.parametrize("chunk", ["late(4)", "naive(4)", "pcw(8)", "landmark(4)"])
def test_an_empty_text_is_one_chunk_of_its_special_tokens(tokenizer, chunk):
    options = {"encoder_max_len": 64, "prompt": "a: ", "allow_empty": True}
    chunked, dog = split_texts(tokenizer, ["", "dog"], parse_chunking(chunk), **options)
    (row,) = chunked.rows
    np.testing.assert_array_equal(row.token_ids, tokenizer.encode("a: ").ids)
    assert row.span_ids.tolist() == [1] * len(row.token_ids)
    assert chunked.start.tolist() == chunked.end.tolist() == [0]
    assert len(dog.rows) == 1


@pytest.mark.parametrize(
    "text, chunking",
    [
        ("late(256)", Late(256)),
        ("late(sentences=5)", Late(sentences=5)),
        ("late(256, window=8192, overlap=512)", LONG),
        ("late(256, window=8192)", Late(256, window=8192)),
        ("landmark(sentences=1)", Landmark(sentences=1)),
        ("naive(256)", Naive(256)),
        ("pcw(512)", ParallelWindows(512)),
    ],
)
def test_a_chunking_is_written_as_the_call_that_makes_it(text, chunking):
    assert parse_chunking(text) == chunking
    assert str(chunking) == text


def test_windows_overlap_by_256_tokens_unless_told_otherwise():
    assert Late(256, window=8192).overlap_length == 256
    assert LONG.overlap_length == 512
    assert Late(256).overlap_length == 0


@pytest.mark.parametrize(
    "text, message",
    [
        ("lata(256)", "unknown name 'lata'; known: landmark, late, naive, none, pcw"),
        ("", "'' is no call"),
        ("late:256", "'late:256' is no call"),
        ("late", r"late\(\) needs one size, such as late\(512\)"),
        ("late(window=5)", "needs one size"),
        ("late(3, sentences=5)", "needs one size"),
        ("late(0)", r"late\(0\): tokens 0 is below 1"),
        ("late(-3)", "tokens -3 is below 1"),
        ("late('many')", "late's tokens is 'many'; it takes"),
        (
            "late(64, size=3)",
            "late has no argument size; it has tokens, sentences, win",
        ),
        ("late(64, window=512, overlap=512)", "overlap 512; allowed: 0 ... 511"),
        ("late(64, window=0)", "window 0 is below 1"),
        ("late(64, overlap=3)", "overlap needs a window"),
        ("naive(64, window=512)", "naive has no argument window; it has tokens, sent"),
        ("pcw(sentences=5)", "pcw has no argument sentences; it has tokens"),
        ("pcw", "pcw needs a value for tokens"),
        ("late(64) | late(128)", r"holds 2 calls \(late, late\); write one"),
    ],
)
def test_a_mistake_in_a_chunking_is_one_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        parse_chunking(text)


def test_several_chunkings_have_bars_between_them():
    chunkings = parse_chunkings("none | naive(64) | late(128, window=512, overlap=8)")
    assert chunkings == [None, Naive(64), Late(128, window=512, overlap=8)]
    assert parse_chunking("none") is None


def test_windows_that_an_encoder_does_not_reach():
    check_row_length(LONG, 8192)
    with pytest.raises(ValueError, match="reads 8192 tokens .* reads 1 ... 512"):
        check_row_length(LONG, 512)
    with pytest.raises(ValueError, match=r"pcw\(513\) reads 513"):
        check_row_length(parse_chunking("pcw(513)"), 512)

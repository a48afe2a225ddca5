"""Chunks of longer texts: their examples, and their tokens within the texts."""

import json

import numpy as np
import pytest

from research.data import spans
from research.data.chunks import BREAK
from research.data.examples import Example
from research.data.pairs.pair_cache import tokenize_pairs
from research.data.pairs.pair_rows import PairSourceState
from research.data.pairs.teacher_texts import Teacher, TeacherEncoding, add_teacher
from research.data.sources import SOURCES, Source
from research.text.chunking import parse_chunking, split_texts
from research.text.tokenization import train_tokenizer

TEXT = "One red sun. Two blue moons rise. Three green stars fall down at night."


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([TEXT, "what is red"], 200)


def make_example(low, high):
    contexts = ((TEXT[:low], TEXT[high:]),)
    return Example("what is red", (TEXT[low:high],), contexts=contexts)


def tokenize(examples, tokenizer, length, cache, **options):
    return tokenize_pairs(
        Source(examples, 0, 1.0, {}), tokenizer, length, cache, **options
    )


def take(array, table, text):
    return array[table.starts[text] : table.starts[text + 1]]


def test_a_chunk_is_pooled_from_the_tokens_of_late_chunking(tmp_path, tokenizer):
    """The tokens and spans are those with which a trained model is used."""
    (chunked,) = split_texts(
        tokenizer, [TEXT], parse_chunking("late(sentences=1)"), encoder_max_len=64
    )
    edges = zip(chunked.start.tolist(), chunked.end.tolist(), strict=True)
    examples = [make_example(*span) for span in edges]
    table = tokenize(examples, tokenizer, 64, tmp_path)
    (row,) = chunked.rows
    for number in range(3):
        text = 2 * number + 1
        np.testing.assert_array_equal(take(table.token_ids, table, text), row.token_ids)
        mask = take(table.pooling_mask, table, text)
        np.testing.assert_array_equal(mask, row.span_ids == number + 1)
        assert take(table.pooling_mask, table, text - 1).all()  # the query
    alone = tokenize(examples, tokenizer, 64, tmp_path, read_contexts=False)
    assert alone.pooling_mask is None
    np.testing.assert_array_equal(alone.text_hashes, table.text_hashes)
    # The full text as a chunk is the text with all its tokens
    full = tokenize([make_example(0, len(TEXT))], tokenizer, 64, tmp_path)
    assert take(full.pooling_mask, full, 1).all()


def test_a_context_is_cut_around_the_chunk(tmp_path, tokenizer):
    start = TEXT.index("blue")
    example = make_example(start, start + len("blue moons"))
    table = tokenize([example], tokenizer, 12, tmp_path)
    ids, mask = (take(x, table, 1) for x in (table.token_ids, table.pooling_mask))
    assert len(ids) == 12 and not mask[0] and not mask[-1]
    assert tokenizer.decode(ids[mask].tolist()) == "blue moons"
    inside = np.flatnonzero(mask)
    assert inside[0] > 1 and inside[-1] < 10  # text on both sides
    # A chunk beyond the room is cut at its end, and nothing is around it
    table = tokenize([make_example(0, len(TEXT) - 1)], tokenizer, 6, tmp_path)
    assert take(table.pooling_mask, table, 1).tolist() == [True] * 5 + [False]


def test_a_teacher_reads_chunks_alone(tmp_path, tokenizer):
    examples = [make_example(13, 33), make_example(34, len(TEXT))]
    source = Source(examples, 0, 1.0, {})
    table = tokenize_pairs(source, tokenizer, 64, tmp_path)
    state = PairSourceState("a", table, 1.0, 1, 64, 0, 0)
    encoding = TeacherEncoding(tokenizer, 64, {}, None)
    teacher = add_teacher(state, source, Teacher(encoding=encoding), tmp_path, 64)
    table = teacher.teacher.table
    texts = [tokenizer.encode(e.positives[0]).ids for e in examples]
    assert [take(table.token_ids, table, t).tolist() for t in (1, 3)] == texts


@pytest.mark.parametrize(
    "contexts, message",
    [
        ((), "row 1 has 0 contexts for 1 documents, but other rows have one for each"),
        ((("a", ""), ("", "")), "row 1 has 2 contexts for 1 documents"),
    ],
)
def test_rows_without_a_context_are_one_sentence(
    contexts, message, tmp_path, tokenizer
):
    examples = [make_example(0, 12), Example("a", ("b",), contexts=contexts)]
    with pytest.raises(ValueError, match=message):
        tokenize(examples, tokenizer, 64, tmp_path)


@pytest.mark.parametrize(
    "context, contexts",
    [
        ("a b c", (("a ", " c"), ("", " b c"))),
        (["a b c", ""], (("a ", " c"), ("", ""))),
        ("a c", "document 'b' does not occur in its context"),
        (["a b", "b", "c"], "one context for all of 2 documents or one for each, not"),
        ("", "context is empty"),
    ],
)
def test_contexts_are_a_column(tmp_path, context, contexts):
    path = tmp_path / "pairs.jsonl"
    row = {"query": "q", "positive": "b", "negative": "a", "context": context}
    path.write_text(json.dumps(row))
    columns = ", ".join(f"{name}={name}" for name in row)
    if isinstance(contexts, str):
        with pytest.raises(ValueError, match=contexts):
            SOURCES["files"](path=str(path), columns=columns)
        return
    (example,) = SOURCES["files"](path=str(path), columns=columns).examples
    assert example.contexts == contexts


def write_beir(folder, titles):
    (folder / "qrels").mkdir()
    corpus = [
        {"_id": f"d{i}", "title": title, "text": f"text {i}"}
        for i, title in enumerate(titles)
    ]
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, corpus)))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q", "text": "q"}))
    (folder / "qrels" / "train.tsv").write_text("q\td1\t1\n")


def test_passages_have_their_text_around_them(tmp_path):
    write_beir(tmp_path, "AAABB")
    source = SOURCES["passages"](path=str(tmp_path), context=8, negatives=2)
    (example,) = source.examples
    assert example.positives == ("text 1",)
    assert sorted(example.negatives) == ["text 0", "text 2"]
    assert example.contexts[0] == (f"text 0{BREAK}"[-8:], f"{BREAK}text 2"[:8])
    # Those of the negatives end with the text
    around = dict(zip(example.negatives, example.contexts[1:], strict=True))
    assert around["text 0"][0] == "" and around["text 2"][1] == ""
    (alone,) = SOURCES["passages"](path=str(tmp_path), context=0).examples
    assert alone.contexts == ()
    with pytest.raises(ValueError, match="'d1' has 2 other passages, not the 3"):
        SOURCES["passages"](path=str(tmp_path), negatives=3)


@pytest.mark.parametrize(
    "titles, message",
    [
        (["", ""], "has no titles"),
        (["A", ""], "no relevant document of train has a ti"),
    ],
)
def test_passages_need_titles(tmp_path, titles, message):
    write_beir(tmp_path, titles)
    with pytest.raises(ValueError, match=message):
        SOURCES["passages"](path=str(tmp_path))


def test_passages_without_a_title_are_counted(tmp_path):
    write_beir(tmp_path, ["A", "A", ""])
    (tmp_path / "qrels" / "train.tsv").write_text("q\td1\t1\nq\td2\t1\n")
    source = SOURCES["passages"](path=str(tmp_path))
    assert source.note == "left out: 1 relevant documents without a title or a text"


def test_texts_give_chunks_of_themselves(tmp_path):
    path = tmp_path / "texts.txt"
    words = " ".join(f"{i}{'.' if i % 7 == 6 else ''}" for i in range(60))
    path.write_text("\n\n".join([words, "a b c", words.replace(" ", "\n")]))
    options = {"words": (10, 20), "overlap": (0, 5), "min_words": 5}
    examples = SOURCES["chunks"](path=str(path), **options).examples
    assert [e.query.split() for e in examples] == [words.split()] * 2
    for example in examples:
        assert len(example.positives) > 2
        for chunk, (before, after) in zip(
            example.positives, example.contexts, strict=True
        ):
            assert before + chunk + after == example.query
            assert len(chunk.split()) <= 20
    with pytest.raises(ValueError, match="overlap .5, 2. from 0 on"):
        SOURCES["chunks"](path=str(path), words=(10, 20), overlap=(5, 2))
    with pytest.raises(ValueError, match="holds no texts of 99 words"):
        SOURCES["chunks"](path=str(path), min_words=99)


@pytest.mark.parametrize("length, overlap", [(5, 0), (5, 3), (9, 4), (1, 0), (40, 9)])
def test_chunks_cover_a_text_and_overlap_by_so_much(length, overlap):
    sentences = np.array([0, 3, 12, 14, 20, 26])
    chunks = spans.split_into_chunks((sentences, np.arange(27)), length, overlap)
    assert chunks[0][0] == 0 and chunks[-1][1] == 26
    for (low, high), (start, end) in zip(chunks, chunks[1:], strict=False):
        assert low < start <= high < end
        assert high - start <= overlap and high - low <= length


def test_random_chunks_are_within_the_text():
    rng = np.random.default_rng(0)
    drawn = spans.draw_random_chunks(rng, 100, 5, 15)
    assert len(drawn) == 10
    assert all(a >= 0 and b <= 100 and 5 <= b - a <= 15 for a, b in drawn)
    assert spans.draw_random_chunks(rng, 3, 5, 15) == [(0, 3)]

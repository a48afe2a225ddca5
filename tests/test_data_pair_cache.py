import numpy as np
import pytest

from research.data import token_cache
from research.data.examples import Example
from research.data.pairs.pair_cache import tokenize_pairs
from research.data.sources import Source
from research.text import tokenization
from research.text.one_word_prompts import punctuate
from research.text.prompts import PROMPTS
from research.text.templates import tokenize_with_prompt
from research.text.tokenization import hash_texts, tokenize_texts, train_tokenizer

ROWS = [
    Example("what is red", ("a colour", "of blood"), ("a number",), group="g"),
    Example("what is two", ("a number",)),
    Example("what is red", ("the colour of roses",), ("two", "three"), group="g"),
]


@pytest.fixture(scope="module")
def tokenizer():
    words = [text for row in ROWS for text in (row.query, *row.positives)]
    return train_tokenizer(words, 100)


def source(rows, **prompts):
    return Source(rows, 0, 1.0, {"query": "", "document": "", **prompts})


@pytest.mark.parametrize("chunk", [1, 2, 100])
def test_a_table_holds_every_text(tmp_path, tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(token_cache, "CHUNK", chunk)
    table = tokenize_pairs(
        source(ROWS, query="what ", document="is "), tokenizer, 6, tmp_path
    )
    texts = [t for row in ROWS for t in (row.query, *row.positives, *row.negatives)]
    np.testing.assert_array_equal(table.text_hashes, hash_texts(texts))
    assert table.token_ids.dtype == np.uint16
    assert table.num_positives.tolist() == [2, 1, 1]
    assert table.num_negatives.tolist() == [1, 0, 2]
    assert table.query_text.tolist() == [0, 4, 6]
    assert np.isnan(table.scores).all()
    assert (table.group_hashes[0] == table.group_hashes[2]).all()
    np.testing.assert_array_equal(table.group_hashes[1:2], hash_texts(["what is two"]))
    for index, text in enumerate(texts):
        prompt = "what " if index in table.query_text else "is "
        expected = tokenize_texts(tokenizer, [text], 6, prompt=prompt)[0]
        found = table.token_ids[table.starts[index] : table.starts[index + 1]]
        np.testing.assert_array_equal(found, expected)


def test_a_table_is_made_once(tmp_path, tokenizer, monkeypatch):
    first = tokenize_pairs(source(ROWS), tokenizer, 8, tmp_path)
    monkeypatch.setattr(tokenization, "tokenize_texts", None)
    again = tokenize_pairs(source(ROWS), tokenizer, 8, tmp_path)
    np.testing.assert_array_equal(first.token_ids, again.token_ids)


def test_another_content_is_another_folder(tmp_path, tokenizer):
    other = train_tokenizer(["what is red"], 50)
    tokenize_pairs(source(ROWS), tokenizer, 8, tmp_path)
    tokenize_pairs(source(ROWS), tokenizer, 9, tmp_path)
    tokenize_pairs(source(ROWS), other, 8, tmp_path)
    tokenize_pairs(source(ROWS, query="q"), tokenizer, 8, tmp_path)
    tokenize_pairs(source(ROWS[:2]), tokenizer, 8, tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_failure_leaves_nothing_behind(tmp_path, tokenizer):
    with pytest.raises(ValueError, match="row 1 has a document without text"):
        tokenize_pairs(source([ROWS[0], Example("a", (" ",))]), tokenizer, 8, tmp_path)
    with pytest.raises(ValueError, match="row 0 has no tokens"):
        tokenize_pairs(source([Example("\x00", ("a",))]), tokenizer, 8, tmp_path)
    with pytest.raises(ValueError, match="row 1 has no score"):
        tokenize_pairs(
            source([ROWS[1]._replace(score=1.0), ROWS[0]]), tokenizer, 8, tmp_path
        )
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="no rows"):
        tokenize_pairs(source([]), tokenizer, 8, tmp_path)


def test_another_process_may_be_first(tmp_path):
    def write(draft):
        (draft / "author").write_text("this process")
        (tmp_path / "table").mkdir()
        (tmp_path / "table" / "author").write_text("another one")

    folder = token_cache.write_once(tmp_path, "table", write)
    assert (folder / "author").read_text() == "another one"
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


@pytest.mark.parametrize("chunk", [1, 100])
def test_a_table_holds_the_tokens_that_pool(tmp_path, tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(token_cache, "CHUNK", chunk)
    method = PROMPTS["template"](query="is {text} two {text!}", document="a {text}")
    table = tokenize_pairs(source(ROWS), tokenizer, 12, tmp_path, method)
    texts = [t for row in ROWS for t in (row.query, *row.positives, *row.negatives)]
    np.testing.assert_array_equal(table.text_hashes, hash_texts(texts))
    assert table.pooling_mask.dtype == bool and not table.pooling_mask.all()
    for index, text in enumerate(texts):
        role = "query" if index in table.query_text else "document"
        (found,) = tokenize_with_prompt(method, tokenizer, [text], 12, role)
        part = slice(*table.starts[index : index + 2])
        np.testing.assert_array_equal(table.token_ids[part], found.token_ids[0])
        np.testing.assert_array_equal(table.pooling_mask[part], found.pooling_mask[0])
    again = tokenize_pairs(source(ROWS), tokenizer, 12, tmp_path, method)
    np.testing.assert_array_equal(again.pooling_mask, table.pooling_mask)


def test_another_method_is_another_folder(tmp_path, tokenizer):
    methods = [
        None,
        PROMPTS["plain"](),
        PROMPTS["template"](query="is {text}"),
        PROMPTS["template"](query="is {text!}", document="{text}"),
        PROMPTS["template"](query="a {text}"),
        PROMPTS["template"](query="is {text}")._replace(rewrite=punctuate),
        PROMPTS["echo"](instruction="a"),
    ]
    for method in methods:
        tokenize_pairs(source(ROWS), tokenizer, 60, tmp_path, method)
    assert len(list(tmp_path.iterdir())) == len(methods)
    # Another process finds them: the name does not hang on where a function lies.
    again = PROMPTS["template"](query="is {text}")
    tokenize_pairs(source(ROWS), tokenizer, 60, tmp_path, again)
    assert len(list(tmp_path.iterdir())) == len(methods)


def test_methods_that_cannot_train_are_one_sentence(tmp_path, tokenizer):
    echo, several = PROMPTS["echo"](), PROMPTS["metaeol"]()
    with pytest.raises(
        ValueError, match="prompt 'q: ' and the run has prompt templates"
    ):
        tokenize_pairs(source(ROWS, query="q: "), tokenizer, 60, tmp_path, echo)
    with pytest.raises(ValueError, match="8 templates is for embedding"):
        tokenize_pairs(source(ROWS), tokenizer, 60, tmp_path, several)
    with pytest.raises(ValueError, match="no room for a text in max_length 8"):
        tokenize_pairs(source(ROWS), tokenizer, 8, tmp_path, echo)
    broken = source([ROWS[1], Example("a", ("\x00",))])
    with pytest.raises(ValueError, match="row 1 has no tokens"):
        tokenize_pairs(broken, tokenizer, 60, tmp_path, echo)
    assert list(tmp_path.iterdir()) == []

import numpy as np
import pytest

from research.data.examples import Example
from research.data.pairs.mined_files import number_texts
from research.data.pairs.pair_cache import tokenize_pairs
from research.data.sources import Source
from research.experiment.table_pairs import number_table
from research.text.tokenization import train_tokenizer

PLAIN = (
    Example("q0", ("a", "b"), ("n0", "c")),
    Example("q1", ("c",), ("a",)),
    Example("q0", ("d",), ("n0",)),
    Example("a", ("c",), ()),
)
GROUPED = (
    *PLAIN[:2],
    Example("q0", ("d",), ("n1",), group="g"),
    Example("q2", ("e", "d"), (), group="g"),
    Example("q3", ("b",), (), group="h"),
)


@pytest.mark.parametrize("examples", [PLAIN, GROUPED])
def test_pairs_are_those_of_the_examples(examples, tmp_path):
    texts = [t for e in examples for t in (e.query, *e.positives, *e.negatives)]
    tokenizer = train_tokenizer(texts, 60)
    source = Source(examples, 0, 1.0, {})
    table = tokenize_pairs(source, tokenizer, 16, tmp_path)
    pairs = number_table(table)
    queries = [texts[i] for i in pairs.queries]
    passages = [texts[i] for i in pairs.documents]
    # Each text once, in the order of the examples
    assert queries == list(dict.fromkeys(e.query for e in examples))
    documents = [t for e in examples for t in (*e.positives, *e.negatives)]
    assert passages == list(dict.fromkeys(documents))
    numbers = [queries[i] for i in pairs.example_queries]
    assert numbers == [e.query for e in examples]
    # The same pairs as from the texts
    expected = number_texts(examples, documents)
    named = [list(expected.queries), list(expected.passages)]

    def name(pairs, queries, passages):
        return [(queries[i], passages[j]) for i, j in pairs]

    assert name(pairs.positives, queries, passages) == name(expected.positives, *named)
    excluded = name(pairs.excluded, queries, passages)
    assert sorted(excluded) == sorted(name(expected.excluded, *named))
    # A group also leaves out what its queries have elsewhere
    if examples is GROUPED:
        assert {("q0", "e"), ("q2", "a"), ("q2", "b")} <= set(excluded)


def test_texts_of_a_class_are_no_negatives_even_if_they_are_nobodys_positive(tmp_path):
    """Each text has one classmate as its positive; the others are negatives of "x"."""
    classmates = ("a", "b", "c", "d")
    examples = [Example(t, ("a" if t != "a" else "b",), (), group="1") for t in "abcd"]
    examples.append(Example("x", ("y",), ("c", "d", "z"), group="2"))
    texts = [t for e in examples for t in (e.query, *e.positives, *e.negatives)]
    source = Source(examples, 0, 1.0, {})
    table = tokenize_pairs(source, train_tokenizer(texts, 60), 16, tmp_path)
    pairs = number_table(table)
    known = {
        (texts[pairs.queries[i]], texts[pairs.documents[j]])
        for i, j in (*pairs.positives, *pairs.excluded)
    }
    both = [(i, j) for i in classmates for j in classmates]
    assert known == {*both, ("x", "y")}


def test_hashes_of_both_halves_count(tmp_path):
    examples = [Example(f"q{i}", (f"p{i}",)) for i in range(50)]
    tokenizer = train_tokenizer([e.query for e in examples], 60)
    source = Source(examples, 0, 1.0, {})
    pairs = number_table(tokenize_pairs(source, tokenizer, 16, tmp_path))
    np.testing.assert_array_equal(pairs.positives, np.arange(50)[:, None].repeat(2, 1))
    assert not len(pairs.excluded)

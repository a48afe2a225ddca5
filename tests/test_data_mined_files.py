import json

import numpy as np
import pytest

from research.data.columns import read_examples
from research.data.examples import Example
from research.data.pairs.mined_files import make_mined_rows, number_texts, write_rows

EXAMPLES = (
    Example("q0", ("a", "b")),
    Example("q1", ("c",), score=0.5),
    Example("q0", ("d",), group="g"),
    Example("a", ("c",), group="g"),
)


def test_texts_are_numbered_once():
    texts = number_texts(EXAMPLES, ["e", "c", "e"])
    assert list(texts.queries) == ["q0", "q1", "a"]
    assert list(texts.passages) == ["e", "c", "a", "b", "d"]
    names = list(texts.queries), list(texts.passages)

    def name(pairs):
        return [(names[0][i], names[1][j]) for i, j in pairs]

    known = [("q0", "a"), ("q0", "b"), ("q1", "c"), ("q0", "d"), ("a", "c")]
    assert name(texts.positives) == known
    # A query's own text, and the other positives of its group's queries
    excluded = [("a", "a"), ("q0", "c"), ("a", "b"), ("a", "d")]
    assert sorted(name(texts.excluded)) == sorted(excluded)


@pytest.mark.parametrize("name", ["mined.jsonl", "mined.jsonl.gz"])
def test_a_mined_file_is_a_training_file(tmp_path, name):
    texts = number_texts(EXAMPLES)
    passages = list(texts.passages)
    negatives = np.array([[1, 2], [0, 3], [3, -1]])
    scores = np.array([[0.5, 0.25], [0.5, 0.125], [0.1, -np.inf]])
    rows = make_mined_rows(EXAMPLES, texts, negatives, scores, np.arange(5) / 4)
    assert rows[3] is None  # a negative is missing
    write_rows(tmp_path / name, filter(None, rows))
    examples = read_examples(str(tmp_path / name)).examples
    assert [e.query for e in examples] == ["q0", "q1", "q0"]
    assert [e.positives for e in examples] == [e.positives for e in EXAMPLES[:3]]
    want = [tuple(passages[i] for i in negatives[q]) for q in (0, 1, 0)]
    assert [e.negatives for e in examples] == want
    assert [e.score for e in examples] == [None, 0.5, None]
    assert [e.group for e in examples] == [None, None, "g"]
    # Scores of the positives, then of the negatives
    assert rows[0]["scores"] == [0, 0.25, 0.5, 0.25]
    assert rows[1]["scores"] == [0.5, 0.5, 0.125]
    assert json.loads(json.dumps(rows[2]["scores"])) == [0.75, 0.5, 0.25]

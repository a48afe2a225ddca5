"""Evaluation on a training file: a search, or correlation where it has scores."""

import json

import numpy as np
import pytest

from research.eval.examples import examples


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def letters(texts, role):
    """Counts of the letters a, b and c."""
    return np.array([[t.count(c) for c in "abc"] for t in texts], np.float32)


def test_each_query_is_searched_among_all_documents(tmp_path):
    rows = [
        {"query": "a", "positives": ["aa", "aab"], "negative": "b"},
        {"query": "a", "positives": ["aaa"], "negative": "c"},
        {"query": "b", "positives": ["c"], "negative": "a"},
    ]
    result = examples(data=jsonl(tmp_path / "a.jsonl", *rows))(letters)
    # Query a, of two rows: the document a, which is not its own, then aaa, aa and aab.
    # Query b: the documents b, aab and a, then c; equal scores go by the later id.
    gains = 1 / np.log2(np.arange(2, 6))
    ndcg = 50 * (gains[1:].sum() / gains[:3].sum() + gains[3])
    assert result["main_score"] == result["ndcg@10"] == pytest.approx(ndcg)
    assert "bm25" in result


def test_scored_pairs_are_correlated(tmp_path):
    rows = [
        {"x": "a", "y": "a", "s": 5},
        {"x": "a", "y": "ab", "s": 2},
        {"x": "a", "y": "b", "s": 0},
    ]
    path = jsonl(tmp_path / "a.jsonl", *rows)
    result = examples(data=path, columns="query=x, positive=y, score=s")(letters)
    assert result["spearman"] == pytest.approx(100)
    path = jsonl(tmp_path / "b.jsonl", *(row | {"s": 1} for row in rows))
    with pytest.raises(
        ValueError, match="b.jsonl: no correlation: the 3 human scores are all"
    ):
        examples(data=path, columns="query=x, positive=y, score=s")

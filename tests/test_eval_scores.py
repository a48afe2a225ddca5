import math

import numpy as np
import pytest

from research.eval.bm25 import bm25
from research.eval.scores import correlations, ranking_scores


def test_correlations():
    x = np.array([1.0, 2.0, 3.0, 10.0])
    result = correlations(x, np.array([1.0, 2.0, 3.0, 4.0]))
    assert result["spearman"] == pytest.approx(100)
    assert result["pearson"] == pytest.approx(100 * np.corrcoef(x, [1, 2, 3, 4])[0, 1])


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0]])
def test_no_correlation_of_equal_values(values):
    with pytest.raises(ValueError, match="scores are all equal"):
        correlations(np.arange(len(values)) + np.array([0.0]), np.array(values))


def test_ranking_scores():
    qrels = {"a": {"x": 1}, "b": {"y": 1}, "c": {"z": 1}}
    eleventh = {f"n{i}": 20.0 - i for i in range(10)} | {"y": 1.0}
    run = {"a": {"w": 2.0, "x": 1.0}, "b": eleventh}
    scores = ranking_scores(qrels, run)  # c found nothing: it scores 0
    assert scores["ndcg@10"] == pytest.approx(100 / math.log2(3) / 3)
    assert scores["recall@100"] == pytest.approx(200 / 3)
    assert scores["mrr@10"] == pytest.approx(50 / 3)


def test_bm25_is_lucenes():
    documents = ["the cat", "the dog_house dog", "nothing here at all"]
    scores, rows = bm25(["Dog", "cat unknown"], documents, 2, chunk=1)
    length, mean = 4, (2 + 4 + 4) / 3
    idf = math.log(1 + (3 - 1 + 0.5) / (1 + 0.5))
    want = idf * 2 / (2 + 0.9 * (1 - 0.4 + 0.4 * length / mean))
    assert rows.shape == (2, 2)
    assert rows[0, 0] == 1
    assert rows[1, 0] == 0
    assert scores[0, 0] == pytest.approx(want)
    assert scores[0, 1] == 0

import math

import numpy as np
import pytest
from scipy import stats

from research.eval.bm25 import bm25
from research.eval.metrics import bootstrap, correlations, ranking_scores, spearman


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


def test_spearman_is_scipys_and_nan_where_there_is_none():
    pairs = np.random.default_rng(0).integers(0, 9, (50, 2)).astype(float)  # with ties
    want = correlations(*pairs.T)["spearman"]
    assert 100 * spearman(pairs) == pytest.approx(want)
    assert math.isnan(spearman(np.ones((4, 2))))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = bootstrap(values, np.mean, samples=1_000)
    half = 1.96 * values.std() / 20
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap(values, np.mean, samples=1_000) == found
    assert bootstrap(values, np.mean, samples=1_000, seed=1) != found
    assert bootstrap(values, np.mean, samples=0) == {}


def test_the_interval_of_a_correlation_covers_the_true_one():
    normal = stats.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]])
    true = 6 / np.pi * np.arcsin(0.7 / 2)  # Spearman's rho of a normal pair
    covered = 0
    for seed in range(20):
        pairs = normal.rvs(150, random_state=seed)
        found = bootstrap(pairs, spearman, samples=200)
        covered += found["low"] < true < found["high"]
    assert covered >= 16  # 19 expected; fewer than 16 once in 400 times


def test_an_interval_without_a_statistic():
    found = bootstrap(np.ones((3, 2)), spearman, samples=10)
    assert math.isnan(found["low"])
    assert math.isnan(found["high"])
    one = bootstrap(np.array([2.0]), np.mean, samples=10)
    assert one == {"low": 2.0, "high": 2.0}

import math

import numpy as np
import pytest
from scipy import stats

from research.eval.bm25 import bm25
from research.eval.metrics import (
    bootstrap,
    correlate_ranks,
    correlations,
    ranking_scores,
)


def test_correlations():
    x = np.array([1.0, 2.0, 3.0, 10.0])
    result = correlations(x, np.array([1.0, 2.0, 3.0, 4.0]))
    assert result["spearman"] == pytest.approx(100)
    assert result["pearson"] == pytest.approx(100 * np.corrcoef(x, [1, 2, 3, 4])[0, 1])


@pytest.mark.parametrize("values", [[1.0, 1.0], [1.0]])
def test_no_correlation_of_equal_values(values):
    with pytest.raises(ValueError, match="scores are all equal"):
        correlations(np.arange(len(values)) + np.array([0.0]), np.array(values))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_correlation_of_values_that_are_not_finite(value):
    with pytest.raises(ValueError, match=f"predicted score of pair 1 is {value}"):
        correlations(np.array([1.0, value, 2.0]), np.arange(3.0))


def test_the_first_ten_of_equal_scores_are_trec_evals():
    qrels, names = {"q": {"d11": 1}}, [f"d{i}" for i in range(10, 30)]
    for order in (names, names[::-1]):
        run = {"q": dict.fromkeys(order, 1.0) | {"d29": 0.5}}
        assert ranking_scores(qrels, run)["mrr@10"] == 0  # d28 to d19 come first
        run["q"]["d11"] = 2.0
        assert ranking_scores(qrels, run)["mrr@10"] == 100


def test_ranking_scores():
    qrels = {"a": {"x": 1}, "b": {"y": 1}, "c": {"z": 1}}
    eleventh = {f"n{i}": 20.0 - i for i in range(10)} | {"y": 1.0}
    run = {"a": {"w": 2.0, "x": 1.0}, "b": eleventh}
    scores = ranking_scores(qrels, run)  # c found nothing: it scores 0
    assert scores["ndcg@10"] == pytest.approx(100 / math.log2(3) / 3)
    assert scores["recall@100"] == pytest.approx(200 / 3)
    assert scores["mrr@10"] == pytest.approx(50 / 3)


def test_gains_are_the_grades_and_scores_are_float32():
    qrels = {"q": {"a": 2, "b": 1}}
    run = {"q": {"c": 3.0, "a": 2.0, "b": 1.0}}
    assert ranking_scores(qrels, run)["ndcg@10"] == pytest.approx(66.9672, abs=1e-4)
    # A difference that float32 does not have is a tie, and b comes first.
    run = {"q": {"a": 1 + 1e-10, "b": 1.0}}
    assert ranking_scores({"q": {"a": 1}}, run)["mrr@10"] == 50


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


def test_spearman_is_the_correlation_of_ranks_and_nan_for_a_constant():
    x, y = np.random.default_rng(0).integers(0, 9, (2, 50)).astype(float)  # with ties
    ranks = stats.rankdata([x, y], axis=1)
    assert correlate_ranks(x, y) == pytest.approx(100 * np.corrcoef(ranks)[0, 1])
    assert math.isnan(correlate_ranks(np.ones(4), np.arange(4.0)))


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution():
    values = np.random.default_rng(0).normal(3, 2, 400)
    interval = bootstrap((values,), np.mean, samples=1_000)
    half = 1.96 * values.std() / 20
    assert interval["low"] == pytest.approx(values.mean() - half, abs=0.03)
    assert interval["high"] == pytest.approx(values.mean() + half, abs=0.03)
    assert bootstrap((values,), np.mean, samples=1_000) == interval
    assert bootstrap((values,), np.mean, samples=1_000, seed=1) != interval
    assert bootstrap((values,), np.mean, samples=0) == {}


def test_the_interval_of_a_correlation_covers_the_true_one():
    normal = stats.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]])
    true = 600 / np.pi * np.arcsin(0.7 / 2)  # percent; Spearman's rho of a normal pair
    covered = 0
    for seed in range(20):
        pairs = normal.rvs(150, random_state=seed)
        interval = bootstrap(pairs.T, correlate_ranks, samples=200)
        covered += interval["low"] < true < interval["high"]
    assert covered >= 16  # 19 expected; fewer than 16 once in 400 times


def test_an_interval_without_a_statistic():
    interval = bootstrap(np.ones((2, 3)), correlate_ranks, samples=10)
    assert math.isnan(interval["low"])
    assert math.isnan(interval["high"])
    interval = bootstrap((np.array([2.0]),), np.mean, samples=10)
    assert interval == {"low": 2.0, "high": 2.0}


def test_samples_without_a_statistic_do_not_count():
    x = np.array([0.0, 0.0, 0.0, 1.0])  # a third of the samples are constant
    interval = bootstrap((x, x), correlate_ranks, samples=50)
    assert interval == {"low": pytest.approx(100), "high": pytest.approx(100)}

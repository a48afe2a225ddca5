"""Metrics, all in percent, from scipy and pytrec_eval."""

from collections.abc import Callable, Mapping

import numpy as np
import pytrec_eval
from scipy import stats

Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]


def correlations(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Spearman's and Pearson's correlation of two [N] arrays, in percent.

    Raises:
        ValueError: there are fewer than two values, or all of one array are equal.
    """
    for name, values in (("predicted", x), ("given", y)):
        if len(values) < 2 or np.ptp(values) == 0:
            raise ValueError(
                f"no correlation: the {len(values)} {name} scores are all equal"
            )
    return {
        "spearman": 100 * float(stats.spearmanr(x, y).statistic),
        "pearson": 100 * float(stats.pearsonr(x, y).statistic),
    }


def spearman(pairs: np.ndarray) -> float:
    """Spearman's correlation of the columns of [N, 2]; nan if one of them is equal."""
    ranks = stats.rankdata(pairs, axis=0)
    ranks -= ranks.mean(0, keepdims=True)
    scale = np.sqrt((ranks**2).sum(0).prod())
    return float(ranks.prod(1).sum() / scale) if scale else float("nan")


def bootstrap(
    values: np.ndarray,
    statistic: Callable[[np.ndarray], float],
    *,
    samples: int,
    seed: int = 0,
) -> dict[str, float]:
    """The 95 % confidence interval of a statistic, by resampling (Efron 1979).

    Args:
        values: [N, ...]; N of them are drawn with replacement.
        statistic: of N values; samples of which it is not finite do not count.
        samples: how often they are drawn; 0 for no interval.
        seed: of the draws.

    Returns:
        {"low", "high"}, the 2.5th and the 97.5th percentile; the statistic twice if no
        sample has it; {} without samples.
    """
    if not samples:
        return {}
    rng, count = np.random.default_rng(seed), len(values)
    draws = (rng.integers(count, size=count) for _ in range(samples))
    found = np.array([statistic(values[chosen]) for chosen in draws])
    found = found[np.isfinite(found)]
    if not len(found):
        found = [statistic(values)]
    low, high = np.percentile(found, (2.5, 97.5))
    return {"low": float(low), "high": float(high)}


def ranking_scores(qrels: Qrels, run: Run) -> dict[str, float]:
    """Means of `query_scores` over the queries of `qrels`."""
    every = query_scores(qrels, run).items()
    return {name: float(np.mean(values)) for name, values in every}


def query_scores(qrels: Qrels, run: Run) -> dict[str, np.ndarray]:
    """nDCG@10, Recall@100 and MRR@10 of each query of `qrels`, [Q], in percent.

    Args:
        qrels: {query id: {document id: grade}}; a grade of 0 is not relevant.
        run: {query id: {document id: score}}; a query without documents scores 0.
    """
    full = _evaluated(qrels, run, {"ndcg_cut.10", "recall.100"})
    first_ten = {
        query: dict(sorted(scores.items(), key=lambda item: -item[1])[:10])
        for query, scores in run.items()
    }
    short = _evaluated(qrels, first_ten, {"recip_rank"})
    return {
        "ndcg@10": _each(qrels, full, "ndcg_cut_10"),
        "recall@100": _each(qrels, full, "recall_100"),
        "mrr@10": _each(qrels, short, "recip_rank"),
    }


def _evaluated(qrels: Qrels, run: Run, measures: set[str]) -> dict:
    return pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)


def _each(qrels: Qrels, results: Mapping, measure: str) -> np.ndarray:
    found = [results.get(query, {}).get(measure, 0.0) for query in qrels]
    return 100 * np.array(found, np.float64)

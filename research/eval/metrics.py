"""Correlations, ranking metrics and bootstrap intervals, with SciPy and pytrec_eval.

Correlations and ranking metrics are in percent.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence

import chex
import numpy as np
import pytrec_eval
import scipy

# {query id: {document id: grade}}, and {query id: {document id: score}}.
Qrels = Mapping[str, Mapping[str, int]]
Run = Mapping[str, Mapping[str, float]]


def correlations(predicted: np.ndarray, human: np.ndarray) -> dict[str, float]:
    """Spearman's and Pearson's correlation of two [N] arrays, in percent.

    Raises:
        ValueError: As in `check_spread`.
    """
    chex.assert_rank([predicted, human], 1)
    chex.assert_equal_shape([predicted, human])
    check_spread("predicted", predicted)
    check_spread("human", human)
    return {
        "spearman": 100 * spearman(predicted, human),
        "pearson": 100 * float(scipy.stats.pearsonr(predicted, human).statistic),
    }


def check_spread(name: str, scores: np.ndarray) -> None:
    """Raises ValueError if no correlation with scores [N] is defined.

    That is so if there are fewer than two, if one is not finite, or if all are equal.
    """
    if not np.isfinite(scores).all():
        row = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise ValueError(
            f"no correlation: the {name} score of pair {row} is {scores[row]}"
        )
    if len(scores) < 2 or np.ptp(scores) == 0:
        raise ValueError(
            f"no correlation: the {len(scores)} {name} scores are all equal"
        )


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation of two [N] arrays; nan if an array is constant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", scipy.stats.ConstantInputWarning)
        return float(scipy.stats.spearmanr(x, y).statistic)


def bootstrap(
    data: Sequence[np.ndarray],
    statistic: Callable[..., float],
    *,
    samples: int,
    seed: int = 0,
) -> dict[str, float]:
    """The 95 % interval of a statistic by the percentile bootstrap (Efron 1979).

    Args:
        data: Arrays [N, ...]; every sample draws the same N indices from each, with
            replacement.
        statistic: Function (arrays of N values) -> number. Samples for which it is not
            finite are ignored.
        samples: Number of samples; 0 for no interval.
        seed: Seed of the samples.

    Returns:
        {"low", "high"}, the 2.5th and the 97.5th percentile; {} without samples. If N
        is 1 or the statistic is finite for no sample, both are the statistic of `data`.
    """
    if not samples:
        return {}
    chex.assert_equal_shape_prefix(data, 1)
    values = np.array([])
    if len(data[0]) > 1:
        with warnings.catch_warnings():
            # SciPy's own interval would be nan if one sample is; only its samples are
            # used.
            warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
            values = scipy.stats.bootstrap(
                data,
                statistic,
                n_resamples=samples,
                paired=True,
                vectorized=False,
                method="percentile",
                rng=np.random.default_rng(seed),
            ).bootstrap_distribution
        # Keep the samples for which the statistic is defined.
        values = values[np.isfinite(values)]
    if not len(values):
        values = np.array([statistic(*data)])
    # Percentiles over the samples.
    low, high = np.percentile(values, (2.5, 97.5))
    return {"low": float(low), "high": float(high)}


def ranking_scores(qrels: Qrels, run: Run) -> dict[str, float]:
    """The means of `query_scores` over the queries of `qrels`."""
    scores = query_scores(qrels, run).items()
    return {name: float(np.mean(values)) for name, values in scores}


def query_scores(qrels: Qrels, run: Run) -> dict[str, np.ndarray]:
    """nDCG@10, Recall@100 and MRR@10 of each query of `qrels`, [Q], in percent.

    Args:
        qrels: {query id: {document id: grade}}; a grade of 0 is not relevant.
        run: {query id: {document id: score}}; a query without documents scores 0.
    """
    results = _evaluate_run(qrels, run, {"ndcg_cut.10", "recall.100"})
    # trec_eval has no cutoff for the reciprocal rank: give it the first ten documents,
    # in its order: of equal scores, the id that sorts last comes first.
    first_ten = {
        query: dict(sorted(scores.items(), key=lambda item: item[::-1])[-10:])
        for query, scores in run.items()
    }
    first_results = _evaluate_run(qrels, first_ten, {"recip_rank"})
    return {
        "ndcg@10": _percent_per_query(qrels, results, "ndcg_cut_10"),
        "recall@100": _percent_per_query(qrels, results, "recall_100"),
        "mrr@10": _percent_per_query(qrels, first_results, "recip_rank"),
    }


def _evaluate_run(qrels: Qrels, run: Run, measures: set[str]) -> dict:
    return pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)


def _percent_per_query(qrels: Qrels, results: Mapping, measure: str) -> np.ndarray:
    scores = [results.get(query, {}).get(measure, 0.0) for query in qrels]
    return 100 * np.array(scores, np.float64)

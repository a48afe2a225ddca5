"""Metrics, all in percent, from scipy and pytrec_eval."""

from collections.abc import Mapping

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


def ranking_scores(qrels: Qrels, run: Run) -> dict[str, float]:
    """Mean nDCG@10, Recall@100 and MRR@10 over the queries of `qrels`, in percent.

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
        "ndcg@10": _mean(qrels, full, "ndcg_cut_10"),
        "recall@100": _mean(qrels, full, "recall_100"),
        "mrr@10": _mean(qrels, short, "recip_rank"),
    }


def _evaluated(qrels: Qrels, run: Run, measures: set[str]) -> dict:
    return pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)


def _mean(qrels: Qrels, results: Mapping, measure: str) -> float:
    total = sum(results.get(query, {}).get(measure, 0.0) for query in qrels)
    return 100 * total / len(qrels)

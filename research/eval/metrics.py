"""Correlations, metrics of rankings and pairs, and bootstrap intervals.

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
# {metric: trec_eval's measure}; trec_eval has no reciprocal rank with a cutoff.
MEASURES = {
    "ndcg": "ndcg_cut",
    "map": "map_cut",
    "recall": "recall",
    "precision": "P",
    "hit_rate": "success",
    "mrr": "recip_rank",
}
# Number of values that are resampled at a time.
BATCH_VALUES = 1 << 21
METRICS = ("ndcg@10", "recall@100", "mrr@10")


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
        "spearman": float(correlate_ranks(predicted, human)),
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


def correlate_ranks(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's correlation along an axis, in percent: [..., N] -> [...].

    It is SciPy's, for many samples at once; nan where an array is constant.
    """
    # Ranks, averaged over equal values, minus their mean: [..., N]
    x, y = (scipy.stats.rankdata(values, axis=axis) for values in (x, y))
    x, y = (ranks - (ranks.shape[axis] + 1) / 2 for ranks in (x, y))
    with np.errstate(invalid="ignore"):
        norms = np.sqrt((x * x).sum(axis) * (y * y).sum(axis))
        return 100 * (x * y).sum(axis) / norms


def weighted_mean(
    values: np.ndarray, weights: np.ndarray, axis: int = -1
) -> np.ndarray:
    """Mean of values by weights along an axis: two times [..., N] -> [...]."""
    return (values * weights).sum(axis) / weights.sum(axis)


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

    def measure(rows: np.ndarray) -> np.ndarray:
        return np.array([statistic(*(x[row] for x in data)) for row in rows])

    values = resample(measure, len(data[0]), samples, seed=seed)
    if not len(values):
        values = np.array([statistic(*data)])
    # Percentiles over the samples.
    low, high = np.percentile(values, (2.5, 97.5))
    return {"low": float(low), "high": float(high)}


def resample(
    statistic: Callable[[np.ndarray], np.ndarray],
    count: int,
    resamples: int,
    *,
    seed: int = 0,
    groups: np.ndarray | None = None,
) -> np.ndarray:
    """The statistic of resampled items: [resamples], without those that are not finite.

    Args:
        statistic: Function of indices of items [B, n] -> [B].
        count: N, the number of items.
        resamples: Number of samples.
        seed: Seed of the indices.
        groups: [N] number of each item's group, 0, 1, ...; None resamples single items.
    """
    rows, rng = np.arange(count), np.random.default_rng(seed)
    if len(np.unique(rows if groups is None else groups)) < 2:
        samples = statistic(rows[None])  # SciPy does not resample a single item
    elif groups is not None:
        # Groups have different numbers of items, so each sample has its own length.
        ends = np.cumsum(np.bincount(groups))
        members = np.split(np.argsort(groups, kind="stable"), ends[:-1])
        draws = rng.integers(0, len(members), (resamples, len(members)))
        resampled = (np.concatenate([members[i] for i in draw]) for draw in draws)
        samples = np.concatenate([statistic(rows[None]) for rows in resampled])
    else:
        with warnings.catch_warnings():
            # SciPy's own interval would be nan if one sample is; only its samples are
            # used.
            warnings.simplefilter("ignore", scipy.stats.DegenerateDataWarning)
            samples = scipy.stats.bootstrap(
                (rows,),
                lambda rows, axis: statistic(rows.astype(np.intp, copy=False)),
                n_resamples=resamples,
                batch=max(1, BATCH_VALUES // count),
                vectorized=True,
                method="percentile",
                rng=rng,
            ).bootstrap_distribution
    return samples[np.isfinite(samples)]


def ranking_scores(
    qrels: Qrels, run: Run, metrics: Sequence[str] = METRICS
) -> dict[str, float]:
    """The means of `query_scores` over the queries of `qrels`."""
    scores = query_scores(qrels, run, metrics).items()
    return {name: float(np.mean(values)) for name, values in scores}


def query_scores(
    qrels: Qrels, run: Run, metrics: Sequence[str] = METRICS
) -> dict[str, np.ndarray]:
    """Metrics of the ranking of each query of `qrels`: {metric: [Q]}, in percent.

    Of documents with equal scores, the id that sorts last comes first, as in trec_eval.

    Args:
        qrels: {query id: {document id: grade}}; a grade of 0 is not relevant.
        run: {query id: {document id: score}}; a query without documents scores 0.
        metrics: Names, such as "ndcg@10", of MEASURES.
    """
    cutoffs = {name: parse_metric(name) for name in metrics}
    measures = {
        f"{MEASURES[kind]}.{k}" for kind, k in cutoffs.values() if kind != "mrr"
    }
    results = _evaluate_run(qrels, run, measures) if measures else {}
    scores = {}
    for name, (kind, k) in cutoffs.items():
        if kind == "mrr":
            # The reciprocal rank among the first k documents.
            first = {
                query: dict(sorted(s.items(), key=lambda item: item[::-1])[-k:])
                for query, s in run.items()
            }
            ranks = _evaluate_run(qrels, first, {MEASURES[kind]})
            scores[name] = _percent_per_query(qrels, ranks, MEASURES[kind])
        else:
            measure = f"{MEASURES[kind]}_{k}"
            scores[name] = _percent_per_query(qrels, results, measure)
    return scores


def check_metrics(names: Sequence[str]) -> None:
    """Raises ValueError if there is no metric, or an unknown one."""
    if not names:
        raise ValueError(f"there is no metric; name one, such as {METRICS[0]}")
    for name in names:
        parse_metric(name)


def parse_metric(name: str) -> tuple[str, int]:
    """The kind and the cutoff of a metric: ("ndcg", 10) of "ndcg@10".

    Raises:
        ValueError: There is no such metric.
    """
    kind, _, k = name.partition("@")
    if kind not in MEASURES or not k.isascii() or not k.isdigit() or int(k) < 1:
        raise ValueError(
            f"the metric {name!r} is unknown; write {', '.join(MEASURES)} with a "
            "number of documents, such as ndcg@10"
        )
    return kind, int(k)


def abstention_scores(run: Run, qrels: Qrels, scores: np.ndarray) -> dict[str, float]:
    """nAUC: how well the scores of documents tell which queries will go well.

    The area under the curve of the mean metric over the queries that are left, when
    0, 10, ..., 90 % of the queries, those of least confidence, are abstained from;
    0 for a random order and 100 for the order of the metric itself (Gisserot-Boukhlef
    et al. 2024, arXiv:2402.12997).

    Args:
        run: {query id: {document id: score}}, with the documents in any order.
        qrels: {query id: {document id: grade}}, in the order of the scores.
        scores: [Q] metric of each query.

    Returns:
        {"nauc_max", "nauc_std", "nauc_diff1"} in percent, with the confidence of a
        query being its best score, the standard deviation of its scores, or the
        difference of the best two. nan if all queries have the same metric.
    """
    similarities = [sorted(run.get(query, {}).values())[::-1] for query in qrels]
    confidences = {
        "nauc_max": [s[0] if s else 0.0 for s in similarities],
        "nauc_std": [np.std(s) if s else 0.0 for s in similarities],
        "nauc_diff1": [s[0] - s[1] if len(s) > 1 else 0.0 for s in similarities],
    }
    oracle = _abstention_area(scores, scores)
    # Without any order, the mean stays what it is: an area over rates of 0 to 0.9.
    flat = 0.9 * float(np.mean(scores))
    if np.ptp(scores) == 0:
        return dict.fromkeys(confidences, float("nan"))
    return {
        name: 100
        * (_abstention_area(np.array(values), scores) - flat)
        / (oracle - flat)
        for name, values in confidences.items()
    }


def _abstention_area(confidence: np.ndarray, scores: np.ndarray) -> float:
    """Area under the mean score over rates of abstention from 0 to 0.9."""
    order = np.argsort(confidence, kind="stable")
    # Queries of equal confidence share their mean score: [Q].
    _, group = np.unique(confidence[order], return_inverse=True)
    means = np.bincount(group, scores[order]) / np.bincount(group)
    values = means[group]
    rates = np.linspace(0, 1, 11)[:-1]
    count = len(values)
    left_out = [min(round(rate * count), count - 1) for rate in rates]
    curve = [values[start:].mean() for start in left_out]
    return float(np.trapezoid(curve, rates))


def pair_metrics(similarity: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """How well a threshold on the similarity of N pairs separates those labeled 1.

    As in mteb, a threshold lies between two pairs of different similarity, so that
    pairs are on both sides of it.

    Args:
        similarity: [N] similarities; a distance counts as its negative.
        labels: [N] 0 or 1.

    Returns:
        {"ap", "accuracy", "f1", "precision", "recall"} in percent: the average
        precision, the best accuracy and the best F1 of all thresholds, with the
        precision and the recall of the latter. Without a threshold they are 0.
    """
    chex.assert_rank([similarity, labels], 1)
    chex.assert_equal_shape([similarity, labels])
    order = np.argsort(-similarity, kind="stable")
    ranked, positive = similarity[order], labels[order] == 1
    # Hits among the first i + 1 pairs, for each i with a threshold below it: [C].
    cuts = np.flatnonzero(ranked[:-1] != ranked[1:])
    hits, total = np.cumsum(positive)[cuts], int(positive.sum())
    scores = {"ap": average_precision(similarity, labels)}
    if not len(cuts) or not total:
        return scores | dict.fromkeys(("accuracy", "f1", "precision", "recall"), 0.0)
    # Correct are the hits above, and the negative pairs below.
    negative_below = (len(labels) - total) - (cuts + 1 - hits)
    accuracy = (hits + negative_below) / len(labels)
    f1 = 2 * hits / (cuts + 1 + total)
    best = int(np.argmax(f1))
    return scores | {
        "accuracy": 100 * float(accuracy.max()),
        "f1": 100 * float(f1[best]),
        "precision": 100 * float(hits[best] / (cuts[best] + 1)),
        "recall": 100 * float(hits[best] / total),
    }


def average_precision(similarity: np.ndarray, labels: np.ndarray) -> float:
    """Average precision of a ranking by similarity, in percent; 0 without positives.

    Args:
        similarity: [N] similarities; equal ones are one step of the curve.
        labels: [N] 0 or 1.
    """
    order = np.argsort(-similarity, kind="stable")
    ranked, positive = similarity[order], labels[order] == 1
    if not positive.any():
        return 0.0
    # The last pair of each similarity.
    ends = np.flatnonzero(np.append(ranked[:-1] != ranked[1:], True))
    hits = np.cumsum(positive)[ends]
    precision = hits / (ends + 1)
    steps = np.diff(hits, prepend=0) / hits[-1]
    return 100 * float(np.sum(steps * precision))


def _evaluate_run(qrels: Qrels, run: Run, measures: set[str]) -> dict:
    return pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)


def _percent_per_query(qrels: Qrels, results: Mapping, measure: str) -> np.ndarray:
    scores = [results.get(query, {}).get(measure, 0.0) for query in qrels]
    return 100 * np.array(scores, np.float64)

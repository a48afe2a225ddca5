"""Whether two models differ by more than chance: bootstrap, permutation and t-test.

The models are compared on the same items of a task, such as its queries or pairs. Efron
and Tibshirani 1993, "An Introduction to the Bootstrap"; Smucker et al. 2007, "A
Comparison of Statistical Significance Tests for Information Retrieval Evaluation".
"""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import scipy

from research.types import ItemValues

# Number of resamples. With an odd one, the percentiles of an interval are samples.
RESAMPLES = 9_999
# The same for a statistic of all items, such as a correlation, and for one that takes
# only one sample at a time: they cost more.
STATISTIC_RESAMPLES, SLOW_RESAMPLES = 1_999, 999
# Number of values that are resampled at a time.
_BATCH_VALUES = 1 << 21
LEVEL = 0.05  # of significance


class Comparison(NamedTuple):
    """The main score of a model minus that of another one, on the same items.

    Attributes:
        difference: Difference of the main scores.
        low: Lower end of its 95 % interval, by the paired bootstrap.
        high: Upper end of the interval.
        p_values: {test: two-sided p}. A main score that is the mean over items has the
            paired "t_test", which decides, and the paired "permutation" test; another
            one, such as a correlation, has the p of the "bootstrap".
        items: Number of items.
    """

    difference: float
    low: float
    high: float
    p_values: dict[str, float]
    items: int

    @property
    def p_value(self) -> float:
        """The p of the test that decides."""
        return next(iter(self.p_values.values()))

    def to_record(self) -> dict[str, float]:
        """The comparison as JSON."""
        p_values = {f"p_{test}": p for test, p in self.p_values.items()}
        fields = {"difference": self.difference, "low": self.low, "high": self.high}
        return {**fields, **p_values, "items": self.items}


def compare_items(
    ours: ItemValues, theirs: ItemValues, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compares two models by the items of a task.

    Items are assumed to be independent: several queries about one document are not, and
    make the interval too narrow.

    Args:
        ours: The items of a model.
        theirs: The same items of the other model.
        resamples: Number of resamples of the bootstrap and of the permutations; at most
            STATISTIC_RESAMPLES of a statistic that is no mean, and SLOW_RESAMPLES if it
            has no argument `axis`.
        seed: Seed of both.

    Raises:
        ValueError: The items are not the same.
    """
    _check_items(ours, theirs)
    difference = float(ours.statistic(*ours.values) - theirs.statistic(*theirs.values))
    means = find_item_means(ours), find_item_means(theirs)
    if means[0] is None or means[1] is None:
        return _compare_statistics(ours, theirs, difference, resamples, seed)
    # The items' own differences decide: [N].
    d = means[0] - means[1]
    samples = _bootstrap(lambda rows: d[rows].mean(-1), len(d), resamples, seed)
    low, high = np.percentile(samples, (2.5, 97.5))
    p_values = {
        "t_test": t_test(*means),
        "permutation": permutation_test(d, resamples=resamples, seed=seed),
    }
    return Comparison(difference, float(low), float(high), p_values, len(d))


def t_test(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p of the paired t-test of [N] and [N]; 1 if no item differs."""
    if len(ours) < 2 or np.array_equal(ours, theirs):
        return 1.0
    with warnings.catch_warnings():
        # Differences that are all equal have no spread.
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(scipy.stats.ttest_rel(ours, theirs).pvalue)


def permutation_test(
    differences: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> float:
    """Two-sided p of the mean of [N] paired differences, whose signs are permuted.

    It is exact if there are at most `resamples` permutations. SciPy's
    `permutation_test` computes the same in more than ten times the time.
    """
    # The sign of zero changes nothing.
    d = differences[differences != 0]
    count, is_exact = len(d), 2 ** len(d) <= resamples
    rng = np.random.default_rng(seed)
    total = 2**count if is_exact else resamples
    size = max(1, _BATCH_VALUES // max(1, count))
    # Sums that are equal but for rounding are as extreme.
    threshold, extreme = abs(d.sum()) * (1 - 1e-12), 0
    for start in range(0, total, size):
        numbers = np.arange(start, min(start + size, total))
        # [B, n] whether a difference has its sign changed: all ways, or at random
        if is_exact:
            flips = numbers[:, None] >> np.arange(count) & 1
        else:
            flips = rng.integers(0, 2, (len(numbers), count), np.int8)
        sums = d.sum() - 2 * (flips @ d)
        extreme += int((np.abs(sums) >= threshold).sum())
    return extreme / total if is_exact else (1 + extreme) / (1 + total)


def compare_seeds(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided p of Welch's t-test of the scores of two recipes over training seeds.

    It is nan if a recipe has a single seed, and 1 if all scores are equal.
    """
    if min(len(ours), len(theirs)) < 2:
        return np.nan
    if np.ptp([*ours, *theirs]) == 0:
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(scipy.stats.ttest_ind(ours, theirs, equal_var=False).pvalue)


def apply_bonferroni(p_value: float, comparisons: int) -> float:
    """The p of one of several comparisons: p times their number, at most 1."""
    return min(1.0, p_value * comparisons)


def mark_p(p_value: float | None) -> str:
    """An asterisk for p < 0.05, as in the tables of Starbucks; else nothing."""
    return "*" if p_value is not None and p_value < LEVEL else ""


def find_item_means(items: ItemValues) -> np.ndarray | None:
    """The [N] values whose mean is the main score; None if it is no such mean."""
    if len(items.values) != 1:
        return None
    values = np.asarray(items.values[0], np.float64)
    values = values.reshape(len(values), -1).mean(1)
    return values if np.isclose(values.mean(), items.statistic(*items.values)) else None


def _compare_statistics(
    ours: ItemValues,
    theirs: ItemValues,
    difference: float,
    resamples: int,
    seed: int,
) -> Comparison:
    """Compares statistics of all items by resampling the items of both together."""
    sides = [
        (items.statistic, [np.asarray(values) for values in items.values])
        for items in (ours, theirs)
    ]

    def measure_difference(rows: np.ndarray) -> np.ndarray:
        ours, theirs = (_apply_statistic(*side, rows) for side in sides)
        return ours - theirs

    is_fast = all(_has_axis(statistic) for statistic, _ in sides)
    limit = STATISTIC_RESAMPLES if is_fast else SLOW_RESAMPLES
    resamples = min(resamples, limit)
    samples = _bootstrap(measure_difference, len(ours.names), resamples, seed)
    if not len(samples):
        samples = np.array([difference])
    low, high = np.percentile(samples, (2.5, 97.5))
    # The smallest level whose interval leaves out 0, on both sides.
    tails = [1 + (samples <= 0).sum(), 1 + (samples >= 0).sum()]
    p_value = min(1.0, 2 * min(tails) / (1 + len(samples)))
    p_values = {"bootstrap": float(p_value)}
    return Comparison(difference, float(low), float(high), p_values, len(ours.names))


def _apply_statistic(
    statistic: Callable[..., float], values: Sequence[np.ndarray], rows: np.ndarray
) -> np.ndarray:
    """A statistic of resampled items: rows [B, N] -> [B]."""
    if _has_axis(statistic):
        return statistic(*(array[rows] for array in values), axis=-1)
    return np.array([statistic(*(array[r] for array in values)) for r in rows])


def _has_axis(statistic: Callable[..., float]) -> bool:
    """Whether a statistic takes many samples at once, by SciPy's convention."""
    return "axis" in inspect.signature(statistic).parameters


def _bootstrap(
    statistic: Callable[[np.ndarray], np.ndarray],
    count: int,
    resamples: int,
    seed: int,
) -> np.ndarray:
    """The statistic of resampled items: [resamples], without those that are not finite.

    Args:
        statistic: Function of indices of items [B, N] -> [B].
        count: N, the number of items.
        resamples: Number of samples.
        seed: Seed of the indices.
    """
    rows = np.arange(count)
    if count < 2:  # which SciPy does not resample
        samples = statistic(rows[None])
    else:
        samples = scipy.stats.bootstrap(
            (rows,),
            lambda rows, axis: statistic(rows.astype(np.intp, copy=False)),
            n_resamples=resamples,
            batch=max(1, _BATCH_VALUES // count),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        ).bootstrap_distribution
    return samples[np.isfinite(samples)]


def _check_items(ours: ItemValues, theirs: ItemValues) -> None:
    """Raises ValueError if two models were not scored on the same items."""
    first, second = list(map(str, ours.names)), list(map(str, theirs.names))
    if first != second:
        different = sorted(set(first) ^ set(second))
        reason = f", such as {different[0]!r}" if different else " in another order"
        raise ValueError(
            f"the models have scores of {len(first)} and {len(second)} items, which "
            f"are not the same{reason}"
        )

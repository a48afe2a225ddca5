"""Whether two models differ by more than chance: bootstrap, permutations and tests.

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
from numpy.typing import ArrayLike

from research.eval.metrics import BATCH_VALUES, resample
from research.types import ItemValues

# Number of resamples. With an odd one, the percentiles of an interval are samples.
RESAMPLES = 9_999
# The same for a statistic of all items, such as a correlation, and for one that takes
# only one sample at a time: they cost more.
STATISTIC_RESAMPLES, SLOW_RESAMPLES = 1_999, 999
LEVEL = 0.05  # of significance


class Comparison(NamedTuple):
    """The main score of a model minus that of another one, on the same items.

    Attributes:
        difference: Difference of the main scores.
        low: Lower end of its 95 % interval, by the paired bootstrap.
        high: Upper end of the interval.
        p_values: {test: two-sided p}. A main score that is the mean over items has the
            paired "t_test", which decides, and the paired "permutation" test. If all
            values are 0 or 100, as those of an accuracy, it has "mcnemar", which is the
            exact permutation test of these, and of items in groups "permutation" alone.
            Another main score, such as a correlation, has the p of the "bootstrap".
        items: Number of items.
        groups: Number of groups of items that are resampled together; 0 for none.
    """

    difference: float
    low: float
    high: float
    p_values: dict[str, float]
    items: int
    groups: int = 0

    @property
    def p_value(self) -> float:
        """The p of the test that decides."""
        return next(iter(self.p_values.values()))

    def to_record(self) -> dict[str, float]:
        """The comparison as JSON."""
        p_values = {f"p_{test}": p for test, p in self.p_values.items()}
        fields = {"difference": self.difference, "low": self.low, "high": self.high}
        groups = {"groups": self.groups} if self.groups else {}
        return {**fields, **p_values, "items": self.items, **groups}


def compare_items(
    ours: ItemValues, theirs: ItemValues, *, resamples: int = RESAMPLES, seed: int = 0
) -> Comparison:
    """Compares two models by the items of a task.

    Items are assumed to be independent, or else groups of them are. With fewer than
    about 20 groups, the interval is too narrow.

    Args:
        ours: The items of a model; its groups are those of both.
        theirs: The same items of the other model.
        resamples: Number of resamples of the bootstrap and of the permutations; at most
            STATISTIC_RESAMPLES of a statistic that is no mean, and SLOW_RESAMPLES if it
            has no argument `axis`.
        seed: Seed of both.

    Raises:
        ValueError: The items are not the same.
    """
    _check_items(ours, theirs)
    groups, count = None, 0  # [N] numbers of groups
    if ours.groups is not None:
        names, groups = np.unique(ours.groups, return_inverse=True)
        count = len(names)
    means = find_item_means(ours), find_item_means(theirs)
    if means[0] is None or means[1] is None:
        result = _compare_statistics(ours, theirs, groups, resamples, seed)
        return result._replace(groups=count)
    # The items' own differences decide: [N].
    d = means[0] - means[1]
    difference = float(ours.statistic(*ours.values) - theirs.statistic(*theirs.values))
    samples = resample(
        lambda rows: d[rows].mean(-1), len(d), resamples, seed=seed, groups=groups
    )
    low, high = np.percentile(samples, (2.5, 97.5))
    options = {"resamples": resamples, "seed": seed}
    if groups is not None:
        # Sums of groups are independent, the items in them are not.
        sums = np.bincount(groups, d)
        p_values = {"permutation": permutation_test(sums, **options)}
    elif np.isin(means, (0, 100)).all():
        p_values = {"mcnemar": mcnemar_test(*means)}
    else:
        p_values = {
            "t_test": t_test(*means),
            "permutation": permutation_test(d, **options),
        }
    return Comparison(difference, float(low), float(high), p_values, len(d), count)


def t_test(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Two-sided p of the paired t-test of [N] and [N]; 1 if no item differs.

    Differences that are all equal, but for rounding, have no spread: t is infinite, and
    the p is that of the permutation test.
    """
    if len(ours) < 2 or np.array_equal(ours, theirs):
        return 1.0
    d = np.subtract(ours, theirs)
    if np.ptp(d) <= 1e-9 * abs(d).max():
        return permutation_test(d)
    return float(scipy.stats.ttest_rel(ours, theirs).pvalue)


def mcnemar_test(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Exact two-sided p of McNemar's test of [N] and [N] values, each of two levels.

    Of the items that one of the models alone gets right, either should have half; 1 if
    there are none (McNemar 1947).
    """
    wins, losses = int((ours > theirs).sum()), int((ours < theirs).sum())
    if not wins + losses:
        return 1.0
    return float(scipy.stats.binomtest(wins, wins + losses).pvalue)


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
    size = max(1, BATCH_VALUES // max(1, count))
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


def apply_bonferroni(p_values: ArrayLike, comparisons: int) -> np.ndarray:
    """The p of one or all of several comparisons: p times their number, at most 1."""
    return np.minimum(1.0, np.asarray(p_values, np.float64) * comparisons)


def apply_corrections(p_values: Sequence[float]) -> dict[str, np.ndarray]:
    """The p of m comparisons, corrected for their number in three ways, each [m].

    "bonferroni" and "holm" bound the chance of any false mark; "holm" misses fewer
    differences. "fdr" bounds the expected share of false marks among all marks
    (Benjamini and Hochberg 1995).
    """
    p = np.asarray(p_values, np.float64)
    # Holm: the smallest p times m, the next m - 1, ..., none below the one before it
    order = np.argsort(p)
    factors = np.arange(len(p), 0, -1)
    holm = np.empty_like(p)
    holm[order] = np.minimum(1, np.maximum.accumulate(p[order] * factors))
    return {
        "bonferroni": apply_bonferroni(p, len(p)),
        "holm": holm,
        "fdr": scipy.stats.false_discovery_control(p),
    }


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
    groups: np.ndarray | None,
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
    count = len(ours.names)
    difference = float(measure_difference(np.arange(count)[None])[0])
    samples = resample(measure_difference, count, resamples, seed=seed, groups=groups)
    if not len(samples):
        samples = np.array([difference])
    low, high = np.percentile(samples, (2.5, 97.5))
    # The smallest level whose interval leaves out 0, on both sides.
    tails = [1 + (samples <= 0).sum(), 1 + (samples >= 0).sum()]
    p_value = min(1.0, 2 * min(tails) / (1 + len(samples)))
    p_values = {"bootstrap": float(p_value)}
    return Comparison(difference, float(low), float(high), p_values, count)


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

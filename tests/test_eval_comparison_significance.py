"""Tests of significance: golden numbers, symmetry, error rates."""

import numpy as np
import pytest

from research.eval.comparison.significance import (
    apply_bonferroni,
    apply_corrections,
    compare_items,
    compare_seeds,
    mark_p,
    mcnemar_test,
    permutation_test,
    t_test,
)
from research.types import ItemValues

A = (0.52, 0.61, 0.33, 0.80, 0.47, 0.55, 0.70, 0.29, 0.64, 0.58)
B = (0.50, 0.55, 0.35, 0.71, 0.47, 0.49, 0.66, 0.31, 0.57, 0.52)


def make_items(*values, statistic=np.mean):
    names = [str(i) for i in range(len(values[0]))]
    return ItemValues(names, tuple(map(np.asarray, values)), statistic)


def covary(x, y):
    """A statistic of all items that is no mean of their own values."""
    return np.mean((x - x.mean()) * (y - y.mean()))


def covary_rows(x, y, axis=-1):
    """The same for resamples, along an axis."""
    x, y = (values - values.mean(axis, keepdims=True) for values in (x, y))
    return (x * y).mean(axis)


def test_the_numbers_of_ten_queries_are_the_published_formulas():
    result = compare_items(make_items(A), make_items(B))
    assert result.difference == pytest.approx(0.036)
    assert result.p_value == result.p_values["t_test"] == pytest.approx(0.016914, 1e-4)
    assert result.p_values["permutation"] == pytest.approx(0.03125)  # exact: 1 / 32
    assert (result.low, result.high) == pytest.approx((0.013, 0.058))
    assert list(result.to_record()) == [
        *("difference", "low", "high", "p_t_test", "p_permutation", "items")
    ]


def test_equal_systems_do_not_differ():
    for statistic, values in ((np.mean, (A,)), (covary, (A, B))):
        items = make_items(*values, statistic=statistic)
        result = compare_items(items, items, resamples=99)
        assert (result.difference, result.low, result.high) == (0, 0, 0)
        assert set(result.p_values.values()) == {1.0}


@pytest.mark.parametrize("statistic", [np.mean, covary, covary_rows])
def test_swapping_the_systems_negates_the_difference(statistic):
    truth = () if statistic is np.mean else (np.arange(10.0),)
    first, second = (make_items(x, *truth, statistic=statistic) for x in (A, B))
    forth = compare_items(first, second, resamples=199)
    back = compare_items(second, first, resamples=199)
    assert back.difference == -forth.difference
    assert (back.low, back.high) == pytest.approx((-forth.high, -forth.low))
    assert back.p_values == pytest.approx(forth.p_values)


def test_a_statistic_of_rows_gives_the_interval_of_one_that_is_called_for_each():
    x, y, truth = np.random.default_rng(0).normal(size=(3, 30))
    results = [
        compare_items(
            *(make_items(v, truth, statistic=f) for v in (x, y)), resamples=99
        )
        for f in (covary, covary_rows)
    ]
    assert results[0][:3] == pytest.approx(results[1][:3])
    assert results[0].p_values == results[1].p_values


def test_several_values_of_an_item_count_as_their_mean():
    x, y = np.random.default_rng(0).normal(size=(2, 20, 3))
    result = compare_items(make_items(x), make_items(y), resamples=99)
    means = compare_items(make_items(x.mean(1)), make_items(y.mean(1)), resamples=99)
    assert result.p_values == means.p_values and list(result.p_values)[0] == "t_test"


def test_five_percent_of_equal_systems_differ_and_nearly_all_with_a_gap():
    """Scores of queries as they are: between 0 and 1, many of them 0."""
    rng = np.random.default_rng(0)
    rejected = {0.0: [], 0.1: []}
    for gap, found in rejected.items():
        for _ in range(100):
            ease = rng.uniform(size=(60, 1))
            scores = np.clip(ease + rng.normal(0, 0.15, (60, 2)), 0, 1)
            scores[:, 0] = np.clip(scores[:, 0] + gap, 0, 1)
            p_value = permutation_test(scores[:, 0] - scores[:, 1], resamples=99)
            found.append([t_test(*scores.T) < 0.05, p_value < 0.05])
    assert (np.abs(np.mean(rejected[0.0], 0) - 0.05) < 0.04).all()
    assert (np.mean(rejected[0.1], 0) > 0.85).all()


def test_other_items_cannot_be_compared():
    items = make_items(A)
    with pytest.raises(ValueError, match="scores of 10 and 9 items, .* such as '9'"):
        compare_items(items, make_items(B[:9]))
    with pytest.raises(ValueError, match="not the same in another order"):
        compare_items(items, items._replace(names=items.names[::-1]))


def test_mcnemar_is_the_permutation_test_of_accuracies():
    ours = np.array([100.0] * 18 + [0] * 22)
    theirs = np.array([100.0] * 10 + [0] * 8 + [100] * 2 + [0] * 20)
    # 8 items are right by one model alone, 2 by the other: 2 * (1 + 10 + 45) / 1024.
    assert mcnemar_test(ours, theirs) == pytest.approx(112 / 1024)
    assert permutation_test(ours - theirs) == pytest.approx(112 / 1024)
    result = compare_items(make_items(ours), make_items(theirs))
    assert result.p_values == {"mcnemar": pytest.approx(112 / 1024)}
    assert mcnemar_test(ours, ours) == 1


def test_groups_of_items_are_resampled_together():
    x, y = make_items(A), make_items(B)
    plain = compare_items(x, y)
    single = compare_items(x._replace(groups=[f"g{i}" for i in range(10)]), y)
    assert single[:3] == pytest.approx(plain[:3])  # groups of one item
    assert single.p_values == {"permutation": plain.p_values["permutation"]}
    # Ten copies of each item are no more evidence, and as single items they seem so.
    groups = np.repeat(np.arange(10), 10)
    a, b = (make_items(np.repeat(values, 10)) for values in (A, B))
    grouped = compare_items(a._replace(groups=groups), b)
    assert grouped[:3] == pytest.approx(plain[:3])
    assert grouped.p_value == pytest.approx(plain.p_values["permutation"])
    assert (grouped.items, grouped.groups) == (100, 10)
    assert grouped.to_record()["groups"] == 10
    assert compare_items(a, b).p_value < 1e-6
    # A statistic of all items, with groups of 1 and of 9
    pairs = [make_items(v, np.arange(10.0), statistic=covary_rows) for v in (A, B)]
    uneven = pairs[0]._replace(groups=["a", *"b" * 9])
    result = compare_items(uneven, pairs[1], resamples=99)
    assert result.low <= result.difference <= result.high and result.groups == 2
    one = compare_items(pairs[0]._replace(groups=["a"] * 10), pairs[1], resamples=99)
    assert one.p_value == 1 and one.low == one.high == pytest.approx(one.difference)


def test_a_single_item_tells_nothing():
    result = compare_items(make_items([1.0]), make_items([0.5]))
    assert (result.low, result.high) == (0.5, 0.5)
    assert set(result.p_values.values()) == {1.0}


def test_equal_differences_are_judged_by_their_signs():
    assert t_test(np.array([100.0, 100]), np.zeros(2)) == 0.5
    gap = (
        np.array([0.1, 0.5, 0.7]) + 0.2 - np.array([0.1, 0.5, 0.7])
    )  # but for rounding
    assert t_test(gap, np.zeros(3)) == 0.25


def test_seeds_are_compared_by_welch():
    assert compare_seeds([80.0, 80.2, 79.9], [75.0, 76.5, 74.0]) < 0.05
    assert np.isnan(compare_seeds([80.0], [75.0, 76.5]))


def test_bonferroni_multiplies_and_marks():
    assert apply_bonferroni(0.02, 3) == pytest.approx(0.06)
    assert apply_bonferroni(0.5, 3) == 1
    assert [mark_p(p) for p in (0.049, 0.05, None)] == ["*", "", ""]


def test_corrections_of_several_p():
    """The values of R's p.adjust."""
    p = apply_corrections([0.01, 0.04, 0.02, 0.03, 0.9])
    assert p["bonferroni"] == pytest.approx([0.05, 0.2, 0.1, 0.15, 1])
    assert p["holm"] == pytest.approx([0.05, 0.09, 0.08, 0.09, 0.9])
    assert p["fdr"] == pytest.approx([0.05, 0.05, 0.05, 0.05, 0.9])
    assert all(values == [0.2] for values in apply_corrections([0.2]).values())

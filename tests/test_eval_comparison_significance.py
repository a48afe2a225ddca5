"""Tests of significance: golden numbers, symmetry, error rates."""

import numpy as np
import pytest

from research.eval.comparison.significance import (
    apply_bonferroni,
    compare_items,
    compare_seeds,
    mark_p,
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


def test_a_single_item_tells_nothing():
    result = compare_items(make_items([1.0]), make_items([0.5]))
    assert (result.low, result.high) == (0.5, 0.5)
    assert set(result.p_values.values()) == {1.0}


def test_seeds_are_compared_by_welch():
    assert compare_seeds([80.0, 80.2, 79.9], [75.0, 76.5, 74.0]) < 0.05
    assert np.isnan(compare_seeds([80.0], [75.0, 76.5]))


def test_bonferroni_multiplies_and_marks():
    assert apply_bonferroni(0.02, 3) == pytest.approx(0.06)
    assert apply_bonferroni(0.5, 3) == 1
    assert [mark_p(p) for p in (0.049, 0.05, None)] == ["*", "", ""]

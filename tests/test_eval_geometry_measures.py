import itertools

import numpy as np
import pytest

from research.eval.geometry.measures import (
    center_rows,
    effective_rank,
    isoscore,
    mean_cosine,
    pair_cosines,
)


def noise(rows, width, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, width))


def test_cosines_are_those_of_every_pair():
    x = noise(7, 5).astype(np.float32)
    pairs = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in itertools.combinations(x, 2)
    ]
    np.testing.assert_allclose(pair_cosines(x), pairs, atol=1e-6)
    assert mean_cosine(x) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_mean_cosines_with_known_values():
    assert mean_cosine(np.eye(4)) == pytest.approx(0)
    assert mean_cosine(np.ones((5, 3))) == pytest.approx(1)
    assert mean_cosine([[1, 0], [-2, 0]]) == pytest.approx(-1)
    assert mean_cosine([[1, 0], [0, 0]]) == 0
    # Around a common vector m, noise of total variance 1: |m|^2 / (|m|^2 + 1).
    x = noise(2000, 100) / 10
    x[:, 0] += 2
    assert mean_cosine(x) == pytest.approx(0.8, abs=0.01)
    assert mean_cosine(center_rows(x)) == pytest.approx(0, abs=0.01)


def test_centered_rows_that_differ_by_rounding_are_zeros():
    x = np.full((6, 4), 0.1) + 1e-9 * noise(6, 4)
    assert not center_rows(x).any()
    np.testing.assert_allclose(
        center_rows(noise(6, 4)).mean(0), np.zeros(4), atol=1e-12
    )


def test_isoscore_of_known_shapes():
    assert isoscore(noise(50_000, 8)) == pytest.approx(1, abs=1e-2)
    line = noise(100, 1) * np.array([[1.0, 2.0, 3.0]])
    assert isoscore(line) == pytest.approx(0, abs=1e-6)
    assert isoscore(np.ones((9, 4))) == 0
    # k of D directions used alike, others not at all, score (k - 1) / (D - 1).
    for used in (1, 2, 5, 9):
        axes = np.eye(9)[:used]
        x = np.concatenate([axes, -axes])
        assert isoscore(x) == pytest.approx((used - 1) / 8, abs=1e-9)


def test_isoscore_is_the_participation_ratio_scaled():
    x = noise(40, 6) * np.arange(1, 7)
    variances = np.linalg.eigvalsh(np.cov(x.T))
    ratio = variances.sum() ** 2 / (variances**2).sum()
    assert isoscore(x) == pytest.approx((ratio - 1) / 5)


def test_isoscore_does_not_depend_on_place_size_or_rotation():
    x = noise(30, 5) * np.arange(1, 6)
    rotation, _ = np.linalg.qr(noise(5, 5, seed=1))
    assert isoscore(7 * x @ rotation + 3) == pytest.approx(isoscore(x))


def test_isoscore_of_noise_of_as_many_rows_as_columns_is_about_a_half():
    assert isoscore(noise(300, 300)) == pytest.approx(0.5, abs=0.01)


def test_effective_ranks_with_known_values():
    assert effective_rank(np.eye(6)) == pytest.approx(6)
    assert effective_rank(np.outer(np.arange(1, 5), [1, 2, 3])) == pytest.approx(1)
    assert effective_rank(np.zeros((3, 2))) == 0
    # Singular values 3 and 1: entropy of (3/4, 1/4).
    expected = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
    assert effective_rank(np.diag([3.0, 1.0])) == pytest.approx(expected)


def test_too_few_vectors():
    for measure in (pair_cosines, mean_cosine, isoscore):
        with pytest.raises(ValueError, match="1 vectors have no pair"):
            measure(np.ones((1, 4)))
    with pytest.raises(ValueError, match="2 numbers or more"):
        isoscore(np.ones((4, 1)))

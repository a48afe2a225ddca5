import itertools

import numpy as np
import pytest

from research.eval.geometry.intrinsic_dimension import (
    levina_bickel,
    nearest_distances,
    two_nn,
)
from research.eval.geometry.measures import (
    alignment,
    center_rows,
    effective_rank,
    isoscore,
    mean_cosine,
    pair_cosines,
    participation_ratio,
    partition_score,
    svd_anisotropy,
    uniformity,
)
from research.transforms.normalize import l2_normalize_rows

# The cloud of the specification, and its unit rows; values from released code.
CLOUD = np.random.default_rng(0).normal(size=(200, 8)) * np.arange(1, 9) + 0.5
UNIT = l2_normalize_rows(CLOUD)


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


def golden(value):
    return pytest.approx(value, abs=6e-7)


def test_the_cloud_has_the_values_of_released_code():
    assert CLOUD.sum() == golden(714.520555)
    assert mean_cosine(UNIT) == golden(0.009294)
    assert svd_anisotropy(CLOUD) == golden(0.313543)
    assert effective_rank(center_rows(CLOUD)) == golden(6.830017)
    assert effective_rank(center_rows(CLOUD), "eigenvalues") == golden(5.352240)
    assert effective_rank(CLOUD) == golden(6.880849)
    assert participation_ratio(CLOUD) == golden(4.567673)
    assert isoscore(CLOUD) == golden(0.509668)
    assert isoscore(CLOUD[:5]) == golden(0.109396)
    assert partition_score(UNIT) == golden(0.782275)
    assert uniformity(UNIT) == golden(-2.698257)


def test_alignment_of_the_cloud_with_its_noisy_copy():
    noisy = CLOUD + 0.5 * np.random.default_rng(10).normal(size=(200, 8))
    assert alignment(UNIT, noisy) == golden(0.014305)
    assert alignment(CLOUD, 3 * CLOUD) == golden(0)


def test_isoscore_is_algorithm_1_of_the_paper():
    variances = np.linalg.eigvalsh(np.cov(CLOUD.T))
    scaled = np.sqrt(8) * variances / np.linalg.norm(variances)
    slack = 8 - np.sqrt(8)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * slack)
    fraction = (8 - defect**2 * slack) ** 2 / 64
    assert isoscore(CLOUD) == pytest.approx((8 * fraction - 1) / 7)


def test_measures_that_do_not_depend_on_a_rotation():
    rotation, _ = np.linalg.qr(noise(8, 8, seed=1))
    for measure in (svd_anisotropy, effective_rank, uniformity, mean_cosine, two_nn):
        assert measure(3 * UNIT @ rotation) == pytest.approx(measure(UNIT))
    assert partition_score(UNIT @ rotation) == pytest.approx(partition_score(UNIT))


def test_anisotropy_of_a_line_and_of_an_even_cloud():
    line = noise(50, 1) * np.arange(1, 6)
    assert svd_anisotropy(line) == pytest.approx(1)
    assert svd_anisotropy(np.ones((9, 4))) == 1
    assert svd_anisotropy(noise(20_000, 5)) == pytest.approx(1 / 5, abs=0.01)


def test_partition_score_of_long_vectors_is_finite():
    assert 0 <= partition_score(1e3 * CLOUD) < 1e-6
    assert partition_score(np.zeros((4, 3))) == 1


def test_intrinsic_dimensions_of_released_code():
    assert two_nn(CLOUD) == golden(6.878175)
    assert levina_bickel(CLOUD) == golden(5.498988)
    h = np.random.default_rng(1)
    axes, _ = np.linalg.qr(h.normal(size=(10, 10)))
    plane = h.uniform(size=(500, 2)) @ axes[:2]
    assert two_nn(plane) == golden(1.856211)
    assert levina_bickel(plane) == golden(1.882324)


def test_equal_vectors_count_once_and_a_point_has_no_dimension():
    twice = np.concatenate([CLOUD, CLOUD[:50]])
    assert two_nn(twice) == pytest.approx(two_nn(CLOUD))
    constant = np.column_stack([CLOUD, np.ones(200)])
    assert two_nn(constant) == pytest.approx(two_nn(CLOUD))
    assert two_nn(np.ones((9, 4))) == 0
    assert two_nn(np.ones((9, 4)) + 1e-9 * noise(9, 4)) == 0
    assert levina_bickel(np.ones((9, 4))) == 0
    assert levina_bickel(twice) == pytest.approx(levina_bickel(CLOUD))
    # Of few vectors, all others are neighbors.
    few = levina_bickel(CLOUD[:12], neighbors=11)
    assert levina_bickel(CLOUD[:12]) == pytest.approx(few)
    for measure in (two_nn, levina_bickel):
        with pytest.raises(ValueError, match="2 different vectors are too few"):
            measure(np.eye(2))


def test_small_distances_keep_their_digits():
    x = 1e4 + np.array([[0.0], [1e-5], [3e-5], [1.0]])
    np.testing.assert_allclose(
        nearest_distances(x, 2)[:3], [[1e-5, 3e-5], [1e-5, 2e-5], [2e-5, 3e-5]], 1e-6
    )


def test_too_few_vectors():
    for measure in (pair_cosines, mean_cosine, isoscore):
        with pytest.raises(ValueError, match="1 vectors have no pair"):
            measure(np.ones((1, 4)))
    with pytest.raises(ValueError, match="2 numbers or more"):
        isoscore(np.ones((4, 1)))

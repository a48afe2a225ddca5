"""Whitening: what it makes of vectors, and what it does not depend on."""

import numpy as np
import pytest

from research.transforms.whitening import fit_whitening, make_whitening

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 6)) @ RANDOM.normal(size=(6, 6)) + 5


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def whiten(x, **options):
    mean, matrix = fit_whitening(x, **options)
    return (x - mean) @ matrix


def test_the_covariance_is_the_identity():
    np.testing.assert_allclose(np.cov(whiten(X).T), np.eye(6), atol=1e-10)
    # WhiteningBERT's differs by a factor.
    z = whiten(X) / np.sqrt(len(X) - 1)
    np.testing.assert_allclose(z.T @ z, np.eye(6), atol=1e-10)


def test_rotations_and_shifts_change_no_cosine():
    turn = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0]
    want = cosines(whiten(X))
    np.testing.assert_allclose(cosines(whiten(X @ turn + 3)), want, atol=1e-9)
    np.testing.assert_allclose(cosines(whiten(whiten(X))), want, atol=1e-9)
    assert np.abs(cosines(X) - want).max() > 0.1


def test_the_first_directions_have_the_most_variance():
    mean, matrix = fit_whitening(X, dims=2)
    assert matrix.shape == (6, 2)
    values, vectors = np.linalg.eigh(np.cov(X.T))
    for number, column in enumerate(matrix.T, 1):
        want = vectors[:, -number] / np.sqrt(values[-number])
        np.testing.assert_allclose(column * np.sign(column @ want), want, atol=1e-9)
    np.testing.assert_allclose(np.cov(whiten(X, dims=2).T), np.eye(2), atol=1e-10)


def test_directions_without_variance_stay_finite():
    flat = X.copy()
    flat[:, 0] = flat[:, 1]
    z = whiten(flat)
    assert np.isfinite(z).all()
    assert np.abs(z).max() < 10  # and not 1 / sqrt(1e-16) times noise


@pytest.mark.parametrize(
    "x, dims, message",
    [
        (X, 7, "whitening keeps 7 dimensions; the embedding has 1 ... 6"),
        (X, 0, "whitening keeps 0 dimensions; the embedding has 1 ... 6"),
        (X[:6], None, "whitening to 6 dimensions needs more than 6 texts, not 6"),
        (np.ones((9, 6)), None, "the vectors of all 9 texts are equal"),
    ],
)
def test_what_cannot_be_whitened(x, dims, message):
    with pytest.raises(ValueError, match=message):
        fit_whitening(x, dims=dims)


def test_other_vectors_are_whitened_as_the_sample_needs():
    whiten = make_whitening(X[:100])
    np.testing.assert_allclose(np.cov(whiten(X[:100]).T), np.eye(6), atol=1e-4)
    short = make_whitening(X[:100], dims=3)(X[[3, 150]].astype(np.float32))
    np.testing.assert_allclose(short, whiten(X[[3, 150]])[:, :3], atol=1e-5)

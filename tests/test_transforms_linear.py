"""PCA, whitening and random projection: what they make of vectors, and keep of them."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from research.transforms.linear import (
    LinearMap,
    fit_pca,
    fit_whitening,
    make_random_projection,
)

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(200, 6)) @ RANDOM.normal(size=(6, 6)) + 5


def cosines(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ x.T


def whiten(x, dim=None):
    return fit_whitening(x, dim).apply(x)


def test_principal_components_are_those_of_scikit_learn():
    theirs = PCA(4, svd_solver="full").fit(X)
    ours = fit_pca(X, 4)
    np.testing.assert_allclose(ours.mean, theirs.mean_, atol=1e-6)
    np.testing.assert_allclose(ours.matrix, theirs.components_.T, atol=1e-6)
    np.testing.assert_allclose(ours.apply(X), theirs.transform(X), atol=1e-5)
    assert ours.mean.dtype == ours.matrix.dtype == ours.apply(X).dtype == np.float32
    # All depths of a grid are mapped at once.
    stack = X.reshape(10, 20, 6)
    np.testing.assert_allclose(
        ours.apply(stack).reshape(200, 4), ours.apply(X), rtol=1e-5
    )


def test_without_centering_dot_products_stay():
    full = fit_pca(X, 6, center=False)
    np.testing.assert_allclose(full.apply(X) @ full.apply(X).T, X @ X.T, atol=1e-4)
    # What is lost is at most the product of what both sides lose.
    small = fit_pca(X, 3, center=False)
    z = small.apply(X)
    rest = np.linalg.norm(X - z @ small.matrix.T, axis=1)
    loss = np.abs(X @ X.T - z @ z.T)
    assert (loss <= rest[:, None] * rest + 1e-4).all() and loss.max() > 1e-3


def test_equal_samples_in_another_order_give_equal_directions():
    mixed = X[RANDOM.permutation(len(X))]
    np.testing.assert_allclose(
        fit_pca(X, 6).matrix, fit_pca(mixed, 6).matrix, rtol=1e-5
    )


def test_faiss_maps_vectors_as_we_do():
    faiss = pytest.importorskip("faiss")
    ours = fit_pca(X, 3)
    theirs = faiss.LinearTransform(6, 3, True)
    theirs.is_trained = True
    faiss.copy_array_to_vector(ours.matrix.T.astype("f4").ravel(), theirs.A)
    faiss.copy_array_to_vector((-ours.mean @ ours.matrix).astype("f4"), theirs.b)
    np.testing.assert_allclose(theirs.apply(X.astype("f4")), ours.apply(X), atol=1e-4)
    # And faiss finds the same directions, but for their signs.
    fitted = faiss.PCAMatrix(6, 3)
    fitted.train(X.astype("f4"))
    directions = faiss.vector_to_array(fitted.PCAMat).reshape(6, 6)[:3]
    signs = np.sign((directions.T * ours.matrix).sum(0))
    np.testing.assert_allclose(directions.T * signs, ours.matrix, atol=1e-3)


def test_the_covariance_is_the_identity():
    np.testing.assert_allclose(np.cov(whiten(X).T), np.eye(6), atol=1e-5)
    # WhiteningBERT's differs by a factor.
    z = whiten(X) / np.sqrt(len(X) - 1)
    np.testing.assert_allclose(z.T @ z, np.eye(6), atol=1e-5)


def test_rotations_and_shifts_change_no_cosine():
    turn = np.linalg.qr(RANDOM.normal(size=(6, 6)))[0]
    want = cosines(whiten(X))
    np.testing.assert_allclose(cosines(whiten(X @ turn + 3)), want, atol=1e-4)
    np.testing.assert_allclose(cosines(whiten(whiten(X))), want, atol=1e-5)
    assert np.abs(cosines(X) - want).max() > 0.1


def test_the_first_directions_have_the_most_variance():
    matrix = fit_whitening(X, 2).matrix
    assert matrix.shape == (6, 2)
    values, vectors = np.linalg.eigh(np.cov(X.T))
    for number, column in enumerate(matrix.T, 1):
        want = vectors[:, -number] / np.sqrt(values[-number])
        np.testing.assert_allclose(column * np.sign(column @ want), want, atol=1e-6)
    np.testing.assert_allclose(np.cov(whiten(X, 2).T), np.eye(2), atol=1e-5)


def test_directions_without_variance_stay_finite():
    flat = X.copy()
    flat[:, 0] = flat[:, 1]
    z = whiten(flat)
    assert np.isfinite(z).all()
    assert np.abs(z).max() < 10  # and not 1 / sqrt(1e-16) times noise


def test_random_projections_keep_dot_products_on_average():
    x, y = X[0], X[1]
    maps = [make_random_projection(X[:0], 4, seed=seed) for seed in range(2_000)]
    products = [(m.apply(x) * m.apply(y)).sum() for m in maps]
    spread = np.sqrt(((x @ x) * (y @ y) + (x @ y) ** 2) / 4)
    assert abs(np.mean(products) - x @ y) < 4 * spread / np.sqrt(2_000)
    assert abs(np.std(products) / spread - 1) < 0.1
    np.testing.assert_array_equal(
        make_random_projection(X, 4, seed=3).matrix, maps[3].matrix
    )
    assert isinstance(maps[0], LinearMap) and maps[0].width == 4


@pytest.mark.parametrize(
    "fit, x, dim, message",
    [
        (fit_whitening, X, 7, "whitening keeps 7 dimensions; .* has 1 ... 6"),
        (fit_pca, X, 0, "pca keeps 0 dimensions; the embedding has 1 ... 6"),
        (make_random_projection, X, 7, "random_projection keeps 7 dimensions"),
        (
            fit_whitening,
            X[:6],
            None,
            "whitening to 6 dimensions is fitted to at least 7 vectors, not to 6",
        ),
        (fit_pca, X[:0], 2, "pca to 2 dimensions is fitted to texts; name them by"),
        (fit_pca, np.ones((9, 6)), 2, "the vectors of all 9 texts are equal"),
    ],
)
def test_what_cannot_be_fitted(fit, x, dim, message):
    with pytest.raises(ValueError, match=message):
        fit(x, dim)

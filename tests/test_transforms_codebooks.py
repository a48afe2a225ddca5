"""Product quantization: nearest centroids, and the codes of faiss."""

import sys

import numpy as np
import pytest

from research.transforms.codebooks import ProductQuantizer, fit_pq

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(600, 8)).astype(np.float32)
TURN = np.linalg.qr(RANDOM.normal(size=(8, 8)))[0].astype(np.float32)
CENTROIDS = RANDOM.normal(size=(4, 256, 2)).astype(np.float32)


def test_codes_are_the_nearest_centroids():
    codes = ProductQuantizer(CENTROIDS).encode(X)
    parts = X.reshape(600, 4, 1, 2)
    want = np.square(parts - CENTROIDS).sum(-1).argmin(-1)
    np.testing.assert_array_equal(codes, want)
    assert codes.dtype == np.uint8
    # In blocks of one vector, too.
    np.testing.assert_array_equal(ProductQuantizer(CENTROIDS).encode(X[:1]), codes[:1])


def test_centroids_themselves_are_exact():
    quantizer = ProductQuantizer(CENTROIDS, TURN)
    codes = RANDOM.integers(0, 256, (50, 4)).astype(np.uint8)
    x = quantizer.decode(codes)
    np.testing.assert_array_equal(quantizer.encode(x), codes)
    # A rotation changes no dot product.
    plain = ProductQuantizer(CENTROIDS).decode(codes)
    np.testing.assert_allclose(x @ x.T, plain @ plain.T, atol=1e-4)
    assert quantizer.width == 8 and quantizer.bytes_per_vector == 4


def test_scores_are_sums_over_tables():
    quantizer = ProductQuantizer(CENTROIDS)
    codes = quantizer.encode(X)
    tables = np.einsum("qmd,mkd->qmk", X[:5].reshape(5, 4, 2), CENTROIDS)
    scores = tables[:, np.arange(4), codes].sum(-1)  # [5, N]
    np.testing.assert_allclose(scores, X[:5] @ quantizer.decode(codes).T, atol=1e-4)


@pytest.mark.parametrize("rotate", [False, True])
def test_codes_are_those_of_faiss(rotate):
    faiss = pytest.importorskip("faiss")
    ours = fit_pq(X, 4, rotate=rotate)
    theirs = faiss.ProductQuantizer(8, 4, 8)
    faiss.copy_array_to_vector(ours.centroids.ravel(), theirs.centroids)
    x = X if ours.rotation is None else X @ ours.rotation.T
    codes = theirs.compute_codes(x)
    np.testing.assert_array_equal(ours.encode(X), codes)
    decoded = theirs.decode(codes)
    decoded = decoded if ours.rotation is None else decoded @ ours.rotation
    np.testing.assert_allclose(ours.decode(codes), decoded, atol=1e-5)
    if rotate:
        np.testing.assert_allclose(
            ours.rotation @ ours.rotation.T, np.eye(8), atol=1e-5
        )
    # Most of a vector is kept, and the fit can be made again.
    assert np.square(ours.decode(codes) - X).sum() < 0.05 * np.square(X).sum()
    np.testing.assert_array_equal(fit_pq(X, 4, rotate=rotate).centroids, ours.centroids)


@pytest.mark.parametrize(
    "x, parts, message",
    [
        (X, 3, "pq of 3 parts: the width 8 of the embedding is no multiple"),
        (X[:200], 4, "pq is fitted to at least 256 vectors, not to 200"),
        (X[:0], 4, "pq is fitted to texts"),
        (np.ones((300, 384)), 48, "pq is fitted to at least 384 vectors, not to 300"),
    ],
)
def test_what_cannot_be_fitted_is_one_sentence(x, parts, message):
    with pytest.raises(ValueError, match=message):
        fit_pq(x, parts)


def test_without_faiss_the_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match="`pip install faiss-cpu`"):
        fit_pq(X, 4)

"""Whitening of embeddings (BERT-whitening, Su et al. 2021), with scikit-learn's PCA."""

from collections.abc import Callable

import chex
import numpy as np

# Minimum variance of a direction relative to the largest one. Directions with less
# variance are noise and are not scaled up further.
MIN_VARIANCE_RATIO = 1e-6


def fit_whitening(
    vectors: np.ndarray, *, dims: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Fits a mean and a matrix such that (x - mean) @ matrix is whitened (eq. 5).

    The covariance of the whitened vectors is the identity. WhiteningBERT (Huang et al.
    2021) does not divide the covariance by N - 1, so that its vectors are sqrt(N - 1)
    times shorter; cosines are the same.

    Args:
        vectors: [N, D] vectors to fit.
        dims: K, number of directions to keep, those of the largest variance; None for
            all.

    Returns:
        mean: [D] float64.
        matrix: [D, K] float64.

    Raises:
        ValueError: K is not in 1 ... D, N is at most K, or all vectors are equal.
    """
    from sklearn.decomposition import PCA

    chex.assert_rank(vectors, 2)
    count, width = vectors.shape
    dims = width if dims is None else dims
    if not 1 <= dims <= width:
        raise ValueError(
            f"whitening keeps {dims} dimensions; the embedding has 1 ... {width}"
        )
    if count <= max(dims, 1):
        raise ValueError(
            f"whitening to {dims} dimensions needs more than {dims} texts, not "
            f"{count}, or fewer dimensions"
        )
    if not np.ptp(vectors, axis=0).any():
        raise ValueError(f"whitening: the vectors of all {count} texts are equal")
    pca = PCA(dims, svd_solver="full").fit(np.asarray(vectors, np.float64))
    variances = pca.explained_variance_  # [K], the largest first
    # PCA(whiten=True) divides by these too, but without a lower bound.
    variances = np.maximum(variances, MIN_VARIANCE_RATIO * variances[0])
    return pca.mean_, pca.components_.T / np.sqrt(variances)


def make_whitening(
    vectors: np.ndarray, *, dims: int | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a function that whitens vectors, [M, D] -> [M, K], fitted to a sample.

    Args:
        vectors: [N, D] sample.
        dims: As in `fit_whitening`.

    Raises:
        ValueError: As in `fit_whitening`.
    """
    mean, matrix = fit_whitening(vectors, dims=dims)
    return lambda x: (np.asarray(x, np.float64) - mean[None]) @ matrix

"""Whitening: embeddings whose numbers are uncorrelated and of variance 1."""

from collections.abc import Callable

import numpy as np

# Directions with less of the variance than this part of the largest one's are no
# stronger than it.
LEAST = 1e-6


def fit_whitening(
    vectors: np.ndarray, *, dims: int | None = None, ridge: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """What whitens vectors x, by (x - mean) @ matrix (Su et al. 2021, eq. 5).

    The whitened vectors have the identity as covariance. WhiteningBERT (Huang et al.
    2021) leaves the covariance a sum instead of dividing it by N - 1, so that its
    vectors are sqrt(N - 1) times shorter, which cosines do not see.

    Args:
        vectors: [N, D].
        dims: K, keep the directions of the largest variance; None keeps all.
        ridge: of the mean variance, added to that of every direction.

    Returns:
        mean [D] and matrix [D, K], float64.

    Raises:
        ValueError: there are no K directions in N vectors of D numbers.
    """
    count, width = vectors.shape
    dims = width if dims is None else dims
    if not 1 <= dims <= width:
        raise ValueError(f"whitening to {dims} numbers is not to 1 ... {width} of them")
    if count < 2 or (count <= dims and not ridge):
        raise ValueError(
            f"whitening to {dims} numbers needs more than {max(dims, 1)} texts, not "
            f"{count}, or fewer numbers"
        )
    x = np.asarray(vectors, np.float64)
    mean = x.mean(0)
    covariance = (x - mean).T @ (x - mean) / (count - 1)
    covariance += ridge * np.trace(covariance) / width * np.eye(width)
    directions, variances, _ = np.linalg.svd(covariance)
    variances = np.maximum(variances, LEAST * variances[0])
    if not variances[0] > 0:
        raise ValueError(f"whitening: the vectors of all {count} texts are equal")
    return mean, (directions / np.sqrt(variances))[:, :dims]


def make_whitening(
    vectors: np.ndarray, *, dims: int | None = None, ridge: float = 0.0
) -> Callable[[np.ndarray], np.ndarray]:
    """The function that whitens vectors [M, D] to [M, K] as a sample [N, D] needs it.

    Args:
        vectors: The sample.
        dims, ridge: As in `fit_whitening`.

    Raises:
        ValueError: As in `fit_whitening`.
    """
    mean, matrix = fit_whitening(vectors, dims=dims, ridge=ridge)
    return lambda x: (np.asarray(x, np.float64) - mean[None]) @ matrix

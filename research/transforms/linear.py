"""Linear maps of embeddings to fewer dimensions: PCA, whitening, random projection."""

from dataclasses import dataclass

import numpy as np

# Minimum variance of a direction relative to the largest one. Directions with less
# variance are noise and are not scaled up further.
MIN_VARIANCE_RATIO = 1e-6


@dataclass(frozen=True)
class LinearMap:
    """The map (x - mean) @ matrix, as faiss's PCAMatrix and a Dense layer compute it.

    Attributes:
        mean: [D] float32, subtracted from every vector.
        matrix: [D, K] float32.
    """

    mean: np.ndarray
    matrix: np.ndarray

    @property
    def width(self) -> int:
        """K, the width of the result."""
        return self.matrix.shape[1]

    def apply(self, x: np.ndarray) -> np.ndarray:
        """Maps vectors [..., D] to [..., K] float32."""
        return (np.asarray(x, np.float32) - self.mean) @ self.matrix


def fit_pca(vectors: np.ndarray, dim: int, *, center: bool = True) -> LinearMap:
    """Principal components: the directions of the largest variance, in this order.

    With `center=False`, directions are those of the largest mean square, and dot
    products change only by what is left out; the direction that all vectors share,
    which centering removes, is then the first one.

    Args:
        vectors: [N, D] sample.
        dim: K, number of directions.
        center: Whether the mean is subtracted.

    Raises:
        ValueError: K is not in 1 ... D, N is at most K, or all vectors are equal.
    """
    mean, matrix, _ = _find_directions("pca", vectors, dim, center)
    return _make_map(mean, matrix)


def fit_whitening(vectors: np.ndarray, dim: int | None = None) -> LinearMap:
    """PCA whose directions are scaled to variance 1 (BERT-whitening, Su et al. 2021).

    The covariance of the whitened sample is the identity (eq. 5). WhiteningBERT (Huang
    et al. 2021) does not divide the covariance by N - 1, so that its vectors are
    sqrt(N - 1) times shorter; cosines are the same.

    Args:
        vectors: [N, D] sample.
        dim: K, number of directions; None for all.

    Raises:
        ValueError: As in `fit_pca`.
    """
    dim = vectors.shape[1] if dim is None else dim
    mean, matrix, variances = _find_directions("whitening", vectors, dim, True)
    variances = np.maximum(variances, MIN_VARIANCE_RATIO * variances[0])
    return _make_map(mean, matrix / np.sqrt(variances))


def make_random_projection(
    vectors: np.ndarray, dim: int, *, seed: int = 0
) -> LinearMap:
    """A projection on random directions, which keeps dot products on average.

    The entries are normal with variance 1 / K (Johnson and Lindenstrauss 1984).

    Args:
        vectors: [N, D] sample, of which only the width counts; N may be 0.
        dim: K, number of directions.
        seed: Seed of the directions.

    Raises:
        ValueError: K is not in 1 ... D.
    """
    width = vectors.shape[1]
    _check_dim("random_projection", dim, width)
    # [D, K], whose products keep their size on average
    matrix = np.random.default_rng(seed).normal(size=(width, dim)) / np.sqrt(dim)
    return _make_map(np.zeros(width), matrix)


def check_sample(name: str, vectors: np.ndarray, least: int) -> None:
    """Raises ValueError if there are fewer than `least` vectors to fit."""
    if not len(vectors):
        raise ValueError(
            f"{name} is fitted to texts; name them by --transform_texts=FILE"
        )
    if len(vectors) < least:
        raise ValueError(
            f"{name} is fitted to at least {least:,} vectors, not to {len(vectors):,}; "
            "--transform_texts needs more texts"
        )


def _find_directions(
    name: str, vectors: np.ndarray, dim: int, center: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean [D], the directions [D, K] and the variances [K] of a sample."""
    count, width = vectors.shape
    _check_dim(name, dim, width)
    check_sample(f"{name} to {dim} dimensions", vectors, dim + 1)
    if not np.ptp(vectors, axis=0).any():
        raise ValueError(f"{name}: the vectors of all {count} texts are equal")
    x = np.asarray(vectors, np.float64)
    mean = x.mean(0) if center else np.zeros(width)
    # Eigenvectors of the covariance, which is small: [D, D]
    x = x - mean
    variances, directions = np.linalg.eigh(x.T @ x / (count - 1))
    order = np.argsort(-variances, kind="stable")[:dim]
    variances, directions = variances[order], directions[:, order]
    # The sign of a direction is free: the largest component is positive
    largest = np.abs(directions).argmax(0)
    directions = directions * np.sign(directions[largest, np.arange(dim)])
    return mean, directions, variances


def _make_map(mean: np.ndarray, matrix: np.ndarray) -> LinearMap:
    """The map in float32, half the bytes of the float64 in which it is fitted."""
    return LinearMap(mean.astype(np.float32), matrix.astype(np.float32))


def _check_dim(name: str, dim: int, width: int) -> None:
    if not 1 <= dim <= width:
        raise ValueError(
            f"{name} keeps {dim} dimensions; the embedding has 1 ... {width}"
        )

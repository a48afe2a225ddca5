"""Geometry of a set of vectors: anisotropy, IsoScore, effective rank."""

import chex
import numpy as np
import scipy

from research.transforms.normalize import l2_normalize_rows

# Differences below this share of the vectors' norm are float32 rounding.
ROUNDING = 1e-6


def pair_cosines(x: np.ndarray) -> np.ndarray:
    """The cosine of every pair of rows: [N, D] -> [N (N - 1) / 2] float64.

    The cosine of a zero row with any other row is 0.

    Raises:
        ValueError: There are fewer than two rows.
    """
    x = l2_normalize_rows(_check_vectors(x))
    return (x @ x.T)[np.triu_indices(len(x), 1)]


def mean_cosine(x: np.ndarray) -> float:
    """The mean cosine of all pairs of rows of [N, D]: anisotropy (Ethayarajh 2019).

    It is 0 for evenly spread directions and 1 for a single direction. It is computed
    from the sum of the unit rows: (|sum|^2 - sum of |row|^2) / (N (N - 1)).

    Raises:
        ValueError: There are fewer than two rows.
    """
    x = l2_normalize_rows(_check_vectors(x))
    # All ordered pairs without those of a row with itself.
    pairs = np.sum(x.sum(0) ** 2) - np.sum(x**2)
    return float(pairs / (len(x) * (len(x) - 1)))


def center_rows(x: np.ndarray) -> np.ndarray:
    """Subtracts the mean row from [N, D]; zeros if rows differ only by rounding."""
    x = np.asarray(x, np.float64)
    centered = x - x.mean(0)
    if np.linalg.norm(centered) <= ROUNDING * np.linalg.norm(x):
        return np.zeros_like(x)
    return centered


def isoscore(x: np.ndarray) -> float:
    """IsoScore: the share of dimensions that vectors use evenly (Rudman et al. 2022).

    Algorithm 1 of the paper, for N vectors in D dimensions: the variances v along the D
    principal components (zeros included) are scaled to w = sqrt(D) v / |v|. The
    isotropy defect is d = |w - 1| / sqrt(2 (D - sqrt(D))), the fraction of dimensions
    used f = (D - d^2 (D - sqrt(D)))^2 / D^2, and the score (D f - 1) / (D - 1).

    Equal variances score 1 and a single direction 0; equal vectors score 0 by
    convention. With few vectors, N of about D or less, no score comes near 1: compare
    it with Gaussian noise of the same shape, which scores about N / (N + D).

    Raises:
        ValueError: There are fewer than two rows or columns.
    """
    x = _check_vectors(x)
    if (width := x.shape[1]) < 2:
        raise ValueError("IsoScore needs vectors of 2 numbers or more")
    values = np.linalg.svd(center_rows(x), compute_uv=False)
    if not values.any():
        return 0.0
    # [D] variances along the principal components, scaled to the length sqrt(D).
    variances = np.zeros(width)
    variances[: len(values)] = values**2
    scaled = np.sqrt(width) * variances / np.linalg.norm(variances)
    # The isotropy defect, and the fraction of dimensions used.
    slack = width - np.sqrt(width)
    defect = np.linalg.norm(scaled - 1) / np.sqrt(2 * slack)
    fraction = (width - defect**2 * slack) ** 2 / width**2
    return float((width * fraction - 1) / (width - 1))


def effective_rank(x: np.ndarray) -> float:
    """exp of the entropy of the singular values of [N, D] (Roy and Vetterli 2007).

    The singular values are scaled to sum to 1. The result is the rank if all nonzero
    singular values are equal, and less otherwise; 0 for zeros, by convention.
    """
    values = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
    return float(np.exp(scipy.stats.entropy(values))) if values.any() else 0.0


def _check_vectors(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    chex.assert_rank(x, 2)
    if len(x) < 2:
        raise ValueError(f"{len(x)} vectors have no pair: there must be 2 or more")
    return x

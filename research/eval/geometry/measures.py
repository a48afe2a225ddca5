"""Measures of a set of vectors: anisotropy, isotropy, rank, alignment, uniformity.

All of them take vectors [N, D] and compute in float64. Logarithms are natural.
"""

import chex
import numpy as np
import scipy

from research.config_sections import check_option
from research.transforms.normalize import l2_normalize_rows

# Differences below this share of the vectors' norm are float32 rounding.
ROUNDING = 1e-6
SPECTRA = ("singular_values", "eigenvalues")


def pair_cosines(x: np.ndarray) -> np.ndarray:
    """The cosine of every pair of rows: [N, D] -> [N (N - 1) / 2] float64.

    The cosine of a zero row with any other row is 0.

    Raises:
        ValueError: There are fewer than two rows.
    """
    x = l2_normalize_rows(check_vectors(x))
    return (x @ x.T)[np.triu_indices(len(x), 1)]


def mean_cosine(x: np.ndarray) -> float:
    """The mean cosine of all pairs of rows of [N, D]: anisotropy (Ethayarajh 2019).

    It is 0 for evenly spread directions and 1 for a single direction. It is computed
    from the sum of the unit rows: (|sum|^2 - sum of |row|^2) / (N (N - 1)).

    Raises:
        ValueError: There are fewer than two rows.
    """
    x = l2_normalize_rows(check_vectors(x))
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


def svd_anisotropy(x: np.ndarray) -> float:
    """Share of the variance of [N, D] along its first principal component.

    The squared largest singular value of the centered rows by the sum of all squares
    (Razzhigaev et al. 2024, "The Shape of Learning"): 1 for a line, and by convention
    for equal rows; 1 / D for an isotropic cloud of many rows.

    Raises:
        ValueError: There are fewer than two rows.
    """
    variances = _measure_spectrum(center_rows(check_vectors(x)))
    return float(variances.max() / variances.sum()) if variances.any() else 1.0


def participation_ratio(x: np.ndarray) -> float:
    """(sum v)^2 / sum v^2 of the variances v along the principal components of [N, D].

    It is the number of directions if their variances are equal, and less otherwise; 0
    for equal rows, by convention. No decomposition is needed: tr(C)^2 / |C|^2, where C
    is the smaller of the two Gram matrices of the centered rows.

    Raises:
        ValueError: There are fewer than two rows.
    """
    gram = smaller_gram(center_rows(check_vectors(x)))
    return float(np.trace(gram) ** 2 / np.sum(gram**2)) if gram.any() else 0.0


def isoscore(x: np.ndarray) -> float:
    """IsoScore: the share of dimensions that vectors use evenly (Rudman et al. 2022).

    Algorithm 1 of the paper reduces to (P - 1) / (D - 1), where P is the participation
    ratio. Equal variances score 1 and a single direction 0; equal vectors score 0 by
    convention. With few vectors, N of about D or less, no score comes near 1: compare
    it with Gaussian noise of the same shape, which scores about N / (N + D).

    Raises:
        ValueError: There are fewer than two rows or columns.
    """
    x = check_vectors(x, min_width=2)
    return max(0.0, (participation_ratio(x) - 1) / (x.shape[1] - 1))


def partition_score(x: np.ndarray) -> float:
    """I(W) of Mu and Viswanath 2018: smallest by largest partition function.

    Z(c) = sum over rows of exp(c . row), for c = the eigenvectors of W^T W with both
    signs, since the sign of an eigenvector is arbitrary. It is 1 for an isotropic
    cloud. Rows are taken as they are: normalize them to compare models.

    Raises:
        ValueError: There are fewer than two rows.
    """
    x = check_vectors(x)
    directions = np.linalg.eigh(x.T @ x)[1]  # [D, D], one per column
    logits = x @ np.concatenate([directions, -directions], 1)  # [N, 2D]
    log_partition = scipy.special.logsumexp(logits, axis=0)
    return float(np.exp(log_partition.min() - log_partition.max()))


def effective_rank(x: np.ndarray, spectrum: str = "singular_values") -> float:
    """exp of the entropy of the spectrum of [N, D], scaled to sum to 1.

    With singular values it is that of Roy and Vetterli 2007 (and RankMe), with
    "eigenvalues", their squares, that of the von Neumann entropy of x^T x. The result
    is the rank if all nonzero values are equal, and less otherwise; 0 for zeros, by
    convention. Rows are not centered.
    """
    check_option("spectrum", spectrum, SPECTRA)
    values = _measure_spectrum(np.asarray(x, np.float64))
    if spectrum == "singular_values":
        values = np.sqrt(values)
    return float(np.exp(scipy.stats.entropy(values))) if values.any() else 0.0


def alignment(x: np.ndarray, y: np.ndarray) -> float:
    """Mean squared distance of the unit rows of positive pairs.

    Wang and Isola 2020; 0 if the two texts of every pair have one vector.

    Args:
        x: [N, D] vectors.
        y: [N, D] vectors of their positives.
    """
    chex.assert_equal_shape([x, y])
    # Both in float64: distances of near vectors lose the digits of float32.
    x, y = (l2_normalize_rows(np.asarray(part, np.float64)) for part in (x, y))
    return float(np.mean(np.sum((x - y) ** 2, axis=1)))


def uniformity(x: np.ndarray) -> float:
    """log of the mean of exp(-2 |u_i - u_j|^2) over pairs of unit rows of [N, D].

    Wang and Isola 2020; 0 for a single direction, and lower for more even ones.

    Raises:
        ValueError: There are fewer than two rows.
    """
    # |u - v|^2 = 2 (1 - cosine) for unit rows
    cosines = pair_cosines(x)
    logits = -4 * (1 - cosines)
    return float(scipy.special.logsumexp(logits) - np.log(len(cosines)))


def smaller_gram(x: np.ndarray) -> np.ndarray:
    """x x^T or x^T x, the smaller one, and x x^T if x is square.

    Both have the same nonzero eigenvalues.
    """
    return x @ x.T if len(x) <= x.shape[1] else x.T @ x


def check_vectors(x: np.ndarray, *, min_width: int = 1) -> np.ndarray:
    """The vectors [N, D] in float64.

    Raises:
        ValueError: There are fewer than two rows, or fewer than `min_width` columns.
    """
    x = np.asarray(x, np.float64)
    chex.assert_rank(x, 2)
    if len(x) < 2:
        raise ValueError(f"{len(x)} vectors have no pair: there must be 2 or more")
    if x.shape[1] < min_width:
        raise ValueError(
            f"IsoScore needs vectors of {min_width} numbers or more, not {x.shape[1]}"
        )
    return x


def _measure_spectrum(x: np.ndarray) -> np.ndarray:
    """[min(N, D)] squares of the singular values of [N, D], not sorted."""
    # The eigenvalues of the Gram matrix are ten times as fast as singular values, and
    # differ from their squares by rounding, which would become a rank of its own.
    values = np.linalg.eigvalsh(smaller_gram(x))
    rounding = len(values) * np.finfo(np.float64).eps * values.max(initial=0.0)
    return np.where(values > rounding, values, 0.0)

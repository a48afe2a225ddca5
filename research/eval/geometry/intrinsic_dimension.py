"""Intrinsic dimension of a cloud of vectors: TwoNN, and Levina and Bickel's estimate.

An estimate above about 20 is too low with fewer than 10,000 vectors.
"""

import chex
import numpy as np

from research.eval.geometry.measures import center_rows, check_vectors

DISCARDED = 0.1  # share of the largest ratios that TwoNN's regression leaves out
# Rows whose distances to all others are in memory at once.
BLOCK_ROWS = 512


def two_nn(x: np.ndarray) -> float:
    """TwoNN (Facco et al. 2017): how the ratio of two nearest distances is spread.

    With mu = the distance to the second neighbor by that to the first, sorted, and F_i
    = i / N, a line through the origin is fitted to -log(1 - F) over log mu; its slope
    is the dimension. The largest ratios are left out.

    Args:
        x: [N, D] vectors; equal ones count once. If all are equal, up to rounding, the
            dimension is 0.

    Raises:
        ValueError: There are fewer than three different vectors.
    """
    x = center_rows(check_vectors(x))
    if not x.any():
        return 0.0
    distances = nearest_distances(x, 2)
    logs = np.sort(np.log(distances[:, 1] / distances[:, 0]))  # [N] log mu
    count = len(logs)
    size = int((1 - DISCARDED) * count)
    x_axis, y_axis = logs[:size], -np.log(1 - np.arange(1, size + 1) / count)
    square = x_axis @ x_axis
    return float(x_axis @ y_axis / square) if square else float("inf")


def levina_bickel(x: np.ndarray, *, neighbors: int = 20) -> float:
    """The maximum likelihood estimate of Levina and Bickel 2004.

    The inverse of the mean over all points of 1 / d = the mean of log(r_K / r_j) over
    the K - 1 nearer neighbors (MacKay and Ghahramani's average).

    Args:
        x: [N, D] vectors; equal ones count once. If all are equal, up to rounding, the
            dimension is 0.
        neighbors: K, number of neighbors of each vector; all others if there are fewer.

    Raises:
        ValueError: There are fewer than three different vectors.
    """
    x = drop_duplicates(center_rows(check_vectors(x)))
    if not x.any():
        return 0.0
    neighbors = max(2, min(neighbors, len(x) - 1))
    distances = nearest_distances(x, neighbors)  # [N, K]
    # The last neighbor's own ratio is 1, and is left out.
    logs = np.log(distances[:, -1:] / distances[:, :-1])  # [N, K-1]
    return float(1 / logs.mean()) if logs.any() else float("inf")


def drop_duplicates(x: np.ndarray) -> np.ndarray:
    """The different rows of [N, D], in their order."""
    _, first = np.unique(np.asarray(x), axis=0, return_index=True)
    return x[np.sort(first)]


def nearest_distances(x: np.ndarray, count: int) -> np.ndarray:
    """Euclidean distances from each different row to its nearest others, ascending.

    Args:
        x: [N, D] vectors.
        count: Number of neighbors.

    Returns:
        [M, count] float64, M the number of different rows.

    Raises:
        ValueError: There are `count` different rows or fewer.
    """
    x = drop_duplicates(check_vectors(x))
    if len(x) <= count:
        raise ValueError(
            f"{len(x)} different vectors are too few for the distances to {count} "
            "neighbors of each"
        )
    # Centered, so that the products lose fewer digits
    x = x - x.mean(0)
    squares = np.sum(x**2, 1)
    distances = []
    for start in range(0, len(x), BLOCK_ROWS):
        rows = x[start : start + BLOCK_ROWS]  # [R, D]
        # Candidates by the products, which lose the digits of small distances.
        products = squares - 2 * rows @ x.T  # [R, M], up to a constant per row
        products[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        size = min(count + 2, len(x) - 1)
        nearest = np.argpartition(products, size - 1, axis=1)[:, :size]
        # Their exact distances: [R, size].
        exact = np.linalg.norm(x[nearest] - rows[:, None], axis=-1)
        distances.append(np.sort(exact, axis=1)[:, :count])
    distances = np.concatenate(distances)
    chex.assert_shape(distances, (len(x), count))
    return distances

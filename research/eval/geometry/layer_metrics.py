"""Metrics of the states of a layer (Skean et al. 2025, "Layer by Layer").

Entropy and curvature read the states [T, D] of the tokens of one text; InfoNCE, LiDAR
and DiME compare the vectors of several views of each text. Logarithms are natural.
"""

import chex
import numpy as np
import scipy

from research.eval.geometry.measures import smaller_gram
from research.transforms.normalize import l2_normalize_rows

# Eigenvalues below this share of the largest one are rounding.
ROUNDING = 1e-12
TEMPERATURE = 0.1  # of InfoNCE
PERMUTATIONS = 10  # of DiME
RIDGE = 1e-4  # added to the scatter within texts, as the authors do


def center_tokens(states: np.ndarray) -> np.ndarray:
    """States [T, D] minus their mean, each scaled to length 1; 0 where it is 0."""
    states = np.asarray(states, np.float64)
    chex.assert_rank(states, 2)
    return l2_normalize_rows(states - states.mean(0))


def matrix_entropy(z: np.ndarray, *, clamp: bool = False) -> float:
    """Entropy of the eigenvalues of the Gram matrix of [T, D], scaled to sum to 1.

    The prompt entropy of one text's states, and the dataset entropy of the vectors of
    all texts. It is log T for T orthogonal rows, and 0 for a single direction.

    Args:
        z: [T, D] rows, as `center_tokens` makes them.
        clamp: Whether negative entries of the Gram matrix are set to 0 first, as the
            authors' code does. The two Gram matrices then differ; the smaller is taken.
    """
    gram = smaller_gram(np.asarray(z, np.float64))
    return _spectrum_entropy(np.maximum(gram, 0) if clamp else gram)


def max_entropy(num_tokens: int, width: int) -> float:
    """The largest entropy of [T, D] states: min(log T, log D), at least log 2."""
    return float(np.log(max(2, min(num_tokens, width))))


def mean_turning_angle(states: np.ndarray) -> float:
    """Curvature as the paper defines it: how much the path of the states turns.

    The mean angle, in radians, between successive differences of states [T, D]; NaN for
    fewer than three.
    """
    # [T-1, D] unit steps, whose angles are those of the path
    steps = l2_normalize_rows(np.diff(np.asarray(states, np.float64), axis=0))
    return mean_state_angle(steps)


def mean_state_angle(z: np.ndarray) -> float:
    """Curvature as the authors' code computes it: the angle between two states.

    The mean angle, in radians, between neighboring unit rows [T, D], as `center_tokens`
    makes them; NaN for fewer than two.
    """
    if len(z) < 2:
        return float("nan")
    cosines = np.einsum("td,td->t", z[:-1], z[1:])
    return float(np.arccos(np.clip(cosines, -1, 1)).mean())


def view_infonce(first: np.ndarray, second: np.ndarray) -> float:
    """InfoNCE between two views [N, D] of N texts, without normalization.

    A row's candidates are its other view and both views of the N - 1 other texts.

    Args:
        first: [N, D] vectors of one view.
        second: [N, D] vectors of the other view.
    """
    chex.assert_equal_shape([first, second])
    x = np.concatenate([first, second]).astype(np.float64)  # [2N, D]
    logits = x @ x.T / TEMPERATURE
    np.fill_diagonal(logits, -np.inf)  # no row is its own candidate
    # The other view of row i is row i + N, or i - N.
    count = len(first)
    positives = np.roll(np.arange(2 * count), count)
    chosen_logits = logits[np.arange(2 * count), positives]
    return float(np.mean(scipy.special.logsumexp(logits, axis=1) - chosen_logits))


def lidar_entropy(views: np.ndarray) -> float:
    """LiDAR (Thilak et al. 2024) as an entropy; exp of it is the rank.

    The entropy of the scatter between texts, whitened by that within texts. It needs
    more than two views to be meaningful; the authors of LiDAR take 10 or more.

    Args:
        views: [N, V, D] vectors of V views of N texts.
    """
    views = np.asarray(views, np.float64)
    chex.assert_rank(views, 3)
    width = views.shape[2]
    # Scatter of the texts' means, and of the views around them
    means = views.mean(1)  # [N, D]
    centered = means - means.mean(0)
    between = centered.T @ centered / len(means)  # [D, D]
    errors = (views - means[:, None]).reshape(-1, width)
    within = errors.T @ errors / len(errors) + RIDGE * np.eye(width)
    # The eigenvalues of within^{-1/2} between within^{-1/2}
    return _eigenvalue_entropy(scipy.linalg.eigvalsh(between, within))


def dime(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> float:
    """DiME (Skean et al. 2023): how much the two views of a text share.

    The mean joint entropy with the second views permuted, minus that of the true pairs;
    0 for a single text. Gram matrices [N, N] are always those between texts.

    Args:
        first: [N, D] vectors of one view.
        second: [N, D] vectors of the other view.
        seed: Seed of the permutations.
    """
    chex.assert_equal_shape([first, second])
    # Permuted views belong to other texts: nothing is shared but their distribution.
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(first)) for _ in range(PERMUTATIONS)]
    shuffled = np.mean([joint_entropy(first, second[order]) for order in orders])
    return float(shuffled - joint_entropy(first, second))


def joint_entropy(first: np.ndarray, second: np.ndarray) -> float:
    """Entropy of the elementwise product of the Gram matrices of two views [N, D]."""
    # The product's rows are alike only where both views are.
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    return _spectrum_entropy((a @ a.T) * (b @ b.T))


def _spectrum_entropy(gram: np.ndarray) -> float:
    return _eigenvalue_entropy(np.linalg.eigvalsh(gram))


def _eigenvalue_entropy(eigenvalues: np.ndarray) -> float:
    """Entropy of the positive eigenvalues, scaled to sum to 1; 0 without any."""
    largest = eigenvalues.max(initial=0.0)
    values = eigenvalues[eigenvalues > ROUNDING * largest]
    return float(scipy.stats.entropy(values)) if len(values) else 0.0

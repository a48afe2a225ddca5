import numpy as np
import pytest

from research.eval.geometry.layer_metrics import (
    center_tokens,
    dime,
    joint_entropy,
    lidar_entropy,
    matrix_entropy,
    max_entropy,
    mean_state_angle,
    mean_turning_angle,
    view_infonce,
)
from research.eval.geometry.text_views import make_view
from research.transforms.normalize import l2_normalize_rows

CLOUD = np.random.default_rng(0).normal(size=(200, 8)) * np.arange(1, 9) + 0.5
STATES = CLOUD[:12]
FIRST = l2_normalize_rows(CLOUD[:30] - CLOUD[:30].mean(0))
SECOND = l2_normalize_rows(FIRST + 0.3 * np.random.default_rng(11).normal(size=(30, 8)))


def golden(value):
    return pytest.approx(value, abs=6e-7)


def test_entropies_of_released_code():
    z = center_tokens(STATES)
    assert matrix_entropy(z) == golden(1.439563)
    assert matrix_entropy(z.T) == golden(1.439563)  # of the other Gram matrix
    clamped = matrix_entropy(z, clamp=True)
    assert clamped == golden(1.518204)
    assert clamped / max_entropy(*z.shape) == golden(0.730102)


def test_curvatures_of_released_code_and_of_the_paper():
    assert mean_state_angle(center_tokens(STATES)) == golden(1.668292)
    assert mean_turning_angle(STATES) == golden(1.976430)
    line = np.arange(5)[:, None] * np.ones((1, 3))
    assert mean_turning_angle(line) == pytest.approx(0, abs=1e-6)
    assert np.isnan(mean_turning_angle(line[:2]))
    assert np.isnan(mean_state_angle(line[:1]))


def test_two_views_of_released_code():
    assert view_infonce(FIRST, SECOND) == golden(1.413283)
    entropy = lidar_entropy(np.stack([FIRST, SECOND], 1))
    assert entropy == golden(1.422139)
    assert np.exp(entropy) == golden(4.145978)
    assert joint_entropy(FIRST, SECOND) == golden(2.909349)
    assert dime(FIRST, SECOND, seed=7) == golden(0.108535)


def test_entropies_with_known_values():
    assert matrix_entropy(np.eye(6)) == pytest.approx(np.log(6))
    assert matrix_entropy(np.ones((4, 3))) == pytest.approx(0, abs=1e-9)
    assert matrix_entropy(center_tokens(np.ones((4, 3)))) == 0
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(8, 8)))
    rotated = matrix_entropy(center_tokens(STATES @ rotation))
    assert rotated == pytest.approx(matrix_entropy(center_tokens(STATES)))


def test_views_that_share_all_or_nothing():
    assert dime(FIRST[:1], SECOND[:1]) == pytest.approx(0, abs=1e-9)
    noise = l2_normalize_rows(np.random.default_rng(5).normal(size=(30, 8)))
    assert dime(FIRST, FIRST) > dime(FIRST, SECOND) > abs(dime(FIRST, noise))
    assert view_infonce(FIRST, FIRST) < view_infonce(FIRST, SECOND)


def test_a_view_of_a_text_has_its_letters_and_some_errors():
    text = "several words of this sentence have errors afterwards"
    views = [make_view(text, np.random.default_rng(seed)) for seed in range(5)]
    assert len(set(views)) == 5 and text not in views
    for view in views:
        assert len(view.replace(" ", "")) == len(text.replace(" ", ""))
        assert view.count(" ") == text.count(" ") + 2  # of 8 words, 30 % are split
    # Short words stay, and a text without longer ones stays as it is.
    assert all(" of " in view for view in views)
    assert make_view("a of to", np.random.default_rng(0)) == "a of to"

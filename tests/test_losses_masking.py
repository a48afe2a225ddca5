"""How many negatives a guide or a margin leaves out."""

import jax.numpy as jnp
import numpy as np
import pytest
from test_losses_distillation import teacher_labels, texts, unit

from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss


def read_share(q, d, labels, **loss):
    """The metric of a loss at full size; None without it."""
    size_loss = SIZE_LOSSES["full_size"](build_loss(loss))
    _, metrics = size_loss.loss(jnp.asarray(q), jnp.asarray(d), labels, None)
    share = metrics.get("masked_negatives")
    return None if share is None else float(share)


def count_share(q, d, limit):
    """The share of 14 other documents above a limit from the positive's cosine."""
    cosines = unit(q) @ unit(d).T
    positives = np.arange(5) * 3
    own = cosines[np.arange(5), positives]
    above = cosines > limit(own)[:, None]
    above[np.arange(5), positives] = False
    return above.sum() / (5 * 14)


@pytest.mark.parametrize("kind", ["absolute", "relative"])
def test_a_guide_says_how_many_negatives_it_leaves_out(kind):
    q, d = texts(0)
    labels, tq, td = teacher_labels()
    limits = {
        "absolute": lambda own: own - 0.3,
        "relative": lambda own: own - 0.3 * np.abs(own),
    }
    expected = count_share(tq, td, limits[kind])
    assert 0 < expected < 1
    loss = {"name": "gist", "margin": 0.3, "margin_kind": kind}
    np.testing.assert_allclose(read_share(q, d, labels, **loss), expected, rtol=1e-6)
    # As a term of a sum, too; other losses leave nothing out
    terms = f"spread_out() | gist(margin=0.3, margin_kind='{kind}')"
    share = read_share(q, d, labels, name="weighted_sum", terms=terms)
    np.testing.assert_allclose(share, expected, rtol=1e-6)
    assert read_share(q, d, labels, name="infonce", margin=None) is None


def test_a_margin_says_how_many_negatives_it_leaves_out():
    q, d = texts(0)
    labels, _, _ = teacher_labels()
    for name in ("infonce", "gte"):
        share = read_share(q, d, labels, name=name, margin=0.1)
        expected = count_share(q, d, lambda own: own + 0.1)
        np.testing.assert_allclose(share, expected, rtol=1e-6)

"""Losses over the first vectors of queries and documents."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.types import Labels

LOSS = build_loss({"name": "infonce", "temperature": 0.03}, "maxsim")


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(4, 3, 8)), rng.normal(size=(8, 5, 8))
    return jnp.float32(q), jnp.float32(d)


def evaluate(q, d, groups, **options):
    size_loss = SIZE_LOSSES["nested_groups"](LOSS, groups=groups, **options)
    return size_loss.loss(q, d, Labels(), jax.random.key(0))


def test_the_loss_is_the_sum_of_its_groups(vectors):
    q, d = vectors
    value, metrics = evaluate(q, d, ((1, 1), (3, 5)), weights=(2.0, 1.0))
    first, _ = evaluate(q, d, ((1, 1),))
    every, _ = evaluate(q, d, ((3, 5),))
    np.testing.assert_allclose(value, 2 * first + every, rtol=1e-5)
    np.testing.assert_allclose(every, LOSS(q, d, Labels()), rtol=1e-6)
    assert float(metrics["task/1x1"]) == pytest.approx(float(first.mean()))


def test_the_smallest_group_is_a_loss_of_one_vector(vectors):
    q, d = vectors
    value, _ = evaluate(q, d, ((1, 1),))
    single = build_loss({"name": "infonce", "temperature": 0.03})
    np.testing.assert_allclose(value, single(q[:, 0], d[:, 0], Labels()), rtol=1e-4)


def test_a_group_trains_its_own_vectors_alone(vectors):
    def total(q, d):
        return evaluate(q, d, ((2, 3),))[0].sum()

    of_q, of_d = jax.grad(total, (0, 1))(*vectors)
    assert of_q[:, :2].any() and not of_q[:, 2:].any()
    assert of_d[:, :3].any() and not of_d[:, 3:].any()


def test_groups_that_the_texts_do_not_have(vectors):
    with pytest.raises(ValueError, match=r"\(4, 1\) is not in the 3 vectors"):
        evaluate(*vectors, ((4, 1),))
    with pytest.raises(ValueError, match="2 weights are given for 1 groups"):
        evaluate(*vectors, ((1, 1),), weights=(1.0, 1.0))
    with pytest.raises(ValueError, match="needs several vectors per text"):
        evaluate(vectors[0][:, 0], vectors[1][:, 0], ((1, 1),))

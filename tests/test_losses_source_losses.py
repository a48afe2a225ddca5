"""A loss for each source of a mixture: values, devices, and what is compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.losses.matryoshka import SIZE_LOSSES
from research.losses.registry import build_loss
from research.losses.source_losses import select_source_loss
from research.types import Labels, LossName

LOSSES = {
    "": {"name": "infonce"},
    "cosent(scale=10)": {"name": "cosent", "scale": 10},
    "infonce(negatives='hard')": {"name": "infonce", "negatives": "hard"},
}


def over_sizes(loss, size_loss="full_size", **options):
    return SIZE_LOSSES[size_loss](build_loss(loss), **options)


def texts(ways=1, batch=8):
    rng = np.random.default_rng(0)
    q, d = (rng.normal(size=(n, 6)).astype("f4") for n in (batch, batch * ways))
    score = rng.random((batch, ways) if ways > 1 else batch).astype("f4")
    return jnp.asarray(q), jnp.asarray(d), jnp.asarray(score)


@pytest.mark.parametrize("sizes", [{}, {"size_loss": "matryoshka", "dims": (2, 6)}])
def test_a_batch_has_the_loss_that_its_labels_name(key, sizes):
    mixture = select_source_loss({n: over_sizes(x, **sizes) for n, x in LOSSES.items()})
    q, d, score = texts(ways=2)
    for name, loss in LOSSES.items():
        labels = Labels(score, loss=LossName(name) if name else None)
        value, metrics = mixture.loss(q, d, labels, key)
        expected, others = over_sizes(loss, **sizes).loss(q, d, labels, key)
        np.testing.assert_array_equal(value, expected)
        assert set(metrics) == set(others)


def test_the_step_is_compiled_once_for_each_loss(key):
    mixture = select_source_loss({n: over_sizes(x) for n, x in LOSSES.items()})
    traces = []

    @jax.jit
    def step(q, d, labels):
        traces.append(labels.loss)
        return mixture.loss(q, d, labels, key)[0].mean()

    q, d, score = texts()
    names = [None, LossName("cosent(scale=10)")]
    for name in names * 3:
        # A new object each time, as every batch has
        name = name and LossName(str(name))
        step(q, d, Labels(score, loss=name))
    assert traces == names


def test_one_device_equals_eight(key):
    mixture = select_source_loss({n: over_sizes(x) for n, x in LOSSES.items()})
    q, d, score = texts(batch=16)
    mesh = sharding.make_mesh({"data": -1})

    def compute_loss(q, d, labels):
        return mixture.loss(q, d, labels, key)[0].mean()

    @jax.jit
    def gradient(q, d, labels):
        return jax.value_and_grad(
            lambda q: sharding.map_over_data(compute_loss, q, d, labels)
        )(q)

    for name in (None, LossName("cosent(scale=10)")):
        labels = Labels(score, loss=name)
        expected = gradient(q, d, labels)
        with jax.set_mesh(mesh):
            split = jax.tree.map(np.asarray, (q, d, labels))
            got = gradient(*sharding.put_batch(split, mesh))
        for x, y in zip(got, expected, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)

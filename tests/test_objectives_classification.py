"""A classifier of pairs, and the encoder that it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_objectives_contrastive import CFG, over_sizes

from research import sharding
from research.models.pooling.registry import BASIC_POOLINGS
from research.objectives.classification import classify_pairs, measure_classes
from research.types import Batch, Labels, Tokens


@pytest.fixture(scope="module")
def batch():
    """Sixteen pairs, two texts of eight tokens in a row."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 80, (16, 16)).astype("i4")
    segments = np.tile(np.repeat([1, 2], 8), (16, 1)).astype("i4")
    query = np.arange(0, 32, 2, dtype="i4")
    score = rng.integers(0, 3, 16).astype("f4")
    tokens = Tokens(ids, segments, segments > 0)
    return Batch(tokens, query, query + 1, Labels(score))


def test_the_loss_is_that_of_the_softmax_over_both_vectors():
    rng = np.random.default_rng(0)
    q, d = rng.normal(size=(5, 4)), rng.normal(size=(10, 4))
    kernel, bias = rng.normal(size=(16, 3)), rng.normal(size=3)
    score = np.array([0, 1, 2, 2, 1])
    v = d[::2]
    logits = np.concatenate([q, v, np.abs(q - v), q * v], 1) @ kernel + bias
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    p = shifted / shifted.sum(1, keepdims=True)
    params = {"kernel": jnp.asarray(kernel, "f4"), "bias": jnp.asarray(bias, "f4")}
    texts = [jnp.asarray(x, jnp.float32) for x in (q, d)]
    labels = Labels(jnp.asarray(score, jnp.float32))
    losses, metrics = measure_classes(params, *texts, labels)
    np.testing.assert_allclose(losses, -np.log(p[np.arange(5), score]), rtol=1e-4)
    assert metrics["class_accuracy"] == np.float32((p.argmax(1) == score).mean())
    with pytest.raises(ValueError, match="classify_pairs needs the class of each pair"):
        measure_classes(params, *texts, Labels())


def test_one_device_equals_eight_and_the_classifier_learns(key, batch):
    objective = classify_pairs(CFG, BASIC_POOLINGS["mean"], over_sizes("full_size"))
    params, _ = objective.init(key)

    @jax.jit
    def gradient(params, batch):
        def loss(params):
            return objective.loss(params, {}, batch, key).value

        return jax.value_and_grad(loss)(params)

    value, grads = gradient(params, jax.tree.map(jnp.asarray, batch))
    assert np.abs(grads["classifier"]["kernel"]).max() > 1e-3
    mesh = sharding.make_mesh({"data": -1})
    with jax.set_mesh(mesh):
        split = gradient(params, sharding.put_batch(batch, mesh))
    np.testing.assert_allclose(split[0], value, rtol=1e-5)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5),
        jax.device_get(split[1]),
        jax.device_get(grads),
    )

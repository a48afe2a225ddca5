"""The FLOPS regularizer by its definition, and its rise over a run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.losses.registry import build_loss
from research.losses.regularizers import flops, flops_norm, l1_norm, sparsity_metrics
from research.types import Labels

WEIGHTS = jnp.array([[1.0, 0, 2, 0], [1, 0, 0, 0], [1, 4, 0, 0]])


def test_norms_of_three_texts():
    assert float(flops_norm(WEIGHTS)) == pytest.approx(3.222222, rel=1e-5)
    assert float(l1_norm(WEIGHTS)) == pytest.approx(3)
    gradient = jax.grad(flops_norm)(WEIGHTS)
    want = 2 / 3 * np.asarray(WEIGHTS).mean(0)
    np.testing.assert_allclose(gradient, np.stack([want] * 3), rtol=1e-5)


def test_the_penalty_is_that_of_queries_and_documents():
    documents = jnp.concatenate([WEIGHTS, 2 * WEIGHTS])
    options = {"query": 0.5, "document": 2.0, "warmup": 0.0}
    got = flops(WEIGHTS, documents, Labels(), **options)
    want = 0.5 * flops_norm(WEIGHTS) + 2 * flops_norm(documents)
    np.testing.assert_allclose(got, np.full(3, want), rtol=1e-6)
    got = flops(WEIGHTS, documents, Labels(), query_norm="l1", **options)
    want = 0.5 * 3 + 2 * flops_norm(documents)
    np.testing.assert_allclose(got, np.full(3, want), rtol=1e-6)


@pytest.mark.skipif("progress" not in Labels._fields, reason="needs signals")
def test_the_penalty_rises_with_the_square_of_the_warmup():
    def penalty(progress):
        labels = Labels(progress=jnp.full(3, progress, jnp.float32))
        return float(flops(WEIGHTS, WEIGHTS, labels, warmup=0.5)[0])

    full = penalty(0.5)
    assert penalty(0.0) == 0
    assert penalty(0.25) == pytest.approx(full / 4)
    assert penalty(1.0) == pytest.approx(full)
    with pytest.raises(ValueError, match="needs the progress of a run"):
        flops(WEIGHTS, WEIGHTS, Labels())


def test_devices_share_the_mean_of_the_batch():
    q = jax.random.uniform(jax.random.key(0), (8, 10))
    d = jax.random.uniform(jax.random.key(1), (16, 10))
    loss = build_loss({"name": "flops", "warmup": 0.0}, "dot")

    def average(q, d):
        def average_share(q, d):
            return loss(q, d, Labels()).mean()

        return sharding.map_over_data(average_share, q, d)

    want = jax.value_and_grad(average)(q, d)
    with jax.set_mesh(sharding.make_mesh({"data": 4}, jax.devices()[:4])):
        got = jax.jit(jax.value_and_grad(average))(q, d)
    for ours, expected in zip(got, want, strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def test_terms_are_counted():
    metrics = sparsity_metrics(WEIGHTS, jnp.zeros((3, 4)))
    assert float(metrics["query_terms"]) == pytest.approx(5 / 3)
    assert float(metrics["document_terms"]) == 0
    assert float(metrics["empty_texts"]) == 0.5

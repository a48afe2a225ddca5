"""Similarities in bfloat16 are those of the float32 values that it holds."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research import sharding
from research.losses.registry import build_loss
from research.losses.similarity import SIMILARITIES
from research.types import Labels


def draw_texts():
    keys = jax.random.split(jax.random.key(0))
    q, d = (jax.random.normal(k, (n, 384)) for k, n in zip(keys, (8, 16), strict=True))
    d = d.at[0].set(q[0]).at[1].set(0.0)  # equal texts, and one without a direction
    return (3 * q).astype(jnp.bfloat16), d.astype(jnp.bfloat16)


@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_half_precision_loses_nothing_forward(name):
    q, d = draw_texts()
    single = SIMILARITIES[name](q.astype(jnp.float32), d.astype(jnp.float32))
    half = SIMILARITIES[name](q, d)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "dot"])
def test_half_precision_rounds_the_gradient_only(name):
    q, d = draw_texts()

    def loss(q, d):
        scores = SIMILARITIES[name](q, d) / (1 if name == "cosine" else 1e3)
        return -jax.nn.log_softmax(20 * scores)[:, 0].sum()

    half = jax.grad(loss, (0, 1))(q, d)
    single = jax.grad(loss, (0, 1))(*(x.astype(jnp.float32) for x in (q, d)))
    for ours, expected in zip(half, single, strict=True):
        assert ours.dtype == jnp.bfloat16
        error = np.linalg.norm(np.float32(ours) - np.float32(expected))
        assert error < 0.01 * np.linalg.norm(expected)


def test_devices_exchange_half_precision():
    """Also where the mesh splits layers: XLA aborted on the CPU there."""
    q, d = draw_texts()
    loss = build_loss({"name": "infonce", "temperature": 0.05})

    def average(q, d):
        def average_share(q, d):
            return loss(q, d, Labels()).mean()

        return sharding.map_over_data(average_share, q, d)

    value_and_grad = jax.jit(jax.value_and_grad(average, (0, 1)))
    expected = value_and_grad(q, d)
    with jax.set_mesh(sharding.make_mesh({"data": 2, "fsdp": 2, "model": 2})):
        got = value_and_grad(q, d)
    chex.assert_trees_all_close(got, expected, rtol=0.02, atol=1e-3)

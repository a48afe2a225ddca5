"""Similarities in bfloat16 are those of the float32 values that it holds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.losses.similarity import SIMILARITIES


def draw_texts():
    keys = jax.random.split(jax.random.key(0))
    q, d = (jax.random.normal(k, (n, 384)) for k, n in zip(keys, (8, 16), strict=True))
    d = d.at[0].set(q[0]).at[1].set(0.0)  # equal texts, and one without a direction
    return (3 * q).astype(jnp.bfloat16), d.astype(jnp.bfloat16)


@pytest.mark.parametrize("name", SIMILARITIES)
def test_half_precision_loses_nothing_forward(name):
    q, d = draw_texts()
    single = SIMILARITIES[name](q.astype(jnp.float32), d.astype(jnp.float32))
    half = SIMILARITIES[name](q, d)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SIMILARITIES)
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

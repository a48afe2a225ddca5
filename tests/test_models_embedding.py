import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.models import embedding
from research.models.embedding import take_rows


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_table_is_that_of_adding_rows(key, monkeypatch, dtype):
    """Both forms, here compiled for a CPU; each backend takes the one that suits it."""
    keys = jax.random.split(key, 3)
    table = jax.random.normal(keys[0], (11, 6))
    rows = jax.random.randint(keys[1], (4, 9), 0, 11)
    weights = jax.random.normal(keys[2], (4, 9, 6), dtype)

    def gradient():
        def total(table):
            return jnp.sum((take_rows(table, rows, dtype) * weights).astype("float32"))

        return jax.jit(jax.grad(total))(table)

    expected = np.zeros((11, 6))
    np.add.at(expected, np.asarray(rows), np.asarray(weights, np.float64))
    output = take_rows(table, rows, dtype)
    assert output.dtype == dtype
    np.testing.assert_array_equal(output, table.astype(dtype)[rows])
    # Sums are in float32, also of gradients in bfloat16
    np.testing.assert_allclose(gradient(), expected, rtol=1e-5, atol=1e-5)

    # The product with one-hot rows, which a GPU or TPU computes
    def choose_default(*arguments, default, cpu):
        return default(*arguments)

    monkeypatch.setattr(jax.lax, "platform_dependent", choose_default)
    np.testing.assert_allclose(gradient(), expected, rtol=1e-5, atol=1e-5)
    # Long tables are always added to
    monkeypatch.setattr(embedding, "ONE_HOT_ROWS", 10)
    monkeypatch.setattr(jax.nn, "one_hot", None)
    np.testing.assert_allclose(gradient(), expected, rtol=1e-5, atol=1e-5)

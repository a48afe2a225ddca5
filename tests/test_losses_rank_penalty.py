import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.eval.geometry.measures import effective_rank
from research.losses.rank_penalty import von_neumann_entropy
from research.transforms.normalize import l2_normalize_rows


@pytest.mark.parametrize("shape", [(20, 6), (5, 9)])
def test_its_exponential_is_the_representation_rank(shape):
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    rank = effective_rank(l2_normalize_rows(x), "eigenvalues")
    assert jnp.exp(von_neumann_entropy(x)) == pytest.approx(rank, rel=1e-4)


def test_it_is_log_d_for_orthogonal_rows_and_0_for_one_direction():
    gradient = jax.grad(von_neumann_entropy)
    assert von_neumann_entropy(jnp.eye(4)) == pytest.approx(np.log(4), abs=1e-6)
    assert jnp.abs(gradient(jnp.eye(4))).max() < 1e-5  # the maximum
    line = jnp.ones((5, 3))
    assert von_neumann_entropy(line) == pytest.approx(0, abs=1e-5)
    assert jnp.isfinite(gradient(line)).all()
    assert von_neumann_entropy(jnp.zeros((3, 2))) == 0


def test_its_gradient_is_that_of_finite_differences():
    x = np.random.default_rng(1).normal(size=(4, 3))
    direction = np.random.default_rng(2).normal(size=(4, 3))
    slope = jnp.sum(jax.grad(von_neumann_entropy)(jnp.float32(x)) * direction)

    def entropy(step):
        rank = effective_rank(l2_normalize_rows(x + step * direction), "eigenvalues")
        return np.log(rank)

    assert slope == pytest.approx((entropy(1e-5) - entropy(-1e-5)) / 2e-5, rel=1e-3)

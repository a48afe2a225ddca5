"""Soups, SLERP, task vectors and the search of their coefficients, as trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.train import merging


def tree(seed):
    rng = np.random.default_rng(seed)
    return {
        "a": {"kernel": rng.normal(size=(3, 4)).astype("f4")},
        "bias": rng.normal(size=5).astype("f4"),
    }


def flat(params):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)])


def test_a_soup_is_the_weighted_mean():
    trees = [tree(i) for i in range(3)]
    vectors = np.stack([flat(x) for x in trees])
    np.testing.assert_allclose(flat(merging.average(trees)), vectors.mean(0), atol=1e-6)
    expected = np.average(vectors, axis=0, weights=(1, 2, 0))
    got = flat(merging.average(trees, (1, 2, 0)))
    np.testing.assert_allclose(got, expected, atol=1e-6)
    # Equal models stay as they are, bit for bit
    np.testing.assert_array_equal(flat(merging.average([trees[0]] * 3)), vectors[0])


def test_an_average_keeps_the_dtype_and_sums_in_float32():
    trees = [{"w": jnp.full(2, x, jnp.bfloat16)} for x in (1.0, 1.0078125, 1.015625)]
    merged = merging.average(trees)["w"]
    assert merged.dtype == jnp.bfloat16 and merged[0] == 1.0078125


def test_slerp_is_that_of_the_long_vectors():
    first, second = tree(0), tree(1)
    x, y = flat(first), flat(second)
    angle = np.arccos(x @ y / np.linalg.norm(x) / np.linalg.norm(y))
    for t in (0.0, 0.3, 1.0):
        parts = np.sin((1 - t) * angle) * x + np.sin(t * angle) * y
        got = flat(merging.slerp(first, second, t))
        np.testing.assert_allclose(got, parts / np.sin(angle), atol=1e-5)
    # Vectors of one norm keep it
    scale = np.linalg.norm(x) / np.linalg.norm(y)
    second = jax.tree.map(lambda leaf: leaf * scale, second)
    middle = flat(merging.slerp(first, second, 0.5))
    np.testing.assert_allclose(np.linalg.norm(middle), np.linalg.norm(x), rtol=1e-5)


def test_slerp_of_parallel_vectors_is_linear_and_has_a_finite_gradient():
    first = tree(0)
    for factor in (1.0, 2.0, -0.5):
        second = jax.tree.map(lambda leaf, f=factor: leaf * f, first)
        got = flat(merging.slerp(first, second, 0.25))
        expected = flat(first) * (0.75 + 0.25 * factor)
        np.testing.assert_allclose(got, expected, atol=1e-6)

    def total(t, params):
        return sum(x.sum() for x in jax.tree.leaves(merging.slerp(params, params, t)))

    gradients = jax.grad(total, (0, 1))(0.5, jax.tree.map(jnp.asarray, first))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_several_vectors_are_folded_by_the_mean_weight():
    trees, weights = [tree(i) for i in range(3)], (1.0, 2.0, 3.0)
    pair = merging.slerp(trees[0], trees[1], 2 / 3)
    expected = flat(merging.slerp(pair, trees[2], 3 / (1.5 + 3)))
    got = flat(merging.fold_slerp(trees, weights))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_task_vectors_are_added_and_removed():
    base, tuned = tree(0), tree(1)
    vector = merging.subtract(tuned, base)
    added = merging.add_task_vectors(base, [vector, vector], [0.5, 0.5])
    np.testing.assert_allclose(flat(added), flat(tuned), atol=1e-6)
    removed = merging.add_task_vectors(tuned, [vector], [-1.0])
    np.testing.assert_allclose(flat(removed), flat(base), atol=1e-6)


def test_coefficients_are_those_that_the_probe_loss_asks_for():
    base, vectors = tree(0), [tree(1), tree(2)]
    goal = merging.fold_slerp(vectors, (1.0, 3.0))
    goal = merging.add_task_vectors(base, [goal], [0.8])

    def loss(params, batch):
        errors = jax.tree.map(lambda x, y: jnp.sum((x - y) ** 2), params, goal)
        return batch * sum(jax.tree.leaves(errors))

    batches = [jnp.ones(())] * 400
    options = {"learning_rate": 0.02, "penalty": 0.0}
    found = merging.search_coefficients(loss, base, vectors, batches, **options)
    assert found.losses[-1] < 1e-3 < found.losses[0]
    np.testing.assert_allclose(found.scale, 0.8, atol=0.02)
    ratio = found.weights[1] / found.weights[0]
    np.testing.assert_allclose(ratio, 3.0, atol=0.2)
    # The penalty draws the scale towards the base
    options["penalty"] = 1.0
    other = merging.search_coefficients(loss, base, vectors, batches, **options)
    assert other.scale < found.scale - 0.01


@pytest.mark.parametrize(
    "other, message",
    [
        ({"w": np.ones((2, 4))}, r"shape of w is \(2, 3\) in A and \(2, 4\) in B"),
        ({}, "A has w and B has not"),
        ({"w": np.ones((2, 3)), "x": np.ones(1)}, "B has x and A has not"),
    ],
)
def test_other_shapes_are_one_sentence(other, message):
    with pytest.raises(ValueError, match=message):
        merging.check_shapes({"A": {"w": np.ones((2, 3))}, "B": other})


def test_mistakes_are_one_sentence():
    with pytest.raises(ValueError, match="2 weights are given for 1 models"):
        merging.average([tree(0)], (1, 2))
    with pytest.raises(ValueError, match="should have a sum above 0"):
        merging.average([tree(0), tree(1)], (0, 0))
    with pytest.raises(ValueError, match="at least one probe batch"):
        merging.search_coefficients(lambda *_: 0.0, tree(0), [tree(1)], [])
    with pytest.raises(ValueError, match="the probe loss is nan at step 1"):
        merging.search_coefficients(
            lambda params, batch: params["bias"].sum() * batch,
            tree(0),
            [tree(1)],
            [jnp.float32(np.nan)],
        )

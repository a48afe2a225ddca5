import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from research import sharding
from research.train.experiment import abstract_state
from research.train.optimizers import adamw
from research.train.step import init_state, make_step
from research.types import LossOutput


def start(devices, shape=None, objective=None):
    mesh = sharding.make_mesh(shape or {"data": -1}, jax.devices()[:devices])
    parts = toy.experiment()
    if objective:
        parts = parts._replace(objective=objective)
    target = abstract_state(parts, mesh)
    places = jax.tree.map(lambda x: x.sharding, target)
    state = init_state(*parts.objective.init(jax.random.key(1)), parts.tx)
    state = jax.device_put(state, places)
    return mesh, state, make_step(parts.objective, parts.tx, places)


def train(*args, steps=3, **kw):
    mesh, state, step = start(*args, **kw)
    losses = []
    for i in range(steps):
        batch = sharding.put_batch(toy.Batches()(i), mesh)
        state, metrics = step(state, batch, jax.random.key(0))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state)


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 8, "fsdp": 1, "model": 1},
        {"data": 1, "fsdp": 8, "model": 1},
        {"data": 2, "fsdp": 2, "model": 2},
    ],
)
def test_one_device_equals_eight(shape):
    losses, state = train(1)
    other_losses, other = train(8, shape)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-6)
    assert state.step == other.step == 3
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        state.params,
        other.params,
    )


def test_metrics_and_the_key_of_a_step():
    mesh, state, step = start(1)
    batch = sharding.put_batch(toy.Batches()(0), mesh)
    before = jax.device_get(state.params)
    state, metrics = step(state, batch, jax.random.key(0))
    assert set(metrics) == {
        *("loss", "grad_norm", "param_norm", "learning_rate", "finite"),
        "similarity",
    }
    assert all(x.shape == () and x.dtype == jnp.float32 for x in metrics.values())
    norm = np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(before)))
    np.testing.assert_allclose(metrics["param_norm"], norm, rtol=1e-6)
    np.testing.assert_allclose(metrics["learning_rate"], 1e-2)

    key = jax.random.fold_in(jax.random.key(0), 0)
    loss = toy.objective().loss(before, {}, batch, key).value
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(where):
    good = toy.objective()

    def loss(params, frozen, batch, key):
        value, metrics, _ = good.loss(params, frozen, batch, key)
        table = params["encoder"]["embed"]["token"]["embedding"]
        broken = jnp.where(batch.query_index[0] == 0, 1.0, 0.0)
        if where == "loss":
            return LossOutput(jnp.where(broken > 0, jnp.nan, value), metrics)
        # Finite, with an infinite slope: d sqrt(x) at 0.
        slope = jnp.sqrt((table * 0).sum() + 1 - broken)
        return LossOutput(value + slope * 1e-3, metrics)

    mesh, state, step = start(1, objective=good._replace(loss=loss))
    before = jax.device_get(state)
    batch = toy.Batches()(0)
    state, metrics = step(state, sharding.put_batch(batch, mesh), jax.random.key(0))
    assert metrics["finite"] == 0
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)

    batch = batch._replace(query_index=batch.query_index + 1)
    state, metrics = step(state, sharding.put_batch(batch, mesh), jax.random.key(0))
    assert metrics["finite"] == 1
    assert state.step == 1


def test_the_state_is_donated():
    mesh, state, step = start(1)
    step(state, sharding.put_batch(toy.Batches()(0), mesh), jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_frozen_parameters_pass_through():
    tx = adamw(5)
    state = init_state({"w": jnp.ones(2)}, {"teacher": jnp.ones(3)}, tx)
    places = jax.tree.map(
        lambda _: jax.NamedSharding(
            sharding.make_mesh({"data": -1}, jax.devices()[:1]), jax.P()
        ),
        state,
    )

    def loss(params, frozen, batch, key):
        return LossOutput(params["w"].sum() * frozen["teacher"].sum(), {})

    objective = toy.objective()._replace(loss=loss)
    state, _ = make_step(objective, tx, places)(state, {}, jax.random.key(0))
    np.testing.assert_array_equal(state.frozen["teacher"], np.ones(3))

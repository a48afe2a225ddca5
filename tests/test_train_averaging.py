"""Averages of the parameters: values, what is saved and evaluated, exact resume."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_train_loop import equal, interrupt

from research.train import loop
from research.train.averaging import AVERAGES
from research.train.checkpoints import restore_params

STEPS = 6


def experiment(name, devices=1, **options):
    parts = toy.experiment(STEPS, devices)
    average = AVERAGES[name](STEPS, **options)
    return parts._replace(tx=parts.tx._replace(average=average))


def follow(average, values):
    """The average after each of some parameter values, from 0 on."""
    state, found = {"w": jnp.zeros(1)}, []
    for done, value in enumerate(values, 1):
        state = average(jnp.int32(done), state, {"w": jnp.full(1, value)})
        found.append(float(state["w"][0]))
    return found


def test_ema_forgets_the_initial_parameters_and_then_decays():
    values = np.random.default_rng(0).normal(size=200)
    expected, mean = [], 0.0
    for done, value in enumerate(values, 1):
        decay = min(0.9, (1 + done) / (10 + done))
        mean = decay * mean + (1 - decay) * value
        expected.append(mean)
    got = follow(AVERAGES["ema"](200, decay=0.9), values)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_last_ones_are_averaged_with_the_last_step():
    values = np.random.default_rng(0).normal(size=10).astype("f4")
    got = follow(AVERAGES["last"](10, count=3, every=2), values)
    np.testing.assert_array_equal(got[:6], values[:6])
    np.testing.assert_allclose(got[6], got[5])
    np.testing.assert_allclose(got[7], values[[5, 7]].mean(), atol=1e-6)
    np.testing.assert_allclose(got[9], values[[5, 7, 9]].mean(), atol=1e-6)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("averaged")
    return workdir, loop.train(experiment("ema", decay=0.9), workdir)


def test_the_training_is_as_without_and_the_average_is_saved(averaged, tmp_path):
    workdir, result = averaged
    plain = loop.train(toy.experiment(STEPS), tmp_path)
    equal(result.state.params, plain.state.params)
    _, saved = restore_params(workdir / "checkpoints")
    equal(saved, result.state.average)
    difference = jax.tree.map(
        lambda x, y: np.abs(x - y).max(), saved, jax.device_get(plain.state.params)
    )
    assert max(jax.tree.leaves(difference)) > 1e-3


@pytest.mark.parametrize(
    "name, options", [("ema", {"decay": 0.9}), ("last", {"count": 3, "every": 1})]
)
def test_a_resumed_run_goes_on_with_its_average(averaged, tmp_path, name, options):
    parts = experiment(name, **options)
    whole = averaged[1] if name == "ema" else loop.train(parts, tmp_path / "whole")
    interrupt(parts, tmp_path / "run", 5)
    result = loop.train(parts, tmp_path / "run")
    equal(result.state, whole.state)


def test_eight_devices_have_the_average_of_one(averaged, tmp_path):
    result = loop.train(experiment("ema", 8, decay=0.9), tmp_path)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6),
        jax.device_get(result.state.average),
        jax.device_get(averaged[1].state.average),
    )


def test_the_average_is_what_is_evaluated(tmp_path):
    seen = []

    def measure(params, frozen):
        seen.append(jax.device_get(params))
        return {"main_score": 0.0}

    parts = experiment("ema", decay=0.9)._replace(measures={"m": measure})
    result = loop.train(parts, tmp_path)
    equal(seen[-1], result.state.average)


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("ema", {"decay": 1.0}, "averaging.decay is 1.0; it should be at least 0"),
        ("last", {"count": 4, "every": 2}, "over 4 steps, 2 apart, does not fit a run"),
        ("last", {"count": 2, "every": 0}, "averaging.every is 0"),
    ],
)
def test_mistakes_are_one_sentence(name, options, message):
    with pytest.raises(ValueError, match=message):
        AVERAGES[name](STEPS, **options)

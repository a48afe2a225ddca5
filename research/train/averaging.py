"""Averages of the parameters over the steps of a run: EMA, and the last ones.

An average is a function (number of updates made, average, parameters) -> average. It is
a part of the state, so that a resumed run goes on with it bit for bit; it is evaluated,
saved and exported in place of the parameters.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from research.config_sections import build_nothing
from research.types import Array, Params

AverageFn = Callable[[Array, Params, Params], Params]


def ema(steps: int, *, decay: float = 0.999) -> AverageFn:
    """Exponential moving average of the parameters.

    In the first steps the decay is smaller, (1 + t) / (10 + t) after t updates, so that
    the initial parameters are soon forgotten (as in TensorFlow's
    ExponentialMovingAverage with num_updates).

    Args:
        steps: Number of updates in the whole run.
        decay: Share of the earlier average.

    Raises:
        ValueError: The decay is negative, or not below 1.
    """
    del steps
    if not 0 <= decay < 1:
        raise ValueError(
            f"averaging.decay is {decay}; it should be at least 0 and below 1"
        )

    def update(done: Array, average: Params, params: Params) -> Params:
        # In float32, as the parameters
        count = done.astype(jnp.float32)
        rate = 1 - jnp.minimum(decay, (1 + count) / (10 + count))
        return jax.tree.map(lambda x, new: x + rate * (new - x), average, params)

    return update


def average_last(steps: int, *, count: int = 5, every: int = 100) -> AverageFn:
    """Mean of the parameters after the last step and after some steps before it.

    Latest weight averaging (LAWA, Kaddour 2022). Before the first of these steps, the
    average is the parameters themselves.

    Args:
        steps: Number of updates in the whole run.
        count: Number of steps whose parameters are averaged; the last one is the last
            step of the run.
        every: Number of steps from one to the next.

    Raises:
        ValueError: The first of them is before the first step.
    """
    if every < 1:
        raise ValueError(f"averaging.every is {every}; it should be at least 1")
    first = steps - (count - 1) * every
    if first < 1:
        raise ValueError(
            f"averaging over {count} steps, {every} apart, does not fit a run of "
            f"{steps} steps"
        )

    def update(done: Array, average: Params, params: Params) -> Params:
        number = (done - first) // every  # of earlier ones
        rate = 1 / (1 + number.astype(jnp.float32))
        is_due = (done - first) % every == 0

        def average_leaf(x, new):
            mean = jnp.where(is_due, x + rate * (new - x), x)
            # Bit for bit, up to the first one
            return jnp.where(done <= first, new, mean)

        return jax.tree.map(average_leaf, average, params)

    return update


# Functions of the number of steps, by the name of a config section `averaging`.
AVERAGES = {"none": build_nothing, "ema": ema, "last": average_last}

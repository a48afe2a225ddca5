"""Optimizers: AdamW, learning rate schedules, multipliers and frozen parameters."""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from research.sharding import path_name
from research.types import Params

# Parameters without weight decay: biases, scales of norms, KERPLE's p and a, and the
# rotation of a codebook, which stays orthonormal.
_UNDECAYED = r"(^|/)(bias|scale|position_bias/[ap]|codebook/rotation)$"


class Optimizer(NamedTuple):
    """An optax.GradientTransformation together with its learning rate schedule.

    Attributes:
        init: params -> state.
        update: (gradients, state, params) -> (updates, state).
        rate: step -> learning rate.
        average: (number of updates, average, params) -> average, of `train.averaging`;
            None keeps no average of the parameters.
    """

    init: Callable[[Params], Any]
    update: Callable[..., tuple[Params, Any]]
    rate: optax.Schedule
    average: Callable[..., Params] | None = None


def learning_rate_schedule(
    steps: int, learning_rate: float, warmup: float, schedule: str
) -> optax.Schedule:
    """Learning rate schedule: linear warmup from 0, then `schedule`.

    Args:
        steps: Number of updates in the whole run.
        learning_rate: Peak learning rate.
        warmup: Length of the warmup: a fraction of `steps` if below 1, else a number of
            steps.
        schedule: 'linear' or 'cosine', both decaying to 0 at `steps`, or 'constant'.
    """
    # Number of warmup steps
    rise = round(warmup * steps) if warmup < 1 else round(warmup)
    if not 0 <= rise <= steps:
        raise ValueError(f"warmup {warmup} does not fit a run of {steps} steps")
    if schedule not in SCHEDULES:
        known = ", ".join(SCHEDULES)
        raise ValueError(f"schedule is {schedule!r}; allowed: {known}")
    # The warmup, joined with the schedule over the remaining steps
    after = SCHEDULES[schedule](learning_rate, max(steps - rise, 1))
    if rise:
        before = optax.linear_schedule(0.0, learning_rate, rise)
        after = optax.join_schedules([before, after], [rise])

    def rate(step):
        with jax.numpy_dtype_promotion("standard"):
            return after(step)

    return rate


def adamw(
    steps: int,
    *,
    learning_rate: float = 5e-5,
    warmup: float = 0.0,
    schedule: str = "linear",
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip_norm: float = 1.0,
    multipliers: tuple[tuple[str, float], ...] = (),
    freeze: str = "",
    freeze_rows: tuple[tuple[str, int, int, int], ...] = (),
) -> Optimizer:
    """AdamW; its defaults are the Hugging Face Trainer's.

    Args:
        steps: Number of updates in the whole run.
        learning_rate: Peak learning rate.
        warmup: A fraction of `steps` if below 1, else a number of steps.
        schedule: 'linear', 'cosine' or 'constant'.
        weight_decay: Decoupled weight decay, multiplied by the learning rate; not
            applied to biases and norms.
        betas: Decay rates of the two moments.
        eps: Addend of the square root of the second moment.
        clip_norm: Largest global norm of the gradients; 0 for no clipping.
        multipliers: (pattern, factor) rows; the first pattern found in a parameter's
            path scales its learning rate.
        freeze: Pattern of the parameters that are not updated and have no moments; ''
            for none.
        freeze_rows: (pattern, start, stop, step) for parameters in which the rows
            start:stop:step are not updated, such as the original rows of an extended
            position table.
    """
    rate = learning_rate_schedule(steps, learning_rate, warmup, schedule)
    # Frozen rows are zeroed before clipping and after weight decay
    tx = optax.chain(
        _zero_rows(freeze_rows),
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(*betas, eps),
        optax.add_decayed_weights(weight_decay, _decay_mask),
        _scale_by_path(multipliers),
        optax.scale_by_learning_rate(rate),
        _zero_rows(freeze_rows),  # the updates that weight decay added
    )
    # Frozen parameters get no moments
    if freeze:
        groups = {"train": tx, "freeze": optax.set_to_zero()}
        tx = optax.partition(groups, lambda params: _group_params(params, freeze))

    def update(gradients, state, params):
        with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
            return tx.update(gradients, state, params)

    return Optimizer(tx.init, update, rate)


def _decay_mask(params: Params) -> Params:
    return _map_by_path(params, lambda name: not re.search(_UNDECAYED, name))


def _group_params(params: Params, freeze: str) -> Params:
    groups = _map_by_path(
        params, lambda name: "freeze" if re.search(freeze, name) else "train"
    )
    # A pattern that matches nothing or everything is a mistake
    present = set(jax.tree.leaves(groups))
    if present != {"train", "freeze"}:
        extent = "no parameter" if present == {"train"} else "every parameter"
        raise ValueError(f"freeze {freeze!r} matches {extent}")
    return groups


def _scale_by_path(
    multipliers: Sequence[tuple[str, float]],
) -> optax.GradientTransformation:
    def factor(name):
        return next((f for pattern, f in multipliers if re.search(pattern, name)), 1.0)

    def update(updates, state, params=None):
        del params
        factors = _map_by_path(updates, factor)
        return jax.tree.map(lambda u, f: u * f, updates, factors), state

    def init(params):
        _check_found("multipliers", params, [pattern for pattern, _ in multipliers])
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def _zero_rows(
    rows: Sequence[tuple[str, int, int, int]],
) -> optax.GradientTransformation:
    """Sets the updates of some rows of some parameters to zero."""

    def zero_rows(path, update):
        for pattern, start, stop, step in rows:
            if re.search(pattern, path_name(path)):
                update = update.at[start:stop:step].set(0)
        return update

    def update(updates, state, params=None):
        del params
        return jax.tree_util.tree_map_with_path(zero_rows, updates), state

    def init(params):
        _check_found("freeze_rows", params, [pattern for pattern, *_ in rows])
        return optax.EmptyState()

    return optax.GradientTransformation(init, update)


def _check_found(argument: str, params: Params, patterns: Sequence[str]) -> None:
    names = jax.tree.leaves(_map_by_path(params, str))
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise ValueError(f"{argument}: {pattern!r} matches no parameter")


def _map_by_path(tree: Params, value: Callable[[str], Any]) -> Params:
    return jax.tree_util.tree_map_with_path(lambda p, _: value(path_name(p)), tree)


# (peak learning rate, number of steps) -> schedule after the warmup.
SCHEDULES = {
    "linear": lambda rate, steps: optax.linear_schedule(rate, 0.0, steps),
    "cosine": optax.cosine_decay_schedule,
    "constant": lambda rate, steps: optax.constant_schedule(rate),
}
OPTIMIZERS = {"adamw": adamw}

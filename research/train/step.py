"""The training step: loss, gradient and one update of the parameters, compiled."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from research.train.optimizers import Optimizer
from research.types import Key, Metrics, Objective, Params, TrainState

Step = Callable[[TrainState, Any, Key], tuple[TrainState, Metrics]]


def init_state(params: Params, frozen: Params, tx: Optimizer) -> TrainState:
    """The state before the first update."""
    # A copy, because the buffers of all parts are donated
    average = None if tx.average is None else jax.tree.map(jnp.copy, params)
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, frozen, tx.init(params), average)


def make_step(objective: Objective, tx: Optimizer, state_shardings: TrainState) -> Step:
    """Makes the compiled update (state, batch, key) -> (state, metrics).

    The state's buffers are donated. The key is that of the whole run; the step's number
    is folded into it here. If the loss or the gradient is not finite, the state is
    returned unchanged, with the same step number.

    Args:
        objective: The objective to minimize.
        tx: The optimizer.
        state_shardings: A TrainState of NamedShardings.

    Returns:
        A function whose metrics are [] float32: loss, grad_norm, param_norm,
        learning_rate, finite (1 or 0), and the objective's.
    """
    mesh = state_shardings.step.mesh
    replicated = NamedSharding(mesh, P())

    def step(state, batch, key):
        key = jax.random.fold_in(key, state.step)

        def loss(params):
            output = objective.loss(params, state.frozen, batch, key)
            return output.value, output

        # The loss and its gradient with respect to the trained parameters
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for split_hidden
            (value, output), grads = jax.value_and_grad(loss, has_aux=True)(
                state.params
            )

        # The next state, or the old one if the loss or the gradient is not finite
        frozen = state.frozen if output.frozen is None else output.frozen
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(value) & jnp.isfinite(grad_norm)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        done = state.step + 1
        average = tx.average and tx.average(done, state.average, params)
        next_state = TrainState(done, params, frozen, opt_state, average)
        next_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), next_state, state
        )

        # The objective's metrics and those of the step, all [] float32
        metrics = {
            **output.metrics,
            "loss": value,
            "grad_norm": grad_norm,
            "param_norm": optax.tree.norm(state.params),
            "learning_rate": tx.rate(state.step),
            "finite": finite,
        }
        metrics = {name: jnp.asarray(x, jnp.float32) for name, x in metrics.items()}
        return next_state, metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(state_shardings, replicated))

"""`Experiment`: the parts of a training run, and the state that it starts from."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from research import sharding
from research.train.optimizers import Optimizer
from research.train.step import init_state
from research.types import EmbedFn, Key, Objective, Params, TrainState


class Refresh(NamedTuple):
    """What a run does every few steps before it goes on, such as mining negatives.

    Attributes:
        every: Interval in steps, from step 0.
        run: (trained, frozen parameters, step) -> sentences about what was done. What
            it leaves on disk decides the batches up to the next call; if a killed run
            has left it, nothing is done.
        clear: Removes what an earlier run has left, before the first step.
        drop: (step) -> removes what no run from this step on reads.
    """

    every: int
    run: Callable[[Params, Params, int], Iterable[str]]
    clear: Callable[[], None]
    drop: Callable[[int], None]


class Experiment(NamedTuple):
    """Everything that a training run needs, built from a config.

    Attributes:
        objective: Initial parameters and loss.
        tx: Optimizer.
        batches: batches(step) -> this host's part of the Batch, in NumPy arrays;
            batches.source_name(step) -> name of the data source of that batch.
        mesh: Device mesh, of `sharding.make_mesh`.
        steps: Number of updates of the run.
        seed: Seed of parameters and dropout.
        log_every, save_every, eval_every: Interval in steps; 0 for the last step only.
            With eval_every, the untrained model is evaluated too, at step 0.
        keep: Number of newest checkpoints to keep.
        keep_every: Interval in steps of further checkpoints to keep; 0 for none.
        keep_best: Score whose best checkpoint is kept, too, such as "dev/main_score"
            ("-lm/loss" if smaller is better); "" for none. Every evaluation then saves
            a checkpoint.
        patience: Number of evaluations in a row without a better score of `keep_best`
            after which the run ends; 0 for no such end.
        evaluators: name -> function of an EmbedFn that returns scores.
        make_embedder: (trained, frozen parameters) -> EmbedFn, for the evaluators.
        measures: name -> function of (trained, frozen parameters) that returns scores.
        refresh: What the run does every few steps; None for nothing.
        initialize: key -> (trained, frozen) parameters to start from, in host memory;
            None for `objective.init`.
        note: Sentence about these initial parameters, printed and logged.
        data_notes: Sentences about the data, printed.
        data_hashes: name -> hash of the content of a data source, for the workdir; that
            of the files of a teacher is named "config.teacher".
        is_mixture: Whether there are several sources, whose losses are logged apart.
        tokenizer: Tokenizer of the run, for its workdir.
        model_card: Content of model.json: how the trained model embeds.
    """

    objective: Objective
    tx: Optimizer
    batches: Any
    mesh: Mesh
    steps: int
    seed: int = 0
    log_every: int = 10
    save_every: int = 1_000
    eval_every: int = 0
    keep: int = 2
    keep_every: int = 0
    keep_best: str = ""
    patience: int = 0
    evaluators: Mapping[str, Callable[[EmbedFn], Mapping[str, Any]]] = {}
    make_embedder: Callable[[Params, Params], EmbedFn] | None = None
    measures: Mapping[str, Callable[[Params, Params], Mapping[str, Any]]] = {}
    refresh: Refresh | None = None
    initialize: Callable[[Key], tuple[Params, Params]] | None = None
    note: str = ""
    data_notes: tuple[str, ...] = ()
    data_hashes: Mapping[str, str] = {}
    is_mixture: bool = False
    tokenizer: Any = None
    model_card: Mapping[str, Any] = {}


def abstract_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """The shapes of the run's state, with their shardings on a mesh."""

    def init(key):
        return init_state(*experiment.objective.init(key), experiment.tx)

    shapes = jax.eval_shape(init, jax.random.key(0))
    shardings = sharding.shardings(shapes, mesh)
    return jax.tree.map(
        lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to),
        shapes,
        shardings,
    )


def initial_state(experiment: Experiment, target: TrainState) -> TrainState:
    """The state before the first step, sharded as `abstract_state`."""
    shardings = jax.tree.map(lambda x: x.sharding, target)
    key = run_keys(experiment)[0]
    parameter_shardings = (shardings.params, shardings.frozen)
    if experiment.initialize is None:
        init = jax.jit(experiment.objective.init, out_shardings=parameter_shardings)
        params, frozen = init(key)
    else:
        params, frozen = jax.device_put(experiment.initialize(key), parameter_shardings)
    # Add the optimizer state, sharded like the parameters
    make_state = jax.jit(
        lambda params, frozen: init_state(params, frozen, experiment.tx),
        out_shardings=shardings,
    )
    return make_state(params, frozen)


def run_keys(experiment: Experiment) -> Key:
    """The two PRNG keys of a run, [2]: one for initialization, one for the steps."""
    return jax.random.split(jax.random.key(experiment.seed))

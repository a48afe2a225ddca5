"""The training loop: steps, reports, evaluations and checkpoints of one experiment."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from research import sharding
from research.atomic_write import write_json
from research.file_lock import lock_folder
from research.processes import call_on_first
from research.progress import show_progress
from research.train import checkpoints
from research.train.logging import Log, SilentLog, write_versions
from research.train.optimizers import Optimizer
from research.train.prefetch import prepare_batches
from research.train.profiling import StepTrace
from research.train.step import init_state, make_step
from research.train.stop_signals import catch_stop_signals
from research.train.throughput import Meter
from research.types import EmbedFn, Key, Objective, Params, TrainState

_IN_FLIGHT = 2  # steps queued on the device, and batches prepared ahead of it


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
        evaluators: name -> function of an EmbedFn that returns scores.
        make_embedder: (trained, frozen parameters) -> EmbedFn, for the evaluators.
        measures: name -> function of (trained, frozen parameters) that returns scores.
        initialize: key -> (trained, frozen) parameters to start from, in host memory;
            None for `objective.init`.
        note: Sentence about these initial parameters, printed and logged.
        data_notes: Sentences about the data, printed.
        data_hashes: name -> hash of the content of a data source, for the workdir.
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
    evaluators: Mapping[str, Callable[[EmbedFn], Mapping[str, Any]]] = {}
    make_embedder: Callable[[Params, Params], EmbedFn] | None = None
    measures: Mapping[str, Callable[[Params, Params], Mapping[str, Any]]] = {}
    initialize: Callable[[Key], tuple[Params, Params]] | None = None
    note: str = ""
    data_notes: tuple[str, ...] = ()
    data_hashes: Mapping[str, str] = {}
    tokenizer: Any = None
    model_card: Mapping[str, Any] = {}


class Result(NamedTuple):
    """How a run ended.

    Attributes:
        state: State after the last step.
        metrics: Last row of the log.
        evals: name -> scores at the last step, if this call evaluated it; {"error":
            sentence} of an evaluator that could not score the model.
        finished: False if a signal stopped the run.
    """

    state: TrainState
    metrics: Mapping[str, Any]
    evals: Mapping[str, Mapping[str, Any]]
    finished: bool


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


def train(
    experiment: Experiment,
    workdir: Path,
    *,
    profile_steps: range = range(0),
    wandb_project: str | None = None,
) -> Result:
    """Trains to the last step; resumes from the newest checkpoint in the workdir.

    SIGTERM and SIGINT save a checkpoint and return; one process that gets them stops
    all processes of the run. Only the first process writes logs and scores.

    Args:
        experiment: The parts of the run.
        workdir: Folder of the run.
        profile_steps: Steps that the first process traces into WORKDIR/profile.
        wandb_project: Project of Weights & Biases that gets the log, too; None for
            none.

    Raises:
        ValueError: A loss or gradient is not finite, the workdir cannot be written,
            another run is in it, or a step to profile has been made before.
        jax.errors.JaxRuntimeError: Another process of this run has died.
    """
    workdir = Path(workdir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folder(workdir))
        call_on_first(partial(write_versions, workdir), "writing to the workdir")
        manager = checkpoints.open_manager(
            workdir / "checkpoints",
            keep=experiment.keep,
            keep_every=experiment.keep_every,
        )
        stack.enter_context(contextlib.closing(manager))
        should_stop = stack.enter_context(catch_stop_signals())
        # Restore the newest checkpoint, or start from the initial parameters
        target = abstract_state(experiment, experiment.mesh)
        state = checkpoints.restore(manager, target)
        resumed = 0 if state is None else int(state.step)
        trace = StepTrace(workdir / "profile", profile_steps, resumed)
        stack.enter_context(contextlib.closing(trace))
        note = experiment.note
        if state is None:
            state = initial_state(experiment, target)
        else:
            note = f"resuming from step {int(state.step)}"
        # Only the first process has a log
        make_log = SilentLog if jax.process_index() else Log
        log = make_log(workdir, experiment.steps, int(state.step), wandb_project)
        stack.enter_context(contextlib.closing(log))
        for line in (note, *experiment.data_notes):
            log.print_line(line)
        if experiment.note and not int(state.step):
            log.write({"step": 0, "note": experiment.note})
        _, shares = sharding.find_process_share(experiment.mesh)
        meter = Meter(experiment.mesh.devices.flatten().tolist(), shares)
        run = _Run(experiment, workdir, manager, log, meter, trace)
        result = _train_steps(run, state, should_stop)
        checkpoints.wait(manager)
        if not result.finished:
            log.print_line(
                f"stopped by a signal; step {int(result.state.step)} is saved, and the "
                "same command goes on from there"
            )
    return result


class _Run(NamedTuple):
    experiment: Experiment
    workdir: Path
    manager: checkpoints.Manager
    log: Log | SilentLog
    meter: Meter
    trace: StepTrace


def _train_steps(
    run: _Run, state: TrainState, should_stop: Callable[[int], bool]
) -> Result:
    """Runs all remaining steps, with reports, checkpoints and evaluations."""
    experiment = run.experiment
    first = done = int(state.step)
    row, evals = {}, {}
    # Evaluate the initial model, or the one restored from the checkpoint
    if _is_due(first, experiment.eval_every, experiment.steps):
        with run.meter.pause("evaluation_seconds"):
            evals = _evaluate(run, state, first)
    advance = run.trace.surround(_make_advance(run, state))
    steps = range(first, experiment.steps)
    with contextlib.closing(
        prepare_batches(experiment.batches, experiment.mesh, steps, _IN_FLIGHT)
    ) as batches:
        for done in range(first + 1, experiment.steps + 1):
            state = advance(state, batches, done)
            stop = should_stop(done)
            save, evaluate, report = (
                _is_due(done, interval, experiment.steps)
                for interval in (
                    experiment.save_every,
                    experiment.eval_every,
                    experiment.log_every,
                )
            )
            if stop or save or evaluate or report:
                row = _report(run, done)
            if stop or save:
                with run.meter.pause("save_seconds"):
                    checkpoints.save(run.manager, state)
            if evaluate:
                with run.meter.pause("evaluation_seconds"):
                    evals = _evaluate(run, state, done)
            if stop:
                break
    return Result(state, row, evals, done == experiment.steps)


def _make_advance(run: _Run, state: TrainState):
    """Makes (state, batches, step number) -> state, which only queues the step."""
    experiment, meter = run.experiment, run.meter
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_step(experiment.objective, experiment.tx, shardings)
    key = _run_keys(experiment)[1]
    queue = deque()

    def advance(state, batches, done):
        start = time.perf_counter()
        batch, stats = next(batches)
        ready = time.perf_counter()
        # Waiting for a batch costs nothing while the device has queued steps.
        idle = not queue or queue[-1].is_ready()
        # A batch with new shapes compiles the step, which blocks the call
        compiles = meter.add_program(stats, step, state, batch, key)
        with contextlib.ExitStack() as stack:
            if compiles:
                stack.enter_context(show_progress("compiling the step"))
            state, metrics = step(state, batch, key)
        compiling = time.perf_counter() - ready if compiles else 0.0
        meter.add(done, stats, metrics, (ready - start) * idle, compiling)
        queue.append(metrics["loss"])
        if len(queue) > _IN_FLIGHT:  # the device still has queued steps meanwhile
            queue.popleft().block_until_ready()
        run.log.progress(done)
        return state

    return advance


def _report(run: _Run, done: int) -> dict[str, Any]:
    """Logs the steps since the last report and returns the last row of the log.

    Raises:
        ValueError: A loss or gradient is not finite.
    """
    rows = run.meter.collect_rows()
    for row in rows:
        if not row["finite"]:
            run.log.flush()
            raise ValueError(
                f"the loss ({row['loss']}) or its gradient (norm {row['grad_norm']}) "
                f"is not finite at step {row['step']}, on a batch of {row['source']}; "
                "the checkpoints are as they were"
            )
        run.log.write(row)
    run.log.flush()
    left = (run.experiment.steps - done) / rows[-1]["steps_per_second"]
    run.log.show(rows[-1], left)
    return rows[-1]


def _evaluate(run: _Run, state: TrainState, done: int) -> dict[str, dict[str, Any]]:
    """Runs every evaluator and measure; writes scores to the log and to evals/.

    Every process runs them, each on its devices and its share of the texts, and all
    get the same scores.
    """
    experiment = run.experiment
    # Evaluators take an embedder, measures take the parameters
    model = sharding.gather_params((state.params, state.frozen), experiment.mesh)
    calls = {name: partial(f, *model) for name, f in experiment.measures.items()}
    if experiment.evaluators:
        embed = experiment.make_embedder(*model)
        calls |= {name: partial(f, embed) for name, f in experiment.evaluators.items()}
    if not calls:
        return {}
    evals, row = {}, {"step": done}
    for name, call in calls.items():
        try:
            scores = dict(call())
        except ValueError as error:
            # Not the end of the run: a resumed one would end here, too
            run.log.print_line(f"evals.{name} has no scores at step {done}: {error}")
            scores = {"error": str(error)}
        evals[name] = scores
        path = run.workdir / "evals" / f"{name}-{done}.json"
        if jax.process_index() == 0:
            write_json(path, {"step": done, **scores})
        # The log holds finite scalars only; the JSON file also holds lists and text
        scalars = {
            key: float(value)
            for key, value in scores.items()
            if np.isscalar(value) and not isinstance(value, str) and np.isfinite(value)
        }
        row |= {f"eval/{name}/{key}": value for key, value in scalars.items()}
        listed = "  ".join(f"{key} {value:.2f}" for key, value in scalars.items())
        run.log.print_line(f"step {done}/{experiment.steps}  {name}: {listed}")
    run.log.write(row)
    run.log.flush()
    return evals


def initial_state(experiment: Experiment, target: TrainState) -> TrainState:
    """The state before the first step, sharded as `abstract_state`."""
    shardings = jax.tree.map(lambda x: x.sharding, target)
    key = _run_keys(experiment)[0]
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


def _run_keys(experiment: Experiment) -> Key:
    """The two PRNG keys of a run, [2]: one for initialization, one for the steps."""
    return jax.random.split(jax.random.key(experiment.seed))


def _is_due(done: int, interval: int, steps: int) -> bool:
    """Whether an action is due: at multiples of the interval, and at the last step."""
    return done == steps or bool(interval) and done % interval == 0

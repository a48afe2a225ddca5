"""The training loop: there is one, and what differs between runs is handed to it."""

import contextlib
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from research import sharding
from research.atomic_write import write_json
from research.train import checkpoints
from research.train.logging import Log, versions
from research.train.optimizers import Optimizer
from research.train.step import init_state, make_step
from research.train.throughput import BatchStats, Meter, batch_stats
from research.types import EmbedFn, Key, Objective, Params, TrainState

_IN_FLIGHT = 2  # steps queued on the device, and batches prepared ahead of it


class Experiment(NamedTuple):
    """The built parts of a run.

    Attributes:
        objective: what is minimised.
        tx: how.
        batches: batches(step) -> Batch of numpy arrays, this host's part;
            batches.source_name(step) -> the name of the source that the batch is from.
        mesh: axes 'data' and 'model'.
        steps: updates of the whole run.
        seed: of parameters and dropout.
        fsdp: split parameters over 'data' too.
        log_every, save_every, eval_every: in steps; 0 for only at the end. With
            eval_every, step 0 is evaluated too: the model before training.
        keep: the newest checkpoints that stay.
        keep_every: checkpoints at its multiples stay too; 0 for none.
        evaluators: name -> function of an EmbedFn that gives scores.
        make_embedder: (trained, frozen parameters) -> EmbedFn, for the evaluators.
        measures: name -> function of (trained, frozen parameters) that gives scores.
        initialize: key -> (trained, frozen) parameters to start from, in host memory;
            None for `objective.init`.
        note: Sentence on these parameters, printed and logged.
        tokenizer: Tokenizer of the run, for its workdir.
        model_card: Content of model.json: how the trained model embeds.
    """

    objective: Objective
    tx: Optimizer
    batches: Any
    mesh: Mesh
    steps: int
    seed: int = 0
    fsdp: bool = False
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
    tokenizer: Any = None
    model_card: Mapping[str, Any] = {}


class Result(NamedTuple):
    """How a run ended.

    Attributes:
        state: the last one.
        metrics: the last row of the log.
        evals: name -> the scores at the last step, if it was evaluated now.
        finished: False if a signal stopped it.
    """

    state: TrainState
    metrics: Mapping[str, Any]
    evals: Mapping[str, Mapping[str, Any]]
    finished: bool


def abstract_state(experiment: Experiment, mesh: Mesh) -> TrainState:
    """The state's shapes, with their shardings on a mesh."""

    def init(key):
        return init_state(*experiment.objective.init(key), experiment.tx)

    shapes = jax.eval_shape(init, jax.random.key(0))
    places = sharding.shardings(shapes, mesh, fsdp=experiment.fsdp)
    return jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        places,
    )


def train(experiment: Experiment, workdir: Path) -> Result:
    """Trains to the last step, from the newest checkpoint in the workdir if it has one.

    SIGTERM and SIGINT save a checkpoint and return. With several hosts, all but the
    first write their logs under hosts/.

    Raises:
        ValueError: a loss or gradient is not finite, or the workdir cannot be written.
    """
    folder = workdir = Path(workdir)
    if jax.process_index():
        folder = workdir / "hosts" / str(jax.process_index())
    try:
        write_json(folder / "versions.json", versions())
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {error.strerror}") from error
    manager = checkpoints.open_manager(
        workdir / "checkpoints", keep=experiment.keep, keep_every=experiment.keep_every
    )
    with contextlib.closing(manager), _signals() as stopped:
        target = abstract_state(experiment, experiment.mesh)
        state = checkpoints.restore(manager, target)
        if state is None:
            state = initial_state(experiment, target)
        else:
            print(f"resuming from step {int(state.step)}", file=sys.stderr)
        with contextlib.closing(Log(folder, experiment.steps, int(state.step))) as log:
            if experiment.note and not int(state.step):
                print(experiment.note, file=sys.stderr)
                log.write({"step": 0, "note": experiment.note})
            parts = _Run(experiment, folder, manager, log, Meter())
            result = _train(parts, state, stopped)
        checkpoints.wait(manager)
    return result


class _Run(NamedTuple):
    experiment: Experiment
    folder: Path
    manager: checkpoints.Manager
    log: Log
    meter: Meter


def _train(parts: _Run, state: TrainState, stopped: Callable[[int], bool]) -> Result:
    experiment = parts.experiment
    first = done = int(state.step)
    row, evals = {}, {}
    if _due(first, experiment.eval_every, experiment.steps):
        evals = _evaluate(parts, state, first)
        parts.meter.restart()
    advance = _make_advance(parts, state)
    with contextlib.closing(_batches(experiment, first)) as batches:
        for done in range(first + 1, experiment.steps + 1):
            state = advance(state, batches, done)
            stop = stopped(done)
            save, evaluate, report = (
                _due(done, every, experiment.steps)
                for every in (
                    experiment.save_every,
                    experiment.eval_every,
                    experiment.log_every,
                )
            )
            if stop or save or evaluate or report:
                row = _report(parts, done)
            if stop or save:
                checkpoints.save(parts.manager, state)
            if evaluate:
                evals = _evaluate(parts, state, done)
            if stop:
                break
            if save or evaluate:
                parts.meter.restart()
    return Result(state, row, evals, done == experiment.steps)


def _make_advance(parts: _Run, state: TrainState):
    """(state, batches, number of the step) -> state, without waiting for the device."""
    experiment, meter = parts.experiment, parts.meter
    places = jax.tree.map(lambda x: x.sharding, state)
    step = make_step(experiment.objective, experiment.tx, places)
    key = _keys(experiment)[1]
    queue = deque()

    def advance(state, batches, done):
        asked = time.perf_counter()
        batch, fact = next(batches)
        got = time.perf_counter()
        idle = not queue or queue[-1].is_ready()
        state, metrics = step(state, batch, key)
        compiled = time.perf_counter() - got if meter.is_new(fact) else 0.0
        meter.add(done, fact, metrics, (got - asked) * idle, compiled)
        queue.append(metrics["loss"])
        if len(queue) > _IN_FLIGHT:  # the device has work left while this waits
            queue.popleft().block_until_ready()
        parts.log.progress(done)
        return state

    return advance


def _report(parts: _Run, done: int) -> dict[str, Any]:
    """Writes the rows of the steps since the last report; gives the last one."""
    rows = parts.meter.rows()
    for row in rows:
        if not row["finite"]:
            parts.log.flush()
            raise ValueError(
                f"the loss ({row['loss']}) or its gradient (norm {row['grad_norm']}) "
                f"is not finite at step {row['step']}, on a batch of {row['source']}; "
                "the checkpoints are as they were"
            )
        parts.log.write(row)
    parts.log.flush()
    left = (parts.experiment.steps - done) / rows[-1]["steps_per_second"]
    parts.log.show(rows[-1], left)
    return rows[-1]


def _evaluate(parts: _Run, state: TrainState, done: int) -> dict[str, dict[str, Any]]:
    """Runs every evaluator and measure; scores go to the log and to evals/."""
    experiment = parts.experiment
    model = state.params, state.frozen
    calls = {name: partial(f, *model) for name, f in experiment.measures.items()}
    if experiment.evaluators:
        embed = experiment.make_embedder(*model)
        calls |= {name: partial(f, embed) for name, f in experiment.evaluators.items()}
    if not calls:
        return {}
    evals, row = {}, {"step": done}
    for name, call in calls.items():
        scores = evals[name] = dict(call())
        path = parts.folder / "evals" / f"{name}-{done}.json"
        write_json(path, {"step": done, **scores})
        row |= {
            f"eval/{name}/{key}": float(value)
            for key, value in scores.items()
            if np.isscalar(value) and not isinstance(value, str)
        }
    parts.log.write(row)
    parts.log.flush()
    return evals


def initial_state(experiment: Experiment, target: TrainState) -> TrainState:
    """The state before the first step, with the shardings of `abstract_state`."""
    places = jax.tree.map(lambda x: x.sharding, target)
    key = _keys(experiment)[0]
    where = (places.params, places.frozen)
    if experiment.initialize is None:
        params, frozen = jax.jit(experiment.objective.init, out_shardings=where)(key)
    else:
        params, frozen = jax.device_put(experiment.initialize(key), where)
    start = jax.jit(
        lambda params, frozen: init_state(params, frozen, experiment.tx),
        out_shardings=places,
    )
    return start(params, frozen)


def _keys(experiment: Experiment) -> Key:
    """[2] keys: of the parameters, and of the steps."""
    return jax.random.split(jax.random.key(experiment.seed))


def _batches(experiment: Experiment, first: int) -> Iterator[tuple[Any, BatchStats]]:
    """(batch on the mesh, its facts) from a step on, prepared ahead in a thread."""

    def prepare(step):
        batch = experiment.batches(step)
        fact = batch_stats(batch, experiment.batches.source_name(step))
        return sharding.put_batch(batch, experiment.mesh), fact

    with ThreadPoolExecutor(1) as pool:
        steps = range(first, experiment.steps)
        queue = deque(pool.submit(prepare, step) for step in steps[:_IN_FLIGHT])
        for step in steps:
            ready = queue.popleft().result()
            if step + _IN_FLIGHT in steps:
                queue.append(pool.submit(prepare, step + _IN_FLIGHT))
            yield ready


def _due(done: int, every: int, steps: int) -> bool:
    return done == steps or bool(every) and done % every == 0


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[int], bool]]:
    """Whether to stop after a step: the first SIGTERM or SIGINT asks for it.

    A second one acts as it would without us. With several hosts, all stop after the
    same step.
    """
    asked = []
    names = (signal.SIGTERM, signal.SIGINT)
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: False
        return
    before = {name: signal.getsignal(name) for name in names}

    def restore():
        for name in names:
            signal.signal(name, before[name])

    def ask(number, _):
        asked.append(number)
        restore()

    def stopped(done):
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(done)
        return bool(asked)

    for name in names:
        signal.signal(name, ask)
    try:
        yield stopped
    finally:
        restore()

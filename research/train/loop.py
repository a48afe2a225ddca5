"""The training loop: steps, reports, evaluations and checkpoints of one experiment."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from research import sharding
from research.file_lock import lock_folder
from research.processes import call_on_first
from research.progress import show_progress
from research.train import checkpoints
from research.train.evaluations import (
    History,
    check_metric,
    count_since_best,
    find_best,
    format_scores,
    read_history,
    run_evaluations,
)
from research.train.experiment import (
    Experiment,
    abstract_state,
    initial_state,
    run_keys,
)
from research.train.logging import Log, SilentLog, write_versions
from research.train.prefetch import prepare_batches
from research.train.profiling import StepTrace
from research.train.step import make_step
from research.train.stop_signals import catch_stop_signals
from research.train.throughput import Meter
from research.types import TrainState

_IN_FLIGHT = 2  # steps queued on the device, and batches prepared ahead of it


class Result(NamedTuple):
    """How a run ended.

    Attributes:
        state: State after the last step.
        metrics: Last row of the log.
        evals: name -> scores at the last step, if this call evaluated it; {"error":
            sentence} of an evaluator that could not score the model.
        best: The best evaluation of the run; None without `keep_best`.
        finished: False if a signal stopped the run.
    """

    state: TrainState
    metrics: Mapping[str, Any]
    evals: Mapping[str, Mapping[str, Any]]
    best: checkpoints.Best | None
    finished: bool


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
    history: History = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folder(workdir))
        call_on_first(partial(write_versions, workdir), "writing to the workdir")
        manager = checkpoints.open_manager(
            workdir / "checkpoints",
            keep=experiment.keep,
            keep_every=experiment.keep_every,
            find_best=partial(find_best, history, experiment.keep_best),
        )
        stack.enter_context(contextlib.closing(manager))
        should_stop = stack.enter_context(catch_stop_signals())
        # Restore the newest checkpoint, or start from the initial parameters
        target = abstract_state(experiment, experiment.mesh)
        state = checkpoints.restore(manager, target)
        resumed = 0 if state is None else int(state.step)
        history |= read_history(workdir, resumed)
        trace = StepTrace(workdir / "profile", profile_steps, resumed)
        stack.enter_context(contextlib.closing(trace))
        note = experiment.note
        if state is None:
            state = initial_state(experiment, target)
            if experiment.refresh:
                call_on_first(experiment.refresh.clear, "clearing the workdir")
        else:
            note = f"resuming from step {resumed} of {experiment.steps}"
        # Only the first process has a log
        make_log = SilentLog if jax.process_index() else Log
        log = make_log(workdir, experiment.steps, resumed, wandb_project)
        stack.enter_context(contextlib.closing(log))
        for line in (note, *experiment.data_notes):
            log.print_line(line)
        if experiment.note and not resumed:
            log.write({"step": 0, "note": experiment.note})
        _, shares = sharding.find_process_share(experiment.mesh)
        devices = experiment.mesh.devices.flatten().tolist()
        meter = Meter(devices, shares, is_mixture=experiment.is_mixture)
        run = _Run(experiment, workdir, manager, log, meter, trace, history)
        result = _train_steps(run, state, should_stop)
        checkpoints.wait(manager)
        for line in _describe_end(run, result):
            log.print_line(line)
    return result


class _Run(NamedTuple):
    experiment: Experiment
    workdir: Path
    manager: checkpoints.Manager
    log: Log | SilentLog
    meter: Meter
    trace: StepTrace
    history: History


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
    best = _record_best(run)
    if _should_refresh(experiment, first):
        _refresh(run, state, first)
    advance = run.trace.surround(_make_advance(run, state))
    steps = range(first, first if _has_stalled(run) else experiment.steps)
    interval = experiment.refresh.every if experiment.refresh else 0
    with contextlib.closing(
        prepare_batches(
            experiment.batches, experiment.mesh, steps, _IN_FLIGHT, interval
        )
    ) as batches:
        for done in range(steps.start + 1, steps.stop + 1):
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
            save |= evaluate and bool(experiment.keep_best)
            refresh = _should_refresh(experiment, done)
            if stop or save or evaluate or report or refresh:
                row = _report(run, done)
            if stop or save:
                with run.meter.pause("save_seconds"):
                    checkpoints.save(run.manager, state)
            if evaluate:
                with run.meter.pause("evaluation_seconds"):
                    evals = _evaluate(run, state, done)
                best = _record_best(run)
            if stop or _has_stalled(run):
                break
            if refresh:
                _refresh(run, state, done)
    finished = done == experiment.steps or _has_stalled(run)
    return Result(state, row, evals, best, finished)


def _record_best(run: _Run) -> checkpoints.Best | None:
    """The best evaluation that has a checkpoint, after writing it to the workdir."""
    best = find_best(
        run.history, run.experiment.keep_best, set(run.manager.all_steps())
    )
    if jax.process_index() == 0:
        checkpoints.write_best(run.workdir, best)
    return best


def _has_stalled(run: _Run) -> bool:
    """Whether the last `patience` evaluations have brought nothing better."""
    patience, metric = run.experiment.patience, run.experiment.keep_best
    return 0 < patience <= count_since_best(run.history, metric)


def _describe_end(run: _Run, result: Result) -> Iterator[str]:
    """Sentences about how a run ended."""
    steps, step = run.experiment.steps, int(result.state.step)
    if not result.finished:
        yield (
            f"stopped by a signal; step {step} is saved, and the same command goes on "
            "from there"
        )
    elif step < steps:
        yield (
            f"ended early at step {step} of {steps}: no better "
            f"{run.experiment.keep_best} in {run.experiment.patience} evaluations; "
            "--config.patience=0 goes on"
        )
    elif not result.metrics:
        yield f"this run is finished: all its {steps} steps were done before"
    if result.best:
        yield (
            f"best {result.best.metric}: {result.best.score:.2f} at step "
            f"{result.best.step}, which evaluate, embed, search and export will take"
            f"{_compare_untrained(run, result.best)}"
        )


def _compare_untrained(run: _Run, best: checkpoints.Best) -> str:
    """A remark if the training made no model better than the one it started from."""
    name = best.metric.removeprefix("-")
    untrained = run.history.get(0, {}).get(name)
    sign = -1 if best.metric.startswith("-") else 1
    if untrained is None or sign * best.score > sign * untrained:
        return ""
    return f"; it is no better than the untrained model ({untrained:.2f})"


def _make_advance(run: _Run, state: TrainState):
    """Makes (state, batches, step number) -> state, which only queues the step."""
    experiment, meter = run.experiment, run.meter
    shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_step(experiment.objective, experiment.tx, shardings)
    key = run_keys(experiment)[1]
    queue = deque()

    def advance(state, batches, done):
        start = time.perf_counter()
        batch, stats = next(batches)
        ready = time.perf_counter()
        # Waiting for a batch costs nothing while the device has queued steps.
        idle = not queue or queue[-1].is_ready()
        # A batch with new shapes compiles the step, which blocks the call
        compiles = meter.add_program(stats, step, state, batch, key)
        phase = "compiling the step"
        with show_progress(phase) if compiles else contextlib.nullcontext():
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
    run.log.show(rows, left)
    return rows[-1]


def _evaluate(run: _Run, state: TrainState, done: int) -> dict[str, dict[str, Any]]:
    """Runs every evaluator and measure; adds their scores to the history.

    Every process runs them, each on its devices and its share of the texts, and all
    get the same scores.

    Raises:
        ValueError: `keep_best` is none of the scores.
    """
    experiment = run.experiment
    # Evaluators take an embedder, measures take the parameters
    model = sharding.gather_params((state.model_params, state.frozen), experiment.mesh)
    calls = {name: partial(f, *model) for name, f in experiment.measures.items()}
    if experiment.evaluators:
        embed = experiment.make_embedder(*model)
        calls |= {name: partial(f, embed) for name, f in experiment.evaluators.items()}
    if not calls:
        return {}
    evals, scores = run_evaluations(calls, done, run.workdir, run.log)
    check_metric(experiment.keep_best, evals, scores)
    run.history[done] = scores
    for line in format_scores(run.history, done, experiment.keep_best):
        run.log.print_line(f"step {done}/{experiment.steps}  {line}")
    run.log.show_size_losses()
    return evals


def _should_refresh(experiment: Experiment, done: int) -> bool:
    """Whether the next step is the first after what the run does every few steps."""
    refresh = experiment.refresh
    return bool(refresh) and done < experiment.steps and done % refresh.every == 0


def _refresh(run: _Run, state: TrainState, done: int) -> None:
    """Does what the batches of the next steps depend on, with the current model."""
    experiment = run.experiment
    with run.meter.pause("refresh_seconds"):
        model = sharding.gather_params((state.params, state.frozen), experiment.mesh)
        for line in experiment.refresh.run(*model, done):
            run.log.print_line(f"step {done}/{experiment.steps}  {line}")
        call_on_first(partial(_drop_refreshed, run), "clearing the workdir")


def _drop_refreshed(run: _Run) -> None:
    """Removes what no checkpoint needs any more."""
    if steps := checkpoints.list_steps(run.workdir / "checkpoints"):
        run.experiment.refresh.drop(min(steps))


def _is_due(done: int, interval: int, steps: int) -> bool:
    """Whether an action is due: at multiples of the interval, and at the last step."""
    return done == steps or bool(interval) and done % interval == 0

"""Evaluations of a run: their scores by step, the best one, those since then."""

from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from research.atomic_write import write_json
from research.train.checkpoints import Best
from research.train.logging import Log, SilentLog, read_rows

# {step: {"dev/main_score": score}}
History = dict[int, dict[str, float]]


def read_history(workdir: Path, before: int) -> History:
    """The scores of all evaluations before a step, from metrics.jsonl."""
    path = workdir / "metrics.jsonl"
    history = {}
    for row in read_rows(path) if path.exists() else []:
        scores = {
            name.removeprefix("eval/"): value
            for name, value in row.items()
            if name.startswith("eval/")
        }
        if scores and row["step"] < before:
            history[row["step"]] = scores
    return history


def find_best(
    history: History, metric: str, steps: Container[int] | None = None
) -> Best | None:
    """The best evaluation, the earliest of equal ones; None if none has the metric.

    The untrained model, at step 0, does not count: a loss over sizes may cost it some
    of its score at full size, which is no reason to hand it on as the result.

    Args:
        history: Scores by step.
        metric: As in `Best`; "" for none.
        steps: Steps that count, such as those with a checkpoint; None for all.
    """
    name = metric.removeprefix("-")
    scores = {
        step: scores[name]
        for step, scores in sorted(history.items())
        if step and name in scores and (steps is None or step in steps)
    }
    if not scores:
        return None
    choose = min if metric.startswith("-") else max  # both return the first of equals
    step = choose(scores, key=scores.get)
    return Best(metric, step, scores[step])


def count_since_best(history: History, metric: str) -> int:
    """Number of the evaluations after the best one."""
    best = find_best(history, metric)
    name = metric.removeprefix("-")
    return sum(name in history[step] for step in history if best and step > best.step)


def run_evaluations(
    calls: Mapping[str, Callable[[], Mapping[str, Any]]],
    step: int,
    workdir: Path,
    log: Log | SilentLog,
) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    """Runs evaluations, and writes their scores to the log and to evals/.

    Args:
        calls: name -> function that returns scores.
        step: Step of the model.
        workdir: Folder of the run.
        log: Its log.

    Returns:
        evals: name -> scores; {"error": sentence} of one that has none.
        scalars: {"name/score": number} of all finite numbers.
    """
    evals, scalars = {}, {}
    for name, call in calls.items():
        try:
            scores = dict(call())
        except ValueError as error:
            # Not the end of the run: a resumed one would end here, too
            log.print_line(f"evals.{name} has no scores at step {step}: {error}")
            scores = {"error": str(error)}
        evals[name] = scores
        if jax.process_index() == 0:
            path = workdir / "evals" / f"{name}-{step}.json"
            write_json(path, {"step": step, **scores})
        # The log holds finite scalars only; the JSON file also holds lists and text
        scalars |= {
            f"{name}/{key}": float(value)
            for key, value in scores.items()
            if np.isscalar(value) and not isinstance(value, str) and np.isfinite(value)
        }
    log.write({"step": step} | {f"eval/{key}": x for key, x in scalars.items()})
    log.flush()
    return evals, scalars


def check_metric(
    metric: str,
    evals: Mapping[str, Mapping[str, Any]],
    scalars: Mapping[str, float],
) -> None:
    """Raises ValueError if no evaluation has the metric of the best checkpoint.

    Args:
        metric: As in `Best`; "" for none.
        evals, scalars: Those of `run_evaluations`.
    """
    name, _, key = metric.removeprefix("-").partition("/")
    # Without scores, and with one that is not finite, the name may still be correct
    unknown = name not in evals or not {key, "error"} & set(evals[name])
    if metric and unknown:
        raise ValueError(
            f"keep_best is {metric!r}; the scores of the evaluations are "
            f"{', '.join(scalars)}"
        )


def format_scores(history: History, step: int, metric: str) -> list[str]:
    """One line per evaluation at a step: scores, and their changes since the last one.

    Args:
        history: Scores by step, those of this step included.
        step: The step.
        metric: As in `Best`; its score is marked if it is the best so far.
    """
    earlier = [s for s in sorted(history) if s < step]
    best = find_best(history, metric)
    lines: dict[str, list[str]] = {}
    for name, score in history[step].items():
        # The last evaluation that had this score
        before = [history[s][name] for s in earlier if name in history[s]][-1:]
        notes = [f"{score - x:+.2f}" for x in before]
        if best and best.step == step and name == metric.removeprefix("-"):
            notes.append("best")
        evaluation, _, key = name.partition("/")
        note = f" ({', '.join(notes)})" if notes else ""
        lines.setdefault(evaluation, []).append(f"{key} {score:.2f}{note}")
    return [f"{name}: {'  '.join(scores)}" for name, scores in lines.items()]

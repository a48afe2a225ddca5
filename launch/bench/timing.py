"""Timing of programs in alternation, so that all run under the same conditions."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from launch import main as cli

Turn = Callable[[int], None]  # one run of a program; the argument is the round
# Seconds of rest before a run, since idle threads of the run before spin for a while.
REST = 0.5


def time_turns(programs: Mapping[str, Turn], rounds: int) -> dict[str, float]:
    """Median seconds per run of each program, after one run of each to warm up."""
    seconds = {name: [] for name in programs}
    for turn in range(rounds + 1):
        for name, run in programs.items():
            time.sleep(REST)
            start = time.perf_counter()
            run(turn)
            elapsed = time.perf_counter() - start
            cli.log(f"turn {turn}: {name} {elapsed:.2f} s")
            if turn:
                seconds[name].append(elapsed)
    return {name: statistics.median(values) for name, values in seconds.items()}


def compare_turns(ours: Turn, theirs: Turn, rounds: int) -> dict:
    """Median seconds of both programs, and how many times faster ours is."""
    medians = time_turns({"ours": ours, "theirs": theirs}, rounds)
    ratio = medians["theirs"] / medians["ours"]
    return {"seconds": medians, "ratio": ratio, "rounds": rounds}


def time_steps(
    run: Callable[[int], Any],
    wait: Callable[[Any], Any],
    *,
    warm_up: int = 3,
    rounds: int = 3,
    seconds: float = 0.7,
    max_steps: int = 200,
) -> dict[str, float]:
    """Seconds per step of a program whose steps are queued on the device.

    Steps are started one after the other, and only the last of a round is waited for,
    as in training.

    Args:
        run: Starts step i; returns a value that `wait` can wait for.
        wait: Waits for the value of a step.
        warm_up: Number of steps before the timed ones.
        rounds: Number of timed rounds.
        seconds: Approximate duration of a round.
        max_steps: Maximum number of steps in a round.

    Returns:
        seconds: Median over the rounds of the seconds per step.
        spread: Largest minus smallest, relative to the median.
        steps: Number of steps in a round.
    """
    for step in range(warm_up):
        wait(run(step))
    # A single step, to choose how many make a round.
    start = time.perf_counter()
    wait(run(warm_up))
    single = time.perf_counter() - start
    steps = max(1, min(max_steps, round(seconds / max(single, 1e-6))))
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        for step in range(steps):
            value = run(step)
        wait(value)
        times.append((time.perf_counter() - start) / steps)
    median = statistics.median(times)
    spread = (max(times) - min(times)) / median
    return {"seconds": median, "spread": spread, "steps": steps}

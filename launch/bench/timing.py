"""Timing of programs in alternation, so that all run under the same conditions."""

import statistics
import time
from collections.abc import Callable, Mapping

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

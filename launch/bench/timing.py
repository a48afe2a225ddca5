"""Timing of programs that take turns, so that all of them meet the same machine."""

import statistics
import time
from collections.abc import Callable, Mapping

from launch import main as cli

Turn = Callable[[int], None]  # one run of a program; the argument counts the turns
# Seconds before a turn: the other side's idle threads spin for a while after theirs.
REST = 0.5


def time_turns(programs: Mapping[str, Turn], rounds: int) -> dict[str, float]:
    """Median seconds of each program's turns, after one turn of each to warm up."""
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
    """Median seconds of both sides, and how many times faster ours is."""
    medians = time_turns({"ours": ours, "theirs": theirs}, rounds)
    ratio = medians["theirs"] / medians["ours"]
    return {"seconds": medians, "ratio": ratio, "rounds": rounds}

"""Device kernels of a step, summed by name, from a trace of the profiler."""

import re
import shutil
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

STEPS = 3
LARGEST = 45  # kernels that are listed
# What a kernel does, by its name: the first pattern that matches.
KINDS = (
    ("attention", r"sdpa|fmha|flash|mha_|attention"),
    ("matrix product", r"gemm|nvjet|cutlass|xmma|cublas|dot|matmul"),
    ("copy", r"memcpy|memset|copy|transpose"),
    ("random numbers", r"threefry|rng|random"),
    ("reduction", r"reduce"),
    ("fusion", r"fusion|loop|input"),
)


def profile_kernels(run: Callable[[int], Any], folder: Path) -> dict[str, Any]:
    """Traces some steps and sums the time of each kernel on the device.

    Args:
        run: Starts a step; returns something that can be waited for.
        folder: Folder of the trace, which is replaced.

    Returns:
        milliseconds: {kind of kernel: milliseconds per step}.
        busy_milliseconds: Sum of all kernels, per step.
        kernels: The largest ones: name, operation, milliseconds and calls per step.
    """
    shutil.rmtree(folder, ignore_errors=True)
    with jax.profiler.trace(str(folder)):
        for step in range(STEPS):
            value = run(step)
        jax.block_until_ready(value)
    (path,) = folder.rglob("*.xplane.pb")
    times, calls, operations = defaultdict(float), defaultdict(int), {}
    # One line per stream of each GPU or TPU
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith(("/device:GPU", "/device:TPU")):
            continue
        for line in plane.lines:
            if not re.match(r"Stream|XLA Ops", line.name):
                continue
            for event in line.events:
                times[event.name] += event.duration_ns / 1e6 / STEPS
                calls[event.name] += 1
                if event.name not in operations:
                    operations[event.name] = _find_operation(dict(event.stats))
    # Sums by kind
    kinds = defaultdict(float)
    for name, milliseconds in times.items():
        kinds[_find_kind(name)] += milliseconds
    largest = sorted(times, key=lambda name: -times[name])[:LARGEST]
    return {
        "milliseconds": dict(kinds),
        "busy_milliseconds": sum(times.values()),
        "kernels": [
            {
                "name": name[:90],
                "operation": operations[name][-110:],
                "milliseconds": times[name],
                "calls": calls[name] / STEPS,
            }
            for name in largest
        ],
    }


def _find_operation(stats: dict[str, Any]) -> str:
    """The operation of the program that a kernel belongs to."""
    for name in ("tf_op", "name", "hlo_op"):
        if stats.get(name):
            return f"{stats[name]} {stats.get('hlo_op', '')}"
    return ""


def _find_kind(text: str) -> str:
    for kind, pattern in KINDS:
        if re.search(pattern, text, re.IGNORECASE):
            return kind
    return "others"

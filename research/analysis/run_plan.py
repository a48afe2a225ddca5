"""Plan of a training run before it starts: memory, micro-batch, seconds per step."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Compiled
from tqdm import tqdm

from research import sharding
from research.analysis.program_report import measure_memory
from research.train.experiment import (
    Experiment,
    abstract_state,
    initial_state,
    run_keys,
)
from research.train.throughput import batch_stats

_TIMED_STEPS = 3
_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")  # bytes, or "max"


class StepProgram(NamedTuple):
    """The compiled training step of an experiment.

    Attributes:
        experiment: The parts of the run.
        compiled: The step.
        micro_batch: Most pairs that a device encodes at a time; 0 for all at once.
    """

    experiment: Experiment
    compiled: Compiled
    micro_batch: int = 0

    @property
    def peak(self) -> float:
        """Memory that the step needs on each device, in MiB."""
        return measure_memory(self.compiled)["peak"]


def find_memory(devices: Sequence[jax.Device]) -> tuple[float, str]:
    """MiB of memory of each of these devices, and in words whose memory it is.

    A device that reports none has its share of the machine's.
    """
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] / 2**20, "the device's"
    size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _CONTAINER_LIMIT.is_file():
        limit = _CONTAINER_LIMIT.read_text().strip()
        size = min(size, int(limit)) if limit.isdigit() else size
    return size / 2**20 / len(devices), "the machine's, as the device reports none"


def fit_micro_batch(
    program: StepProgram,
    compile_step: Callable[[int], StepProgram],
    pairs: int,
    mebibytes: float,
) -> StepProgram | None:
    """The step as it is if it fits the memory, or else in halved chunks until it fits.

    Args:
        program: The step as it is configured.
        compile_step: micro_batch -> the same step in chunks of so many pairs.
        pairs: Number of pairs of a device; 0 for a step without chunks.
        mebibytes: Memory of a device in MiB.

    Returns:
        The first step that fits; None if not even chunks of one pair do.
    """
    micro_batch = program.micro_batch or pairs
    while program.peak > mebibytes:
        if micro_batch <= 1:
            return None
        micro_batch = -(-micro_batch // 2)
        program = compile_step(micro_batch)
    return program


def measure_steps(program: StepProgram) -> list[float]:
    """Seconds of each of three steps of the run, after one that is not counted.

    The steps are real ones: from the initial parameters, on the first batches that have
    the shape of the first one.
    """
    experiment = program.experiment
    state = initial_state(experiment, abstract_state(experiment, experiment.mesh))
    key = jax.device_put(run_keys(experiment)[1], NamedSharding(experiment.mesh, P()))
    # The compiled step takes one shape
    steps = range(min(1 + _TIMED_STEPS, experiment.steps))
    batches = [experiment.batches(step) for step in steps]
    shapes = [batch_stats(batch, "").shape for batch in batches]
    batches = [x for x, y in zip(batches, shapes, strict=True) if y == shapes[0]]
    seconds = []
    for number in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        batch = sharding.put_batch(batches[number % len(batches)], experiment.mesh)
        state, metrics = program.compiled(state, batch, key)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def plan_run(
    program: StepProgram, compile_step: Callable[[int], StepProgram], pairs: int
) -> dict[str, Any]:
    """Finds a step that fits the memory, and measures it.

    Args:
        program, compile_step, pairs: As in `fit_micro_batch`.

    Returns:
        device_mebibytes: Memory of a device, and memory_source: whose it is.
        peak_mebibytes: What the configured step needs.
        fitting: micro_batch, peak_mebibytes, seconds (of three steps), step_seconds
            (their median) and run_seconds (of all steps) of a step that fits; None
            without one.
    """
    devices = program.experiment.mesh.local_mesh.devices.flatten().tolist()
    mebibytes, source = find_memory(devices)
    plan = {
        "device_mebibytes": mebibytes,
        "memory_source": source,
        "peak_mebibytes": program.peak,
        "fitting": None,
    }
    step = fit_micro_batch(program, compile_step, pairs, mebibytes)
    if step is not None:
        seconds = measure_steps(step)
        median = statistics.median(seconds)
        plan["fitting"] = {
            "micro_batch": step.micro_batch,
            "peak_mebibytes": step.peak,
            "seconds": seconds,
            "step_seconds": median,
            "run_seconds": median * program.experiment.steps,
        }
    return plan


def print_plan(plan: Mapping[str, Any], pairs: int, steps: int) -> None:
    """Prints what `plan_run` returns, with the numbers of pairs and of steps."""
    step, size = plan["fitting"], plan["device_mebibytes"]
    fits = plan["peak_mebibytes"] <= size
    print(
        f"memory         {size:,.1f} MiB a device ({plan['memory_source']}): the step "
        f"{'fits' if fits else 'does not fit'}"
    )
    if step is None:
        print(
            "micro_batch    no chunk is small enough: use a smaller batch_size, a "
            "smaller max_length or more devices"
        )
        return
    # What to set, if the objective encodes in chunks
    chunk = step["micro_batch"]
    if pairs and fits:
        print(f"micro_batch    {chunk} fits, {chunk or pairs} pairs a device at a time")
    elif pairs:
        print(
            f"micro_batch    {chunk} fits, with {step['peak_mebibytes']:,.1f} MiB: "
            f"--config.objective.micro_batch={chunk}"
        )
    low, high = min(step["seconds"]), max(step["seconds"])
    print(
        f"step           {step['step_seconds']:.3g} s, the median of "
        f"{len(step['seconds'])} after compiling ({low:.3g} to {high:.3g})"
    )
    print(
        f"run            {tqdm.format_interval(step['run_seconds'])} for {steps:,} "
        "steps, without evaluations, saving and compiling"
    )

"""Time of a step predicted from its costs and the data sheet of a chip (roofline)."""

import re
from typing import NamedTuple

from research.analysis.program_cost import ProgramCost
from research.train.chips import peak_flops

GIB = 2**30


class Chip(NamedTuple):
    """What a TPU chip has, besides its peak FLOP/s.

    Attributes:
        memory: Bytes of its main memory (HBM).
        bandwidth: Bytes that it reads or writes there in a second.
        link: Bytes that one link to a neighboring chip sends in a second.
        ring: Number of chips from which an axis of a slice is closed to a ring, so that
            a chip sends both ways.
        clock: Clock cycles in a second.
    """

    memory: float
    bandwidth: float
    link: float
    ring: int
    clock: float


# By name of the topology. Sizes, bandwidths and rings: "How to Scale Your Model", TPU
# chapter (Austin et al. 2025); clocks follow from peak FLOP/s and matrix units.
CHIPS = {
    "v4": Chip(32 * GIB, 1.2e12, 45e9, 4, 1.05e9),
    "v5e": Chip(16 * GIB, 8.1e11, 45e9, 16, 1.5e9),
    "v5p": Chip(95 * GIB, 2.8e12, 90e9, 4, 1.75e9),
    "v6e": Chip(32 * GIB, 1.6e12, 90e9, 16, 1.75e9),
}
KINDS = {"v4": "TPU v4", "v5e": "TPU v5e", "v5p": "TPU v5p", "v6e": "TPU v6e"}


class StepTime(NamedTuple):
    """Predicted seconds of a step, and what limits it.

    Attributes:
        compute: Of the matrix products, at the peak of the chip.
        memory: Of the traffic to main memory, at its bandwidth.
        wire: Of the collectives, at the bandwidth of all links of a chip.
        step: The longer of compute and memory, and then wire, as if none of it were
            hidden behind compute.
        compiler: By the cycles that the compiler expects, and then wire; None if it
            says nothing of them.
        binds: Name of the longest of compute, memory and wire.
        mfu: Useful FLOPs over those of the peak in `step`.
        compiler_mfu: The same in `compiler`.
    """

    compute: float
    memory: float
    wire: float
    step: float
    compiler: float | None
    binds: str
    mfu: float
    compiler_mfu: float | None


def predict_step_time(
    cost: ProgramCost, *, flops: float, useful: float, topology: str
) -> StepTime:
    """Predicts the time of a step on a slice.

    Args:
        cost: Costs of the compiled program on one chip.
        flops: Operations of the traced step on one chip; the program's own are used if
            they are more, as those of work that the chips repeat.
        useful: The same without recomputation.
        topology: Name of the slice, such as 'v5e:4x4'.
    """
    name = topology.partition(":")[0]
    chip, peak = CHIPS[name], peak_flops(KINDS[name])
    # Seconds on each of the three roofs
    times = {
        "compute": max(flops, cost.flops) / peak,
        "memory": cost.traffic / chip.bandwidth,
        "wire": cost.wire_bytes / max(sum_link_bandwidth(topology), 1.0),
    }
    local = max(times["compute"], times["memory"])
    step = local + times["wire"]
    compiler = None
    if cost.cycles:
        compiler = max(cost.cycles / chip.clock, local) + times["wire"]
    return StepTime(
        **times,
        step=step,
        compiler=compiler,
        binds=max(times, key=times.get),
        mfu=useful / (step * peak),
        compiler_mfu=compiler and useful / (compiler * peak),
    )


def sum_link_bandwidth(topology: str) -> float:
    """Bytes that a chip of a slice sends in a second over all its links: 0 if alone."""
    name, _, shape = topology.partition(":")
    chip = CHIPS[name]
    axes = [int(size) for size in re.findall(r"\d+", shape)]
    ways = [2 if size % chip.ring == 0 else 1 for size in axes if size > 1]
    return chip.link * sum(ways)

"""Report of what a compiled program costs on each device."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax.stages import Compiled, Traced

from research.analysis.program_cost import measure_program
from research.analysis.roofline import CHIPS, GIB, predict_step_time
from research.train.flops import matmul_flops

RECOMPUTED = "rematted_computation"  # JAX's name of what a backward pass recomputes


class CompiledText(NamedTuple):
    """A compiled program as it can be kept in files.

    Attributes:
        text: The program.
        mebibytes: Its memory on a device: "state and batch", "temporary" (activations
            and gradients) and "peak".
    """

    text: str
    mebibytes: Mapping[str, float]


def measure_memory(compiled: Compiled) -> dict[str, float]:
    """Memory of a compiled program on a device in MiB, as in `CompiledText`."""
    # Arguments stay, except those whose buffers become results
    memory = compiled.memory_analysis()
    sizes = {
        "state and batch": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "peak": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    }
    return {name: size / 2**20 for name, size in sizes.items()}


def read_compiled(compiled: Compiled) -> CompiledText:
    """The text of a compiled program and its memory."""
    return CompiledText(compiled.as_text(), measure_memory(compiled))


def describe_program(
    traced: Traced, compiled: CompiledText, *, devices: int, topology: str | None
) -> dict[str, Any]:
    """The costs of a compiled program.

    Args:
        traced: The program as it was traced.
        compiled: The same, compiled.
        devices: Number of devices that it runs on.
        topology: TPU slice whose data sheet predicts the time; None for no prediction.

    Returns:
        teraflops_per_step: Of all matrix products on all devices, with recomputation.
        recomputed_teraflops: The part that the backward pass recomputes.
        mebibytes_per_device: Memory, as in `CompiledText`.
        per_device: teraflops, and mebibytes of traffic to main memory and on the wire.
        step_time: Predicted seconds, as in `roofline.StepTime`; None without topology.
        collectives: The collective operations, as in `program_cost.Collective`.
    """
    # FLOPs from the traced program, everything else from the compiled one
    flops = matmul_flops(traced.jaxpr.jaxpr)
    recomputed = matmul_flops(traced.jaxpr.jaxpr, RECOMPUTED)
    cost = measure_program(compiled.text)
    step_time = None
    if topology:
        step_time = predict_step_time(
            cost,
            flops=flops / devices,
            useful=(flops - recomputed) / devices,
            topology=topology,
        )._asdict()
        chip = CHIPS[topology.partition(":")[0]]
        step_time["chip_mebibytes"] = chip.memory / 2**20
    return {
        "teraflops_per_step": flops / 1e12,
        "recomputed_teraflops": recomputed / 1e12,
        "mebibytes_per_device": dict(compiled.mebibytes),
        "per_device": {
            "teraflops": cost.flops / 1e12,
            "traffic_mebibytes": cost.traffic / 2**20,
            "wire_mebibytes": cost.wire_bytes / 2**20,
        },
        "step_time": step_time,
        "collectives": [row._asdict() for row in cost.collectives],
    }


def print_program(report: Mapping[str, Any]) -> None:
    """Prints the costs that `describe_program` returns, one a line."""
    print(
        f"matmuls        {report['teraflops_per_step']:.4g} TFLOP a step, "
        f"{report['recomputed_teraflops']:.4g} of them recomputed"
    )
    for name, size in report["mebibytes_per_device"].items():
        print(f"memory         {size:,.1f} MiB a device, {name}")
    parts = report["per_device"]
    print(
        f"per device     {parts['teraflops']:.4g} TFLOP, "
        f"{parts['traffic_mebibytes']:,.1f} MiB of memory traffic, "
        f"{parts['wire_mebibytes']:,.1f} MiB on the wire"
    )
    # Collectives, the largest first
    for row in report["collectives"] or [None]:
        if row is None:
            print("collectives    none")
            continue
        print(
            f"collective     {row['count']:g} x {row['kind']} {row['shape']} of "
            f"{row['group']} devices, {row['mebibytes']:.3f} MiB each"
        )
    if report["step_time"]:
        _print_time(report["step_time"])


def _print_time(time: Mapping[str, Any]) -> None:
    # Three roofs, then the two predictions
    for name in ("compute", "memory", "wire"):
        print(f"roofline       {1e3 * time[name]:,.3f} ms, {name}")
    gibibytes = time["chip_mebibytes"] * 2**20 / GIB
    print(f"binds          {time['binds']}; a chip has {gibibytes:g} GiB of memory")
    print(
        f"step           {1e3 * time['step']:,.3f} ms at least, {time['mfu']:.1%} MFU"
    )
    if time["compiler"]:
        print(
            f"step           {1e3 * time['compiler']:,.3f} ms by the cycles that the "
            f"compiler expects, {time['compiler_mfu']:.1%} MFU"
        )

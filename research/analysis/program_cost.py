"""Costs of a compiled program on one device: FLOPs, memory traffic, communication."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from research.analysis.hlo import (
    ArrayType,
    Computation,
    Instruction,
    RepeatedComputation,
    list_blocks,
    parse_program,
)

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
COLLECTIVES += ("collective-permute", "collective-broadcast")
# Instructions that move no data: names of values, and calls whose inside counts.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while"}
_FREE |= {"call", "conditional", "partition-id", "replica-id", "after-all", "iota"}
_FREE |= {"optimization-barrier", "async-start", "async-done", "async-update"}
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_WINDOW = re.compile(r"window=\{([^}]*)\}")


class Collective(NamedTuple):
    """A collective operation of a compiled program.

    Attributes:
        kind: Name of the operation, such as 'all-gather'.
        shape: Largest array of its result on one device, such as 'f32[64,128]'.
        group: Number of devices that take part.
        count: Number of times that it runs, in loops as often as they do.
        mebibytes: Size of all results of one run.
        wire_mebibytes: What a device sends in one run, if the devices form a ring.
    """

    kind: str
    shape: str
    group: int
    count: float
    mebibytes: float
    wire_mebibytes: float


class ProgramCost(NamedTuple):
    """Costs of one run of a program on one device.

    Attributes:
        flops: Floating-point operations of matrix products.
        traffic: Bytes that are read from and written to the device's main memory.
        cycles: Clock cycles that the compiler expects, without communication; 0 if it
            says nothing of them (all but TPUs).
        collectives: Its collective operations, the largest first.
    """

    flops: float
    traffic: float
    cycles: float
    collectives: tuple[Collective, ...]

    @property
    def wire_bytes(self) -> float:
        """Bytes that a device sends."""
        sizes = (row.count * row.wire_mebibytes for row in self.collectives)
        return sum(sizes) * 2**20


def measure_program(text: str) -> ProgramCost:
    """Costs of a compiled program, from its text (`jax.stages.Compiled.as_text`)."""
    program = parse_program(text)
    blocks = list_blocks(program)
    flops = traffic = cycles = 0.0
    for block in blocks:
        for instruction in block.computation.instructions.values():
            flops += block.runs * _count_flops(block.computation, instruction)
            if block.is_fused:
                continue
            traffic += block.runs * _count_traffic(
                program.computations, block.computation, instruction
            )
            stated = _CYCLES.search(instruction.attributes)
            cycles += block.runs * int(stated[1]) if stated else 0
    return ProgramCost(flops, traffic, cycles, tuple(_find_collectives(blocks)))


def _find_collectives(blocks: Sequence[RepeatedComputation]) -> list[Collective]:
    """The collective operations, alike ones together, the largest first."""
    counts = Counter()
    # A TPU spreads one collective over several fusions, to hide it behind their work:
    # {channel: fewest runs of one of them}
    spread: dict[str, float] = {}
    for block in blocks:
        for row, channel in _list_collectives(block):
            if not (channel and block.is_fused):
                counts[row] += block.runs
                continue
            runs = min(block.runs, spread.get(channel, block.runs))
            counts[row] += runs - spread.get(channel, 0.0)
            spread[channel] = runs
    rows = [
        Collective(kind, shape, group, count, size, wire)
        for (kind, shape, group, size, wire), count in counts.items()
    ]
    return sorted(rows, key=lambda row: -row.wire_mebibytes * row.count)


def _list_collectives(block: RepeatedComputation) -> Iterator[tuple[tuple, str]]:
    """Yields (kind, shape, group, MiB, MiB on the wire) and the channel of each."""
    # A TPU's fusion of all-reduce and slice is a reduce-scatter
    scatters = block.is_fused and "reduce-scatter" in block.computation.name
    for instruction in block.computation.instructions.values():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        arrays = _list_results(kind, instruction)
        sizes = [array.num_bytes for array in arrays]
        group = _group_size(instruction)
        wire = sum(sizes) * _wire_factor(kind, group)
        if scatters and kind == "all-reduce":
            kind, wire = "reduce-scatter", wire / 2
        largest = arrays[int(np.argmax(sizes))]
        shape = f"{largest.dtype}[{','.join(map(str, largest.shape))}]"
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        row = (kind, shape, group, sum(sizes) / 2**20, wire / 2**20)
        yield row, channel[1] if channel else ""


def _list_results(kind: str, instruction: Instruction) -> Sequence[ArrayType]:
    """The arrays that a collective makes; a "-start" also names what it reads."""
    arrays = instruction.results
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        # (operands, results, flags): as many results as operands
        count = len(instruction.operands)
        return arrays[count : 2 * count]
    return arrays


def _group_size(instruction: Instruction) -> int:
    """Number of devices that take part: of a list, an array or axes of a mesh."""
    text = instruction.attributes
    if members := re.search(r"replica_groups=\{\{([\d,]*)\}", text):
        return members[1].count(",") + 1
    if sizes := re.search(r"replica_groups=\[\d+,(\d+)\]", text):
        return int(sizes[1])
    if mesh := re.search(r"replica_groups=mesh\[(.*?)\] *\{(.*?)\}", text):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh[1]))
        # An axis, or a part of it: 'axis_0':(2)4 has 4 of its positions
        parts = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh[2])
        return math.prod(int(part or sizes[name]) for name, part in parts)
    pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", text)
    return pairs[1].count("{") if pairs else 1


def _wire_factor(kind: str, group: int) -> float:
    """Bytes that a device of a ring sends, per byte of the result."""
    part = (group - 1) / group
    if kind == "reduce-scatter":
        return group - 1  # its result is one part of what is reduced
    return {"all-reduce": 2 * part, "collective-permute": 1.0}.get(kind, part)


def _count_flops(computation: Computation, instruction: Instruction) -> float:
    """Operations of a matrix product; a TPU calls it a convolution."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    lhs, rhs = (
        computation.instructions[name].results[0].shape
        for name in instruction.operands[:2]
    )
    output = instruction.results[0].shape
    if instruction.opcode == "dot":
        axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        contracted = [lhs[int(axis)] for axis in axes[1].split(",") if axis]
        return 2.0 * math.prod(output) * math.prod(contracted)
    # "01bf_0o1i->01bf": batch and features of all three, digits for window axes
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    total = 2.0 * output[labels[3].index("b")] * output[labels[3].index("f")]
    total *= rhs[labels[2].index("i")]
    for axis, window in enumerate(_read_window(instruction, labels[1])):
        size = lhs[labels[1].index(str(axis))]
        total *= _count_overlaps(size, output[labels[3].index(str(axis))], **window)
    return total


def _read_window(instruction: Instruction, labels: str) -> list[dict[str, int]]:
    """Size, stride, padding and dilations of a convolution's window, per axis."""
    axes = sum(label.isdigit() for label in labels)
    window = _WINDOW.search(instruction.attributes)
    fields = dict(item.split("=") for item in window[1].split()) if window else {}
    names = {"size": "1", "stride": "1", "pad": "0_0", "lhs_dilate": "1"}
    names["rhs_dilate"] = "1"
    values = {
        name: fields[name].split("x") if name in fields else [default] * axes
        for name, default in names.items()
    }
    # The padding of an axis is "low_high", of which the low one shifts the window
    return [
        {name: int(value[axis].split("_")[0]) for name, value in values.items()}
        for axis in range(axes)
    ]


def _count_overlaps(
    length: int,
    outputs: int,
    *,
    size: int,
    stride: int,
    pad: int,
    lhs_dilate: int,
    rhs_dilate: int,
) -> int:
    """Pairs of output position and window position that meet an input element.

    Batch axes of a product are window axes in which only one position meets an element.
    """
    output, window = np.ogrid[:outputs, :size]
    position = output * stride - pad + window * rhs_dilate
    element, remainder = np.divmod(position, lhs_dilate)
    return int(((remainder == 0) & (element >= 0) & (element < length)).sum())


def _count_traffic(
    computations: dict[str, Computation],
    computation: Computation,
    instruction: Instruction,
) -> float:
    """Bytes that an instruction reads from and writes to the main memory."""
    opcode = instruction.opcode
    if (
        opcode in _FREE
        or opcode.endswith("-done")
        or "AllocateBuffer" in (instruction.attributes)
    ):
        return 0.0
    reads = [computation.instructions[name].results for name in instruction.operands]
    writes = list(instruction.results)
    if opcode == "copy-start":
        writes = writes[:1]
    elif opcode.endswith("-start"):
        writes = list(_list_results(opcode.removesuffix("-start"), instruction))
    if opcode == "fusion":
        name = re.search(r"calls=%?([\w.\-]+)", instruction.attributes)[1]
        return _count_fused_traffic(computations[name], reads, writes)
    # A slice reads, and an update writes, only a part of its array
    if opcode in ("dynamic-slice", "slice", "slice-start", "gather"):
        part = writes[0].num_bytes if reads[0][0].is_in_hbm else 0.0
        return part + _count_hbm_bytes(writes)
    if opcode == "dynamic-update-slice":
        part = reads[1][0].num_bytes if writes[0].is_in_hbm else 0.0
        return part + _count_hbm_bytes(reads[1])
    return sum(_count_hbm_bytes(arrays) for arrays in reads) + _count_hbm_bytes(writes)


def _count_fused_traffic(
    inside: Computation,
    reads: Sequence[Sequence[ArrayType]],
    writes: Sequence[ArrayType],
) -> float:
    """Bytes that a fusion moves, with only the parts that its slices touch."""
    users: dict[str, list[tuple[Instruction, int]]] = {}
    for user in inside.instructions.values():
        for place, name in enumerate(user.operands):
            users.setdefault(name, []).append((user, place))

    def read_part(name: str) -> float:
        """Bytes of a value that its users read; infinite for all of it."""
        total = 0.0
        for user, place in users.get(name, []):
            if user.opcode == "bitcast":
                total += read_part(user.name)
            elif user.opcode in ("dynamic-slice", "slice", "gather") and not place:
                total += user.results[0].num_bytes
            elif user.opcode != "dynamic-update-slice" or place:
                return math.inf
        return total

    total = 0.0
    for parameter in inside.instructions.values():
        if parameter.opcode == "parameter":
            arrays = reads[int(parameter.literal)]
            total += min(_count_hbm_bytes(arrays), read_part(parameter.name))
    # Results: the root, or the elements of a tuple
    root = inside.instructions[inside.root]
    names = root.operands if root.opcode == "tuple" else (inside.root,)
    for name, array in zip(names, writes, strict=False):
        result = inside.instructions[name]
        while result.opcode == "bitcast":
            result = inside.instructions[result.operands[0]]
        size = array.num_bytes
        if result.opcode == "dynamic-update-slice":
            size = inside.instructions[result.operands[1]].results[0].num_bytes
        total += size if array.is_in_hbm else 0.0
    return total


def _count_hbm_bytes(arrays: Sequence[ArrayType]) -> float:
    # Scalars are in registers
    sizes = (array.num_bytes for array in arrays if array.is_in_hbm and array.shape)
    return sum(sizes)

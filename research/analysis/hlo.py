"""Reader of compiled programs (HLO text): instructions, loops, and how often they run.

XLA's own totals count the body of a loop once, and nothing of it per instruction. Here
every instruction counts as often as it runs: a scan over layers, a map over chunks and
the windows of a partitioned product are loops.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

# "bf16[8,128]{1,0:T(8,128)(2,1)S(1)}": type, dimensions, layout with memory space
_ARRAY = re.compile(r"([a-z]+\d*[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=([^,]+))"
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


class ArrayType(NamedTuple):
    """Type of one array of an instruction's result.

    Attributes:
        dtype: Name of the type, such as 'bf16'.
        shape: Dimensions.
        layout: Layout, which names the memory space: S(1) is a TPU's VMEM, none is HBM.
    """

    dtype: str
    shape: tuple[int, ...]
    layout: str

    @property
    def num_bytes(self) -> float:
        """Size in bytes; booleans take a byte, tokens none."""
        bits = re.search(r"\d+", self.dtype)
        count = 1
        for size in self.shape:
            count *= size
        if bits is None:
            return count * (self.dtype == "pred")
        return count * int(bits[0]) / 8

    @property
    def is_in_hbm(self) -> bool:
        """Whether the array is in the main memory of its device."""
        return "S(" not in self.layout


class Instruction(NamedTuple):
    """One line of a program.

    Attributes:
        name: Its name.
        results: Types of its arrays, one unless it is a tuple.
        opcode: Operation, such as 'fusion'.
        operands: Names of its operands.
        literal: Text in its parentheses: the value of a constant.
        attributes: The rest of the line.
    """

    name: str
    results: tuple[ArrayType, ...]
    opcode: str
    operands: tuple[str, ...]
    literal: str
    attributes: str


class Computation(NamedTuple):
    """A block of instructions: the entry, a loop's body, the inside of a fusion.

    Attributes:
        name: Its name.
        instructions: {name: instruction}, in order.
        root: Name of the instruction whose result is its result.
    """

    name: str
    instructions: dict[str, Instruction]
    root: str


class Program(NamedTuple):
    """A compiled program.

    Attributes:
        computations: {name: computation}.
        entry: Name of the computation that runs first.
    """

    computations: dict[str, Computation]
    entry: str


class RepeatedComputation(NamedTuple):
    """A computation with the number of times that it runs.

    Attributes:
        computation: The computation.
        runs: Number of runs in one run of the program; branches of a conditional count
            by equal parts.
        is_fused: Whether it is the inside of a fusion, whose values stay on the chip.
    """

    computation: Computation
    runs: float
    is_fused: bool


def parse_program(text: str) -> Program:
    """Reads the text of a compiled program."""
    computations, entry = {}, ""
    name, instructions, root = "", {}, ""
    # Attributes of a kernel go over several lines
    for line in re.sub(r'\n(?="|\}\})', " ", text).splitlines():
        # A computation's first line, its last one, or an instruction
        head = _HEAD.match(line)
        if head:
            name, instructions, root = head[2], {}, ""
            entry = name if head[1] else entry
        elif line.startswith("}") and name:
            computations[name] = Computation(name, instructions, root)
            name = ""
        elif name and " = " in line:
            instruction = _parse_instruction(line)
            instructions[instruction.name] = instruction
            if line.lstrip().startswith("ROOT "):
                root = instruction.name
    return Program(computations, entry)


def parse_arrays(text: str) -> tuple[ArrayType, ...]:
    """The arrays of a type, such as '(f32[8,128]{1,0}, s32[])'."""
    return tuple(
        ArrayType(dtype, tuple(int(n) for n in dims.split(",") if n), layout)
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def list_blocks(program: Program) -> list[RepeatedComputation]:
    """All computations that run, each as often as it is called from another place."""

    def visit(name: str, runs: float, is_fused: bool) -> Iterator[RepeatedComputation]:
        computation = program.computations[name]
        yield RepeatedComputation(computation, runs, is_fused)
        for instruction in computation.instructions.values():
            fused = is_fused or instruction.opcode == "fusion"
            if instruction.opcode == "conditional":
                branches = _find_branches(instruction)
                for branch in branches:
                    yield from visit(branch, runs / len(branches), is_fused)
                continue
            # A reduction's or a sort's function of two scalars costs nothing
            if instruction.opcode not in ("while", "fusion", "call", "async-start"):
                continue
            times = 1
            if instruction.opcode == "while":
                times = count_trips(program, computation, instruction)
            for callee in _CALLED.findall(instruction.attributes):
                yield from visit(callee, runs * times, fused)

    return list(visit(program.entry, 1.0, False))


def count_trips(program: Program, caller: Computation, loop: Instruction) -> int:
    """Number of iterations of a while loop; 1 if its condition cannot be read.

    The compiler states it, or the condition compares a counter with a constant. The
    counter is an element of the loop's tuple that the body increments by a constant.
    """
    stated = _TRIPS.search(loop.attributes)
    if stated:
        return int(stated[1])
    body = program.computations[re.search(r"body=%?([\w.\-]+)", loop.attributes)[1]]
    name = re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]
    condition = program.computations[name]
    # The bound, and which element of the tuple is the counter
    test = condition.instructions[condition.root]
    if test.opcode != "compare":
        return 1
    counter, bound = (_resolve(condition, name) for name in test.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    if index is None or bound.opcode != "constant":
        return 1
    # Its first value, and its increment
    first = _read_constant(caller, caller.instructions[loop.operands[0]], int(index[1]))
    result = body.instructions[body.root]
    step = 1
    if result.opcode == "tuple":
        update = _resolve(body, result.operands[int(index[1])])
        terms = [_resolve(body, operand) for operand in update.operands]
        constants = [term.literal for term in terms if term.opcode == "constant"]
        if update.opcode == "add" and constants:
            step = int(constants[0])
    span = int(bound.literal) - first
    return max(1, -(-span // step))


def _parse_instruction(line: str) -> Instruction:
    # "%name = TYPE opcode(OPERANDS), ATTRIBUTES", where TYPE may be a tuple
    name, _, value = line.strip().partition(" = ")
    is_tuple = value.startswith("(")
    end = _find_closing(value, 0) + 1 if is_tuple else value.index(" ")
    results, operation = value[:end], value[end:].lstrip()
    opening = operation.index("(")
    closing = _find_closing(operation, opening)
    inside = operation[opening + 1 : closing]
    return Instruction(
        name=name.removeprefix("ROOT ").removeprefix("%"),
        results=parse_arrays(results),
        opcode=operation[:opening],
        operands=tuple(_NAME.findall(inside)),
        literal=inside,
        attributes=operation[closing + 1 :],
    )


def _find_closing(text: str, opening: int) -> int:
    """Position of the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if not depth:
            return position
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def _find_branches(instruction: Instruction) -> list[str]:
    groups = _BRANCHES.findall(instruction.attributes)
    names = ",".join(part for group in groups for part in group if part)
    return [name.strip().removeprefix("%") for name in names.split(",")]


def _resolve(computation: Computation, name: str) -> Instruction:
    """The instruction behind copies and conversions."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "convert", "bitcast"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _read_constant(caller: Computation, inputs: Instruction, index: int) -> int:
    """Value of an element of a loop's input tuple; 0 if it is no constant."""
    if inputs.opcode != "tuple":
        return 0
    value = _resolve(caller, inputs.operands[index])
    return int(value.literal) if value.opcode == "constant" else 0

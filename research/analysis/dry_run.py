"""Cost of a training step, compiled but not run: FLOPs, memory, communication."""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research import sharding
from research.objectives import mlm_masking
from research.train.flops import matmul_flops
from research.train.loop import Experiment, abstract_state
from research.train.step import make_step
from research.train.throughput import batch_stats
from research.types import VOCABULARY

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all")
_COLLECTIVES += ("collective-permute",)
# "%x = f32[8,128]{1,0} all-gather(...)"; TPU writes "all-gather-start" as well.
_INSTRUCTION = re.compile(rf"= (.+?) ({'|'.join(_COLLECTIVES)})(-start)?\(")
_ARRAY = re.compile(r"([a-z]+\d+|pred)\[([\d,]*)\]")
_PADDING_BATCHES = 16  # batches on which the padding is measured


class Collective(NamedTuple):
    """A collective operation of a compiled program.

    Attributes:
        kind: Name of the operation, such as 'all-gather' or 'all-reduce'.
        shape: Largest array of its result on one device, such as 'f32[64,128]'.
        count: Number of occurrences in the program; an operation in a loop counts once.
        mebibytes: Size of all results of one occurrence.
    """

    kind: str
    shape: str
    count: int
    mebibytes: float


def dry_run(experiment: Experiment, topology: str | None = None) -> dict[str, Any]:
    """Compiles a training step for the shape of the first batch, and prints its cost.

    Args:
        experiment: The parts of a run.
        topology: TPU slice to compile for, such as 'v5e:4x4', which requires libtpu but
            no TPU; None for the devices of this machine.

    Returns:
        The printed numbers: parameters; teraflops of all matrix products in a step,
        including recomputation; for pre-training, teraflops of the products with the
        vocabulary, as they are and without the restriction to masked tokens; mebibytes
        per device of the step ("temporary" are activations and gradients) and of the
        parts of the state; the fraction of padding; the collective operations.

    Raises:
        ValueError: The topology is unknown, or libtpu is missing.
    """
    mesh = experiment.mesh
    if topology:
        mesh = _topology_mesh(topology, mesh.shape["model"])
    # Shapes and shardings of the arguments of a step; no arrays are made.
    state = abstract_state(experiment, mesh)
    batch = abstract_batch(experiment.batches(0), mesh)
    replicated = NamedSharding(mesh, P())
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated)

    # Compile the step, and get its memory per device.
    state_shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_step(experiment.objective, experiment.tx, state_shardings)
    traced = step.trace(state, batch, key)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    mebibytes = {
        "state and batch": memory.argument_size_in_bytes,
        "temporary": memory.temp_size_in_bytes,
        "peak": memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes,
    }
    # The report, in the order in which it is printed.
    report = {
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "mesh": dict(mesh.shape),
        "parameters": _size(state.params),
        "frozen_parameters": _size(state.frozen),
        "rows_x_length": list(batch.tokens.token_ids.shape),
        "teraflops_per_step": matmul_flops(traced.jaxpr.jaxpr) / 1e12,
        **vocabulary_teraflops(experiment, (state.params, state.frozen, batch, key)),
        "mebibytes_per_device": {k: v / 2**20 for k, v in mebibytes.items()},
        "state_mebibytes_per_device": {
            name: _mebibytes(part)
            for name, part in (
                ("trained", state.params),
                ("frozen", state.frozen),
                ("moments", state.opt_state),
            )
        },
        "padding": _padding(experiment),
        "collectives": [c._asdict() for c in collectives(compiled.as_text())],
    }
    _print(report)
    return report


def abstract_batch(batch: Any, mesh: Mesh):
    """Shapes and shardings of a batch; first axes are rounded up to fit 'data'."""
    data = mesh.shape["data"]

    # Shapes first, then their shardings.
    def shape(leaf):
        leaf = np.asarray(leaf)
        rows = tuple(-(-rows // data) * data for rows in leaf.shape[:1])
        return jax.ShapeDtypeStruct((*rows, *leaf.shape[1:]), leaf.dtype)

    shapes = jax.tree.map(shape, batch)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        sharding.batch_shardings(shapes, mesh),
    )


def vocabulary_teraflops(experiment: Experiment, shapes: tuple) -> dict[str, float]:
    """Teraflops of a step's matrix products with the vocabulary; {} if it has none.

    Args:
        experiment: The parts of a run.
        shapes: Shapes of the arguments of its loss.

    Returns:
        vocabulary_teraflops: Those of the step as it is.
        ungathered_vocabulary_teraflops: Those of a step that predicts every token.
    """

    def count_teraflops():
        def loss(*arguments):  # a new function each time, so that no trace is cached
            output = experiment.objective.loss(*arguments)
            return output.value, output

        gradient = jax.value_and_grad(loss, has_aux=True)
        jaxpr = jax.make_jaxpr(gradient)(*shapes).jaxpr
        return matmul_flops(jaxpr, VOCABULARY) / 1e12

    # With gathered masked tokens, then with all tokens.
    gathered = count_teraflops()
    if not gathered:
        return {}
    with mlm_masking.full_length_buffers():
        ungathered = count_teraflops()
    return {
        "vocabulary_teraflops": gathered,
        "ungathered_vocabulary_teraflops": ungathered,
    }


def collectives(program: str) -> list[Collective]:
    """The collective operations of a compiled program, the largest first."""
    # {(kind, shape, MiB): number of occurrences} from the text of the program.
    counts = Counter()
    for result, kind, _ in _INSTRUCTION.findall(program):
        arrays = _ARRAY.findall(result)
        sizes = [_count_bytes(kind, dims) for kind, dims in arrays]
        largest = arrays[int(np.argmax(sizes))] if arrays else ("", "")
        shape = f"{largest[0]}[{largest[1]}]"
        counts[kind, shape, sum(sizes) / 2**20] += 1
    rows = [
        Collective(kind, shape, count, size)
        for (kind, shape, size), count in counts.items()
    ]
    return sorted(rows, key=lambda row: -row.mebibytes * row.count)


def _count_bytes(kind: str, dims: str) -> int:
    # Types are named by their bits, such as f32; booleans ("pred") take a byte.
    bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
    return math.prod(int(n) for n in dims.split(",") if n) * bits // 8


def _topology_mesh(topology: str, model: int) -> Mesh:
    try:
        chips = topologies.get_topology_desc(topology, platform="tpu").devices
    except Exception as error:  # missing libtpu and unknown names raise various things
        raise ValueError(
            f"cannot compile for topology {topology!r}: it should look like v5e:4x4, "
            "and libtpu must be installed (pip install 'jax[tpu]')"
        ) from error
    return sharding.make_mesh({"data": -1, "model": model}, chips)


def _padding(experiment: Experiment) -> float:
    # Share of the positions in the first batches that hold no token.
    steps = range(min(_PADDING_BATCHES, experiment.steps))
    counts = [batch_stats(experiment.batches(step), "") for step in steps]
    return 1 - sum(c.tokens for c in counts) / sum(c.places for c in counts)


def _size(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _mebibytes(tree) -> float:
    """Size of one device's part of a tree of arrays, in MiB."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    ) / (2**20)


def _print(report: dict[str, Any]) -> None:
    print(f"devices        {report['devices']}, mesh {report['mesh']}")
    print(f"parameters     {report['parameters']:,}")
    print(f"frozen         {report['frozen_parameters']:,}")
    print(f"rows x length  {report['rows_x_length']}")
    print(f"padding        {report['padding']:.1%}")
    print(f"matmuls        {report['teraflops_per_step']:.4g} TFLOP a step")
    if "vocabulary_teraflops" in report:
        print(
            f"vocabulary     {report['vocabulary_teraflops']:.4g} TFLOP of these; "
            f"{report['ungathered_vocabulary_teraflops']:.4g} if every token went there"
        )
    # Memory, then communication.
    for name, size in report["state_mebibytes_per_device"].items():
        print(f"state          {size:,.1f} MiB a device, {name}")
    for name, size in report["mebibytes_per_device"].items():
        print(f"memory         {size:,.1f} MiB a device, {name}")
    for row in report["collectives"] or [None]:
        if row is None:
            print("collectives    none")
            continue
        print(
            f"collective     {row['count']} x {row['kind']} {row['shape']}, "
            f"{row['mebibytes']:.3f} MiB each"
        )

"""Cost of a training step: FLOPs, memory, communication, and seconds by running it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from research import sharding
from research.analysis.program_report import (
    describe_program,
    print_program,
    read_compiled,
)
from research.analysis.run_plan import StepProgram, plan_run, print_plan
from research.objectives import mlm_masking
from research.train.experiment import Experiment, abstract_state
from research.train.flops import matmul_flops
from research.train.step import make_step
from research.train.throughput import batch_stats
from research.types import VOCABULARY

_PADDING_BATCHES = 16  # batches on which the padding is measured


def dry_run(
    experiment: Experiment,
    topology: str | None = None,
    *,
    micro_batch: int = 0,
    build_chunked: Callable[[int], Experiment] | None = None,
) -> dict[str, Any]:
    """Compiles a training step for the shape of the first batch, and prints its cost.

    Args:
        experiment: The parts of a run, built for the devices to compile for.
        topology: TPU slice whose data sheet predicts the time of a step, such as
            'v5e:4x4'. None measures the time of three steps on the devices themselves.
        micro_batch: Most pairs that the run encodes at a time on each device; 0 for all
            at once.
        build_chunked: micro_batch -> the same run in chunks of so many pairs; None if
            its objective has no chunks.

    Returns:
        The printed numbers: parameters; rows and length of the batch; the fraction of
        padding; for pre-training, teraflops of the products with the vocabulary, as
        they are and without the restriction to masked tokens; mebibytes per device of
        the parts of the state; what `describe_program` returns; and as "plan", without
        topology, what `plan_run` returns.
    """
    mesh = experiment.mesh
    traced, (state, batch, key) = trace_step(experiment)
    compiled = traced.lower().compile()
    # In the order in which it is printed
    report = {
        "devices": f"{mesh.size} x {mesh.devices.flat[0].device_kind}",
        "mesh": dict(mesh.shape),
        "parameters": _size(state.params),
        "frozen_parameters": _size(state.frozen),
        "rows_x_length": list(batch.tokens.token_ids.shape),
        "padding": _padding(experiment),
        **vocabulary_teraflops(experiment, (state.params, state.frozen, batch, key)),
        "state_mebibytes_per_device": {
            name: _mebibytes(part)
            for name, part in (
                ("trained", state.params),
                ("frozen", state.frozen),
                ("moments", state.opt_state),
                *([("average", state.average)] if state.average is not None else []),
            )
        },
        **describe_program(
            traced, read_compiled(compiled), devices=mesh.size, topology=topology
        ),
    }
    _print(report)
    print_program(report)
    if topology is None:
        # Steps of a size that fits the memory
        pairs = 0
        if build_chunked is not None:
            pairs = len(batch.query_index) // sharding.count_batch_devices(mesh)
        program = StepProgram(experiment, compiled, micro_batch)
        report["plan"] = plan_run(
            program, partial(_compile_chunks, build_chunked), pairs
        )
        print_plan(report["plan"], pairs, experiment.steps)
    return report


def _compile_chunks(
    build_chunked: Callable[[int], Experiment], micro_batch: int
) -> StepProgram:
    experiment = build_chunked(micro_batch)
    compiled = trace_step(experiment)[0].lower().compile()
    return StepProgram(experiment, compiled, micro_batch)


def trace_step(experiment: Experiment) -> tuple[jax.stages.Traced, tuple]:
    """Traces the training step for the first batch; returns it with its arguments.

    The arguments (state, batch, key) are shapes with shardings; no arrays are made.
    """
    mesh = experiment.mesh
    state = abstract_state(experiment, mesh)
    batch = abstract_batch(experiment.batches(0), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    replicated = NamedSharding(mesh, P())
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=replicated)
    # The same step as in training
    state_shardings = jax.tree.map(lambda x: x.sharding, state)
    step = make_step(experiment.objective, experiment.tx, state_shardings)
    return step.trace(state, batch, key), (state, batch, key)


def abstract_batch(batch: Any, mesh: Mesh):
    """Shapes and shardings of the global batch of which a process has a share.

    Args:
        batch: This process's share, in NumPy arrays.
        mesh: Mesh of the devices of all processes.
    """
    shapes = batch_shapes(batch, mesh)
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        sharding.batch_shardings(shapes, mesh),
    )


def batch_shapes(batch: Any, mesh: Mesh):
    """The shapes of `abstract_batch`: those that `sharding.put_batch` makes."""
    _, shares = sharding.find_process_share(mesh)

    def shape(leaf):
        leaf = np.asarray(leaf)
        rows = tuple(rows * shares for rows in leaf.shape[:1])
        return jax.ShapeDtypeStruct((*rows, *leaf.shape[1:]), leaf.dtype)

    return jax.tree.map(shape, batch)


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
    if "vocabulary_teraflops" in report:
        print(
            f"vocabulary     {report['vocabulary_teraflops']:.4g} TFLOP; "
            f"{report['ungathered_vocabulary_teraflops']:.4g} if every token went there"
        )
    for name, size in report["state_mebibytes_per_device"].items():
        print(f"state          {size:,.1f} MiB a device, {name}")

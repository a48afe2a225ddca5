"""One cell of the table of `launch.aot`: a step compiled for a slice, and its costs."""

import gzip
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.stages import Lowered, Traced

from launch import aot_cases
from research import sharding
from research.analysis.dry_run import trace_step
from research.analysis.program_report import (
    CompiledText,
    describe_program,
    print_program,
    read_compiled,
)
from research.analysis.tpu_topology import add_libtpu, find_slice_devices
from research.atomic_write import atomic_write, write_json
from research.experiment.build import build
from research.inference.batching import PaddedRows
from research.inference.forward import RowEncoder
from research.models.encoder import init

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"
# The least optimization: a fifth of the time in the compiler, and the same FLOPs and
# collectives, but more memory and traffic.
QUICK = {"exec_time_optimization_effort": -1.0}


def measure_cell(
    case: str, slice_name: str, compiler: str, path: Path, *, quick: bool = False
) -> None:
    """Compiles a case for a slice, and writes its costs to a JSON file.

    The compiled program is kept beside it. If it was compiled from the same input, it
    is only measured again.

    Args:
        case: Name of one of `aot_cases.CASES`.
        slice_name: Name of one of `aot_cases.SLICES`.
        compiler: "libtpu", or "cpu" for as many virtual devices of the CPU as the slice
            has chips, which `launch.aot` sets up.
        path: The JSON file.
        quick: Whether to optimize as little as possible.
    """
    topology = aot_cases.SLICES[slice_name]
    if compiler == "cpu":
        devices, version = jax.devices(), f"CPU, jax {jax.__version__}"
    else:
        devices, version = find_slice_devices(topology), f"libtpu {add_libtpu()}"
    start = time.perf_counter()
    traced, sizes = trace_case(case, devices, path.parent / "texts")
    lowered = traced.lower()
    report = {"case": case, "slice": slice_name, "topology": topology, **sizes}
    report |= {"chips": len(devices), "compiler": version, "quick": quick}
    try:
        compiled, digest = _compile(lowered, f"{version} {quick}", path)
    except jax.errors.JaxRuntimeError as error:
        if OUT_OF_MEMORY not in str(error):
            raise
        # What it needs is in the first lines of the message
        message = " ".join(str(error).splitlines()[:2])
        write_json(path, report | {"error": message[:300]})
        return
    report |= describe_program(
        traced, compiled, devices=len(devices), topology=topology
    )
    report |= {"seconds": time.perf_counter() - start, "program": digest}
    print_program(report)
    write_json(path, report)


def trace_case(
    case: str, devices: Sequence[jax.Device], texts: Path
) -> tuple[Traced, dict[str, Any]]:
    """Traces the step of a case on devices; also returns sizes for the report."""
    config = aot_cases.CASES[case].config
    if config is None:
        return _trace_embedding(devices)
    settings = config(texts, len(devices))
    experiment = build(settings, cache=texts / "tokens", devices=devices)
    traced, (state, batch, _) = trace_step(experiment)
    trained, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(part))
        for part in (state.params, state.frozen)
    )
    rows = list(batch.tokens.token_ids.shape)
    return traced, {"parameters": trained + frozen, "rows_x_length": rows}


def _trace_embedding(devices: Sequence[jax.Device]) -> tuple[Traced, dict[str, Any]]:
    cfg = aot_cases.make_embedding_encoder()
    mesh = sharding.make_mesh({"data": -1, "model": 1}, devices)

    def place(spec):
        return lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=NamedSharding(mesh, spec)
        )

    # Parameters on every chip, rows spread over the chips
    params = jax.eval_shape(lambda: init(jax.random.key(0), cfg))
    params = jax.tree.map(place(P()), params)
    rows = aot_cases.EMBED_ROWS * len(devices)
    shapes = PaddedRows(
        jax.ShapeDtypeStruct((rows, aot_cases.EMBED_LENGTH), jnp.int32),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
        None,
        None,
    )
    encoder = RowEncoder(params, cfg, "mean", mesh)
    traced = encoder.trace(jax.tree.map(place(P("data")), shapes))
    parameters = sum(np.prod(x.shape) for x in jax.tree.leaves(params))
    sizes = [rows, aot_cases.EMBED_LENGTH]
    return traced, {"parameters": int(parameters), "rows_x_length": sizes}


def _compile(lowered: Lowered, version: str, path: Path) -> tuple[CompiledText, str]:
    """The compiled program, from the file beside `path` if it is of the same input.

    Args:
        lowered: The program.
        version: Version of the compiler, and True if it is to be quick.
        path: JSON file of the cell.
    """
    digest = hashlib.sha256(f"{version}\n{lowered.as_text()}".encode()).hexdigest()
    file = path.with_suffix(".hlo.gz")
    if file.exists() and path.exists():
        before = json.loads(path.read_text())
        if before.get("program") == digest:
            text = gzip.decompress(file.read_bytes()).decode()
            return CompiledText(text, before["mebibytes_per_device"]), digest
    options = QUICK if version.endswith("True") else None
    compiled = read_compiled(lowered.compile(compiler_options=options))
    with atomic_write(file) as draft:
        draft.write_bytes(gzip.compress(compiled.text.encode()))
    return compiled, digest

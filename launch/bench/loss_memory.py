"""Memory and communication of the loss and of GradCache, from compiled programs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch import main as cli
from launch.bench.ring_infonce import compute_ring_infonce
from research import sharding
from research.analysis.program_cost import measure_program
from research.analysis.tpu_topology import find_slice_devices
from research.losses.contrastive import infonce
from research.losses.registry import build_loss
from research.losses.similarity import pair_scores
from research.types import Labels

# The loss is run once where it takes at most so many floating-point operations.
MAX_FLOPS = {"cpu": 2e12, "gpu": 1e15, "tpu": 1e15}


def measure_infonce(
    pairs: list[int], width: int, topology: str = ""
) -> list[dict[str, Any]]:
    """The cost of InfoNCE and its gradient, by number of pairs, on all devices.

    Args:
        pairs: Numbers B of pairs over all devices.
        width: D, width of the embeddings, which are float32 on CPUs and else bfloat16.
        topology: TPU slice to compile for, such as "v5e:4x4"; "" for this machine.

    Returns:
        One row for each number, in blocks of rows, with all scores at once, and in a
        ring; with mebibytes per device: "temporary" memory, and what is "sent";
        "seconds" of one run, where it is short enough, or the "megacycles" that the TPU
        compiler expects. Programs of all scores that JAX cannot make have the error's
        text.
    """
    devices = find_slice_devices(topology) if topology else None
    mesh = sharding.make_mesh({"data": -1}, devices)
    in_blocks = build_loss({"name": "infonce", "temperature": 0.05})

    def compare_all(q, d, labels):
        return infonce(pair_scores(q, d, "cosine"), labels, temperature=0.05)

    def compare_in_ring(q, d, labels):
        del labels
        return compute_ring_infonce(q, d, temperature=0.05)

    rows = []
    forms = {"blocks": in_blocks, "all scores": compare_all, "ring": compare_in_ring}
    for count in pairs:
        for name, loss in forms.items():
            row = {"pairs": count, "form": name}
            run = loss is not compare_all and not topology
            row |= _measure_loss(loss, mesh, count, width, run=run)
            rows.append(row)
            cli.log(str(row))
    return rows


def _measure_loss(
    loss: Callable, mesh: Mesh, count: int, width: int, *, run: bool
) -> dict[str, Any]:
    split = NamedSharding(mesh, P("data"))
    on_cpu = mesh.devices.flat[0].platform == "cpu"

    def mean(q, d):
        def average_share(q, d):
            return loss(q, d, Labels()).mean()

        return sharding.map_over_data(average_share, q, d)

    # [B, D] queries and as many documents
    dtype = jnp.float32 if on_cpu else jnp.bfloat16
    shape = jax.ShapeDtypeStruct((count, width), dtype, sharding=split)
    with jax.set_mesh(mesh):
        program = jax.jit(jax.value_and_grad(mean, (0, 1)))
        try:
            compiled = program.lower(shape, shape).compile()
        except (OverflowError, jax.errors.JaxRuntimeError) as error:
            return {"error": str(error).splitlines()[0]}
        cost = measure_program(compiled.as_text())
        row = {
            "temporary": compiled.memory_analysis().temp_size_in_bytes / 2**20,
            "sent": cost.wire_bytes / 2**20,
        }
        if cost.cycles:
            row["megacycles"] = cost.cycles / 1e6
        # A product forward, one again for the gradient, and two of the gradient
        flops = 4 * 2 * count**2 * width
        if run and flops <= MAX_FLOPS[jax.default_backend()]:
            q, d = (
                jax.device_put(
                    jax.random.normal(jax.random.key(i), shape.shape, dtype), split
                )
                for i in range(2)
            )
            start = time.perf_counter()
            value, _ = jax.block_until_ready(compiled(q, d))
            row |= {"seconds": time.perf_counter() - start, "loss": float(value)}
    return row


def measure_gradcache(micro_batches: list[int], batch_size: int) -> list[dict]:
    """The memory of a step of configs/starbucks_sts.py by micro-batch, compiled only.

    Args:
        micro_batches: Most pairs that a device encodes at a time; 0 for all of them.
        batch_size: B, number of pairs over all devices.

    Returns:
        One row for each, with mebibytes per device and the share of padding.
    """
    from configs import starbucks_sts
    from research.analysis.dry_run import dry_run
    from research.experiment.build import build

    rows = []
    for micro_batch in micro_batches:
        config = starbucks_sts.get_config()
        config.batch_size = batch_size
        config.objective.micro_batch = micro_batch
        report = dry_run(build(config))
        memory = report["mebibytes_per_device"]
        rows.append(
            {
                "micro_batch": micro_batch,
                "temporary": memory["temporary"],
                "peak": memory["peak"],
                "padding": report["padding"],
                "teraflops_per_step": report["teraflops_per_step"],
            }
        )
        cli.log(str(rows[-1]))
    return rows

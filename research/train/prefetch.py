"""Batches of the next steps, made and moved to their devices while the device works."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jax.sharding import Mesh

from research import sharding
from research.train.throughput import BatchStats, batch_stats


def prepare_batches(
    batches: Any, mesh: Mesh, steps: range, ahead: int
) -> Iterator[tuple[Any, BatchStats]]:
    """Yields (batch on the mesh, its statistics), prepared ahead in a thread.

    Args:
        batches: The batches of a run, as in `Experiment`.
        mesh: The mesh that they are put on.
        steps: Numbers of the steps, from 0.
        ahead: Number of batches that are prepared ahead.
    """

    def prepare(step):
        batch = batches(step)
        stats = batch_stats(batch, batches.source_name(step))
        return sharding.put_batch(batch, mesh), stats

    with ThreadPoolExecutor(1) as pool:
        # A batch is a function of its step: a resumed run gets the same batches
        queue = deque(pool.submit(prepare, step) for step in steps[:ahead])
        for step in steps:
            ready = queue.popleft().result()
            if step + ahead in steps:
                queue.append(pool.submit(prepare, step + ahead))
            yield ready

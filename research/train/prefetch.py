"""Batches of the next steps, made and moved to their devices while the device works."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from jax.sharding import Mesh

from research import sharding
from research.train.throughput import BatchStats, batch_stats


def prepare_batches(
    batches: Any, mesh: Mesh, steps: range, ahead: int, interval: int = 0
) -> Iterator[tuple[Any, BatchStats]]:
    """Yields (batch on the mesh, its statistics), prepared ahead in a thread.

    Args:
        batches: The batches of a run, as in `Experiment`.
        mesh: The mesh that they are put on.
        steps: Numbers of the steps, from 0.
        ahead: Number of batches that are prepared ahead.
        interval: Interval in steps at which a run changes its batches: those of the
            next interval are prepared once it has begun. 0 for a run that does not.
    """

    def prepare(step):
        batch = batches(step)
        stats = batch_stats(batch, batches.source_name(step))
        return sharding.put_batch(batch, mesh), stats

    with ThreadPoolExecutor(1) as pool:
        # A batch is a function of its step: a resumed run gets the same batches
        queue, begun = deque(), steps.start

        def submit(step, count):
            """Begins the batches up to step + count that are not begun yet."""
            nonlocal begun
            end = min(step + count, steps.stop)
            if interval:
                end = min(end, (step // interval + 1) * interval)
            queue.extend(pool.submit(prepare, number) for number in range(begun, end))
            begun = max(begun, end)

        for step in steps:
            submit(step, ahead)
            ready = queue.popleft().result()
            submit(step, ahead + 1)
            yield ready

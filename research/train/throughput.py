"""The steps since the last report: their metrics, still on the device, and speed."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from research.types import Batch, Metrics


class BatchStats(NamedTuple):
    """What the host knows of a batch.

    Attributes:
        source: where it is from.
        shape: of its arrays; a new one costs a compilation.
        tokens: real ones, on this host.
        places: real ones and padding, on this host.
    """

    source: str
    shape: tuple
    tokens: int
    places: int


def batch_stats(batch: Batch, source: str) -> BatchStats:
    """Counts a batch of numpy arrays."""
    shape = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
    segment = batch.tokens.segment_ids
    return BatchStats(source, shape, int(np.count_nonzero(segment)), segment.size)


class Meter:
    """Gathers steps without waiting; `collect_rows` fetches them all at once."""

    def __init__(self):
        self._shapes = set()
        self._start()

    def is_new(self, fact: BatchStats) -> bool:
        """Whether a batch of this shape comes for the first time."""
        return fact.shape not in self._shapes

    def add(
        self,
        step: int,
        fact: BatchStats,
        metrics: Metrics,
        waited: float,
        compiled: float,
    ) -> None:
        """Notes a step that was started.

        Args:
            step: its number, from 1.
            fact: its batch's.
            metrics: arrays on the device.
            waited: seconds that the device had nothing to do for want of a batch.
            compiled: seconds spent compiling.
        """
        self._shapes.add(fact.shape)
        self._steps.append((step, fact, metrics))
        self._waited += waited
        self._compiled += compiled

    def collect_rows(self) -> list[dict[str, Any]]:
        """A row for each step since the last call; the last one has the speed too.

        tokens_per_second and steps_per_second leave out compilation; data_wait and
        padding are fractions.
        """
        metrics = jax.device_get([metrics for _, _, metrics in self._steps])
        seconds = time.perf_counter() - self._began
        rows = [
            {"step": step, "source": fact.source}
            | {name: float(value) for name, value in values.items()}
            for (step, fact, _), values in zip(self._steps, metrics, strict=True)
        ]
        if rows:
            rows[-1] |= self._measure_speed(seconds)
        self._start()
        return rows

    def restart(self) -> None:
        """Starts the clock again, after something that is not training."""
        self._began = time.perf_counter()

    def _measure_speed(self, seconds: float) -> dict[str, float]:
        tokens = sum(fact.tokens for _, fact, _ in self._steps)
        places = sum(fact.places for _, fact, _ in self._steps)
        training = max(seconds - self._compiled, 1e-9)
        return {
            "tokens_per_second": tokens * jax.process_count() / training,
            "steps_per_second": len(self._steps) / training,
            "data_wait": self._waited / training,
            "padding": 1 - tokens / max(places, 1),
            "compilations": len(self._shapes),
            "compile_seconds": self._compiled,
        }

    def _start(self):
        self._steps = []
        self._waited = 0.0
        self._compiled = 0.0
        self._began = time.perf_counter()

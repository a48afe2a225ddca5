"""Metrics and speed of the training steps since the last report."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from research.types import Batch, Metrics


class BatchStats(NamedTuple):
    """Statistics of a batch that are known on the host.

    Attributes:
        source: Name of the data source.
        shape: Shapes of its arrays; the step is compiled once for each new value.
        tokens: Number of tokens on this host, without padding.
        places: Number of tokens on this host, with padding.
    """

    source: str
    shape: tuple
    tokens: int
    places: int


def batch_stats(batch: Batch, source: str) -> BatchStats:
    """Statistics of a batch of NumPy arrays."""
    shape = tuple(np.shape(leaf) for leaf in jax.tree.leaves(batch))
    segment = batch.tokens.segment_ids
    return BatchStats(source, shape, int(np.count_nonzero(segment)), segment.size)


class Meter:
    """Records steps without waiting for the device; `collect_rows` fetches metrics."""

    def __init__(self):
        self._shapes = set()
        self._start()

    def is_new(self, fact: BatchStats) -> bool:
        """Whether no batch of this shape was recorded before."""
        return fact.shape not in self._shapes

    def add(
        self,
        step: int,
        fact: BatchStats,
        metrics: Metrics,
        waited: float,
        compiled: float,
    ) -> None:
        """Records a step that was started.

        Args:
            step: Number of the step, from 1.
            fact: Statistics of its batch.
            metrics: Its metrics, arrays on the device.
            waited: Seconds for which the device was idle, waiting for a batch.
            compiled: Seconds spent compiling.
        """
        # Each new shape is a compilation
        self._shapes.add(fact.shape)
        self._steps.append((step, fact, metrics))
        self._waited += waited
        self._compiled += compiled

    def collect_rows(self) -> list[dict[str, Any]]:
        """Returns a log row per step since the last call; the last row has the speed.

        tokens_per_second and steps_per_second exclude compilation; data_wait (the part
        of the time spent waiting for batches) and padding are fractions.
        """
        # Waits for the device to finish all recorded steps
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
        """Restarts the clock, after an evaluation or a checkpoint."""
        self._began = time.perf_counter()

    def _measure_speed(self, seconds: float) -> dict[str, float]:
        # Tokens of this host, without and with padding; seconds without compilation
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

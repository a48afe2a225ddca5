"""Metrics and speed of the training steps since the last report."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from research.train.chips import peak_flops
from research.train.flops import matmul_flops
from research.types import Batch, Metrics

# JAX reports it for every program that it compiles, or loads from the disk instead.
_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


class BatchStats(NamedTuple):
    """Statistics of a batch that are known on the host.

    Attributes:
        source: Name of the data source.
        shape: Its structure, which includes its loss, and the shapes of its arrays; the
            step is compiled once for each new value.
        tokens: Number of tokens on this host, without padding.
        places: Number of tokens on this host, with padding.
    """

    source: str
    shape: tuple
    tokens: int
    places: int


def batch_stats(batch: Batch, source: str) -> BatchStats:
    """Statistics of a batch of NumPy arrays."""
    leaves, structure = jax.tree.flatten(batch)
    shape = (structure, *map(np.shape, leaves))
    segment = batch.tokens.segment_ids
    return BatchStats(source, shape, int(np.count_nonzero(segment)), segment.size)


class Meter:
    """Records steps without waiting for the device; `collect_rows` fetches metrics.

    Args:
        devices: The devices of all processes that the steps run on.
        shares: Number of equal shares of a batch, of which a process makes one.
        is_mixture: Whether there are several sources, whose losses are logged apart.
    """

    def __init__(
        self,
        devices: Sequence[jax.Device],
        shares: int = 1,
        *,
        is_mixture: bool = False,
    ):
        self._devices, self._shares, self._is_mixture = devices, shares, is_mixture
        peak = peak_flops(devices[0].device_kind)
        self._peak = None if peak is None else peak * len(devices)
        # FLOPs of a step for each shape of batch; 0 where MFU is not measured
        self._flops: dict[tuple, int] = {}
        self._compiled_before = len(_list_compilations())
        self._start()

    def add_program(self, stats: BatchStats, step: Any, *arguments: Any) -> bool:
        """Counts the FLOPs of a compiled step once for each shape of batch.

        Args:
            stats: Statistics of the batch.
            step: The jitted step.
            *arguments: Its arguments.

        Returns:
            Whether no batch of this shape came before, so that the step is compiled.
        """
        if stats.shape in self._flops:
            return False
        self._flops[stats.shape] = 0
        if self._peak is not None:
            jaxpr = step.trace(*arguments).jaxpr.jaxpr
            self._flops[stats.shape] = matmul_flops(jaxpr)
        return True

    def add(
        self,
        step: int,
        stats: BatchStats,
        metrics: Metrics,
        waited: float,
        compiled: float,
    ) -> None:
        """Records a step that was started.

        Args:
            step: Number of the step, from 1.
            stats: Statistics of its batch.
            metrics: Its metrics, arrays on the device.
            waited: Seconds for which the device was idle, waiting for a batch.
            compiled: Seconds spent compiling.
        """
        self._steps.append((step, stats, metrics))
        self._waited += waited
        self._compiled += compiled

    def collect_rows(self) -> list[dict[str, Any]]:
        """Returns a log row per step since the last call; the last row has the speed.

        tokens_per_second, steps_per_second, step_seconds and mfu (the part of the peak
        FLOP/s that matrix products use, on known chips) exclude compilation, saving and
        evaluation, whose seconds stand beside them; data_wait (the part of the time
        spent waiting for batches) and padding are fractions.
        """
        # Waits for the device to finish all recorded steps
        metrics = jax.device_get([metrics for _, _, metrics in self._steps])
        seconds = time.perf_counter() - self._began
        rows = [
            {"step": step, "source": stats.source}
            | {name: float(value) for name, value in values.items()}
            for (step, stats, _), values in zip(self._steps, metrics, strict=True)
        ]
        # A curve for each source
        if self._is_mixture:
            for row in rows:
                row[f"loss/{row['source']}"] = row["loss"]
        if rows:
            rows[-1] |= self._measure_speed(seconds)
        self._start()
        return rows

    @contextlib.contextmanager
    def pause(self, name: str) -> Iterator[None]:
        """Excludes a block of code from the training time.

        Args:
            name: Key under which the next report has the block's seconds.
        """
        start = time.perf_counter()
        yield
        self._began = time.perf_counter()
        self._paused[name] += self._began - start

    def _measure_speed(self, seconds: float) -> dict[str, float]:
        # Tokens of this host, without and with padding; seconds without compilation
        tokens = sum(stats.tokens for _, stats, _ in self._steps)
        places = sum(stats.places for _, stats, _ in self._steps)
        training = max(seconds - self._compiled, 1e-9)
        speed = {
            "tokens_per_second": tokens * self._shares / training,
            "steps_per_second": len(self._steps) / training,
            "step_seconds": (training - self._waited) / len(self._steps),
            "data_wait": self._waited / training,
            "padding": 1 - tokens / max(places, 1),
            "compilations": len(_list_compilations()) - self._compiled_before,
            "compile_seconds": self._compiled,
            "save_seconds": self._paused["save_seconds"],
            "evaluation_seconds": self._paused["evaluation_seconds"],
        }
        # Of runs that mine their negatives
        if "refresh_seconds" in self._paused:
            speed["refresh_seconds"] = self._paused["refresh_seconds"]
        # Where the chip is known, and where the backend counts its memory
        if self._peak is not None:
            flops = sum(self._flops[stats.shape] for _, stats, _ in self._steps)
            speed["mfu"] = flops / training / self._peak
        if (peak := _measure_peak_memory(self._devices)) is not None:
            speed["peak_memory_mebibytes"] = peak / 2**20
        return speed

    def _start(self):
        self._steps = []
        self._waited = 0.0
        self._compiled = 0.0
        self._paused = Counter()
        self._began = time.perf_counter()


@cache
def _list_compilations() -> list[float]:
    """Seconds of each compilation from now on, a list that JAX makes longer."""
    compilations = []

    def record_compilation(event: str, seconds: float, **_) -> None:
        if event == _COMPILE_EVENT:
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(record_compilation)
    return compilations


def _measure_peak_memory(devices: Sequence[jax.Device]) -> int | None:
    """The most bytes in use so far on one device of this process; None if unknown."""
    stats = [
        d.memory_stats() for d in devices if d.process_index == jax.process_index()
    ]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return max(peaks, default=None)

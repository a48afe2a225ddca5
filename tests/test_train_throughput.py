from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from research.train import throughput
from research.train.throughput import BatchStats, Meter

BATCH = BatchStats("texts", ((4, 8),), tokens=24, places=32)


def make_meter(kind, monkeypatch, **memory):
    """A meter of two devices, and its clock, a list with the seconds."""
    clock = [0.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: clock[0])
    device = SimpleNamespace(
        device_kind=kind, process_index=0, memory_stats=lambda: memory or None
    )
    return Meter([device, device]), clock


def take_step(meter, clock, number, seconds, *, waited=0.0, compiled=0.0):
    step = jax.jit(lambda x: x @ x)
    meter.add_program(BATCH, step, jnp.ones((4, 4)))
    clock[0] += seconds
    meter.add(number, BATCH, {"loss": jnp.float32(1)}, waited, compiled)


def test_seconds_are_told_apart(monkeypatch):
    meter, clock = make_meter("cpu", monkeypatch)
    take_step(meter, clock, 1, 7.0, compiled=3.0)
    take_step(meter, clock, 2, 4.0, waited=2.0)
    first, row = meter.collect_rows()
    assert "step_seconds" not in first
    assert (row["compile_seconds"], row["save_seconds"]) == (3, 0)
    assert row["step_seconds"] == (4 + 2) / 2
    assert row["data_wait"] == 2 / 8
    assert row["tokens_per_second"] == 2 * 24 / 8
    # Pauses are no training, and belong to the next report
    for name, seconds in (("save_seconds", 5), ("evaluation_seconds", 6)):
        with meter.pause(name):
            clock[0] += seconds
    take_step(meter, clock, 3, 1.0)
    (row,) = meter.collect_rows()
    assert (row["save_seconds"], row["evaluation_seconds"]) == (5, 6)
    assert row["step_seconds"] == row["steps_per_second"] == 1


def test_mfu_and_memory_where_they_are_known(monkeypatch):
    meter, clock = make_meter("TPU v4", monkeypatch, peak_bytes_in_use=3 * 2**20)
    for number in (1, 2):
        take_step(meter, clock, number, 0.5)
    row = meter.collect_rows()[-1]
    assert row["mfu"] == pytest.approx(2 * (2 * 4 * 4 * 4) / 1.0 / (2 * 275e12))
    assert row["peak_memory_mebibytes"] == 3
    meter, clock = make_meter("cpu", monkeypatch)
    take_step(meter, clock, 1, 0.5)
    assert not {"mfu", "peak_memory_mebibytes"} & meter.collect_rows()[-1].keys()


def test_compilations_are_counted():
    meter = Meter(jax.devices()[:1])
    before = jax.jit(lambda x: 3 * x + 4)
    for length in (3, 3, 5):  # 2 programs
        before(jnp.ones(length)).block_until_ready()
    meter.add(1, BATCH, {"loss": 1.0}, 0.0, 0.0)
    assert meter.collect_rows()[-1]["compilations"] >= 2

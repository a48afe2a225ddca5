import importlib.util
import types

import jax
import numpy as np
import pytest
import toy

from research import sharding
from research.analysis import dry_run, run_plan, tpu_topology
from research.models.config import bert
from research.objectives import mlm_masking
from research.objectives.registry import OBJECTIVES
from research.types import PretrainingBatch, TokenizerInfo, Tokens


@pytest.mark.parametrize("name", ["mlm", "mae_lm"])
def test_the_vocabulary_is_priced_with_and_without_the_buffer(name):
    cfg = bert(vocab_size=60, width=8, depth=1, num_heads=1, mlp=8, max_len=32)
    objective = OBJECTIVES[name](cfg, TokenizerInfo(60, 4, (0, 1, 2, 3, 4)), ratio=0.25)
    ids = np.ones((2, 32), np.int32)
    batch = PretrainingBatch(Tokens(ids, ids, ids > 0), ids)
    key = jax.random.key(0)
    parts = toy.experiment()._replace(objective=objective)
    report = dry_run.vocabulary_teraflops(
        parts, (*jax.eval_shape(objective.init, key), batch, key)
    )
    whole = report["ungathered_vocabulary_teraflops"] * 1e12
    assert whole == 3 * 2 * 2 * 32 * 8 * 60
    places = 8 if name == "mae_lm" else mlm_masking.buffer_size(32, 0.25)
    assert report["vocabulary_teraflops"] * 1e12 == whole * places / 32


def test_the_batch_of_a_slice_is_that_of_all_its_processes():
    # Two processes with four devices each, of which this one is the first
    devices = [types.SimpleNamespace(process_index=i // 4) for i in range(8)]
    mesh = types.SimpleNamespace(
        axis_names=("data", "model"),
        shape={"data": 8, "model": 1},
        devices=np.reshape(devices, (8, 1)),
    )
    batch = toy.Batches(rows=12)(0)
    shapes = dry_run.batch_shapes(batch, mesh)
    assert shapes.tokens.token_ids.shape == (24, toy.LENGTH)
    assert shapes.query_index.shape == (2 * len(batch.query_index),)


def test_a_step_is_priced_without_running(capsys):
    report = dry_run.dry_run(toy.experiment(devices=8), topology="v5e:2x4")
    assert report["parameters"] == toy.VOCAB * toy.WIDTH + toy.WIDTH**2 + toy.WIDTH
    assert report["mesh"] == {"data": 1, "fsdp": 8}
    assert 0 < report["padding"] < 1
    assert report["mebibytes_per_device"]["peak"] > 0
    assert {row["kind"] for row in report["collectives"]} >= {"all-reduce"}
    assert 0 < report["step_time"]["mfu"] < 1
    # The products of a device are at least its share of those of the step
    share = report["teraflops_per_step"] / 8
    assert report["per_device"]["teraflops"] >= share > 0
    assert "parameters     200\n" in capsys.readouterr().out


def test_a_compiler_that_cannot_be_had_says_so(tmp_path, monkeypatch):
    if importlib.util.find_spec("libtpu"):
        pytest.skip("libtpu is installed")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match="needs libtpu==.*pip cannot install"):
        tpu_topology.find_slice_devices("v5e:4x4", cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_step_compiles_for_a_tpu_slice():
    pytest.importorskip("libtpu")
    with pytest.raises(ValueError, match="cannot compile for topology 'h100:8'"):
        tpu_topology.find_slice_devices("h100:8")
    devices = tpu_topology.find_slice_devices("v5e:4x4")
    mesh = sharding.make_mesh({"data": -1, "model": 1}, devices)
    report = dry_run.dry_run(toy.experiment()._replace(mesh=mesh), topology="v5e:4x4")
    assert report["devices"].startswith("16 x TPU")


def test_without_a_topology_steps_are_run_and_the_run_is_estimated(capsys):
    plan = dry_run.dry_run(toy.experiment(100))["plan"]
    step = plan["fitting"]
    assert len(step["seconds"]) == 3 and min(step["seconds"]) > 0
    assert step["run_seconds"] == 100 * sorted(step["seconds"])[1]
    assert 0 < plan["peak_mebibytes"] < plan["device_mebibytes"]
    printed = capsys.readouterr().out
    assert "(the machine's, as the device reports none): the step fits\n" in printed
    assert "for 100 steps, without evaluations, saving and compiling\n" in printed


def test_chunks_are_halved_until_they_fit(capsys):
    def compile_step(micro_batch):
        tried.append(micro_batch)
        return types.SimpleNamespace(peak=10.0 * micro_batch, micro_batch=micro_batch)

    for start, pairs, expected in (
        (0, 24, [12, 6, 3]),  # all pairs at once are too many
        (5, 24, [3]),
        (2, 24, []),
        (0, 0, []),  # an objective without chunks
    ):
        tried = []
        peak = 10.0 * (start or 24)
        program = types.SimpleNamespace(peak=peak, micro_batch=start)
        fitting = run_plan.fit_micro_batch(program, compile_step, pairs, 39.0)
        assert tried == expected
        assert fitting is None if not pairs else fitting.peak <= 39
    assert run_plan.fit_micro_batch(program, compile_step, 8, 9.0) is None
    # What is printed of them
    step = {"micro_batch": 6, "peak_mebibytes": 60.0, "seconds": [1.0, 3.0, 2.0]}
    step |= {"step_seconds": 2.0, "run_seconds": 7200.0}
    plan = {"device_mebibytes": 64.0, "memory_source": "the device's"}
    plan |= {"peak_mebibytes": 99.0, "fitting": step}
    run_plan.print_plan(plan, 24, 3_600)
    run_plan.print_plan(plan | {"fitting": None}, 24, 3_600)
    assert capsys.readouterr().out.splitlines() == [
        "memory         64.0 MiB a device (the device's): the step does not fit",
        "micro_batch    6 fits, with 60.0 MiB: --config.objective.micro_batch=6",
        "step           2 s, the median of 3 after compiling (1 to 3)",
        "run            2:00:00 for 3,600 steps, without evaluations, saving and "
        "compiling",
        "memory         64.0 MiB a device (the device's): the step does not fit",
        "micro_batch    no chunk is small enough: use a smaller batch_size, a smaller "
        "max_length or more devices",
    ]

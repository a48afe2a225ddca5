"""The ahead-of-time table: its cells, its order, and what is made again."""

import json
import subprocess
import sys
import types
from pathlib import Path

import pytest
from absl import flags
from absl.testing import flagsaver

from launch import aot, aot_cases, aot_table

ROOT = Path(__file__).parent.parent


def make_cell(case, slice_name, **changes):
    time = {"compute": 0.02, "memory": 0.01, "wire": 0.005, "step": 0.025}
    time |= {"compiler": 0.05, "binds": "compute", "mfu": 0.8, "compiler_mfu": 0.4}
    return {
        "case": case,
        "slice": slice_name,
        "compiler": "libtpu 1",
        "quick": False,
        "chips": 16,
        "mebibytes_per_device": {"peak": 4_096.0, "temporary": 2_048.0},
        "per_device": {
            "teraflops": 3.0,
            "traffic_mebibytes": 1_000.0,
            "wire_mebibytes": 200.0,
        },
        "step_time": time | {"chip_mebibytes": 16_384.0},
        **changes,
    }


def test_the_table_has_a_row_per_cell_in_the_order_of_the_cases():
    cells = [
        make_cell("embed", "v5e-16", compiler="CPU, jax 1"),
        make_cell("starbucks_16k", "v5e-16", error="Used 40G of 16G"),
        make_cell("starbucks_16k", "v5e-256"),
    ]
    first, second, third = aot_table.make_table(cells).splitlines()[2:]
    for text in ("v5e-256", "4.0 of 16", "| 200 ", "compute", "20%", "80%", "40%"):
        assert text in first
    assert "Used 40G of 16G" in second
    # Another compiler's memory is a bound, and its cycles say nothing
    for text in ("v5e-16 (CPU program)", "≤ 4.0 of 16", "≥ 80%"):
        assert text in third
    assert "40%" not in third


def test_every_case_writes_its_texts_once_and_builds_a_config(tmp_path, monkeypatch):
    draws = []

    def write_lines(path, make_lines):
        draws.append(path.name)
        return str(path)

    monkeypatch.setattr(aot_cases, "_write_once", write_lines)
    for case in aot_cases.CASES.values():
        assert set(case.slices) <= set(aot_cases.SLICES)
        if case.config is not None:
            config = case.config(tmp_path, 256)
            assert config.batch_size % 256 == 0
    assert set(draws) == {"captions.jsonl", "passages.jsonl", "documents.txt"}


def test_triplets_are_the_same_on_every_machine(tmp_path):
    path = Path(aot_cases._write_passages(tmp_path))
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 4_096
    words = [len(row["pos"][0].split()) for row in rows]
    assert 120 < sum(words) / len(words) < 140
    before = path.stat().st_mtime_ns
    assert aot_cases._write_passages(tmp_path) == str(path)
    assert path.stat().st_mtime_ns == before


def test_a_cell_is_made_again_only_if_the_code_has_changed(tmp_path, monkeypatch):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # without the checks of required ones
    commands = []

    def run(command, **options):
        commands.append([part for part in command if part.startswith("--")])
        (tmp_path / "embed@v5e-16.json").write_text("{}")
        slow = "--compiler=libtpu" in command
        if slow:
            raise subprocess.TimeoutExpired(command, options["timeout"])
        assert "device_count=16" in options["env"]["XLA_FLAGS"]
        return types.SimpleNamespace(returncode=0)

    monkeypatch.setattr(aot.subprocess, "run", run)
    cell = ("embed", "v5e-16", tmp_path)
    assert aot._make_cell(*cell, "code 1")
    # libtpu took too long, and the CPU's partitioner was asked
    assert [command[-1] for command in commands] == [
        "--compiler=libtpu",
        "--compiler=cpu",
    ]
    assert aot._make_cell(*cell, "code 1") and len(commands) == 2
    assert aot._make_cell(*cell, "code 2") and len(commands) == 4
    # A quick cell is made again, unless quick ones are asked for
    path = tmp_path / "embed@v5e-16.json"
    path.write_text(json.dumps({"sources": "code 2", "quick": True}))
    with flagsaver.flagsaver(quick=True):
        assert aot._make_cell(*cell, "code 2") and len(commands) == 4
    assert aot._make_cell(*cell, "code 2") and len(commands) == 6


@pytest.mark.parametrize("flag,value", [("cases", "unknown"), ("slices", "v5e-3")])
def test_an_unknown_name_is_answered_with_the_known_ones(flag, value):
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # without the checks of required ones
    message = f"no '{value}'; allowed: "
    with (
        flagsaver.flagsaver(**{flag: [value]}),
        pytest.raises(ValueError, match=message),
    ):
        list(aot._list_cells())


def test_a_step_is_compiled_for_as_many_virtual_devices(tmp_path):
    command = ["--cases=embed", "--slices=v5e-16", "--compiler=cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "launch.aot", *command, f"--folder={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (cell,) = tmp_path.glob("*.json")
    content = json.loads(cell.read_text())
    assert content["chips"] == 16 and content["collectives"] == []
    share = content["teraflops_per_step"] / 16
    assert content["per_device"]["teraflops"] == pytest.approx(share, rel=0.01)
    assert "embedding, BERT-base" in (tmp_path / "table.md").read_text()

"""The accelerator check: its script, its records, its table, and what it measures."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launch.bench.accelerator_table import compare_sides, format_table
from launch.bench.columns import count_tokens, useful_flops
from launch.bench.records import Recorder, read_records

ROOT = Path(__file__).parent.parent
TRAIN = {"part": "train_step", "texts": "passages", "batch": 512}
TRAIN |= {"size_loss": "starbucks_sts", "bfloat16_parameters": False}
PEER = "torch, passages, dropout 0.1"


def run_script(folder, minutes, *options):
    done = subprocess.run(
        ["bash", "launch/check_accelerator.sh", minutes, "--tiny", *options],
        cwd=ROOT,
        env=os.environ | {"PYTHON": sys.executable, "OUT": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, read_records(folder / "accelerator.jsonl")


def test_the_script_says_what_it_leaves_out(tmp_path):
    output, rows = run_script(tmp_path, "0.2", "--parts=encode")
    (row,) = rows
    assert row["part"] == "encode" and "s were left" in row["left_out"]
    assert "s were left" in output
    assert json.loads(output.splitlines()[-1])["errors"] == 0


def test_every_part_runs_at_tiny_sizes(tmp_path):
    output, rows = run_script(tmp_path, "20")
    assert not [row for row in rows if "error" in row], output
    parts = {row["part"] for row in rows if "left_out" not in row}
    assert parts >= {"kernels", "train_step", "train_details", "encode", "lora"}
    assert parts >= {"train_step_torch", "lora_torch", "attention_torch", "ablation"}
    assert all(row["equal"] for row in rows if "equal" in row)
    # Both sides are timed on the same texts
    tokens = {row["name"]: row["tokens"] for row in rows if "fill" in row}
    peers = {
        row["name"]: row["tokens"] for row in rows if row["part"] == "train_step_torch"
    }
    assert tokens["default"] == peers[PEER]


def test_an_unknown_part_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.bench.accelerator", "--parts=encode,magic"],
        cwd=ROOT,
        env=os.environ | {"OUT": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: there is no part magic; known: kernels, ")


def test_an_error_costs_one_measurement(tmp_path):
    recorder = Recorder("encode", tmp_path / "x.jsonl", note={"device": "1 x cpu"})

    def fail():
        raise RuntimeError("out of memory")

    assert recorder.attempt("first", fail) is None
    assert recorder.attempt("second", lambda: {"seconds": 1.0})["seconds"] == 1
    first, second = read_records(tmp_path / "x.jsonl")
    assert first["error"] == "RuntimeError: out of memory"
    assert second["name"] == "second" and second["device"] == "1 x cpu"


def test_nothing_starts_after_the_deadline(tmp_path):
    recorder = Recorder("encode", tmp_path / "x.jsonl", deadline=0.0)
    assert recorder.attempt("late", lambda: {"seconds": 1.0}) is None
    (row,) = read_records(tmp_path / "x.jsonl")
    assert "left" in row["left_out"] and "seconds" not in row


def test_a_broken_last_line_is_dropped(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"part": "encode", "name": "a"}\n{"part": "enc')
    assert [row["name"] for row in read_records(path)] == ["a"]


def test_the_ratio_is_of_equal_work():
    rows = [
        TRAIN | {"name": "default", "encoder": {}, "tokens_per_second": 3e5},
        TRAIN
        | {"name": "a", "encoder": {"dropout": 0.0}, "tokens_per_second": 6e5}
        | {"bfloat16_parameters": True},
        TRAIN | {"name": "b", "encoder": {"dropout": 0.0}, "tokens_per_second": 4e5},
        {"part": "train_step_torch", "name": PEER, "tokens_per_second": 2e5},
        {
            "part": "train_step_torch",
            "name": "torch, passages, dropout 0.0",
            "tokens_per_second": 2.5e5,
        },
    ]
    ratios = compare_sides(rows)
    assert ratios["train_step, default"] == pytest.approx(1.5)
    # Not the step with other parameters, though it is faster
    assert ratios["train_step, no dropout"] == pytest.approx(1.6)
    assert "1.60 times as fast" in format_table(rows)


def test_useful_flops_do_not_depend_on_padding():
    shape = {"width": 4, "mlp": 8, "depth": 3}
    columns = [[np.zeros(2), np.zeros(3)]]
    assert count_tokens(columns) == 5
    # 4 kernels of 4 x 4 and 2 of 4 x 8, then q k^T and its product with v
    forward = 5 * 2 * (4 * 16 + 2 * 32) + 2 * 2 * 4 * (2**2 + 3**2)
    assert useful_flops(shape, columns) == 3 * 3 * forward

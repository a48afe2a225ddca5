"""Whole programs, through the command line, as a user runs them."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from research.inference.index.vector_shards import read_vectors
from research.train.checkpoints import restore_params
from tests.toy_process import read_rows, start, virtual_devices

ROOT = Path(__file__).parent.parent
STEPS = 30
TRAIN = (
    *(sys.executable, "-m", "launch.train", "--config=configs/separate.py:tiny"),
    *(f"--config.steps={STEPS}", "--config.save_every=3", "--config.log_every=1"),
    # Three epochs of learning for the loss to differ if anything does.
    "--config.optimizer.learning_rate=0.001",
    "--config.encoder.remat=none",  # less to compile, nine times
    # Pairs have other rows on another number of devices, and rows have the masks
    "--config.encoder.dropout=0",
)


def command(workdir, cache):
    return (*TRAIN, f"--workdir={workdir}", f"--cache={cache}")


@contextlib.contextmanager
def one_core():
    """On one core, devices that wait for each other in two collectives hold it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def train(workdir, cache, devices=1):
    start = command(workdir, cache)
    with one_core() if devices > 1 else contextlib.nullcontext():
        done = subprocess.run(
            start, cwd=ROOT, env=virtual_devices(devices), capture_output=True
        )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout.decode().splitlines()[-1])


def losses(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def kill_at(step, workdir, cache):
    """Starts the run and kills it, without a warning, once it logs a step."""
    start = command(workdir, cache)
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            start, cwd=ROOT, env=virtual_devices(1), stdout=nowhere, stderr=nowhere
        )
    metrics = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= step:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The workdir of a run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    result = train(workdir, cache)
    assert result["step"] == STEPS and result["finished"]
    return workdir


def test_a_run_killed_three_times_ends_bit_equal(whole, cache, tmp_path):
    workdir = tmp_path / "killed"
    moments = sorted(random.SystemRandom().sample(range(4, STEPS - 1), 3))
    for step in moments:
        kill_at(step, workdir, cache)
    train(workdir, cache)
    expected, got = (restore_params(w / "checkpoints") for w in (whole, workdir))
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert losses(workdir) == losses(whole), f"killed after steps {moments}"


@pytest.mark.parametrize("devices", [4, 8])
def test_a_run_goes_on_alike_on_more_devices(devices, whole, cache, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(whole, workdir)
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    kept = [
        int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit()
    ]
    assert kept and max(kept) < STEPS
    train(workdir, cache, devices)
    got, expected = losses(workdir), losses(whole)
    assert got.keys() == expected.keys()
    np.testing.assert_allclose(
        list(got.values()), list(expected.values()), rtol=1e-4, atol=1e-5
    )


RECIPE = """
from configs.common import make_base, tiny
from research.config_sections import section
from research.data.sources import SOURCES
from research.eval.evaluators import EVALS

def get_config(folder):
    config = make_base()
    tiny(config, depth=2)
    config.batch_size, config.log_every, config.save_every = 16, 1, 2
    config.eval_every = 2
    config.data = {"a": section(SOURCES, "files", path=f"{folder}/pairs.jsonl")}
    config.evals = {"sts": section(EVALS, "sts", data=f"{folder}/scores.jsonl")}
    return config
"""


def write_recipe(folder):
    """A recipe of four steps on random words, evaluated every two steps."""
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices(["red", "blue", "old", "new", "sea"], k=8))
        for _ in "ab" * 64
    ]
    pairs = [
        {"anchor": a, "positive": b}
        for a, b in zip(texts[::2], texts[1::2], strict=True)
    ]
    scores = [
        {"sentence1": a, "sentence2": b, "score": i % 5}
        for i, (a, b) in enumerate(zip(texts[:20], texts[20:40], strict=True))
    ]
    for name, rows in (("pairs", pairs), ("scores", scores)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    (folder / "recipe.py").write_text(RECIPE)
    return f"--config={folder}/recipe.py:{folder}"


def test_two_processes_train_and_score_as_one(tmp_path):
    recipe = write_recipe(tmp_path)
    for count in (1, 2):
        command = ("-m", "launch.train", recipe, f"--workdir={tmp_path / str(count)}")
        with start(command, count, tmp_path) as started:
            codes = [process.wait(timeout=600) for process in started]
        assert codes == [0] * count, (tmp_path / "err0").read_text()
    one, two = (
        {
            (row["step"], key): value
            for row in read_rows(tmp_path / name)
            for key, value in row.items()
            if key == "loss" or key.startswith("eval/")
        }
        for name in "12"
    )
    assert one.keys() == two.keys() and (0, "eval/sts/main_score") in one
    np.testing.assert_allclose(list(two.values()), list(one.values()), rtol=1e-4)


def test_mistakes_are_one_sentence_and_exit_1(tmp_path):
    start = (sys.executable, "-m", "launch.train", f"--workdir={tmp_path / 'run'}")
    for arguments, message in (
        (["--config=configs/nosuch.py"], "configs/nosuch.py: no such config file"),
        (["--config=configs/separate.py:tiny", "--config.stepz=3"], "stepz"),
        (["--config=configs/separate.py:data=/nowhere"], "/nowhere"),
        (["--config=configs/separate.py:tiny", "--profile_steps=5:4"], "1 <= a < b"),
        (["--config=configs/separate.py:tiny", "--wandb_project=p"], "pip install"),
    ):
        done = subprocess.run(
            [*start, *arguments], cwd=ROOT, env=virtual_devices(1), capture_output=True
        )
        error = done.stderr.decode()
        assert done.returncode == 1 and not done.stdout
        assert error.startswith("error: ") and message in error
        assert error.count("\n") == 1, error


def test_codes_are_trained_and_mined_and_searched(tmp_path):
    """BiDR's two stages, and the search in between, by the commands of its recipe."""
    words = ("tree", "leaf", "root", "light", "grow", "cat", "dog", "bird")
    rows = [
        {"query": f"what is {a} {b}", "positive": f"the {a} {b} falls"}
        for a in words
        for b in words
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    texts = "\n".join(row["positive"] for row in rows)
    (tmp_path / "texts.txt").write_text(texts)
    codes, mined = tmp_path / "codes", tmp_path / "mined.jsonl"
    index = tmp_path / "index"

    def run(name, *flags):
        done = subprocess.run(
            (sys.executable, "-m", f"launch.{name}", *flags),
            **{"cwd": ROOT, "env": virtual_devices(1), "capture_output": True},
        )
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout.decode().splitlines()[-1])

    run("train", "--config=configs/bidr.py:tiny", f"--workdir={codes}")
    model = f"--model={codes}"
    data = (f"--data={tmp_path / 'pairs.jsonl'}", f"--output={mined}")
    assert run("mine", model, *data, "--negatives=6")["rows"] == 64
    result = run(
        *("train", f"--config=configs/bidr.py:tiny,mined={mined}"),
        f"--workdir={tmp_path / 'dense'}",
    )
    assert result["step"] == 4
    # The index has 12 bytes of a text, and the same scores as the decoded vectors
    run("index", model, f"--input={tmp_path / 'texts.txt'}", f"--output={index}")
    query = f"--query={rows[9]['query']}"
    hits = run("search", model, f"--index={index}", query)["hits"]
    assert read_vectors(index).read_codes(slice(None)).shape == (64, 12)
    direct = run("search", model, f"--corpus={tmp_path / 'texts.txt'}", query)["hits"]
    for hit, other in zip(hits, direct, strict=True):
        assert hit["score"] == pytest.approx(other["score"], abs=1e-5)
    # All texts are candidates, which the second model ranks as it does by itself
    second = f"--model={tmp_path / 'dense'}"
    verify = tmp_path / "verify"
    run("index", second, f"--input={tmp_path / 'texts.txt'}", f"--output={verify}")
    other = (f"--rerank_model={tmp_path / 'dense'}", f"--rerank_index={verify}")
    both = run("search", model, f"--index={index}", query, *other)["hits"]
    alone = run("search", second, f"--index={verify}", query)["hits"]
    assert [hit["id"] for hit in both] == [hit["id"] for hit in alone]
    for hit, expected in zip(both, alone, strict=True):
        assert hit["score"] == pytest.approx(expected["score"], abs=1e-5)

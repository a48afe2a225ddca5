import itertools
import os
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from launch import main as cli
from launch.main import LOST, STOPPED
from research import processes
from research.train import loop
from research.train.checkpoints import restore_params
from tests import toy_process
from tests.toy_process import ROOT, read_rows, start, wait_for_step

STEPS = 16


@pytest.mark.parametrize(
    "environ, several",
    [
        ({}, False),
        ({"SLURM_NTASKS": "1"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"JAX_NUM_PROCESSES": "4"}, True),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "could not be found, set it"}, False),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}, True),
    ],
)
def test_only_multi_process_runs_are_joined(monkeypatch, environ, several):
    for name in (*processes._SIZES, *processes._HOSTS, *processes._ADDRESSES):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **kw: calls.append(kw))
    processes.initialize()
    assert bool(calls) == several


@pytest.mark.parametrize("index", ["0", "1"])
def test_a_process_that_waits_for_others_in_vain_names_the_usual_causes(index):
    address = toy_process.free_address()
    environment = os.environ | {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": index,
    }
    script = "from research.processes import initialize; initialize(timeout=1)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True
    )
    message = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 1 and message.startswith("error: the processes of this")
    assert "not started 2 times" in message and f"{address} is not where" in message


@pytest.mark.parametrize(
    "message, code",
    [
        ("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [1.2.3.4]", LOST),
        ("UNAVAILABLE: failed to connect to all addresses", LOST),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes", 1),
    ],
)
def test_a_command_that_lost_a_process_says_so_by_its_code(
    message, code, monkeypatch, capfd
):
    def fail():
        raise jax.errors.JaxRuntimeError(message)

    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(cli, "is_joined", lambda: True)
    monkeypatch.setattr(cli, "leave", sys.exit)
    monkeypatch.setattr(cli.app, "run", lambda run, **kw: run(["command"]))
    with pytest.raises(SystemExit) as stopped:
        cli.run(fail)
    assert stopped.value.code == code
    assert ("another process of this run" in capfd.readouterr().err) == (code == LOST)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of a run of one process on 8 devices that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("alone")
    assert loop.train(toy_process.experiment(STEPS), workdir).finished
    return workdir


def command(workdir, pause=0.3):
    return ("-m", "tests.toy_process", workdir, STEPS, pause)


def losses_and_scores(workdir):
    keys = ("loss", "eval/toy/main_score", "eval/toy/spread")
    return {
        (row["step"], key): row[key]
        for row, key in itertools.product(read_rows(workdir), keys)
        if key in row
    }


def assert_alike(workdir, other):
    ours, theirs = losses_and_scores(workdir), losses_and_scores(other)
    assert ours.keys() == theirs.keys()
    np.testing.assert_allclose(
        list(ours.values()), list(theirs.values()), rtol=1e-5, atol=1e-6
    )


def stop_by_signal(workdir, folder, count, victim, number):
    """Sends a signal to one process of a run; returns the step at which all stop."""
    with start(command(workdir), count, folder) as started:
        wait_for_step(workdir, 3, started)
        with pytest.raises(ValueError, match=f"another run is in {workdir}: process"):
            loop.train(toy_process.experiment(STEPS), workdir)
        started[victim].send_signal(number)
        codes = [process.wait(timeout=120) for process in started]
    assert codes == [STOPPED] * count, (folder / "err0").read_text()
    step = read_rows(workdir)[-1]["step"]
    assert f"step {step} is saved, and the same" in (folder / "err0").read_text()
    assert (workdir / "checkpoints" / str(step)).is_dir() and 3 <= step < STEPS
    return step


def kill_one(workdir, folder, count, victim):
    """Kills a process of a run; every other one must end soon, with a sentence."""
    last = read_rows(workdir)[-1]["step"]
    with start(command(workdir), count, folder) as started:
        wait_for_step(workdir, last + 2, started)
        started[victim].kill()
        codes = [process.wait(timeout=60) for process in started]
    for index, code in enumerate(codes):
        if index != victim:
            assert code == LOST
            error = (folder / f"err{index}").read_text().splitlines()[-1]
            assert error.startswith("error: ") and "another process" in error


@pytest.mark.parametrize("killed", [False, True], ids=["stopped", "killed"])
def test_a_run_resumes_on_another_number_of_processes(alone, tmp_path, killed):
    workdir = tmp_path / "run"
    stop_by_signal(workdir, tmp_path, 2, victim=1, number=signal.SIGTERM)
    if killed:
        kill_one(workdir, tmp_path, 4, victim=2)
    assert loop.train(toy_process.experiment(STEPS), workdir).finished
    assert_alike(workdir, alone)


def test_ctrl_c_stops_all_and_without_its_first_process_a_run_ends(alone, tmp_path):
    workdir = tmp_path / "run"
    stop_by_signal(workdir, tmp_path, 4, victim=0, number=signal.SIGINT)
    kill_one(workdir, tmp_path, 2, victim=0)
    with start(command(workdir, 0), 2, tmp_path) as started:
        assert [process.wait(timeout=120) for process in started] == [0, 0]
    assert_alike(workdir, alone)


def test_the_same_mesh_on_two_or_four_processes_is_bit_equal(tmp_path):
    for count in (2, 4):
        with start(command(tmp_path / str(count), 0), count, tmp_path) as started:
            assert {process.wait(timeout=120) for process in started} == {0}
    ours, theirs = (restore_params(tmp_path / n / "checkpoints") for n in "24")
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("model", [2, 8])
def test_layers_split_over_processes_train_as_in_one(model, tmp_path):
    one, several = tmp_path / "one", tmp_path / "several"
    loop.train(toy_process.experiment(STEPS, model=model), one)
    with start((*command(several, 0), model), 2, tmp_path) as started:
        assert [process.wait(timeout=300) for process in started] == [0, 0]
    assert_alike(several, one)


POOL = """
import os, signal, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from research.processes import stop_with_parent

if __name__ == "__main__":
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, spawn, initializer=stop_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_their_parent(tmp_path):
    script = tmp_path / "pool.py"
    script.write_text(POOL)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # The worker holds this pipe, too: its end comes when both have died, or a timeout
    result = subprocess.run(
        [sys.executable, script], env=environment, stdout=subprocess.PIPE, timeout=60
    )
    assert result.returncode == -signal.SIGKILL
    assert int(result.stdout) > 0

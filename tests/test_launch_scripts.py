"""What the scripts for many hosts hand to gcloud and srun, which stand-ins record."""

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLAGS = (
    "launch.train",
    "--config=configs/mlm.py:tiny",
    "--workdir=/mnt/a b",
    "--x=$y'",
)


@pytest.fixture
def call(tmp_path):
    """Runs a script with stand-ins first on the PATH; returns it and their calls."""
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    folder.mkdir()
    for name in ("gcloud", "srun"):
        lines = (
            "#!/bin/sh",
            f'printf "%s\\0" {name} "$@" >> {calls}',
            f"echo >> {calls}",
        )
        keep = f'case "$4" in scp) cp "$5" {tmp_path}/sent.tar.gz;; esac'
        (folder / name).write_text("\n".join((*lines, keep)) + "\n")
        (folder / name).chmod(0o755)

    def call(script, *arguments, **environ):
        done = subprocess.run(
            ["bash", f"launch/{script}", *arguments],
            cwd=ROOT,
            env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environ,
            capture_output=True,
            text=True,
        )
        text = calls.read_text() if calls.exists() else ""
        return done, [line.split("\0") for line in text.split("\0\n") if line]

    return call


def test_a_slice_gets_the_tree_and_the_command(call, tmp_path):
    done, calls = call("tpu_pod.sh", "pod", "zone-a", *FLAGS)
    assert done.returncode == 0, done.stderr
    copy, run = calls
    assert copy[:4] == ["gcloud", "compute", "tpus", "tpu-vm"]
    assert copy[4] == "scp" and copy[6:] == ["pod:", "--zone=zone-a", "--worker=all"]
    assert run[4:8] == ["ssh", "pod", "--zone=zone-a", "--worker=all"]
    with tarfile.open(tmp_path / "sent.tar.gz") as sent:
        assert {"requirements.txt", "launch/train.py"} <= set(sent.getnames())
    remote = run[8].removeprefix("--command=")
    assert subprocess.run(["bash", "-n", "-c", remote]).returncode == 0
    # A shell there hands the very same flags on.
    last = remote.rpartition("exec .venv/bin/python -m")[2]
    said = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {last}"], capture_output=True, text=True
    )
    assert said.stdout.splitlines() == list(FLAGS)


def test_a_job_runs_the_command_on_every_task(call):
    environ = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}
    done, calls = call("slurm.sh", *FLAGS, **environ)
    assert done.returncode == 0, done.stderr
    assert calls == [["srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", *FLAGS]]


@pytest.mark.parametrize(
    "script,arguments,environ,message",
    [
        ("tpu_pod.sh", ("pod", "zone"), {}, "needs NAME ZONE MODULE"),
        ("slurm.sh", FLAGS, {"SLURM_JOB_ID": ""}, "sbatch OPTIONS launch/slurm.sh"),
        (
            "slurm.sh",
            FLAGS,
            {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/"},
            "no .venv in /;",
        ),
    ],
)
def test_mistakes_are_one_sentence(call, script, arguments, environ, message):
    done, calls = call(script, *arguments, **environ)
    assert done.returncode == 1 and calls == []
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1

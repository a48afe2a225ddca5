"""How runs are started on many machines: scripts and files, with recording stand-ins.

The stand-ins are commands on the PATH that record their arguments. The files were also
read by SkyPilot's own parser, checked against the schema of JobSet, and xpk's dry run
took the command of launch/README.md; neither is needed here.
"""

import importlib.metadata
import math
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FLAGS = (
    "launch.train",
    "--config=configs/mlm.py:tiny",
    "--workdir=/mnt/a b",
    "--x=$y'",
)
TOOLS = ("gcloud", "srun", "sbatch", "sky", "kubectl", "xpk", "docker", "python")
VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
VARIABLES += ("JAX_LOCAL_DEVICE_IDS",)


@pytest.fixture
def call(tmp_path):
    """Runs bash with stand-ins; returns the result and the recorded calls.

    A call is a list: the values of VARIABLES, the command's name, its arguments.
    """
    folder, calls = tmp_path / "bin", tmp_path / "calls"
    (tmp_path / ".venv/bin").mkdir(parents=True)
    folder.mkdir()
    values = " ".join(f'"${name}"' for name in VARIABLES)
    for path in (*(folder / name for name in TOOLS), tmp_path / ".venv/bin/python"):
        path.write_text(
            f'#!/bin/sh\nprintf "%s\\0" {values} {path.name} "$@" >> {calls}\n'
            f"echo >> {calls}\n"
        )
        path.chmod(0o755)

    def call(*arguments, cwd=ROOT, **environ):
        done = subprocess.run(
            ["bash", *arguments],
            cwd=cwd,
            env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"} | environ,
            capture_output=True,
            text=True,
        )
        text = calls.read_text() if calls.exists() else ""
        return done, [line.split("\0") for line in text.split("\0\n") if line]

    return call


def train_flags(command):
    """Checks that words are a call of launch.train with flags that it has."""
    words = [word for word in command if word != "exec"]
    start = words.index("launch.train")
    assert words[start - 1] == "-m"
    text = (ROOT / "launch/train.py").read_text()
    known = set(re.findall(r"(?:DEFINE_|define_)\w+\(\s*\"(\w+)\"", text))
    flags = dict(word.removeprefix("--").split("=", 1) for word in words[start + 1 :])
    assert {name.split(".")[0] for name in flags} <= known
    assert (ROOT / flags["config"].split(":")[0]).exists()
    return flags


def test_a_slurm_job_runs_one_process_a_node_with_all_of_its_gpus(call):
    environ = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT)}
    done, calls = call("launch/slurm.sh", *FLAGS, SLURM_GPUS_ON_NODE="4", **environ)
    assert done.returncode == 0, done.stderr
    srun = ["srun", "--kill-on-bad-exit=1", ".venv/bin/python", "-m", *FLAGS]
    assert calls == [["", "", "", "0,1,2,3", *srun]]
    options = re.findall("^#SBATCH (.*)$", (ROOT / "launch/slurm.sh").read_text(), re.M)
    assert {"--ntasks-per-node=1", "--requeue"} <= set(options)


@pytest.mark.parametrize(
    "arguments,environ,message",
    [
        (FLAGS, {"SLURM_JOB_ID": ""}, "sbatch OPTIONS launch/slurm.sh"),
        (FLAGS, {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": "/"}, "no .venv in /;"),
    ],
)
def test_mistakes_are_one_sentence(call, arguments, environ, message):
    done, calls = call("launch/slurm.sh", *arguments, **environ)
    assert done.returncode == 1 and calls == []
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "name,variables",
    [("tpu", ["", "4", "", ""]), ("gpu", ["10.0.0.1:8482", "4", "2", ""])],
)
def test_sky_tasks_join_their_processes_and_train_in_the_bucket(
    call, tmp_path, name, variables
):
    task = yaml.safe_load((ROOT / f"launch/sky_{name}.yaml").read_text())
    nodes = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2\n10.0.0.3\n10.0.0.4"}
    nodes |= {"SKYPILOT_NUM_NODES": "4", "SKYPILOT_NODE_RANK": "2"}
    done, (command,) = call("-c", task["run"], cwd=tmp_path, **nodes, **task["envs"])
    assert done.returncode == 0, done.stderr
    assert command[:4] == variables
    flags = train_flags(command)
    # The run and its data are in the bucket, and setup makes the .venv that run uses.
    (bucket,) = task["file_mounts"]
    assert flags["workdir"].startswith(bucket + "/")
    assert task["envs"]["EMBAX_DATA"].startswith(bucket + "/")
    assert subprocess.run(["bash", "-n", "-c", task["setup"]]).returncode == 0
    (extra,) = re.findall(r"jax\[(\w+)\]", task["setup"])
    assert extra in importlib.metadata.metadata("jax").get_all("Provides-Extra")
    assert (
        task["resources"]["use_spot"]
        and 143 in (task["resources"]["job_recovery"]["recover_on_exit_codes"])
    )


def test_a_jobset_has_a_pod_a_host_and_trains_in_the_bucket():
    jobset = yaml.safe_load((ROOT / "launch/jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    # All chips of the slice are asked for
    chips = container["resources"]["limits"]["google.com/tpu"]
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    assert spec["parallelism"] == spec["completions"]
    assert spec["parallelism"] * chips == math.prod(map(int, topology.split("x")))
    # A pod that fails ends its job, and JobSet starts all of them again
    assert spec["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    # Run and data are in the mounted bucket
    flags = train_flags([*container["command"], *container["args"]])
    (mount,) = container["volumeMounts"]
    assert mount["name"] in [volume["name"] for volume in pod["volumes"]]
    paths = (flags["workdir"], *(row["value"] for row in container["env"]))
    assert all(path.startswith(mount["mountPath"] + "/") for path in paths)


def test_the_image_copies_what_exists_and_installs_the_pinned_packages():
    text = (ROOT / "launch/Dockerfile").read_text()
    steps = [line.split() for line in text.splitlines() if line and line[0] != "#"]
    copies = [step[1:] for step in steps if step[0] == "COPY"]
    assert all((ROOT / source).exists() for source, _ in copies)
    assert ["requirements.txt", "."] in copies and "-r requirements.txt" in text
    # The code that launch.train imports is all there
    assert {"research", "configs", "launch"} <= {source for source, _ in copies}
    for name in re.findall(r"JAX=(\w+)", text):
        assert name in importlib.metadata.metadata("jax").get_all("Provides-Extra")


def test_the_commands_of_the_page_train_on_the_machines(call, tmp_path):
    page = (ROOT / "launch/README.md").read_text()
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.M | re.S)
    # Those for this machine begin with python
    tools = set(TOOLS) - {"srun", "python"}
    blocks = [block for block in blocks if block.split()[0] in tools]
    for block in blocks:
        done, calls = call("-euc", block)
        assert done.returncode == 0, done.stderr
    calls = [recorded[len(VARIABLES) :] for recorded in calls]
    assert {words[0] for words in calls} == tools
    # What the tools run there: a shell command, flags of the task, or a script's rest
    (tmp_path / "embax").mkdir()
    (tmp_path / "embax/.venv").symlink_to(tmp_path / ".venv")
    trained = set()
    for words in calls:
        assert all((ROOT / w).exists() for w in words if w.startswith("launch/"))
        for word in words:
            name, _, value = word.partition("=")
            if name == "FLAGS":
                train_flags(["-m", "launch.train", *value.split()])
            if name == "--command" and "launch.train" in value:
                done, recorded = call("-euc", value, cwd=tmp_path)
                assert done.returncode == 0, done.stderr
                train_flags(recorded[-1])
            if name == "--command":
                assert subprocess.run(["bash", "-n", "-c", value]).returncode == 0
            if name in ("FLAGS", "--command", "launch.train"):
                trained.add(words[0])
        if words[0] == "sbatch":  # the script puts "python -m" before it
            train_flags(["-m", *words[words.index("launch.train") :]])
    assert trained == {"sky", "gcloud", "xpk", "sbatch"}


def test_setup_installs_a_file_once_and_models_without_their_dependencies(tmp_path):
    (tmp_path / "launch").mkdir()
    for name in ("launch/setup.sh", "launch/models.txt", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\n')
    python.chmod(0o755)
    command = ["bash", str(tmp_path / "launch/setup.sh"), "requirements.txt"]
    for _ in range(2):
        subprocess.run([*command, "launch/models.txt"], check=True)
    subprocess.run(command, check=True)
    calls = (python.parent / "calls").read_text().splitlines()
    assert [call.partition(" -r ")[2] for call in calls] == [
        "requirements.txt",
        "launch/models.txt --no-deps",
    ]

"""A run of the linear model over several processes, each started like launch.train.

python -m tests.toy_process WORKDIR STEPS SECONDS_PER_STEP [SIZE_OF_MODEL_AXIS]
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    sys.modules["torch"] = None  # tensorboardX would import it, for half of the start

import jax
import numpy as np

from launch import main as cli
from launch.supervise import supervise
from research import processes, sharding
from research.train import loop
from tests import toy

ROOT = Path(__file__).parent.parent
HEARTBEAT = 8  # seconds without a sign of life
DEVICES = 8


class SharedBatches(toy.Batches):
    """The share of this process of each batch, after a pause."""

    def __init__(self, mesh, pause):
        super().__init__(rows=2 * DEVICES)
        self.mesh, self.pause = mesh, pause

    def __call__(self, step):
        time.sleep(self.pause)
        index, shares = sharding.find_process_share(self.mesh)
        batch = super().__call__(step)
        return jax.tree.map(lambda x: np.split(x, shares)[index], batch)


def score(embed):
    vectors = embed(["a", "b", "c"], "query")
    return {"main_score": float(vectors.sum()), "spread": float(vectors.std())}


def make_embedder(params, frozen):
    del frozen
    table = np.asarray(params["encoder"]["embed"]["token"]["embedding"])
    return lambda texts, role: table[: len(texts)]


def experiment(steps, pause=0.0, model=1):
    """A run on 8 devices with split parameters, evaluated every 4 steps."""
    mesh = sharding.make_mesh({"data": 1, "fsdp": -1, "model": model})
    return toy.experiment(
        steps,
        mesh=mesh,
        batches=SharedBatches(mesh, pause),
        log_every=1,
        save_every=3,
        eval_every=4,
        evaluators={"toy": score},
        make_embedder=make_embedder,
    )


def virtual_devices(count):
    """The environment of a command that has so many virtual devices."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} {cli.VIRTUAL}={count}".strip()
    return os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@contextlib.contextmanager
def start(command, count, folder, **environment):
    """Starts the processes of a run on 8 devices; output goes to files of the folder.

    At the end, those that still run are killed.
    """
    shared = virtual_devices(DEVICES // count) | {
        "JAX_COORDINATOR_ADDRESS": free_address(),
        "JAX_NUM_PROCESSES": str(count),
        **environment,
    }
    started = []
    for index in range(count):
        with (
            (folder / f"out{index}").open("w") as out,
            (folder / f"err{index}").open("w") as err,
        ):
            own = {"JAX_PROCESS_ID": str(index)}
            started.append(
                subprocess.Popen(
                    [sys.executable, *map(str, command)],
                    cwd=ROOT,
                    env=shared | own,
                    stdout=out,
                    stderr=err,
                )
            )
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def wait_for_step(workdir, step, started, seconds=300):
    """Waits until the run has logged a step."""
    end = time.monotonic() + seconds
    while all(process.poll() is None for process in started):
        if any(row["step"] >= step for row in read_rows(workdir)):
            return
        assert time.monotonic() < end, f"no step {step} in {seconds} s"
        time.sleep(0.05)


def read_rows(workdir):
    path = workdir / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def main():
    workdir, steps, pause, *model = ARGUMENTS
    processes.initialize(stop_together=True, heartbeat_timeout=HEARTBEAT)
    parts = experiment(int(steps), float(pause), *map(int, model))
    result = loop.train(parts, workdir)
    return {"step": int(result.state.step), "finished": result.finished}


if __name__ == "__main__":
    ARGUMENTS = sys.argv[1:]
    del sys.argv[1:]
    # In the tests' process, the handler of SIGINT may be off, and children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    supervise()
    cli.run(main)

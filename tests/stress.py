"""Long checks of interrupted and concurrent runs, outside of the tests.

python -m tests.stress kills --count=20 --processes=2
python -m tests.stress starts --count=500
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from research import processes
from research.train.checkpoints import restore_params
from tests import toy, toy_process

STEPS = 300
LONGEST = 3.0  # seconds from the first new step to the kill
STARTING = 8  # processes that start in one workdir


def train(workdir, count, pause):
    """The command of a run of the linear model, with a pause before each batch."""
    command = ("-m", "tests.toy_process", workdir, STEPS, pause)
    return toy_process.start(command, count, workdir.parent)


def is_saving(workdir):
    """Whether a checkpoint is being written."""
    return any("tmp" in path.name for path in (workdir / "checkpoints").glob("*"))


def kill_at_random(workdir, count, during_save):
    """Starts a run, kills one of its processes; whether a checkpoint was being written.

    The moment is a random time after the first new step, or the first save after it.
    """
    rows = toy_process.read_rows(workdir)
    with train(workdir, count, 0.05) as started:
        last = rows[-1]["step"] if rows else 0
        toy_process.wait_for_step(workdir, last + 1, started)
        time.sleep(random.uniform(0, LONGEST))
        while during_save and not is_saving(workdir) and started[0].poll() is None:
            time.sleep(0.001)
        saving = is_saving(workdir)
        random.choice(started).kill()
        codes = [process.wait(timeout=120) for process in started]
    assert any(codes), "the run was finished before its last kill"
    return saving


def check_kills(count, number_of_processes):
    """Kills a run again and again; its end must equal an uninterrupted run's."""
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    runs = []
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        runs.append(folder / name / "run")
    saves = 0
    for index in range(count):
        saving = kill_at_random(runs[1], number_of_processes, index % 2 == 0)
        saves += saving
        step = toy_process.read_rows(runs[1])[-1]["step"]
        print(f"kill {index + 1} near step {step}, saving: {saving}", flush=True)
    # Both runs to their end
    for run in runs:
        with train(run, number_of_processes, 0) as started:
            assert not any(process.wait() for process in started)
    whole, killed = (restore_params(run / "checkpoints") for run in runs)
    jax.tree.map(np.testing.assert_array_equal, killed, whole)
    whole, killed = (
        [
            (row["step"], row["loss"])
            for row in toy_process.read_rows(run)
            if "loss" in row
        ]
        for run in runs
    )
    assert killed == whole and len(whole) == STEPS
    shutil.rmtree(folder)
    return {"kills": count, "while saving": saves, "steps": STEPS, "bit_equal": True}


def check_starts(count):
    """Starts runs of eight processes, each time in a new workdir."""
    folder = Path(tempfile.mkdtemp(prefix="starts-"))
    command = ("-m", "tests.stress", "start", f"--count={count}", f"--folder={folder}")
    with toy_process.start(command, STARTING, folder) as started:
        codes = [process.wait() for process in started]
    if any(codes):
        error = next(i for i, code in enumerate(codes) if code)
        print((folder / f"err{error}").read_text()[-2000:], file=sys.stderr)
        sys.exit(1)
    shutil.rmtree(folder)
    return {"starts": count, "processes": STARTING, "failed": 0}


def start_again_and_again(count, folder):
    """One of the eight processes: all that precedes the first step of a run."""
    from configs.common import make_base, tiny
    from research.config_sections import section
    from research.data.sources import SOURCES
    from research.experiment.workdir import prepare_run
    from research.file_lock import lock_folder
    from research.train import loop

    processes.initialize(stop_together=True)
    data = folder / "pairs.jsonl"
    lines = [{"anchor": f"text {i}", "positive": f"its pair {i}"} for i in range(64)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    processes.call_on_first(lambda: data.write_text(text), "writing the data")
    config = make_base()
    tiny(config)
    config.evals, config.batch_size = {}, 16
    config.data = {"pairs": section(SOURCES, "files", path=str(data))}
    nothing = toy.experiment(0, 8, evaluators={})
    for index in range(count):
        workdir = folder / f"run{index}"
        with lock_folder(workdir):
            prepare_run(config, workdir)
            loop.train(nothing, workdir)
        # The next start must not depend on how this one ended
        if processes.is_first():
            names = {path.name for path in workdir.iterdir()}
            assert {"config.json", "tokenizer.json", "model.json"} <= names, names
            assert not any(name.startswith(".") for name in names), names
        if index % 50 == 49 and processes.is_first():
            print(f"{index + 1} starts", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("check", choices=("kills", "starts", "start"))
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    if options.check == "start":
        return start_again_and_again(options.count, options.folder)
    if options.check == "kills":
        result = check_kills(options.count, options.processes)
    else:
        result = check_starts(options.count)
    print(json.dumps(result))


if __name__ == "__main__":
    main()

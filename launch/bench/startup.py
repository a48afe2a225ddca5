"""Benchmark of embedding one text in a process of its own, start-up included."""

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from launch.bench.timing import compare_turns
from research.interop import load

TEXT = "How do I read a file line by line?"
# What a user of sentence-transformers would write for the same.
PEER = """
import sys
import numpy as np
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
texts = open(sys.argv[2]).read().splitlines()
np.save(sys.argv[3], model.encode(texts))
"""


def startup(model: str, rounds: int) -> dict:
    """Times `launch.embed` of one text against sentence-transformers doing the same.

    Both start anew for every turn and find their files in the caches of the first one,
    which does not count.

    Args:
        model: Name of the model.
        rounds: Number of timed processes of each library.
    """
    with tempfile.TemporaryDirectory() as folder:
        texts, ours, theirs = (f"{folder}/{n}" for n in ("x.txt", "a.npy", "b.npy"))
        Path(texts).write_text(TEXT + "\n")
        flags = [f"--model={model}", f"--input={texts}", f"--output={ours}"]
        commands = {
            "ours": ["-m", "launch.embed", *flags],
            "theirs": ["-c", PEER, str(load.resolve_folder(model)), texts, theirs],
        }
        cpu_seconds = {side: [] for side in commands}

        def run(side, **variables):
            before = os.times()
            # Both libraries look only on the disk for the model.
            environment = os.environ | {"HF_HUB_OFFLINE": "1"} | variables
            done = subprocess.run(
                [sys.executable, *commands[side]],
                env=environment,
                capture_output=True,
                text=True,
            )
            if done.returncode:
                raise ValueError(f"{side} failed: {done.stderr[-500:]}")
            after = os.times()
            cpu_seconds[side].append(
                after.children_user
                - before.children_user
                + after.children_system
                - before.children_system
            )
            return done.stderr

        # Seconds on the clock and on the CPU, and programs that a warm start compiles
        # or loads.
        result = compare_turns(
            lambda turn: run("ours"), lambda turn: run("theirs"), rounds
        )
        medians = {k: statistics.median(v[1:]) for k, v in cpu_seconds.items()}
        log = run("ours", JAX_LOG_COMPILES="1")
        difference = np.abs(np.load(ours) - np.load(theirs)).max()
    return {
        "cpu_seconds": medians,
        "programs": log.count("Finished XLA compilation"),
        "largest_difference": float(difference),
        **result,
    }

"""Damaged inputs, a program that tries thousands of them; it is no part of the tests.

python -m tests.fuzz --minutes=10 --seed=0 [--kind=records]
python -m tests.fuzz --seed=0 --kind=records --number=17

An input is a small file, a folder or a flag that is damaged at random. It has to be
refused by a sentence that names what is wrong, or to be read as an oracle reads it:
json, csv, pytrec_eval, safetensors, sentence-transformers. Anything else is a fault,
which its kind, its seed and its number make again.
"""

import argparse
import collections
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.fuzz_outcomes import Fault, Refused

# What these say is not looked at; they are set before the libraries are imported.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false"}
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
SECONDS = 30  # an input that takes longer is a fault


@contextlib.contextmanager
def limit_seconds(seconds):
    """Raises Fault in a block that takes longer; 0 is no limit."""

    def stop(*_):
        raise Fault(f"takes more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def hide_output():
    """Hides what libraries print, also from C++."""
    with open(os.devnull, "w") as nowhere:
        saved = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(nowhere.fileno(), number)
        try:
            yield
        finally:
            for number, copy in zip((1, 2), saved, strict=True):
                os.dup2(copy, number)
                os.close(copy)


def try_input(kinds, kind, seed, number, limit=SECONDS):
    """Makes and tries one input.

    Returns:
        "read" or "refused", or the fault as text; and the refusal's sentence.
    """
    rng = random.Random(f"{kind} {seed} {number}")
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with hide_output(), limit_seconds(limit):
            kinds[kind](rng, folder)
        return "read", ""
    except Refused as refusal:
        return "refused", str(refusal)
    except Fault as fault:
        return f"{fault}", ""
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        own = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "/research/" in f.filename
        ]
        inner = f" from {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
        return f"{type(error).__name__} at {place}{inner}: {str(error)[:200]}", ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    """Tries inputs until the time is over; exits with 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", action="append", help="kinds of inputs; all if unset")
    parser.add_argument("--number", type=int, help="only this input of the kind")
    options = parser.parse_args()
    from tests import fuzz_files, fuzz_models

    kinds = fuzz_files.KINDS | fuzz_models.KINDS

    chosen = options.kind or list(kinds)
    # What is imported, made once or compiled first costs no input its time
    for kind in chosen:
        try_input(kinds, kind, options.seed, "first", limit=0)
    counts, faults = collections.Counter(), {}
    number, end = options.number or 0, time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        for kind in chosen:
            result, sentence = try_input(kinds, kind, options.seed, number)
            is_fault = result not in ("read", "refused")
            counts[kind, "fault" if is_fault else result] += 1
            # Each fault once: the same text but for numbers and quoted parts
            key = kind, re.sub(r"\d+|'[^']*'|/\S+", "_", result)[:48]
            if is_fault and key not in faults:
                faults[key] = number
                print(
                    f"--kind={kind} --seed={options.seed} --number={number}: {result}"
                )
                sys.stdout.flush()
            if options.number is not None:
                print(f"{kind} {number}: {result} {sentence}")
        number += 1
        if options.number is not None:
            break
    for kind in chosen:
        words = ", ".join(
            f"{counts[kind, w]} {w}" for w in ("read", "refused", "fault")
        )
        print(f"{kind}: {words}")
    print(f"{sum(counts.values())} inputs, {len(faults)} different faults")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()

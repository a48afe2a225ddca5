"""The accelerator check: kernels, training, encoding, against PyTorch, in minutes.

python -m launch.bench.accelerator [--minutes=9] [--parts=train_step,...] [--tiny]

Every part is a process with a time limit of its own, so that an error costs one part.
Results are lines of JSON in --records ($OUT/accelerator.jsonl if unset), written as
they come; a table comes last. JAX is not imported here: the parts need all of the
device's memory.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from launch import main as cli
from launch.bench.accelerator_part import DATA, MODEL, PARTS, RECORDS, SCRATCH, TINY
from launch.bench.accelerator_table import format_table
from launch.bench.records import Recorder, read_records


class Budget(NamedTuple):
    """Time of a part.

    Attributes:
        part: Name of the part.
        seconds: Seconds after which it is stopped.
        least: Seconds without which it is not started.
    """

    part: str
    seconds: float
    least: float


# In order of value. The last ones take what is left.
BUDGETS = (
    Budget("train_step", 170, 50),
    Budget("train_step_torch", 50, 25),
    Budget("encode", 75, 30),
    Budget("attention", 50, 25),
    Budget("attention_torch", 25, 12),
    Budget("lora", 75, 35),
    Budget("lora_torch", 40, 20),
    Budget("infonce", 50, 20),
    Budget("kernels", 60, 25),
    Budget("ablation", 220, 60),
    Budget("train_details", 150, 50),
)
RESERVE = 6.0  # seconds for the table
GRACE = 4.0  # seconds between the deadline of a part and its end
MINUTES = flags.DEFINE_float(
    "minutes", 9.0, "Minutes after which the command has ended.", lower_bound=0.2
)
CHOICE = flags.DEFINE_list(
    "parts", [b.part for b in BUDGETS], "Parts to run, in order."
)


def main() -> dict[str, Any]:
    """Runs the parts one after the other, and prints the table."""
    end = time.time() + 60 * MINUTES.value - RESERVE
    if unknown := set(CHOICE.value) - set(PARTS):
        raise ValueError(
            f"there is no part {', '.join(sorted(unknown))}; known: {', '.join(PARTS)}"
        )
    records = Path(
        RECORDS.value or Path(os.environ.get("OUT", "runs")) / "accelerator.jsonl"
    )
    records.parent.mkdir(parents=True, exist_ok=True)
    records.write_text("")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = Path(SCRATCH.value or scratch)
        folder.mkdir(parents=True, exist_ok=True)
        budgets = {budget.part: budget for budget in BUDGETS}
        for part in CHOICE.value:
            _run_part(budgets[part], records, folder, end)
    rows = read_records(records)
    table = format_table(rows)
    records.with_suffix(".md").write_text(table)
    print(table, flush=True)
    failures = [row for row in rows if "error" in row]
    return {"records": str(records), "rows": len(rows), "errors": len(failures)}


def _run_part(budget: Budget, records: Path, folder: Path, end: float) -> None:
    """Runs a part in a process, which is killed when its time is up."""
    recorder = Recorder(budget.part, records)
    seconds = end - time.time()
    if not TINY.value:  # on a slow CPU, a part may take all of the time
        seconds = min(budget.seconds, seconds)
    if seconds < (10 if TINY.value else budget.least):
        recorder.write("", left_out=f"{max(0, seconds):.0f} s were left")
        return
    cli.log(f"== {budget.part}: at most {seconds:.0f} s")
    start = time.time()
    command = [
        *(sys.executable, "-m", "launch.bench.accelerator_part", budget.part),
        *(f"--records={records}", f"--scratch={folder}", f"--data={DATA.value}"),
        *(f"--deadline={start + seconds - GRACE}", f"--tiny={TINY.value}"),
        *([f"--model={MODEL.value}"] if MODEL.value else []),
    ]
    log = records.with_suffix(".log")
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=_make_environment(budget.part, folder),
            start_new_session=True,  # so that its own processes are killed, too
        )
        code = _wait(process, seconds)
    if code is None:
        recorder.write("", error=f"stopped after {seconds:.0f} s")
    elif code:
        recorder.write("", error=_read_last_line(log), exit_code=code)
    cli.log(f"== {budget.part}: {time.time() - start:.0f} s")


def _wait(process: subprocess.Popen, seconds: float) -> int | None:
    """The exit code of a process; None if it had to be killed."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        return None


def _make_environment(part: str, folder: Path) -> Mapping[str, str]:
    """The environment of a part's process."""
    settings = {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "true",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # Programs that several parts or variants share are compiled once
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    # Where PyTorch uses the same device in the process, JAX takes what it needs only
    if part in ("encode", "infonce"):
        settings["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    else:
        settings["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"
    return {**settings, **os.environ}


def _read_last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line]
    return lines[-1][:600] if lines else "no output"


if __name__ == "__main__":
    cli.run(main)

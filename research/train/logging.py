"""Logging of a run: metrics.jsonl, TensorBoard, a progress bar, library versions."""

import importlib.metadata
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from research.atomic_write import atomic_write, to_json, write_json
from research.train.wandb_run import start_wandb_run

_LIBRARIES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "tokenizers",
    "tensorflow-datasets",
)


class Log:
    """The metrics of a run: one JSON object a line in metrics.jsonl, TensorBoard, and a
    progress bar on a terminal or plain lines elsewhere (both on stderr).

    Rows are dicts with the key 'step'. On resuming, rows of steps after the resumed one
    are dropped, so that no step appears twice.

    Args:
        workdir: Folder of the run.
        steps: Number of its steps.
        resumed: Number of steps that it has made before.
        wandb_project: Project of Weights & Biases that gets the rows, too; None for
            none.
    """

    def __init__(
        self,
        workdir: Path,
        steps: int,
        resumed: int,
        wandb_project: str | None = None,
    ):
        path = workdir / "metrics.jsonl"
        # Keep the rows of an earlier run up to the step that this one resumes from
        # A run repeats the evaluation at the step that it resumes from
        rows = [
            row
            for row in (read_rows(path) if path.exists() else [])
            if row["step"] < resumed or (row["step"] == resumed and "loss" in row)
        ]
        with atomic_write(path) as draft:
            draft.write_text("".join(to_json(row) + "\n" for row in rows))
        self._file = path.open("a")
        # Imported here: it imports torch where it is installed
        from tensorboardX import SummaryWriter

        self._board = SummaryWriter(
            str(workdir / "tensorboard"), purge_step=resumed + 1
        )
        self._wandb = None
        if wandb_project:
            self._wandb = start_wandb_run(wandb_project, workdir)
        # A progress bar on a terminal; otherwise `show` prints lines
        terminal = sys.stderr.isatty()
        self._bar = tqdm(total=steps, initial=resumed, disable=not terminal, unit="it")
        self._steps = steps

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Appends a row to the file and to the boards; strings stay in the file."""
        self._file.write(to_json(row) + "\n")
        numbers = {
            name: value
            for name, value in row.items()
            if name != "step" and not isinstance(value, str)
        }
        for name, value in numbers.items():
            self._board.add_scalar(name, value, row["step"])
        # W&B has no rows of steps that it already has: a resumed run repeats the same
        if self._wandb is not None and numbers:
            self._wandb.log(numbers, step=row["step"])

    def flush(self) -> None:
        """Writes all buffered rows to disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._board.flush()

    def progress(self, step: int) -> None:
        """Advances the progress bar to a step."""
        self._bar.update(step - self._bar.n)

    def show(self, row: Mapping[str, float], seconds_left: float) -> None:
        """Shows the loss and the speed in the bar, or as a line."""
        speed = f"{row['tokens_per_second']:,.0f}"
        # On a terminal
        if not self._bar.disable:
            self._bar.set_postfix_str(f"loss {row['loss']:.4f}, {speed} tokens/s")
            return
        print(
            f"step {row['step']}/{self._steps}  loss {row['loss']:.4f}  "
            f"lr {row['learning_rate']:.2e}  {speed} tokens/s  "
            f"{tqdm.format_interval(seconds_left)} left",
            file=sys.stderr,
            flush=True,
        )

    def print_line(self, text: str) -> None:
        """Prints a line, if there is any text."""
        if text:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Closes the progress bar and the files."""
        self._bar.close()
        self._file.close()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


class SilentLog:
    """The log of all processes of a run but the first one: it writes nothing."""

    def __init__(self, *args):
        self._ignore(*args)

    def _ignore(self, *args) -> None:
        del args

    write = flush = progress = show = print_line = close = _ignore


def versions() -> dict[str, str]:
    """The git revision of the code ('+' marks local changes), and library versions."""
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            libraries[name] = "missing"
    python = sys.version.split()[0]
    return {"revision": _revision(), "python": python, **libraries}


def write_versions(workdir: Path) -> None:
    """Writes versions.json into a workdir.

    Raises:
        ValueError: The workdir cannot be written.
    """
    try:
        write_json(workdir / "versions.json", versions())
    except OSError as error:
        raise ValueError(f"cannot write to {workdir}: {error.strerror}") from error


def _revision() -> str:
    folder = Path(__file__).parent
    try:
        git = ["git", "-C", str(folder)]
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True)
        if head.returncode:
            return "unknown"
        # Local changes of tracked files
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        changed = subprocess.run(status, capture_output=True).stdout
        return head.stdout.decode().strip() + ("+" if changed else "")
    except FileNotFoundError:
        return "unknown"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, {"step": n, name: number or text}.

    A line that was cut off when a run was killed is left out.
    """
    rows = []
    # Bytes, because such a line may end in the middle of a character
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if (
            isinstance(row, dict)
            and type(row.get("step")) is int
            and all(type(value) in (int, float, str) for value in row.values())
        ):
            rows.append(row)
    return rows

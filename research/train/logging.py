"""Logging of a run: metrics.jsonl, TensorBoard, the console, library versions."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate
from tqdm import tqdm

from research.atomic_write import atomic_write, to_json, write_json
from research.train.wandb_run import start_wandb_run

# Metrics of a size: "task/64" of a width, "kl/4x128" or "task/drawnx768" of a depth
# and a width; "loss/NAME" is that of a source
_SIZE_LOSS = re.compile(r"(?!loss/)(\w+)/(((\d+|drawn\d*)x)?(\d+|drawn))")
_MAX_COLUMNS = 8  # of the table of sizes; it is turned if there are more
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
    """The metrics of a run: one JSON object a line in metrics.jsonl, TensorBoard, and
    lines on stderr, below which a terminal has a progress bar.

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
        terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=resumed, disable=not terminal, unit=" steps"
        )
        self._steps = steps
        # {size loss: its values since the last evaluation}
        self._size_losses: dict[str, list[float]] = {}
        for row in rows:
            if any(name.startswith("eval/") for name in row):
                self._size_losses = {}
            self._collect_size_losses(row)

    def write(self, row: Mapping[str, float | int | str]) -> None:
        """Appends a row to the file and to the boards; strings stay in the file."""
        self._file.write(to_json(row) + "\n")
        self._collect_size_losses(row)
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

    def show(self, rows: Sequence[Mapping[str, Any]], seconds_left: float) -> None:
        """Prints the loss and the speed of the last steps.

        Args:
            rows: Rows of these steps. With several sources, the mean loss of each one
                is printed, too.
            seconds_left: Seconds until the end of the run.
        """
        row = rows[-1]
        # The mean loss of each source
        losses: dict[str, list[float]] = {}
        for name, value in (item for part in rows for item in part.items()):
            if name.startswith("loss/"):
                losses.setdefault(name.removeprefix("loss/"), []).append(value)
        means = [f"{name} {sum(x) / len(x):.4f}" for name, x in sorted(losses.items())]
        by_source = f"({', '.join(means)})  " if means else ""
        self.print_line(
            f"step {row['step']}/{self._steps}  loss {row['loss']:.4f}  "
            f"{by_source}"
            f"rate {row['learning_rate']:.2e}  "
            f"{row['tokens_per_second']:,.0f} tokens/s  padding {row['padding']:.0%}  "
            f"{tqdm.format_interval(seconds_left)} left"
        )

    def show_size_losses(self) -> None:
        """Prints the mean losses of all sizes since the last call, if there are any."""
        means = {name: sum(x) / len(x) for name, x in self._size_losses.items()}
        self._size_losses = {}
        if means:
            self.print_line(format_size_losses(means))

    def _collect_size_losses(self, row: Mapping[str, float | int | str]) -> None:
        for name, value in row.items():
            if _SIZE_LOSS.fullmatch(name):
                self._size_losses.setdefault(name, []).append(value)

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

    write = flush = progress = show = show_size_losses = print_line = close = _ignore


def format_size_losses(means: Mapping[str, float]) -> str:
    """A table with a column for each size and a row for each kind of loss.

    Args:
        means: {"task/4x128": loss}; other names are left out.
    """
    table: dict[str, dict[str, float]] = {}
    for name, mean in means.items():
        if match := _SIZE_LOSS.fullmatch(name):
            kind, size = match[1], match[2]
            table.setdefault(kind, {})[size] = mean
    # Sizes in the order of their numbers; those that are drawn at random come last
    sizes = {size for losses in table.values() for size in losses}
    header = sorted(
        sizes, key=lambda x: ("drawn" in x, list(map(int, re.findall(r"\d+", x))))
    )
    rows = [["mean loss", *header]] + [
        [kind, *(f"{losses[s]:.4f}" if s in losses else "" for s in header)]
        for kind, losses in sorted(table.items(), reverse=True)
    ]
    if len(header) > _MAX_COLUMNS:
        rows = list(zip(*rows, strict=True))
    alignment = ("left", *("right",) * (len(rows[0]) - 1))
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=alignment)


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

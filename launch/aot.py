"""Command that predicts the cost of training and embedding on TPU slices.

python -m launch.aot [--cases=starbucks_16k,embed] [--slices=v5e-16,v5e-256]

Real steps are compiled by libtpu, which pip installs into ~/.cache/embax/libtpu; no TPU
is needed. Each cell (a step on a slice) is compiled in a process of its own and written
to a JSON file; the same command again only compiles what is missing or has changed.
"""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from launch import main as cli

ROOT = Path(__file__).parent.parent
FOLDER = cli.define_path("folder", "runs/aot", "Folder of the results.")
ONLY = flags.DEFINE_list("cases", [], "Names of the steps; all if empty.")
SLICES = flags.DEFINE_list("slices", [], "Names of the slices; all if empty.")
MINUTES = flags.DEFINE_float(
    "minutes", 30.0, "Time limit of a cell; then the CPU's partitioner compiles it."
)
QUICK = flags.DEFINE_bool(
    "quick",
    False,
    "Optimize little: a fifth of the time, the same FLOPs and collectives, but upper "
    "bounds of memory. Without it, such cells are compiled again.",
)
CELL = flags.DEFINE_string("cell", None, "Only for the processes of this command.")
COMPILER = flags.DEFINE_enum("compiler", "libtpu", ["libtpu", "cpu"], "The compiler.")


def main():
    """Compiles the cells that are missing, and prints their table."""
    folder = Path(FOLDER.value)
    if CELL.value:
        case, _, slice_name = CELL.value.partition("@")
        return _measure(case, slice_name, folder)
    from launch.aot_table import SCALED, make_table, plot_scaling

    # One cell after the other: a compilation takes all cores
    sources = hash_sources()
    failed = [
        f"{case}@{slice_name}"
        for case, slice_name in _list_cells()
        if not _make_cell(case, slice_name, folder, sources)
    ]
    # The table of all cells that are there
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*@*.json"))]
    table = make_table(cells)
    (folder / "table.md").write_text(table + "\n")
    print(table)
    if any(cell["case"] == SCALED and "error" not in cell for cell in cells):
        plot_scaling(cells, folder / "weak_scaling.png")
    return {"folder": str(folder), "cells": len(cells), "failed": failed}


def hash_sources() -> str:
    """Hash of all code that decides what is compiled, and of JAX's version."""
    import jax

    parts = [jax.__version__.encode()]
    for path in sorted((*ROOT.glob("research/**/*.py"), *ROOT.glob("launch/aot*.py"))):
        parts.append(path.read_bytes())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _list_cells() -> Iterator[tuple[str, str]]:
    """(case, slice) of the cells that the flags ask for, the most important first."""
    from launch.aot_cases import CASES
    from launch.aot_cases import SLICES as known

    for flag, names in ((ONLY, CASES), (SLICES, known)):
        for name in flag.value:
            if name not in names:
                raise ValueError(
                    f"--{flag.name}: there is no {name!r}; allowed: {', '.join(names)}"
                )
    for name, case in CASES.items():
        if ONLY.value and name not in ONLY.value:
            continue
        for slice_name in case.slices:
            if not SLICES.value or slice_name in SLICES.value:
                yield name, slice_name


def _make_cell(case: str, slice_name: str, folder: Path, sources: str) -> bool:
    """Makes a cell in another process; returns whether it is there."""
    path = folder / f"{case}@{slice_name}.json"
    if path.exists():
        content = json.loads(path.read_text())
        is_enough = QUICK.value or not content.get("quick")
        if content.get("sources") == sources and is_enough:
            return True
    for compiler in ("libtpu", "cpu") if COMPILER.value == "libtpu" else ("cpu",):
        cli.log(f"{case} on {slice_name}, by {compiler} ...")
        if _run_cell(case, slice_name, folder, compiler):
            content = json.loads(path.read_text())
            from research.atomic_write import write_json

            write_json(path, {**content, "sources": sources})
            return True
    return False


def _run_cell(case: str, slice_name: str, folder: Path, compiler: str) -> bool:
    from launch.aot_cases import SLICES as topologies

    command = [sys.executable, "-m", "launch.aot", f"--cell={case}@{slice_name}"]
    command += [f"--folder={folder}", f"--quick={QUICK.value}"]
    command += [f"--compiler={compiler}"]
    environ = os.environ | {"JAX_PLATFORMS": "cpu"}
    # As many virtual devices as the slice has chips
    if compiler == "cpu":
        shape = topologies[slice_name].partition(":")[2]
        chips = 1
        for size in shape.split("x"):
            chips *= int(size)
        environ["XLA_FLAGS"] = f"{cli.VIRTUAL}={chips}"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{case}@{slice_name}.log").open("w") as log:
        try:
            done = subprocess.run(
                command,
                env=environ,
                stdout=log,
                stderr=log,
                timeout=60 * MINUTES.value,
            )
        except subprocess.TimeoutExpired:
            cli.log(f"  took more than {MINUTES.value:g} minutes")
            return False
    if done.returncode:
        cli.log(f"  failed: see {log.name}")
    return not done.returncode


def _measure(case: str, slice_name: str, folder: Path):
    from launch.aot_cell import measure_cell

    path = folder / f"{case}@{slice_name}.json"
    measure_cell(case, slice_name, COMPILER.value, path, quick=QUICK.value)
    return {"cell": str(path)}


if __name__ == "__main__":
    cli.run(main)

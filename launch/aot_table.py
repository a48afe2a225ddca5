"""Table and figure of the cells of `launch.aot`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from launch.aot_cases import CASES, SCALING_SLICES, TABLE_SLICES
from research.eval.figures import figure

HEADERS = ("step", "slice", "GiB of", "TFLOP", "GB", "MiB on wire", "compute ms")
HEADERS += ("memory ms", "wire ms", "binds", "wire share", "roofline MFU")
HEADERS += ("wire share by cycles", "MFU by cycles")
SCALED = "starbucks_64"  # the case of the figure


def make_table(cells: Sequence[Mapping[str, Any]]) -> str:
    """A markdown table of cells, in the order of the cases."""
    cases, slices = list(CASES), [*TABLE_SLICES, *SCALING_SLICES]

    def find_position(cell):
        return cases.index(cell["case"]), slices.index(cell["slice"])

    rows = [_make_row(cell) for cell in sorted(cells, key=find_position)]
    return tabulate(rows, HEADERS, tablefmt="github", disable_numparse=True)


def _make_row(cell: Mapping[str, Any]) -> list[str]:
    title, name = CASES[cell["case"]].title, cell["slice"]
    if "error" in cell:
        return [title, name, cell["error"], *[""] * (len(HEADERS) - 3)]
    time, parts = cell["step_time"], cell["per_device"]
    # Of programs that no TPU would run, memory and traffic are upper bounds
    is_exact = cell["compiler"].startswith("libtpu") and not cell["quick"]
    if not cell["compiler"].startswith("libtpu"):
        name += " (CPU program)"
    elif cell["quick"]:
        name += " (quick)"
    most, least = ("", "") if is_exact else ("≤ ", "≥ ")
    peak = cell["mebibytes_per_device"]["peak"] / 2**10
    is_known = is_exact or time["binds"] != "memory"
    return [
        title,
        name,
        f"{most}{peak:.1f} of {time['chip_mebibytes'] / 2**10:g}",
        f"{parts['teraflops']:.2f}",
        f"{most}{parts['traffic_mebibytes'] * 2**20 / 1e9:.1f}",
        f"{parts['wire_mebibytes']:,.0f}",
        f"{1e3 * time['compute']:.1f}",
        f"{most}{1e3 * time['memory']:.1f}",
        f"{1e3 * time['wire']:.1f}",
        time["binds"] if is_known else "",
        f"{least}{time['wire'] / time['step']:.0%}",
        f"{least}{time['mfu']:.0%}",
        *_describe_cycles(time, is_exact),
    ]


def _describe_cycles(time: Mapping[str, Any], is_exact: bool) -> tuple[str, str]:
    """Wire share and MFU of a step that takes the cycles that the compiler expects."""
    if not is_exact or not time["compiler"]:
        return "", ""
    return f"{time['wire'] / time['compiler']:.0%}", f"{time['compiler_mfu']:.0%}"


def plot_scaling(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Plots compute, communication and memory per chip by the number of chips."""
    rows = [
        cell
        for cell in cells
        if cell["case"] == SCALED
        and cell["slice"] in SCALING_SLICES
        and "error" not in cell
    ]
    rows.sort(key=lambda cell: cell["chips"])
    chips = [cell["chips"] for cell in rows]
    title = f"{CASES[SCALED].title}, v5e"
    with figure(path, (9, 3.6), columns=2, title=title) as (_, (times, sizes)):
        # Left: the two roofs that do not depend on how much the compiler optimizes
        for name in ("compute", "wire"):
            values = [1e3 * cell["step_time"][name] for cell in rows]
            times.plot(chips, values, marker="o", label=name)
        times.set(ylabel="milliseconds a step", ylim=(0, None))
        # Right: what each chip sends and holds
        wire = [cell["per_device"]["wire_mebibytes"] for cell in rows]
        memory = [cell["mebibytes_per_device"]["temporary"] for cell in rows]
        sizes.plot(chips, wire, marker="o", label="sent a step")
        sizes.plot(chips, memory, marker="o", label="temporary memory")
        sizes.set(ylabel="MiB a chip", ylim=(0, None))
        for axes in (times, sizes):
            axes.set_xscale("log", base=2)
            axes.set_xticks(chips, map(str, chips))
            axes.set(xlabel="chips")
            axes.grid(alpha=0.3)
            axes.legend()

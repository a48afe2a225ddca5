"""One evaluator's scores of several ways to cut documents, side by side."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.types import EmbedFn, Evaluator

Cell = dict[str, Any]


def compare_chunkings(
    evaluator: Evaluator,
    embedders: Mapping[str, Callable[[], EmbedFn]],
    say: Callable[[str], None],
) -> list[Cell]:
    """[{"chunk": name, "main_score", ..., "seconds"}] of each embedder, one at a time.

    Args:
        evaluator: what scores an EmbedFn.
        embedders: {name: what makes one}.
        say: told how far it is.
    """
    cells = []
    for name, make in embedders.items():
        start = time.perf_counter()
        scores = evaluator(make())
        seconds = time.perf_counter() - start
        cells.append({"chunk": name, **scores, "seconds": seconds})
        say(f"{name}: {scores['main_score']:.2f} in {seconds:.1f} s")
    return cells


def to_record(cells: Sequence[Cell]) -> dict[str, Any]:
    """The cells as JSON has them; the main score is the best one."""
    best = max(cells, key=lambda cell: cell["main_score"])
    return {"main_score": best["main_score"], "best": best["chunk"], "cells": cells}


def format_markdown(cells: Sequence[Cell], title: str) -> str:
    """A table with a row for each way to cut."""
    names = [name for name in cells[0] if name not in ("chunk", "main_score")]
    rows = [["chunk", *names], ["---", *["---:"] * len(names)]]
    rows += [[c["chunk"], *(f"{c[name]:.2f}" for name in names)] for c in cells]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([f"# {title}", "", *lines]) + "\n"


def plot_chunkings(cells: Sequence[Cell], title: str, path: Path) -> None:
    """Draws the main scores as bars, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = 7, 1.2 + 0.35 * len(cells)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    names = [f"{cell['chunk']}  ({cell['seconds']:.2g} s)" for cell in cells]
    bars = axes.barh(names, [cell["main_score"] for cell in cells])
    axes.bar_label(bars, fmt="%.2f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set(xlabel="main score, %", title=title)
    figure.savefig(path, dpi=150)
    plt.close(figure)

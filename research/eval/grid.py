"""Scores of an elastic model at every depth and width, from one pass over the texts."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator

# Texts that the speed of a depth is measured on, at most.
TIMED = 256


class Grid(NamedTuple):
    """What `grid` measured.

    Attributes:
        depths: numbers of blocks.
        dims: widths.
        scores: [depths][dims] results of the evaluator.
        seconds: for each depth, seconds to embed 1,000 of the evaluator's texts.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    scores: list[list[dict[str, float]]]
    seconds: list[float]

    def main(self) -> np.ndarray:
        """The main scores, [depths, dims]."""
        return np.array([[cell["main_score"] for cell in row] for row in self.scores])


def score_grid(
    evaluator: Evaluator,
    every: EmbedFn,
    cut: Callable[[int], EmbedFn],
    *,
    depths: Sequence[int],
    dims: Sequence[int],
    normalize: bool = True,
) -> Grid:
    """The evaluator's result at each depth and width; every text is embedded once.

    Args:
        evaluator: what scores an EmbedFn.
        every: `make_grid_embedder` of these depths: texts, role -> [N, depths, D]. All
            of it is kept until the end: 4 * N * depths * D bytes.
        cut: depth -> EmbedFn of the encoder cut to it, whose speed is measured.
        depths: numbers of blocks.
        dims: widths; a vector is cut, then normalised.
        normalize: whether vectors are scaled to length 1.
    """
    memory: dict[tuple, np.ndarray] = {}

    def sliced(position: int, dim: int) -> EmbedFn:
        def embed(texts, role):
            name = role, tuple(texts)
            if name not in memory:
                memory[name] = every(texts, role)
            x = memory[name][:, position, :dim]
            return l2_normalize_rows(x) if normalize else x

        return embed

    scores = [[evaluator(sliced(i, dim)) for dim in dims] for i in range(len(depths))]
    role, texts = max(memory, key=lambda name: len(name[1]))
    sample = list(texts[:: -(-len(texts) // TIMED)])
    seconds = [_seconds(cut(depth), sample, role) for depth in depths]
    return Grid(tuple(depths), tuple(dims), scores, seconds)


def widths(width: int) -> tuple[int, ...]:
    """Powers of two from 16 up, and the full width: the dims of a grid by default."""
    powers = [2**i for i in range(4, width.bit_length()) if 2**i < width]
    return (*powers, width)


def to_record(grid: Grid) -> dict[str, Any]:
    """The grid as JSON would have it; the main score is the full model's."""
    cells = [
        {"depth": depth, "dim": dim, **grid.scores[i][j]}
        for i, depth in enumerate(grid.depths)
        for j, dim in enumerate(grid.dims)
    ]
    seconds = dict(zip(map(str, grid.depths), grid.seconds, strict=True))
    return {
        "main_score": cells[-1]["main_score"],
        "seconds_per_1000_texts": seconds,
        "cells": cells,
    }


def format_markdown(grid: Grid, title: str) -> str:
    """A table of main scores: a row for each depth, a column for each width."""
    head = ["depth", *map(str, grid.dims), "s / 1,000 texts"]
    lines = [f"# {title}", "", _row(head), _row(["---:"] * len(head))]
    for depth, row, seconds in zip(grid.depths, grid.main(), grid.seconds, strict=True):
        cells = [f"{score:.2f}" for score in row]
        lines.append(_row([str(depth), *cells, f"{seconds:.2f}"]))
    extra = {k: v for k, v in grid.scores[-1][-1].items() if k != "main_score"}
    full = ", ".join(f"{name} {value:.2f}" for name, value in extra.items())
    lines += ["", f"Full model: {full}."]
    return "\n".join(lines) + "\n"


def plot_heat_map(grid: Grid, title: str, path: Path) -> None:
    """Draws the main scores as a PNG, the seconds of each depth beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    scores = grid.main()
    size = 2.6 + 0.75 * len(grid.dims), 1.6 + 0.5 * len(grid.depths)
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(scores, cmap="viridis", aspect="auto", origin="lower")
    middle = (scores.min() + scores.max()) / 2
    for (i, j), score in np.ndenumerate(scores):
        colour = "white" if score < middle else "black"
        axes.text(j, i, f"{score:.1f}", ha="center", va="center", color=colour)
    labels = [
        f"{depth}  ({seconds:.2g} s)"
        for depth, seconds in zip(grid.depths, grid.seconds, strict=True)
    ]
    axes.set_xticks(range(len(grid.dims)), map(str, grid.dims))
    axes.set_yticks(range(len(grid.depths)), labels)
    axes.set(xlabel="width", ylabel="depth  (s per 1,000 texts)", title=title)
    axes.tick_params(length=0)
    figure.colorbar(image, ax=axes, label="main score, %")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _seconds(embed: EmbedFn, texts: list[str], role: str) -> float:
    embed(texts, role)  # compiles
    start = time.perf_counter()
    embed(texts, role)
    return 1_000 * (time.perf_counter() - start) / len(texts)

"""Scores of an elastic model at every depth and width, from one pass over the texts."""

import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.eval.figures import figure
from research.eval.tables import markdown_page
from research.eval.vector_cache import VectorCache, cut_to_size
from research.types import EmbedFn, Evaluator

# Maximum number of texts that the speed of a depth is measured on.
MAX_TIMED_TEXTS = 256
TIMED_TURNS = 5  # of each depth, after one that compiles


class Grid(NamedTuple):
    """The scores and the speed of an elastic model at several sizes.

    Attributes:
        depths: Numbers of blocks.
        dims: Widths of the embedding.
        scores: [depths][dims] results of the evaluator.
        seconds: [depths] seconds to embed 1,000 of the evaluator's texts, the median of
            several turns.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    scores: list[list[dict[str, float]]]
    seconds: list[float]

    def main_scores(self) -> np.ndarray:
        """The main scores: [depths, dims]."""
        return np.array([[cell["main_score"] for cell in row] for row in self.scores])


def score_sizes(
    evaluator: Evaluator,
    embed_all_depths: EmbedFn,
    *,
    sizes: Sequence[tuple[int, int]],
    depths: Sequence[int],
    normalize: bool = True,
) -> dict[str, float]:
    """The scores of the full size, the main scores of some sizes, and their mean.

    Args:
        evaluator: Evaluator of an EmbedFn.
        embed_all_depths: As in `score_grid`.
        sizes: Pairs (depth, dim).
        depths: All depths of the sizes and, last, the full depth.
        normalize: As in `score_grid`.

    Returns:
        The evaluator's scores at full size and, if it has a main score, "3x64" for that
        of a size (3, 64) and "size_mean" for the mean over the sizes.
    """
    vectors = VectorCache(embed_all_depths)
    full = evaluator(cut_to_size(vectors, len(depths) - 1, normalize=normalize))
    if "main_score" not in full:  # measures that have no best value
        return dict(full)
    # The full size, which may be one of the sizes, is scored once.
    main_scores = {}
    for depth, dim in sizes:
        scores = full
        if (depth, dim) != (depths[-1], vectors.width):
            index = depths.index(depth)
            scores = evaluator(cut_to_size(vectors, index, dim, normalize))
        main_scores[f"{depth}x{dim}"] = float(scores["main_score"])
    return {**full, **main_scores, "size_mean": statistics.fmean(main_scores.values())}


def score_grid(
    evaluator: Evaluator,
    embed_all_depths: EmbedFn,
    make_embedder: Callable[[int], EmbedFn],
    *,
    depths: Sequence[int],
    dims: Sequence[int],
    normalize: bool = True,
) -> Grid:
    """Evaluates each depth and width; every text is embedded only once.

    Args:
        evaluator: Evaluator of an EmbedFn.
        embed_all_depths: Function (texts, role) -> [N, depths, D], the embeddings at
            all depths. They stay in memory: 4 * N * depths * D bytes.
        make_embedder: Function depth -> EmbedFn of the encoder truncated to that depth;
            its speed is measured.
        depths: Numbers of blocks.
        dims: Widths. A vector is truncated and then normalized.
        normalize: Whether vectors are scaled to length 1.
    """
    vectors = VectorCache(embed_all_depths)
    scores = [
        [evaluator(cut_to_size(vectors, index, dim, normalize)) for dim in dims]
        for index in range(len(depths))
    ]
    # Measure the speed on some texts of the largest call.
    role, texts = max(vectors.calls, key=lambda key: len(key[1]))
    sample = list(texts[:: -(-len(texts) // MAX_TIMED_TEXTS)])
    seconds = [_time_1000_texts(make_embedder(depth), sample, role) for depth in depths]
    return Grid(tuple(depths), tuple(dims), scores, seconds)


def default_dims(width: int) -> tuple[int, ...]:
    """The powers of two from 16 that are below the full width, and the full width."""
    powers = [2**i for i in range(4, width.bit_length()) if 2**i < width]
    return (*powers, width)


def to_record(grid: Grid) -> dict[str, Any]:
    """The grid as JSON; its main score is that of the full model."""
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
    """A table of main scores with a row for each depth and a column for each width.

    Where the evaluator has scored BM25, too, it has the last row.
    """
    rows = [
        [str(depth), *(f"{score:.2f}" for score in scores), f"{seconds:.2f}"]
        for depth, scores, seconds in zip(
            grid.depths, grid.main_scores(), grid.seconds, strict=True
        )
    ]
    full_model = ", ".join(
        f"{name} {value:.2f}"
        for name, value in grid.scores[-1][-1].items()
        if name not in ("main_score", "bm25") and np.isscalar(value)
    )
    if (lexical := grid.scores[-1][-1].get("bm25")) is not None:
        rows.append(["BM25", *[""] * (len(grid.dims) - 1), f"{lexical:.2f}", ""])
    header = ["depth", *map(str, grid.dims), "s / 1,000 texts"]
    return markdown_page(title, header, rows, f"Full model: {full_model}.")


def plot_heat_map(grid: Grid, title: str, path: Path, *, metric: str = "main score, %"):
    """Draws the main scores as a heat map with the seconds of each depth, as a PNG.

    Scores above that of BM25, if the evaluator has one, are bold.

    Returns:
        The matplotlib Figure.
    """
    scores = grid.main_scores()  # [depths, dims]
    lexical = grid.scores[-1][-1].get("bm25", np.inf)
    if np.isfinite(lexical):
        title += f"\nbold: above BM25 ({lexical:.1f})"
    size = 2.6 + 0.75 * len(grid.dims), 1.6 + 0.5 * len(grid.depths)
    with figure(path, size) as (picture, axes):
        image = axes.imshow(scores, cmap="viridis", aspect="auto", origin="lower")
        # The score of each cell, in a color with enough contrast.
        middle = (scores.min() + scores.max()) / 2
        for (i, j), score in np.ndenumerate(scores):
            color = "white" if score < middle else "black"
            style = {"color": color, "weight": "bold" if score > lexical else "normal"}
            axes.text(j, i, f"{score:.1f}", ha="center", va="center", **style)
        # Labels of the axes.
        labels = [
            f"{depth}  ({seconds:.2g} s)"
            for depth, seconds in zip(grid.depths, grid.seconds, strict=True)
        ]
        axes.set_xticks(range(len(grid.dims)), map(str, grid.dims))
        axes.set_yticks(range(len(grid.depths)), labels)
        axes.set(xlabel="width", ylabel="depth  (s per 1,000 texts)", title=title)
        axes.tick_params(length=0)
        picture.colorbar(image, ax=axes, label=metric)
    return picture


def _time_1000_texts(embed: EmbedFn, texts: list[str], role: str) -> float:
    """Median of the seconds to embed 1,000 texts, after compilation."""
    embed(texts, role)  # compiles every shape
    seconds = []
    for _ in range(TIMED_TURNS):
        start = time.perf_counter()
        embed(texts, role)
        seconds.append(time.perf_counter() - start)
    return 1_000 * statistics.median(seconds) / len(texts)

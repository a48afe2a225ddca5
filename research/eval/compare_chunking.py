"""Comparison of several chunkings of the documents by one evaluator."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from research.eval.figures import figure
from research.eval.tables import markdown_page
from research.types import EmbedFn, Evaluator

# {"chunk": name, "main_score": ..., other scores, "seconds": ...}
ChunkingScores = dict[str, Any]


def compare_chunkings(
    evaluator: Evaluator,
    embedders: Mapping[str, Callable[[], EmbedFn]],
    log: Callable[[str], None],
) -> list[ChunkingScores]:
    """Scores and times each embedder, one after another.

    Args:
        evaluator: Evaluator of an EmbedFn.
        embedders: {name of the chunking: function that makes its embedder}.
        log: Function that is called with a line of text after each chunking.

    Returns:
        A record per chunking: its name as "chunk", its scores, and "seconds".
    """
    records = []
    for name, make_embedder in embedders.items():
        # The time includes compilation.
        start = time.perf_counter()
        scores = evaluator(make_embedder())
        seconds = time.perf_counter() - start
        records.append({"chunk": name, **scores, "seconds": seconds})
        log(f"{name}: {scores['main_score']:.2f} in {seconds:.1f} s")
    return records


def to_record(records: Sequence[ChunkingScores]) -> dict[str, Any]:
    """The comparison as JSON; its main score is that of the best chunking."""
    best = max(records, key=lambda record: record["main_score"])
    return {
        "main_score": best["main_score"],
        "best": best["chunk"],
        "cells": list(records),
    }


def format_markdown(records: Sequence[ChunkingScores], title: str) -> str:
    """A table with a row for each chunking and a column for each score."""
    # The main score repeats one of the other scores.
    names = [name for name in records[0] if name not in ("chunk", "main_score")]
    rows = [
        [record["chunk"], *(f"{record[name]:.2f}" for name in names)]
        for record in records
    ]
    return markdown_page(title, ["chunk", *names], rows)


def plot_chunkings(
    records: Sequence[ChunkingScores],
    title: str,
    path: Path,
    *,
    metric: str = "main score, %",
):
    """Draws the main scores as horizontal bars, as a PNG.

    Returns:
        The matplotlib Figure.
    """
    labels = [f"{record['chunk']}  ({record['seconds']:.2g} s)" for record in records]
    size = 7, 1.2 + 0.35 * len(records)
    with figure(path, size) as (picture, axes):
        bars = axes.barh(labels, [record["main_score"] for record in records])
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.invert_yaxis()  # the first chunking on top
        axes.margins(x=0.12)
        axes.set(xlabel=metric, title=title)
    return picture

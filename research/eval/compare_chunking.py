"""One evaluator's scores for several chunkings of the documents, side by side."""

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
    """The evaluator's scores and its duration for each embedder, one at a time.

    Args:
        evaluator: Scores an EmbedFn.
        embedders: {name of the chunking: function that makes its embedder}.
        log: Called with one line after each chunking.

    Returns:
        A record of each chunking: its name as "chunk", the scores, and "seconds".
    """
    records = []
    for name, make_embedder in embedders.items():
        start = time.perf_counter()
        scores = evaluator(make_embedder())
        seconds = time.perf_counter() - start
        records.append({"chunk": name, **scores, "seconds": seconds})
        log(f"{name}: {scores['main_score']:.2f} in {seconds:.1f} s")
    return records


def to_record(records: Sequence[ChunkingScores]) -> dict[str, Any]:
    """The comparison for JSON; its main score is that of the best chunking."""
    best = max(records, key=lambda record: record["main_score"])
    return {
        "main_score": best["main_score"],
        "best": best["chunk"],
        "cells": list(records),
    }


def format_markdown(records: Sequence[ChunkingScores], title: str) -> str:
    """A table with a row for each chunking and a column for each score."""
    # The main score is one of the others
    names = [name for name in records[0] if name not in ("chunk", "main_score")]
    rows = [
        [record["chunk"], *(f"{record[name]:.2f}" for name in names)]
        for record in records
    ]
    return markdown_page(title, ["chunk", *names], rows)


def plot_chunkings(records: Sequence[ChunkingScores], title: str, path: Path):
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
        axes.set(xlabel="main score, %", title=title)
    return picture

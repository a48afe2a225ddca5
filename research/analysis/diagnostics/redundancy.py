"""Redundancy: how few dimensions of an embedding a task needs.

Vectors are cut to their leading dimensions, to random ones, or to their principal
components, without any training (Tsukagoshi and Sasano 2025, "Redundancy, Isotropy, and
Intrinsic Dimensionality of Prompt-based Text Embeddings").
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import PANEL_HEIGHT, PANEL_WIDTH
from research.eval.figures import figure
from research.eval.geometry.measures import isoscore
from research.eval.vector_cache import VectorCache, cut_embedder
from research.progress import show_progress
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn, Evaluator

CUTS = {
    "leading": "leading dimensions",
    "random": "random dimensions",
    "pca": "principal components",
}
QUARTER = 0.25  # the share of the dimensions of the main number
MAX_ISOSCORE_TEXTS = 5000


def report_redundancy(inputs: DiagnosticInputs) -> dict[str, Any]:
    """Scores of tasks by the number of dimensions that are kept.

    Args:
        inputs: The model and the tasks.

    Returns:
        The record of `measure_redundancy`, with "summary", the share in percent of the
        full score that the leading quarter of the dimensions keeps {task: percent}.

    Raises:
        ValueError: There are no tasks.
    """
    evaluators = inputs.list_tasks()
    # Vectors are cut before they are normalized.
    embed = inputs.make_embedder(normalize=False)
    normalize = inputs.model.normalize
    dims = choose_dims(embed.width)
    record = measure_redundancy(
        embed, evaluators, dims, normalize=normalize, seed=inputs.seed
    )
    summary = {name: task["quarter"] for name, task in record["tasks"].items()}
    return {"summary": summary, "data": "", **record}


def choose_dims(width: int) -> list[int]:
    """The powers of two below a width, from 2 on, a quarter of it, and the width."""
    powers = {2**i for i in range(1, width.bit_length()) if 2**i < width}
    return sorted({*powers, max(1, round(QUARTER * width)), width})


def measure_redundancy(
    embed: EmbedFn,
    evaluators: Mapping[str, Evaluator],
    dims: Sequence[int],
    *,
    normalize: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Scores tasks with vectors that are cut to each number of dimensions.

    Every text is embedded once for each task.

    Args:
        embed: Embed function that returns [N, D], not normalized.
        evaluators: {name: evaluator}, whose "main_score" is better if it is larger.
        dims: Numbers of dimensions, the last of which is D.
        normalize: Whether the cut vectors are scaled to length 1.
        seed: Seed of the random dimensions.

    Returns:
        {"dims"; "tasks": {name: {"leading", "random", "pca": scores by dims; "quarter":
        percent of the full score at the leading quarter; "isoscore" of the vectors}}}.
    """
    tasks = {}
    quarter = dims.index(max(1, round(QUARTER * dims[-1])))
    total = len(evaluators) * (len(CUTS) * (len(dims) - 1) + 1)
    with show_progress("scoring tasks", total) as advance:
        for name, evaluate in evaluators.items():
            cache = VectorCache(embed)
            full = evaluate(cut_embedder(cache, lambda x: x, normalize))
            advance(1)
            # The same vectors, cut in each way to each number of dimensions.
            scores = {cut: [] for cut in CUTS}
            for cut, select in _make_cuts(cache.stack(), seed).items():
                for dim in dims[:-1]:
                    cut_embed = cut_embedder(
                        cache, lambda x, s=select, d=dim: s(x, d), normalize
                    )
                    scores[cut].append(float(evaluate(cut_embed)["main_score"]))
                    advance(1)
                scores[cut].append(float(full["main_score"]))
            # Random rows: the first ones may be queries only.
            vectors = cache.stack()
            rows = np.random.default_rng(seed).permutation(len(vectors))
            vectors = vectors[rows[:MAX_ISOSCORE_TEXTS]]
            leading = np.array(scores["leading"])
            tasks[name] = {
                **scores,
                "quarter": float(divide_by_full(leading)[quarter]),
                "isoscore": isoscore(l2_normalize_rows(vectors)),
            }
    return {"dims": list(dims), "tasks": tasks}


def divide_by_full(scores: np.ndarray) -> np.ndarray:
    """Scores in percent of the last, full one; nan if that is 0."""
    return 100 * scores / (scores[-1] or np.nan)


def list_redundancy(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: scores by dimensions, for each task and cut."""
    header = ["task", "", *map(str, record["dims"]), "25 % keep", "IsoScore"]
    # Three rows per task, the first one with its main numbers.
    rows = []
    for name, task in record["tasks"].items():
        for cut, label in CUTS.items():
            cells = [f"{score:.1f}" for score in task[cut]]
            ends = ["", ""]
            if cut == "leading":
                ends = [f"{task['quarter']:.1f} %", f"{task['isoscore']:.3f}"]
            rows.append([name, label, *cells, *ends])
    return [header, *rows]


def plot_redundancy(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the share of the full score by dimensions, a panel for each cut."""
    dims = np.array(record["dims"])
    percents = 100 * dims / dims[-1]
    size = 3 * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    layout = {"columns": 3, "sharey": True, "title": title}
    with figure(path, size, **layout) as (_, panels):
        for axes, (cut, label) in zip(panels, CUTS.items(), strict=True):
            # Shares of each task's own full score, so that tasks compare.
            for name, task in record["tasks"].items():
                shares = divide_by_full(np.array(task[cut]))
                axes.plot(percents, shares, marker="o", ms=3, label=name)
            axes.axvline(100 * QUARTER, color="0.5", lw=1, ls="--")
            axes.set_xscale("log")
            ticks = [t for t in (0.5, 1, 2, 5, 10, 25, 50, 100) if t >= percents[0]]
            axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axes.minorticks_off()
            axes.set(title=label.capitalize(), xlabel="% of the dimensions")
            axes.grid(alpha=0.3)
        panels[0].set(ylabel="% of the full score")
        panels[0].legend(loc="lower right")


def _make_cuts(
    vectors: np.ndarray, seed: int
) -> dict[str, Callable[[np.ndarray, int], np.ndarray]]:
    """{cut: (vectors [N, D], dim) -> [N, dim]}; components are those of `vectors`."""
    order = np.random.default_rng(seed).permutation(vectors.shape[1])
    # Principal components [D, D], the largest variance first.
    mean = vectors.mean(0, dtype=np.float64)
    centered = vectors.astype(np.float64) - mean
    components = np.linalg.eigh(centered.T @ centered)[1][:, ::-1]
    return {
        "leading": lambda x, dim: x[:, :dim],
        "random": lambda x, dim: x[:, order[:dim]],
        "pca": lambda x, dim: ((x - mean) @ components[:, :dim]).astype(np.float32),
    }

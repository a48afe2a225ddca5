"""Outlier dimensions: few dimensions with large means in the states of all tokens.

Luo et al. 2021, "Positional Artefacts Propagate Through Masked Language Model
Embeddings". Clipping sets them to 0 in every state before the mean over tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.layer_by_layer import score_depths
from research.analysis.diagnostics.panels import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    tick_indices,
)
from research.eval.bias.documents import check_count
from research.eval.figures import figure
from research.eval.geometry.measures import mean_cosine
from research.eval.geometry.token_states import iterate_states
from research.eval.vector_cache import VectorCache
from research.types import EmbedFn

CURVES = {
    "mean_cosine": "unchanged",
    "clipped_mean_cosine": "outliers clipped",
    "control_mean_cosine": "as many random dimensions",
}


def report_outliers(
    inputs: DiagnosticInputs,
    *,
    texts: int = 500,
    threshold: float = 3.0,
    controls: int = 3,
) -> dict[str, Any]:
    """Outlier dimensions of every layer, and what changes if they are clipped.

    They are found in one half of the texts; the cosines are those of the other half.
    The command's tasks, if any, score every depth with its outliers clipped, as the
    embedder's `clip_dims` does it.

    Args:
        inputs: The model and the texts.
        texts: Largest number of texts.
        threshold: Number of standard deviations from the mean over the dimensions.
        controls: Number of random choices of as many other dimensions.

    Returns:
        A record of "outliers", dimensions by depth; "deviations" of the dimensions at
        "deviations_depth", where most are outliers, in standard deviations; mean
        cosines by depth as in CURVES; "scores", {task: {"unchanged", "clipped",
        "control": lists over depths}}; and "summary".

    Raises:
        ValueError: There are too few texts, or --clip_dims or --dim is set.
    """
    inputs.refuse_sizes("outliers", "clip_dims", "dim")
    sample = inputs.sample_texts(texts)
    half = len(sample) // 2
    check_count(sample[half:], "texts in each half of the corpus")
    # [L+1, D] mean states of all tokens, special ones too, and the outliers there.
    mean_states = _average_states(inputs, sample[:half])[0]
    deviations = [measure_deviations(state) for state in mean_states]
    outliers = [np.flatnonzero(np.abs(x) > threshold).tolist() for x in deviations]
    # Dimensions by depth that are clipped in each variant.
    rng = np.random.default_rng(inputs.seed)
    width = mean_states.shape[1]
    variants = [
        [[] for _ in outliers],
        outliers,
        *(
            [choose_controls(dims, width, rng) for dims in outliers]
            for _ in range(controls)
        ),
    ]
    # [L+1, N, D] mean-pooled texts of the other half: a mean cosine per depth.
    pooled = _average_states(inputs, sample[half:])[1]
    cosines = [
        [
            mean_cosine(clip_dims(x, dims))
            for x, dims in zip(pooled, variant, strict=True)
        ]
        for variant in variants
    ]
    scores = _score_variants(inputs, variants)
    last = {task: {k: x[-1] for k, x in part.items()} for task, part in scores.items()}
    means = dict(zip(CURVES, _average_controls(cosines).values(), strict=True))
    summary = {name: values[-1] for name, values in means.items()}
    shown_depth = int(np.argmax([len(dims) for dims in outliers[::-1]]))
    shown_depth = len(outliers) - 1 - shown_depth  # the last of equal ones
    return {
        "summary": {"outliers": outliers[-1], **summary, "scores": last},
        "texts": len(sample),
        "threshold": threshold,
        "depths": list(range(len(outliers))),
        "outliers": outliers,
        "deviations_depth": shown_depth,
        "deviations": deviations[shown_depth].tolist(),
        **means,
        "scores": scores,
    }


def measure_deviations(values: np.ndarray) -> np.ndarray:
    """[D] values minus their mean, in standard deviations; 0 if all are equal."""
    values = np.asarray(values, np.float64)
    spread = values.std()
    return (values - values.mean()) / (spread or 1.0)


def clip_dims(x: np.ndarray, dims: Sequence[int]) -> np.ndarray:
    """Vectors [N, D] with some dimensions set to 0."""
    x = np.array(x)
    x[:, list(dims)] = 0
    return x


def clip_each_depth(embed: EmbedFn, dims: Sequence[Sequence[int]]) -> EmbedFn:
    """An embed function [N, K, D] with some dimensions of each depth set to 0.

    To clip a pooled vector is to clip the states, if the pooling treats each dimension
    alone, as all poolings without parameters do.
    """

    def embed_clipped(texts, role):
        layers = np.moveaxis(embed(texts, role), 1, 0)  # [K, N, D]
        parts = zip(layers, dims, strict=True)
        return np.stack([clip_dims(x, depth_dims) for x, depth_dims in parts], 1)

    return embed_clipped


def choose_controls(
    dims: Sequence[int], width: int, rng: np.random.Generator
) -> list[int]:
    """As many random dimensions of `width` that are not among the given ones."""
    candidates = np.setdiff1d(np.arange(width), dims)
    return sorted(rng.permutation(candidates)[: len(dims)].tolist())


def list_outliers(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: one per depth."""
    curves = [record[name] for name in CURVES]
    header = ["depth", "outlier dimensions", *CURVES.values()]
    for task, scores in record["scores"].items():
        curves += scores.values()
        header += [f"{task}, {variant}" for variant in scores]
    rows = [
        [
            str(depth),
            " ".join(map(str, record["outliers"][i])) or "none",
            *(f"{curve[i]:.3f}" for curve in curves),
        ]
        for i, depth in enumerate(record["depths"])
    ]
    return [header, *rows]


def plot_outliers(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the mean state where most dimensions are outliers, cosines and scores."""
    depths, deviations = record["depths"], np.array(record["deviations"])
    shown_depth, tasks = record["deviations_depth"], record["scores"]
    rows = -(-(2 + len(tasks)) // 2)
    size = 2 * PANEL_WIDTH, 0.6 + rows * PANEL_HEIGHT
    layout = {"rows": rows, "columns": 2, "squeeze": False}
    with figure(path, size, title=title, **layout) as (_, grid):
        dims, *depth_axes = grid.flat
        for axes in depth_axes[1 + len(tasks) :]:
            axes.set_visible(False)
        # Left: every dimension, with the limits and the names of the outliers.
        dims.vlines(np.arange(len(deviations)), 0, deviations, lw=0.7)
        for sign in (-1, 1):
            dims.axhline(sign * record["threshold"], ls="--", color="0.4", lw=1)
        for dim in record["outliers"][shown_depth]:
            va = "bottom" if deviations[dim] > 0 else "top"
            dims.annotate(str(dim), (dim, deviations[dim]), ha="center", va=va, size=8)
        dims.margins(y=0.12)
        dims.set(title=f"Mean state at depth {shown_depth}", xlabel="dimension")
        dims.set(ylabel="standard deviations")
        dims.grid(alpha=0.3)
        # Then mean cosines by depth, and the scores of each task.
        panels = {"Mean cosine": [record[name] for name in CURVES]}
        panels |= {f"{task}, %": list(part.values()) for task, part in tasks.items()}
        for axes, (label, curves) in zip(depth_axes, panels.items(), strict=False):
            styles = zip(curves, CURVES.values(), ("-", "-", "--"), strict=True)
            for values, name, line in styles:
                axes.plot(depths, values, marker="o", ms=4, ls=line, label=name)
            axes.set(xlabel="depth (0: embedding layer)", ylabel=label)
            axes.set(title=f"{label.split(',')[0]} by depth")
            axes.set_xticks([depths[i] for i in tick_indices(len(depths))])
            axes.grid(alpha=0.3)
        depth_axes[0].legend()  # the same in all of them


def _average_states(
    inputs: DiagnosticInputs, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Means of states at every depth: of all tokens [L+1, D], per text [L+1, N, D]."""
    params, cfg, token_ids = inputs.tokenize(texts)
    # [L+1, N, D] means of each text, and their mean weighted by the numbers of tokens
    means = np.empty((cfg.depth + 1, len(texts), cfg.width))
    for number, layers in iterate_states(params, cfg, token_ids):
        means[:, number] = layers.mean(1, dtype=np.float64)
    lengths = np.array([len(row) for row in token_ids])
    return np.einsum("knd,n->kd", means, lengths / lengths.sum()), means


def _score_variants(
    inputs: DiagnosticInputs, variants: Sequence[Sequence[Sequence[int]]]
) -> dict[str, dict[str, list[float]]]:
    """Main scores of each task at every depth, as `_average_controls` names them.

    Args:
        inputs: The model, and the tasks.
        variants: Dimensions that are clipped, for each variant and depth.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for task, evaluator in inputs.evaluators.items():
        # All dimensions, as the states have them.
        full = inputs.model._replace(dim=None)
        embed = VectorCache(inputs.make_depth_embedder(full))
        # [variants][depths] scores; the texts are embedded once.
        results = [
            score_depths(clip_each_depth(embed, dims), {task: evaluator}, len(dims))
            for dims in variants
        ]
        scores[task] = _average_controls([result[task] for result in results])
    return scores


def _average_controls(curves: Sequence[Sequence[float]]) -> dict[str, list[float]]:
    """{"unchanged", "clipped", "control"} of the variants' lists over depths."""
    unchanged, clipped, *control = curves
    average = np.mean(control, axis=0).tolist()
    return {"unchanged": list(unchanged), "clipped": list(clipped), "control": average}

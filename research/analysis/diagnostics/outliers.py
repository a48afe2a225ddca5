"""Outlier dimensions: few dimensions with large means in the states of all tokens.

Luo et al. 2021, "Positional Artefacts Propagate Through Masked Language Model
Embeddings". Clipping sets them to 0 in every state before the mean over tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    tick_indices,
)
from research.eval.bias.documents import check_count
from research.eval.figures import figure
from research.eval.geometry.measures import mean_cosine
from research.eval.geometry.token_states import iterate_states

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
    Scores are those of the command's tasks, if any, with the outliers of the last depth
    clipped by the embedder's `clip_dims`.

    Args:
        inputs: The model and the texts.
        texts: Largest number of texts.
        threshold: Number of standard deviations from the mean over the dimensions.
        controls: Number of random choices of as many other dimensions.

    Returns:
        A record of "outliers", dimensions by depth; "deviations" of the last depth's
        dimensions, in standard deviations; mean cosines by depth as in CURVES;
        "scores", {task: {"unchanged", "clipped", "control"}}; and "summary".

    Raises:
        ValueError: There are too few texts, or --clip_dims is set.
    """
    if "clip_dims" in inputs.sizes:
        raise ValueError(
            "--clip_dims does not go with the report outliers, which clips"
        )
    sample = inputs.sample_texts(texts)
    half = len(sample) // 2
    check_count(sample[half:], "texts in each half of the corpus")
    # [L+1, D] mean states of all tokens, special ones too, and the outliers there.
    mean_states = _average_states(inputs, sample[:half])[0]
    deviations = [measure_deviations(state) for state in mean_states]
    outliers = [np.flatnonzero(np.abs(x) > threshold).tolist() for x in deviations]
    # [L+1, N, D] mean-pooled texts of the other half.
    pooled = _average_states(inputs, sample[half:])[1]
    rng = np.random.default_rng(inputs.seed)
    width = pooled.shape[2]
    choices = [
        [choose_controls(dims, width, rng) for _ in range(controls)]
        for dims in outliers
    ]
    depths = list(range(len(pooled)))
    clipped = [mean_cosine(clip_dims(pooled[k], outliers[k])) for k in depths]
    control = [
        float(np.mean([mean_cosine(clip_dims(pooled[k], dims)) for dims in choices[k]]))
        for k in depths
    ]
    scores = _score_clipped(inputs, outliers[-1], choices[-1]) if outliers[-1] else {}
    record = {
        "texts": len(sample),
        "threshold": threshold,
        "depths": depths,
        "outliers": outliers,
        "deviations": deviations[-1].tolist(),
        "mean_cosine": [mean_cosine(x) for x in pooled],
        "clipped_mean_cosine": clipped,
        "control_mean_cosine": control,
        "scores": scores,
    }
    summary = {name: record[name][-1] for name in ("outliers", *CURVES)}
    return {"summary": {**summary, "scores": scores}, **record}


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


def choose_controls(
    dims: Sequence[int], width: int, rng: np.random.Generator
) -> list[int]:
    """As many random dimensions of `width` that are not among the given ones."""
    candidates = np.setdiff1d(np.arange(width), dims)
    return sorted(rng.permutation(candidates)[: len(dims)].tolist())


def list_outliers(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: one per depth, then one per task."""
    header = ["depth", "outlier dimensions", *CURVES.values()]
    rows = [
        [
            str(depth),
            " ".join(map(str, record["outliers"][i])) or "none",
            *(f"{record[name][i]:.3f}" for name in CURVES),
        ]
        for i, depth in enumerate(record["depths"])
    ]
    for task, scores in record["scores"].items():
        rows.append([task, "main score, %", *(f"{x:.2f}" for x in scores.values())])
    return [header, *rows]


def plot_outliers(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the mean state of the last depth, and mean cosines by depth."""
    depths, deviations = record["depths"], np.array(record["deviations"])
    size = 2 * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    with figure(path, size, columns=2, title=title) as (_, (dims, cosines)):
        # Left: every dimension, with the limits and the names of the outliers.
        dims.vlines(np.arange(len(deviations)), 0, deviations, lw=0.7)
        for sign in (-1, 1):
            dims.axhline(sign * record["threshold"], ls="--", color="0.4", lw=1)
        for dim in record["outliers"][-1]:
            va = "bottom" if deviations[dim] > 0 else "top"
            dims.annotate(str(dim), (dim, deviations[dim]), ha="center", va=va, size=8)
        dims.margins(y=0.12)
        dims.set(
            title=f"Mean state at depth {depths[-1]}",
            xlabel="dimension",
            ylabel="standard deviations",
        )
        # Right: mean cosines by depth.
        for name, label in CURVES.items():
            cosines.plot(depths, record[name], marker="o", ms=4, label=label)
        cosines.set(
            title="Mean cosine of texts",
            xlabel="depth (0: embedding layer)",
            ylabel="mean cosine",
        )
        cosines.set_xticks([depths[i] for i in tick_indices(len(depths))])
        cosines.legend()
        for axes in (dims, cosines):
            axes.grid(alpha=0.3)


def _average_states(
    inputs: DiagnosticInputs, texts: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Means of states at every depth: of all tokens [L+1, D], per text [L+1, N, D]."""
    params, cfg, token_ids = inputs.tokenize(texts)
    means = np.empty((cfg.depth + 1, len(texts), cfg.width))
    for number, layers in iterate_states(params, cfg, token_ids):
        means[:, number] = layers.mean(1, dtype=np.float64)
    lengths = np.array([len(row) for row in token_ids])
    return np.einsum("knd,n->kd", means, lengths / lengths.sum()), means


def _score_clipped(
    inputs: DiagnosticInputs, outliers: list[int], controls: list[list[int]]
) -> dict[str, dict[str, float]]:
    """Main scores of each task: unchanged, outliers clipped, other dimensions clipped.

    Raises:
        ValueError: A task has no main score.
    """
    scores = {}
    for task, evaluator in inputs.evaluators.items():
        results = [
            evaluator(inputs.make_embedder(clip_dims=dims))
            for dims in ([], outliers, *controls)
        ]
        if "main_score" not in results[0]:
            raise ValueError(f"the task {task} has no main score")
        unchanged, clipped, *control_scores = (
            float(result["main_score"]) for result in results
        )
        scores[task] = {
            "unchanged": unchanged,
            "clipped": clipped,
            "control": float(np.mean(control_scores)),
        }
    return scores

"""Layer by Layer: metrics of every layer, and how they go with the scores of tasks.

Skean et al. 2025, "Layer by Layer: Uncovering Hidden Representations in Language
Models". Text is one prompt of the paper; its states include special tokens.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import (
    DepthPanel,
    list_by_depth,
    plot_by_depth,
)
from research.eval.geometry.layer_metrics import (
    center_tokens,
    dime,
    lidar_entropy,
    matrix_entropy,
    max_entropy,
    mean_state_angle,
    mean_turning_angle,
    view_infonce,
)
from research.eval.geometry.text_views import make_view
from research.eval.geometry.token_states import iterate_states
from research.eval.metrics import correlate_ranks
from research.eval.vector_cache import VectorCache, cut_to_size
from research.types import EmbedFn, Evaluator

# Metrics of the states of single texts, which are averaged over texts.
TEXT_METRICS = (
    "prompt_entropy",
    "prompt_entropy_clamped",
    "prompt_entropy_by_maximum",
    "curvature",
    "state_angle",
)
# Metrics of the vectors of all texts.
SET_METRICS = ("dataset_entropy", "infonce", "lidar", "dime")
METRICS = TEXT_METRICS + SET_METRICS
PANELS = (
    DepthPanel(
        "Prompt entropy",
        "nats",
        {
            "prompt_entropy": "as defined",
            "prompt_entropy_clamped": "clamped, as in the code",
        },
    ),
    DepthPanel("Dataset entropy", "nats", {"dataset_entropy": ""}),
    DepthPanel(
        "Curvature",
        "mean angle, radians",
        {
            "curvature": "of steps, as defined",
            "state_angle": "of states, as in the code",
        },
    ),
    DepthPanel("InfoNCE of two views", "loss, nats", {"infonce": ""}),
    DepthPanel("LiDAR", "entropy, nats", {"lidar": ""}),
    DepthPanel("DiME", "nats", {"dime": ""}),
)


def report_layers(
    inputs: DiagnosticInputs, *, texts: int = 200, views: int = 4
) -> dict[str, Any]:
    """Entropy, curvature and invariance of every layer, and the scores of tasks there.

    Args:
        inputs: The model and the texts; the command's tasks, if any, score the
            embeddings at every depth.
        texts: Largest number of texts.
        views: Number of random views of each text; InfoNCE and DiME compare two of
            them, LiDAR all.

    Returns:
        Lists over "depths", the METRICS; "scores", {task: list over depths};
        "correlations", {metric: {task: Spearman over the depths}}; "summary".

    Raises:
        ValueError: There are too few texts or views.
    """
    if views < 2:
        raise ValueError(f"layers of {views} views: InfoNCE compares two of them")
    sample = inputs.sample_texts(texts)
    metrics = _measure_texts(inputs, sample) | _measure_views(inputs, sample, views)
    depths = list(range(len(metrics["prompt_entropy"])))
    # Main scores at every depth, and how the metrics go with them.
    embed = inputs.make_depth_embedder()
    scores = score_depths(embed, inputs.evaluators, len(depths))
    correlations = {
        name: {
            task: correlate_ranks(metrics[name], values) / 100
            for task, values in scores.items()
        }
        for name in METRICS
        if scores
    }
    best = {task: int(np.argmax(values)) for task, values in scores.items()}
    return {
        "summary": {"best_depth": best, "correlations": correlations},
        "texts": len(sample),
        "views": views,
        "depths": depths,
        **metrics,
        "scores": scores,
        "correlations": correlations,
    }


def score_depths(
    embed_depths: EmbedFn, evaluators: Mapping[str, Evaluator], count: int
) -> dict[str, list[float]]:
    """The main score of each evaluator at each depth; a text is embedded once.

    Args:
        embed_depths: Embed function that returns [N, K, D].
        evaluators: Evaluators by label, which have a main score.
        count: K, number of depths.
    """
    scores = {}
    for label, evaluator in evaluators.items():
        # The texts of one task are in memory at a time.
        embed = VectorCache(embed_depths)
        results = [evaluator(cut_to_size(embed, depth)) for depth in range(count)]
        scores[label] = [float(result["main_score"]) for result in results]
    return scores


def list_layers(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: one per depth, one per task's correlations."""
    rows = list_by_depth(record | record["scores"], [*METRICS, *record["scores"]])
    for task in record["scores"]:
        values = [f"{record['correlations'][name][task]:.2f}" for name in METRICS]
        rows.append([f"Spearman with {task}", *values, *[""] * len(record["scores"])])
    return rows


def plot_layers(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the metrics by depth, and the scores of the tasks."""
    # The scores of all tasks share a panel
    panels = list(PANELS)
    if record["scores"]:
        names = {task: task for task in record["scores"]}
        panels.append(DepthPanel("Main score of tasks", "main score, %", names))
    plot_by_depth(record | record["scores"], panels, title, path)


def measure_text(states: np.ndarray) -> dict[str, float]:
    """The TEXT_METRICS of the states [T, D] of the tokens of a text."""
    z = center_tokens(states)
    entropy = matrix_entropy(z)
    return {
        "prompt_entropy": entropy,
        "prompt_entropy_clamped": matrix_entropy(z, clamp=True),
        "prompt_entropy_by_maximum": entropy / max_entropy(*z.shape),
        "curvature": mean_turning_angle(states),
        "state_angle": mean_state_angle(z),
    }


def _measure_texts(
    inputs: DiagnosticInputs, texts: Sequence[str]
) -> dict[str, list[float]]:
    """Means of the TEXT_METRICS at each depth, and the dataset entropy."""
    params, cfg, token_ids = inputs.tokenize(texts)
    means = np.empty((cfg.depth + 1, len(texts), cfg.width))
    values = np.empty((cfg.depth + 1, len(texts), len(TEXT_METRICS)))
    # One text at a time: the states of all would not fit in memory.
    for number, layers in iterate_states(params, cfg, token_ids):
        for depth, states in enumerate(layers):
            metrics = measure_text(states)
            values[depth, number] = [metrics[name] for name in TEXT_METRICS]
            means[depth, number] = center_tokens(states).mean(0)
    # A text of one or two tokens has no curvature.
    averages = np.nanmean(values, axis=1)  # [L+1, metrics]
    return {
        **{name: averages[:, i].tolist() for i, name in enumerate(TEXT_METRICS)},
        "dataset_entropy": [matrix_entropy(x) for x in means],
    }


def _measure_views(
    inputs: DiagnosticInputs, texts: Sequence[str], count: int
) -> dict[str, list[float]]:
    """InfoNCE, LiDAR and DiME of random views of the texts, at each depth."""
    # All views of all texts in one pass
    rng = np.random.default_rng(inputs.seed)
    views = [make_view(text, rng) for text in texts for _ in range(count)]
    params, cfg, token_ids = inputs.tokenize(views)
    vectors = np.empty((cfg.depth + 1, len(views), cfg.width))
    for number, layers in iterate_states(params, cfg, token_ids):
        vectors[:, number] = [center_tokens(states).mean(0) for states in layers]
    # [L+1, N, V, D]
    vectors = vectors.reshape(len(vectors), len(texts), count, -1)
    first, second = vectors[:, :, 0], vectors[:, :, 1]
    pairs = list(zip(first, second, strict=True))
    return {
        "infonce": [view_infonce(a, b) for a, b in pairs],
        "lidar": [lidar_entropy(x) for x in vectors],
        "dime": [dime(a, b, seed=inputs.seed) for a, b in pairs],
    }

"""Geometry: how evenly the vectors at every depth fill their space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs, check_count
from research.analysis.diagnostics.panels import (
    PANEL_HEIGHT,
    PANEL_WIDTH,
    tick_indices,
)
from research.eval.figures import figure
from research.eval.geometry.measures import (
    center_rows,
    effective_rank,
    isoscore,
    mean_cosine,
)
from research.transforms.normalize import l2_normalize_rows


def report_geometry(inputs: DiagnosticInputs, *, texts: int = 1000) -> dict[str, Any]:
    """Anisotropy, IsoScore and effective rank at every depth.

    Args:
        inputs: The model and the texts.
        texts: Largest number of texts.

    Returns:
        The record of `measure_geometry`, with "summary", the numbers of the last depth.
    """
    # [N, depths, D], the embedding layer first.
    vectors = inputs.make_depth_embedder()(inputs.sample_texts(texts), "document")
    record = measure_geometry(vectors, range(vectors.shape[1]))
    names = ("mean_cosine", "isoscore", "effective_rank")
    return {"summary": {name: record[name][-1] for name in names}, **record}


def measure_geometry(
    x: np.ndarray, depths: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """Geometry of the normalized vectors of texts, at every depth.

    Args:
        x: [N, K, D] vectors of N different texts at K depths.
        depths: The K depths; 0 is the embedding layer.
        seed: Seed of the noise for comparison.

    Returns:
        A record of lists over depths: "mean_cosine", "centered_mean_cosine" (after
        subtracting the mean vector), "isoscore", and "effective_rank" of the centered
        vectors; and "gaussian", the same numbers for N vectors of Gaussian noise, as an
        isotropic model would have them.

    Raises:
        ValueError: There are too few texts.
    """
    chex.assert_rank(x, 3)
    chex.assert_axis_dimension(x, 1, len(depths))
    check_count(x, "different texts")
    # [N, D] noise, and a record per depth.
    noise = np.random.default_rng(seed).standard_normal(x[:, 0].shape)
    rows = [_measure_vectors(x[:, k]) for k in range(x.shape[1])]
    return {
        "texts": len(x),
        "width": x.shape[2],
        "depths": list(depths),
        **{name: [row[name] for row in rows] for name in rows[0]},
        "gaussian": _measure_vectors(noise),
    }


def list_geometry(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: one per depth."""
    names = ("mean_cosine", "centered_mean_cosine", "isoscore", "effective_rank")
    header = ["depth", *(name.replace("_", " ") for name in names)]
    rows = [
        [str(depth), *(f"{record[name][i]:.3f}" for name in names)]
        for i, depth in enumerate(record["depths"])
    ]
    noise = [f"{record['gaussian'][name]:.3f}" for name in names]
    return [header, *rows, ["Gaussian noise", *noise]]


def plot_geometry(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the statistics by depth; a dashed line shows those of Gaussian noise."""
    depths, noise = record["depths"], record["gaussian"]
    panels = (
        ("Anisotropy", "mean cosine", ("mean_cosine", "centered_mean_cosine")),
        ("IsoScore", "IsoScore", ("isoscore",)),
        ("Effective rank", f"of {record['width']} dimensions", ("effective_rank",)),
    )
    names = {"mean_cosine": "unchanged", "centered_mean_cosine": "mean subtracted"}
    size = 3 * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    with figure(path, size, columns=3, title=title) as (_, row):
        for axes, (heading, label, fields) in zip(row, panels, strict=True):
            for field in fields:
                name = names.get(field, "the model")
                axes.plot(depths, record[field], marker="o", ms=4, label=name)
            # Gaussian noise has no depth: a horizontal line.
            level = noise[fields[0]]
            axes.axhline(
                level,
                ls="--",
                color="0.4",
                lw=1,
                label=f"Gaussian noise: {round(level, 3) + 0.0:.3g}",
            )
            axes.set(title=heading, xlabel="depth (0: embedding layer)", ylabel=label)
            axes.set_xticks([depths[i] for i in tick_indices(len(depths))])
            axes.set(ylim=(min(0, axes.get_ylim()[0]), None))
            axes.legend()
            axes.grid(alpha=0.3)


def _measure_vectors(x: np.ndarray) -> dict[str, float]:
    x = l2_normalize_rows(x.astype(np.float64))
    y = center_rows(x)
    return {
        "mean_cosine": mean_cosine(x),
        "centered_mean_cosine": mean_cosine(y),
        "isoscore": isoscore(x),
        "effective_rank": effective_rank(y),
    }

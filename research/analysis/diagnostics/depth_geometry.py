"""Geometry: how evenly the embeddings at every depth fill their space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import chex
import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import (
    DepthPanel,
    list_by_depth,
    plot_by_depth,
)
from research.eval.bias.documents import check_count
from research.eval.geometry.evaluators import VECTOR_MEASURES, measure_vectors

PANELS = (
    DepthPanel("Anisotropy", "mean cosine", {"mean_cosine": "the model"}),
    DepthPanel(
        "SVD anisotropy",
        "share of the first component",
        {"svd_anisotropy": "the model"},
    ),
    DepthPanel(
        "Isotropy",
        "1 is isotropic",
        {"isoscore": "IsoScore", "partition_score": "partition score"},
    ),
    DepthPanel(
        "Intrinsic dimension",
        "dimension",
        {"intrinsic_dimension": "TwoNN", "levina_bickel": "Levina and Bickel"},
    ),
    DepthPanel(
        "Effective rank",
        "effective rank",
        {
            "effective_rank": "of singular values, centered",
            "representation_rank": "of eigenvalues",
        },
    ),
    DepthPanel("Uniformity", "log of the mean kernel", {"uniformity": "the model"}),
)


def report_geometry(inputs: DiagnosticInputs, *, texts: int = 1000) -> dict[str, Any]:
    """Anisotropy, isotropy, dimension and rank of the embeddings at every depth.

    Args:
        inputs: The model and the texts.
        texts: Largest number of texts.

    Returns:
        The record of `measure_geometry`, with "summary", the numbers of the last depth,
        and the depth at which the intrinsic dimension is largest.
    """
    # [N, depths, D], the embedding layer first.
    vectors = inputs.make_depth_embedder()(inputs.sample_texts(texts), "document")
    record = measure_geometry(vectors, range(vectors.shape[1]))
    summary = {name: record[name][-1] for name in VECTOR_MEASURES}
    peak = int(np.argmax(record["intrinsic_dimension"]))
    return {"summary": {**summary, "intrinsic_dimension_peak": peak}, **record}


def measure_geometry(
    x: np.ndarray, depths: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """Geometry of the normalized vectors of texts, at every depth.

    Args:
        x: [N, K, D] vectors of N different texts at K depths.
        depths: The K depths; 0 is the embedding layer.
        seed: Seed of the noise for comparison.

    Returns:
        A record of lists over depths, the VECTOR_MEASURES; and "gaussian", the same
        numbers for N vectors of Gaussian noise, as an isotropic model would have them.

    Raises:
        ValueError: There are too few texts.
    """
    chex.assert_rank(x, 3)
    chex.assert_axis_dimension(x, 1, len(depths))
    check_count(x, "different texts")
    # [N, D] noise, and a record per depth.
    noise = np.random.default_rng(seed).standard_normal(x[:, 0].shape)
    rows = [measure_vectors(x[:, k]) for k in range(x.shape[1])]
    return {
        "texts": len(x),
        "width": x.shape[2],
        "depths": list(depths),
        **{name: [row[name] for row in rows] for name in rows[0]},
        "gaussian": measure_vectors(noise),
    }


def list_geometry(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: one per depth, and one for noise."""
    noise = [
        f"{round(record['gaussian'][name], 3) + 0.0:.3f}" for name in VECTOR_MEASURES
    ]
    rows = list_by_depth(record, list(VECTOR_MEASURES))
    return [*rows, ["Gaussian noise", *noise]]


def plot_geometry(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the measures by depth; a dashed line shows those of Gaussian noise."""
    plot_by_depth(record, PANELS, title, path, levels=record["gaussian"])

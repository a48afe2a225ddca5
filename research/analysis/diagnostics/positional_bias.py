"""The report of positional bias: where an edit moves an embedding most."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs
from research.analysis.diagnostics.panels import PANEL_HEIGHT, PANEL_WIDTH
from research.eval.bias.documents import truncate_document
from research.eval.bias.positional_bias import (
    EDITS,
    POSITIONS,
    SIZES,
    measure_positional_bias,
)
from research.eval.figures import figure


def report_positional_bias(
    inputs: DiagnosticInputs, *, documents: int = 64
) -> dict[str, Any]:
    """Changes of embeddings by insertions and removals at the start, middle and end.

    Args:
        inputs: The model and the texts.
        documents: Number of documents that are edited.

    Returns:
        The record of `measure_positional_bias`, with "summary", for each variant and
        edit the ratio "start_over_end" and the largest "gap_points".
    """
    # Documents that an insertion does not make longer than the model's maximum.
    length = int(inputs.document_room() / (1 + max(SIZES)))
    pool = inputs.make_documents(length, 2 * documents)
    pool = [truncate_document(document, length) for document in pool]
    # Every other document is edited; the others provide the inserted text.
    record = measure_positional_bias(
        inputs.make_embedder(), pool[::2], pool[1::2], seed=inputs.seed
    )
    # The main numbers of every kind of edit.
    summary = {}
    for variant, kind in product(("as_written", "rotated"), EDITS):
        edits = record[variant][kind]
        summary.setdefault(variant, {})[kind] = {
            "start_over_end": edits["start_over_end"],
            "gap_points": max(edits["gap_points"], key=abs),
        }
    return {"summary": summary, **record}


def list_positional_bias(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: mean changes (1 - cosine) by position."""
    header = ["change by an edit at the", *POSITIONS, "start / end", "largest gap"]
    rows = []
    for variant, kind in product(("as_written", "rotated"), EDITS):
        edits = record[variant][kind]
        changes = [1 - np.mean(edits["cosine"][position]) for position in POSITIONS]
        cells = [f"{change:.4f}" for change in changes]
        name = f"{EDITS[kind]}, {variant.replace('_', ' ')}"
        gap = f"{max(edits['gap_points'], key=abs):+.1f} points"
        rows.append([name, *cells, f"{edits['start_over_end']:.2f}", gap])
    return [header, *rows]


def plot_positional_bias(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots the cosine after an edit by its size and position, with 95% intervals."""
    percents = [100 * size for size in record["sizes"]]
    size = 2 * PANEL_WIDTH, 0.6 + 2 * PANEL_HEIGHT
    layout = {"rows": 2, "columns": 2, "sharex": True, "sharey": True}
    with figure(path, size, title=title, **layout) as (_, panels):
        variants = product(("as_written", "rotated"), EDITS)
        for axes, (variant, kind) in zip(panels.flat, variants, strict=True):
            # One curve per position of the edit.
            edits = record[variant][kind]
            for position in POSITIONS:
                bars = 1.96 * np.array(edits["standard_error"][position])
                style = {"label": f"at the {position}", "marker": "o", "ms": 4}
                cosines = edits["cosine"][position]
                axes.errorbar(percents, cosines, bars, capsize=3, **style)
            ratio = f"change at start / end {edits['start_over_end']:.3g}"
            axes.set(title=f"{EDITS[kind]}, {variant.replace('_', ' ')}: {ratio}")
            axes.title.set_size("medium")
            axes.grid(alpha=0.3)
        # Labels at the borders only, since the axes are shared.
        panels[0, 0].set(xlim=(0, None))
        panels[0, 0].legend(loc="lower left")
        for axes in panels[1]:
            axes.set(xlabel=f"size of the edit, % of {record['tokens']:.0f} tokens")
        for axes in panels[:, 0]:
            axes.set(ylabel="cosine to the unedited document")

"""Positional bias: how much an edit moves an embedding, by where the edit is.

Goel et al. 2024, "Quantifying Positional Biases in Text Embedding Models".
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics.inputs import DiagnosticInputs, check_count
from research.analysis.diagnostics.panels import PANEL_HEIGHT, PANEL_WIDTH
from research.analysis.synthetic_documents import (
    Document,
    insert_text,
    join_pieces,
    remove_tokens,
    rotate_document,
    truncate_document,
)
from research.eval.figures import figure
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn

POSITIONS = {"start": 0.0, "middle": 0.5, "end": 1.0}
EDITS = {"insert": "Inserted", "remove": "Removed"}
SIZES = (0.05, 0.1, 0.2, 0.4)


def report_positional_bias(
    inputs: DiagnosticInputs, *, documents: int = 64
) -> dict[str, Any]:
    """Changes of embeddings by insertions and removals at the start, middle and end.

    Args:
        inputs: The model and the texts.
        documents: Number of documents that are edited.

    Returns:
        The record of `measure_positional_bias`, with "summary", the ratios
        "start_over_end" {variant: {edit: ratio}}.
    """
    # Documents that an insertion does not make longer than the model's maximum.
    length = int(inputs.document_room() / (1 + max(SIZES)))
    pool = inputs.make_documents(length, 2 * documents)
    pool = [truncate_document(document, length) for document in pool]
    # Every other document is edited; the others provide the inserted text.
    record = measure_positional_bias(
        inputs.make_embedder(), pool[::2], pool[1::2], seed=inputs.seed
    )
    ratios = {
        variant: {kind: record[variant][kind]["start_over_end"] for kind in EDITS}
        for variant in ("as_written", "rotated")
    }
    return {"summary": {"start_over_end": ratios}, **record}


def measure_positional_bias(
    embed: EmbedFn,
    documents: Sequence[Document],
    fillers: Sequence[Document],
    *,
    sizes: Sequence[float] = SIZES,
    seed: int = 0,
) -> dict[str, Any]:
    """Cosine between documents before and after text is inserted or removed.

    Measured in two variants. "as_written" includes a bias of the documents themselves,
    whose beginnings may be the most informative part. In "rotated", each document
    starts at a random word and ends with the part before it, so that any difference
    between positions is due to the model.

    Args:
        embed: Embed function that returns [N, D].
        documents: N documents to edit. With an insertion they should not exceed the
            model's maximum length.
        fillers: N further documents, whose beginnings are inserted.
        sizes: Sizes of the edits, as fractions of the document's tokens.
        seed: Seed of the rotations.

    Returns:
        A record of "documents", their number; "tokens", their mean length; "sizes"; and
        for "as_written" and "rotated", for "insert" and "remove": the mean "cosine" and
        its "standard_error" by position ("start", "middle", "end") and size, and
        "start_over_end", the mean change (1 - cosine) by edits at the start divided by
        that by edits at the end, which is 1 without bias.

    Raises:
        ValueError: There are too few documents.
    """
    check_count(documents, "documents")
    # Each document is rotated by a random share of its length.
    shifts = np.random.default_rng(seed).random(len(documents))
    rotated = list(map(rotate_document, documents, shifts))
    return {
        "documents": len(documents),
        "tokens": float(np.mean([d.sizes.sum() for d in documents])),
        "sizes": list(sizes),
        "as_written": _measure_edits(embed, documents, fillers, sizes),
        "rotated": _measure_edits(embed, rotated, fillers, sizes),
    }


def list_positional_bias(record: Mapping[str, Any]) -> list[list[str]]:
    """The rows of the report's table: mean changes (1 - cosine) by position."""
    header = ["change by an edit at the", *POSITIONS, "start / end"]
    rows = []
    for variant, kind in product(("as_written", "rotated"), EDITS):
        edits = record[variant][kind]
        changes = [1 - np.mean(edits["cosine"][position]) for position in POSITIONS]
        cells = [f"{change:.4f}" for change in changes]
        name = f"{EDITS[kind]}, {variant.replace('_', ' ')}"
        rows.append([name, *cells, f"{edits['start_over_end']:.2f}"])
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


def _measure_edits(
    embed: EmbedFn,
    documents: Sequence[Document],
    fillers: Sequence[Document],
    sizes: Sequence[float],
) -> dict[str, Any]:
    """Cosines by kind, position and size of the edit; see measure_positional_bias."""
    # Embed the documents and all their edited versions in one call.
    edits = list(product(EDITS, POSITIONS, sizes))
    texts = [join_pieces(document) for document in documents]
    for edit in edits:
        texts += map(partial(_edit_document, *edit), documents, fillers)
    x = l2_normalize_rows(embed(texts, "document"))
    x = x.reshape(1 + len(edits), len(documents), -1)  # [1 + edits, N, D]
    cosines = np.sum(x[0] * x[1:], -1)  # [edits, N], to the unedited documents
    cosines = cosines.reshape(len(EDITS), len(POSITIONS), len(sizes), -1)
    # Statistics over the documents.
    record = {}
    for kind, values in zip(EDITS, cosines, strict=True):
        mean = values.mean(-1)  # [positions, sizes]
        error = values.std(-1, ddof=1) / np.sqrt(len(documents))
        change = dict(zip(POSITIONS, 1 - mean.mean(-1), strict=True))
        record[kind] = {
            "cosine": dict(zip(POSITIONS, mean.tolist(), strict=True)),
            "standard_error": dict(zip(POSITIONS, error.tolist(), strict=True)),
            "start_over_end": float(change["start"] / max(change["end"], 1e-12)),
        }
    return record


def _edit_document(
    kind: str, position: str, size: float, document: Document, filler: Document
) -> str:
    tokens = round(size * int(document.sizes.sum()))
    if kind == "remove":
        return remove_tokens(document, tokens, POSITIONS[position])
    return insert_text(
        document, join_pieces(truncate_document(filler, tokens)), POSITIONS[position]
    )

"""Diagnostics of a model's embeddings: three reports, as records for JSON.

Length collapse: embeddings of long documents crowd together (Zhou et al. 2024, "Length-
Induced Embedding Collapse"). Positional bias: an edit at the start of a document moves
its embedding more than one at its end (Lee et al. 2024, "Quantifying Positional
Biases in Text Embedding Models"). Geometry: how evenly the vectors at every depth fill
their space.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import chex
import numpy as np

from research.analysis.geometry import (
    center_rows,
    effective_rank,
    isoscore,
    mean_cosine,
    pair_cosines,
)
from research.analysis.synthetic_documents import (
    Document,
    insert_text,
    join_pieces,
    remove_tokens,
    rotate_document,
    truncate_document,
)
from research.transforms.normalize import l2_normalize_rows
from research.types import EmbedFn

POSITIONS = {"start": 0.0, "middle": 0.5, "end": 1.0}
EDITS = {"insert": "Inserted", "remove": "Removed"}
SIZES = (0.05, 0.1, 0.2, 0.4)
MIN_DOCUMENTS = 10  # fewer give no meaningful statistics
MIN_LENGTH = 8  # tokens in the shortest documents


def choose_lengths(max_length: int) -> list[int]:
    """The lengths to compare, in tokens: powers of two, and `max_length` itself.

    Raises:
        ValueError: `max_length` is too short for two lengths.
    """
    powers = [2**i for i in range(MIN_LENGTH.bit_length() - 1, max_length.bit_length())]
    powers = [power for power in powers if power < 0.8 * max_length]
    if not powers:
        raise ValueError(
            f"documents of {max_length} tokens are too short to compare lengths: "
            f"{2 * MIN_LENGTH} or more are needed"
        )
    return [*powers, max_length]


def measure_length_collapse(
    embeds: Mapping[str, EmbedFn], documents: Sequence[Document], lengths: Sequence[int]
) -> dict[str, Any]:
    """Cosines of pairs of documents that are cut to each of several lengths.

    The documents are the same at every length, so that only the length differs.

    Args:
        embeds: {label: embed function}. It returns [N, K, D] for K depths, the last of
            which is the model's output.
        documents: N documents, at least as long as the largest length.
        lengths: Numbers of tokens, special tokens excluded.

    Returns:
        A record of "lengths"; "documents", their number; "texts_per_document", the mean
        number of texts that a document of each length is joined from; and "models",
        which holds for each label the "mean", "p10" and "p90" (percentiles) of the
        cosines by length, and "layers", [K][lengths] means.

    Raises:
        ValueError: There are too few documents.
    """
    _check_count(documents, "documents")
    cuts = [
        [truncate_document(document, length) for document in documents]
        for length in lengths
    ]
    # Statistics for every model and length.
    models = {}
    for label, embed in embeds.items():
        layers, percentiles = [], []
        for cut in cuts:
            # [N, K, D] vectors.
            x = embed([join_pieces(document) for document in cut], "document")
            layers.append([mean_cosine(x[:, k]) for k in range(x.shape[1])])
            percentiles.append(np.percentile(pair_cosines(x[:, -1]), (10, 90)))
        p10, p90 = np.array(percentiles).T.tolist()
        layers = np.array(layers).T.tolist()
        models[label] = {"mean": layers[-1], "p10": p10, "p90": p90, "layers": layers}
    joined = [float(np.mean([1 + d.source[-1] for d in cut])) for cut in cuts]
    return {
        "lengths": list(lengths),
        "documents": len(documents),
        "texts_per_document": joined,
        "models": models,
    }


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
    _check_count(documents, "documents")
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
    _check_count(x, "different texts")
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


def _measure_vectors(x: np.ndarray) -> dict[str, float]:
    x = l2_normalize_rows(x.astype(np.float64))
    y = center_rows(x)
    return {
        "mean_cosine": mean_cosine(x),
        "centered_mean_cosine": mean_cosine(y),
        "isoscore": isoscore(x),
        "effective_rank": effective_rank(y),
    }


def _check_count(items: Sequence, name: str) -> None:
    if len(items) < MIN_DOCUMENTS:
        raise ValueError(
            f"{len(items)} {name} are too few: {MIN_DOCUMENTS} or more are needed"
        )

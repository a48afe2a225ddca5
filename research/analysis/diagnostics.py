"""What a model's embeddings are like: three reports as JSON records.

Length collapse: embeddings of long documents crowd together (Zhou et al. 2024, "Length-
Induced Embedding Collapse"). Positional bias: an edit at the start of a document moves
its embedding more than one at its end (Lee et al. 2024, "Quantifying Positional
Biases in Text Embedding Models"). Geometry: how evenly the vectors of every depth fill
their space.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

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

PLACES = {"start": 0.0, "middle": 0.5, "end": 1.0}
EDITS = {"insert": "Inserted", "remove": "Removed"}
SIZES = (0.05, 0.1, 0.2, 0.4)
MIN_DOCUMENTS = 10  # texts or documents, below which the statistics say nothing
SHORTEST = 8  # tokens


def choose_lengths(longest: int) -> list[int]:
    """The lengths to compare, in tokens: powers of two, and the longest itself.

    Raises:
        ValueError: there is only one.
    """
    powers = [2**i for i in range(SHORTEST.bit_length() - 1, longest.bit_length())]
    powers = [power for power in powers if power < 0.8 * longest]
    if not powers:
        raise ValueError(
            f"documents of {longest} tokens are too short to compare lengths: "
            f"{2 * SHORTEST} or more are needed"
        )
    return [*powers, longest]


def measure_length_collapse(
    embeds: Mapping[str, EmbedFn], documents: Sequence[Document], lengths: Sequence[int]
) -> dict[str, Any]:
    """Cosines of pairs of documents, when they are cut to each of several lengths.

    The same documents at every length, so that only the length differs.

    Args:
        embeds: label -> embed function that gives [N, K, D], K depths, the model's own
            output last.
        documents: at least as long as the longest length.
        lengths: in tokens, special ones not included.

    Returns:
        "lengths"; "texts_per_document", how many texts the documents of a length were
        joined from, on average; and for each label of "models" the "mean", "p10" and
        "p90" (percentiles) of the cosines by length, and "layers": [K][lengths] means.

    Raises:
        ValueError: there are too few documents.
    """
    _enough(documents, "documents")
    cuts = [
        [truncate_document(document, length) for document in documents]
        for length in lengths
    ]
    models = {}
    for label, embed in embeds.items():
        layers, spread = [], []
        for cut in cuts:
            x = embed([join_pieces(document) for document in cut], "document")
            layers.append([mean_cosine(x[:, k]) for k in range(x.shape[1])])
            spread.append(np.percentile(pair_cosines(x[:, -1]), (10, 90)))
        p10, p90 = np.array(spread).T.tolist()
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
    """Cosine between documents before and after text goes in or out at some place.

    Measured twice. "as_written" has the documents' own bias too: a text's beginning may
    say most about it. In "rotated" each document starts at a random word and ends with
    what stood before it, so that any difference between places is the model's.

    Args:
        embed: gives [N, D].
        documents: to edit; the edited ones should not exceed the model's length.
        fillers: as many others, whose beginnings are put in.
        sizes: of the edits, shares of the document's tokens.
        seed: of the rotations.

    Returns:
        "documents" and their "tokens", on average; "sizes"; and under "as_written" and
        "rotated", for "insert" and "remove", by place ("start", "middle", "end") the
        mean "cosine" and its "standard_error", each by size; and "start_over_end": the
        mean change (1 - cosine) from edits at the start over that from edits at the
        end, 1 without bias.

    Raises:
        ValueError: there are too few documents.
    """
    _enough(documents, "documents")
    turns = np.random.default_rng(seed).random(len(documents))
    return {
        "documents": len(documents),
        "tokens": float(np.mean([d.sizes.sum() for d in documents])),
        "sizes": list(sizes),
        "as_written": _bias(embed, documents, fillers, sizes),
        "rotated": _bias(
            embed, list(map(rotate_document, documents, turns)), fillers, sizes
        ),
    }


def measure_geometry(
    x: np.ndarray, depths: Sequence[int], seed: int = 0
) -> dict[str, Any]:
    """Statistics of texts' vectors at every depth, each scaled to length 1.

    Args:
        x: [N, K, D] vectors of N different texts, K depths.
        depths: the K depths; 0 is the embedding layer.
        seed: of the noise that they are compared with.

    Returns:
        By depth "mean_cosine", "centred_mean_cosine" (their mean subtracted first),
        "isoscore" and "effective_rank" of the centred vectors; and under "gaussian" the
        same of as many vectors of Gaussian noise: what an isotropic model would have.

    Raises:
        ValueError: there are too few texts.
    """
    _enough(x, "different texts")
    noise = np.random.default_rng(seed).standard_normal(x[:, 0].shape)
    rows = [_statistics(x[:, k]) for k in range(x.shape[1])]
    return {
        "texts": len(x),
        "width": x.shape[2],
        "depths": list(depths),
        **{name: [row[name] for row in rows] for name in rows[0]},
        "gaussian": _statistics(noise),
    }


def _bias(
    embed: EmbedFn,
    documents: Sequence[Document],
    fillers: Sequence[Document],
    sizes: Sequence[float],
) -> dict[str, Any]:
    edits = list(product(EDITS, PLACES, sizes))
    texts = [join_pieces(document) for document in documents]
    for edit in edits:
        texts += map(partial(_edited, *edit), documents, fillers)
    x = l2_normalize_rows(embed(texts, "document"))
    x = x.reshape(1 + len(edits), len(documents), -1)
    cosines = np.sum(x[0] * x[1:], -1).reshape(len(EDITS), len(PLACES), len(sizes), -1)
    record = {}
    for kind, found in zip(EDITS, cosines, strict=True):
        mean = found.mean(-1)
        error = found.std(-1, ddof=1) / np.sqrt(len(documents))
        change = dict(zip(PLACES, 1 - mean.mean(-1), strict=True))
        record[kind] = {
            "cosine": dict(zip(PLACES, mean.tolist(), strict=True)),
            "standard_error": dict(zip(PLACES, error.tolist(), strict=True)),
            "start_over_end": float(change["start"] / max(change["end"], 1e-12)),
        }
    return record


def _edited(
    kind: str, place: str, size: float, document: Document, filler: Document
) -> str:
    tokens = round(size * int(document.sizes.sum()))
    if kind == "remove":
        return remove_tokens(document, tokens, PLACES[place])
    return insert_text(
        document, join_pieces(truncate_document(filler, tokens)), PLACES[place]
    )


def _statistics(x: np.ndarray) -> dict[str, float]:
    x = l2_normalize_rows(x.astype(np.float64))
    y = center_rows(x)
    return {
        "mean_cosine": mean_cosine(x),
        "centred_mean_cosine": mean_cosine(y),
        "isoscore": isoscore(x),
        "effective_rank": effective_rank(y),
    }


def _enough(items: Sequence, name: str) -> None:
    if len(items) < MIN_DOCUMENTS:
        raise ValueError(
            f"{len(items)} {name} are too few: {MIN_DOCUMENTS} or more are needed"
        )

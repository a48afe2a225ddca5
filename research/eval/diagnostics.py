"""What a model's embeddings are like: three reports, each a JSON record and a picture.

Length collapse: embeddings of long documents crowd together (Zhou et al. 2024, "Length-
Induced Embedding Collapse"). Positional bias: an edit at the start of a document moves
its embedding more than one at its end (Lee et al. 2024, "Quantifying Positional
Biases in Text Embedding Models"). Geometry: how evenly the vectors of every depth fill
their space.
"""

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from research.eval.documents import Document, inserted, prefix, removed, text
from research.eval.geometry import (
    centred,
    effective_rank,
    isoscore,
    mean_cosine,
    pair_cosines,
)
from research.eval.retrieval import unit
from research.structs import EmbedFn

PLACES = {"start": 0.0, "middle": 0.5, "end": 1.0}
SIZES = (0.05, 0.1, 0.2, 0.4)
FEWEST = 10  # texts or documents, below which the statistics say nothing
SHORTEST = 8  # tokens


def lengths(longest: int) -> list[int]:
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


def length_collapse(
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
    cuts = [[prefix(document, length) for document in documents] for length in lengths]
    models = {}
    for label, embed in embeds.items():
        layers, spread = [], []
        for cut in cuts:
            x = embed([text(document) for document in cut], "document")
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


def positional_bias(
    embed: EmbedFn,
    documents: Sequence[Document],
    fillers: Sequence[Document],
    *,
    sizes: Sequence[float] = SIZES,
) -> dict[str, Any]:
    """Cosine between documents before and after text goes in or out at some place.

    Args:
        embed: gives [N, D].
        documents: to edit; the edited ones should not exceed the model's length.
        fillers: as many others, whose beginnings are put in.
        sizes: of the edits, shares of the document's tokens.

    Returns:
        "tokens" of a document, on average; "sizes"; for "insert" and "remove" by place
        ("start", "middle", "end") the mean "cosine" and its "standard_error", each by
        size; and "start_over_end": the mean change (1 - cosine) from edits at the start
        over that from edits at the end: 1 for a model without bias.

    Raises:
        ValueError: there are too few documents.
    """
    _enough(documents, "documents")
    edits = [
        (kind, place, size)
        for kind in ("insert", "remove")
        for place in PLACES
        for size in sizes
    ]
    texts = [text(document) for document in documents]
    for edit in edits:
        texts += map(lambda *pair, edit=edit: _edited(*edit, *pair), documents, fillers)
    x = unit(embed(texts, "document"))
    x = x.reshape(1 + len(edits), len(documents), -1)
    cosines = np.sum(x[0] * x[1:], -1).reshape(2, len(PLACES), len(sizes), -1)
    mean = cosines.mean(-1)
    error = cosines.std(-1, ddof=1) / np.sqrt(len(documents))
    record = {
        "documents": len(documents),
        "tokens": float(np.mean([d.sizes.sum() for d in documents])),
        "sizes": list(sizes),
    }
    for k, kind in enumerate(("insert", "remove")):
        change = dict(zip(PLACES, 1 - mean[k].mean(-1), strict=True))
        record[kind] = {
            "cosine": dict(zip(PLACES, mean[k].tolist(), strict=True)),
            "standard_error": dict(zip(PLACES, error[k].tolist(), strict=True)),
            "start_over_end": float(change["start"] / max(change["end"], 1e-12)),
        }
    return record


def geometry(x: np.ndarray, depths: Sequence[int], seed: int = 0) -> dict[str, Any]:
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


def draw_length_collapse(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws the cosines by length: of every model, and of every depth of the first."""
    sizes = record["lengths"]
    with _figure(path, title, columns=2) as (figure, (left, right)):
        for label, found in record["models"].items():
            (line,) = left.plot(sizes, found["mean"], marker="o", ms=4, label=label)
            left.fill_between(
                sizes, found["p10"], found["p90"], color=line.get_color(), alpha=0.12
            )
        left.legend(title="mean, 10th to 90th percentile", loc="upper left")
        left.set(title="Output", ylabel="cosine of two documents")
        label, found = next(iter(record["models"].items()))
        colours, bar = _depth_colours(len(found["layers"]))
        for values, colour in zip(found["layers"], colours, strict=True):
            right.plot(sizes, values, color=colour, marker="o", ms=3)
        right.set(title=f"Every depth of {label}", ylabel="mean cosine")
        figure.colorbar(bar, ax=right, label="depth", ticks=_ticks(len(colours)))
        for axes in (left, right):
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, map(str, sizes))
            axes.minorticks_off()
            axes.set(xlabel="document length, tokens", ylim=(None, 1))


def draw_positional_bias(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws the cosine after an edit by its size and place; bars are 95% intervals."""
    sizes = [100 * size for size in record["sizes"]]
    with _figure(path, title, columns=2, sharey=True) as (_, panels):
        for axes, kind in zip(panels, ("insert", "remove"), strict=True):
            found = record[kind]
            for place in PLACES:
                bars = 1.96 * np.array(found["standard_error"][place])
                axes.errorbar(
                    *(sizes, found["cosine"][place], bars),
                    **{"label": f"at the {place}", "marker": "o", "ms": 4},
                    capsize=3,
                )
            ratio = f"start / end {found['start_over_end']:.3g}"
            name = {"insert": "Text inserted", "remove": "Text removed"}[kind]
            axes.set(title=f"{name} (change {ratio})", xlim=(0, None))
            axes.set(xlabel=f"size of the edit, % of {record['tokens']:.0f} tokens")
        panels[0].set(ylabel="cosine to the unedited document")
        panels[0].legend(loc="lower left")


def draw_geometry(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws the statistics by depth, dashed the value that Gaussian noise has."""
    depths, noise = record["depths"], record["gaussian"]
    panels = {
        "Anisotropy": ("mean cosine", {"mean_cosine": "as they are"}),
        "IsoScore": ("IsoScore", {"isoscore": "centred"}),
        "Effective rank": (
            f"effective rank, of {record['width']}",
            {"effective_rank": "centred"},
        ),
    }
    panels["Anisotropy"][1]["centred_mean_cosine"] = "centred"
    with _figure(path, title, columns=3) as (_, every):
        for axes, (name, (label, lines)) in zip(every, panels.items(), strict=True):
            for field, meaning in lines.items():
                axes.plot(depths, record[field], marker="o", ms=4, label=meaning)
            reference = f"noise: {noise[field]:.3g}"
            axes.axhline(noise[field], color="0.4", ls="--", lw=1, label=reference)
            axes.set(title=name, xlabel="depth (0: embedding layer)", ylabel=label)
            axes.set_xticks([depths[i] for i in _ticks(len(depths))])
            axes.legend()


def _edited(
    kind: str, place: str, size: float, document: Document, filler: Document
) -> str:
    tokens = round(size * int(document.sizes.sum()))
    if kind == "remove":
        return removed(document, tokens, PLACES[place])
    return inserted(document, text(prefix(filler, tokens)), PLACES[place])


def _statistics(x: np.ndarray) -> dict[str, float]:
    x = unit(x.astype(np.float64))
    y = centred(x)
    return {
        "mean_cosine": mean_cosine(x),
        "centred_mean_cosine": mean_cosine(y),
        "isoscore": isoscore(x),
        "effective_rank": effective_rank(y),
    }


def _enough(items: Sequence, name: str) -> None:
    if len(items) < FEWEST:
        raise ValueError(
            f"{len(items)} {name} are too few: {FEWEST} or more are needed"
        )


@contextmanager
def _figure(path: Path, title: str, columns: int, **options):
    """(figure, axes) of panels side by side, written to `path` as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (4.4 * columns, 3.8)
    figure, axes = plt.subplots(
        1, columns, figsize=size, layout="constrained", **options
    )
    figure.suptitle(title)
    yield figure, axes
    for panel in axes:
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _depth_colours(count: int):
    """A colour for every depth, dark to bright, and what a colour bar is made of."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    map_ = colormaps["viridis"].resampled(count)
    bar = ScalarMappable(BoundaryNorm(np.arange(count + 1) - 0.5, count), map_)
    return [map_(k) for k in range(count)], bar


def _ticks(count: int) -> list[int]:
    """At most nine of 0 ... count - 1, evenly apart."""
    return list(range(0, count, -(-count // 9)))

"""The pictures of the reports of diagnostics.py."""

from collections.abc import Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics import EDITS, PLACES


def plot_length_collapse(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws the cosines by length: of every model, and of every depth of the first."""
    sizes = record["lengths"]
    with _figure(path, title, columns=2) as (figure, (left, right)):
        for label, found in record["models"].items():
            (line,) = left.plot(sizes, found["mean"], marker="o", ms=4, label=label)
            for name in ("p10", "p90"):
                left.plot(sizes, found[name], color=line.get_color(), ls=":", lw=1.2)
        low, high = left.get_ylim()
        left.set(ylim=(low, high + 0.4 * (high - low)))  # room for the legend
        left.legend(title="mean; dotted: 10th, 90th percentile", loc="upper left")
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
            axes.set(xlabel="document length, tokens")


def plot_positional_bias(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws the cosine after an edit by its size and place; bars are 95% intervals."""
    sizes = [100 * size for size in record["sizes"]]
    label = f"size of the edit, % of {record['tokens']:.0f} tokens"
    shared = {"sharex": True, "sharey": True}
    with _figure(path, title, rows=2, columns=2, **shared) as (_, panels):
        variants = product(("as_written", "rotated"), EDITS)
        for axes, (variant, kind) in zip(panels.flat, variants, strict=True):
            found = record[variant][kind]
            for place in PLACES:
                bars = 1.96 * np.array(found["standard_error"][place])
                style = {"label": f"at the {place}", "marker": "o", "ms": 4}
                axes.errorbar(sizes, found["cosine"][place], bars, capsize=3, **style)
            ratio = f"change at start / end {found['start_over_end']:.3g}"
            axes.set(title=f"{EDITS[kind]}, {variant.replace('_', ' ')}: {ratio}")
            axes.title.set_size("medium")
        panels[0, 0].set(xlim=(0, None))
        panels[0, 0].legend(loc="lower left")
        for axes in panels[1]:
            axes.set(xlabel=label)
        for axes in panels[:, 0]:
            axes.set(ylabel="cosine to the unedited document")


def plot_geometry(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Draws the statistics by depth, dashed the value that Gaussian noise has."""
    depths, noise = record["depths"], record["gaussian"]
    panels = (
        ("Anisotropy", "mean cosine", ("mean_cosine", "centred_mean_cosine")),
        ("IsoScore", "IsoScore", ("isoscore",)),
        ("Effective rank", f"of {record['width']} dimensions", ("effective_rank",)),
    )
    names = {"mean_cosine": "as they are", "centred_mean_cosine": "less their mean"}
    with _figure(path, title, columns=3) as (_, every):
        for axes, (heading, label, fields) in zip(every, panels, strict=True):
            for field in fields:
                name = names.get(field, "the model")
                axes.plot(depths, record[field], marker="o", ms=4, label=name)
            value = noise[fields[0]]
            name = f"Gaussian noise: {round(value, 3) + 0.0:.3g}"
            axes.plot(
                depths, [value] * len(depths), "--", color="0.4", lw=1, label=name
            )
            axes.set(title=heading, xlabel="depth (0: embedding layer)", ylabel=label)
            axes.set_xticks([depths[i] for i in _ticks(len(depths))])
            axes.set(ylim=(min(0, axes.get_ylim()[0]), None))
            axes.legend()


@contextmanager
def _figure(path: Path, title: str, columns: int, rows: int = 1, **options):
    """(figure, panels), [columns] or [rows, columns], written to `path` as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (4.4 * columns, 0.6 + 3.2 * rows)
    figure, panels = plt.subplots(
        rows, columns, figsize=size, layout="constrained", **options
    )
    figure.suptitle(title)
    yield figure, panels
    for axes in panels.flat:
        axes.grid(alpha=0.3)
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

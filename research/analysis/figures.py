"""Figures for the reports of `diagnostics`."""

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from research.analysis.diagnostics import EDITS, POSITIONS
from research.eval.figures import figure

PANEL_WIDTH, PANEL_HEIGHT = 4.4, 3.2  # inches


def plot_length_collapse(record: Mapping[str, Any], title: str, path: Path) -> None:
    """Plots cosines by length: of every model, and of every depth of the first one."""
    lengths = record["lengths"]
    size = 2 * PANEL_WIDTH, 0.6 + PANEL_HEIGHT
    with figure(path, size, columns=2, title=title) as (picture, (outputs, depths)):
        # Left: the outputs of the models, with percentiles.
        for label, curves in record["models"].items():
            (line,) = outputs.plot(
                lengths, curves["mean"], marker="o", ms=4, label=label
            )
            for name in ("p10", "p90"):
                outputs.plot(
                    lengths, curves[name], color=line.get_color(), ls=":", lw=1.2
                )
        low, high = outputs.get_ylim()
        outputs.set(ylim=(low, high + 0.4 * (high - low)))  # room for the legend
        outputs.legend(title="mean; dotted: 10th, 90th percentile", loc="upper left")
        outputs.set(title="Output", ylabel="cosine of two documents")
        # Right: every depth of the first model, dark to bright.
        label, curves = next(iter(record["models"].items()))
        colors, color_scale = _depth_colors(len(curves["layers"]))
        for means, color in zip(curves["layers"], colors, strict=True):
            depths.plot(lengths, means, color=color, marker="o", ms=3)
        depths.set(title=f"Every depth of {label}", ylabel="mean cosine")
        ticks = _tick_indices(len(colors))
        picture.colorbar(color_scale, ax=depths, label="depth", ticks=ticks)
        for axes in (outputs, depths):
            axes.set_xscale("log", base=2)
            axes.set_xticks(lengths, map(str, lengths))
            axes.minorticks_off()
            axes.set(xlabel="document length, tokens")
            axes.grid(alpha=0.3)


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
            axes.set_xticks([depths[i] for i in _tick_indices(len(depths))])
            axes.set(ylim=(min(0, axes.get_ylim()[0]), None))
            axes.legend()
            axes.grid(alpha=0.3)


def _depth_colors(count: int):
    """(colors of all depths from dark to bright, scale for a color bar)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    # A discrete color per depth.
    color_map = colormaps["viridis"].resampled(count)
    bounds = np.arange(count + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(bounds, count), color_map)
    return [color_map(k) for k in range(count)], scale


def _tick_indices(count: int) -> list[int]:
    """At most nine evenly spaced indices from 0 ... count - 1."""
    return list(range(0, count, -(-count // 9)))

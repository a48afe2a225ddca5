"""Parts that the figures and tables of several diagnostics share."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from research.eval.figures import figure

PANEL_WIDTH, PANEL_HEIGHT = 4.4, 3.2  # inches


class DepthPanel(NamedTuple):
    """A panel of a figure of measures by depth.

    Attributes:
        heading: Its title.
        unit: Label of the vertical axis.
        curves: {name of a list over depths in the record: label}; a label may be "" if
            the panel has a single curve.
    """

    heading: str
    unit: str
    curves: Mapping[str, str]


def plot_by_depth(
    record: Mapping[str, Any],
    panels: Sequence[DepthPanel],
    title: str,
    path: Path,
    *,
    columns: int = 3,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Plots measures by depth, a panel for each kind of measure.

    Args:
        record: "depths", and lists over them.
        panels: The panels, row by row.
        title: Title of the figure.
        path: PNG file.
        columns: Largest number of panels in a row.
        levels: {name: value for Gaussian noise}, drawn as dashed lines.
    """
    depths, columns = record["depths"], min(columns, len(panels))
    rows = -(-len(panels) // columns)
    size = columns * PANEL_WIDTH, 0.6 + rows * PANEL_HEIGHT
    layout = {"rows": rows, "columns": columns, "squeeze": False}
    with figure(path, size, title=title, **layout) as (_, grid):
        # The last row may have places to spare
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            for name, label in panel.curves.items():
                axes.plot(depths, record[name], marker="o", ms=4, label=label or None)
            # Once the curves have set the limits, their levels in the same colors
            lines = axes.get_lines() if levels is not None else []
            for name, line in zip(panel.curves, lines, strict=False):
                _draw_level(axes, levels[name], line.get_color())
            axes.set(title=panel.heading, ylabel=panel.unit)
            axes.set_xticks([depths[i] for i in tick_indices(len(depths))])
            if axes.get_legend_handles_labels()[0]:
                axes.legend()
            axes.grid(alpha=0.3)
        # The label stands below the last panel of each column
        for axes in grid.flat[max(0, len(panels) - columns) : len(panels)]:
            axes.set(xlabel="depth (0: embedding layer)")


def _draw_level(axes, level: float, color: str) -> None:
    """Draws the value for Gaussian noise, which has no depth, as a horizontal line."""
    low, high = axes.get_ylim()
    label = f"Gaussian noise: {round(level, 3) + 0.0:.3g}"
    # A level far away would flatten the curves; then only the legend gives it.
    if low - 2 * (high - low) <= level <= high + 2 * (high - low):
        axes.axhline(level, ls="--", color=color, lw=1, label=label)
    else:
        axes.plot([], [], ls="--", color=color, lw=1, label=f"{label}, off the scale")


def list_by_depth(record: Mapping[str, Any], names: Sequence[str]) -> list[list[str]]:
    """The rows of a table of lists over depths: a header, and a row per depth."""
    header = ["depth", *(name.replace("_", " ") for name in names)]
    rows = [
        [str(depth), *(f"{record[name][i]:.3f}" for name in names)]
        for i, depth in enumerate(record["depths"])
    ]
    return [header, *rows]


def depth_colors(count: int):
    """(colors of all depths from dark to bright, scale for a color bar)."""
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    # A discrete color per depth.
    color_map = colormaps["viridis"].resampled(count)
    bounds = np.arange(count + 1) - 0.5
    scale = ScalarMappable(BoundaryNorm(bounds, count), color_map)
    return [color_map(k) for k in range(count)], scale


def tick_indices(count: int) -> list[int]:
    """At most nine evenly spaced indices from 0 ... count - 1."""
    return list(range(0, count, -(-count // 9)))


def escape_glyphs(text: str) -> str:
    """A label that the font can draw: other characters as numbers, no formulas."""
    has_glyph = _read_glyphs()
    drawn = (c if ord(c) in has_glyph else f"<U+{ord(c):04X}>" for c in text)
    return "".join(drawn).replace("$", r"\$")


@cache
def _read_glyphs() -> frozenset[int]:
    """The characters of the default font."""
    from matplotlib import font_manager

    font = font_manager.get_font(font_manager.findfont("DejaVu Sans"))
    return frozenset(font.get_charmap())

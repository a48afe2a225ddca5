"""Matplotlib figures for papers, as PNG and SVG files, without a display."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from research.atomic_write import atomic_write

DPI = 150
# Colors that color-blind readers can tell apart (Petroff 2021, arXiv:2107.02270).
PALETTE = (
    *("#1845fb", "#ff5e02", "#c91f16", "#c849a9"),
    *("#adad7d", "#86c8dd", "#578dff", "#656364"),
)
MAX_LINES = len(PALETTE)  # of a panel
MARKERS = "os^Dv"


@contextmanager
def figure(
    path: Path,
    size: tuple[float, float],
    *,
    rows: int = 1,
    columns: int = 1,
    title: str = "",
    **options: Any,
) -> Iterator[tuple[Any, Any]]:
    """Yields (figure, axes) to draw on, and then writes the figure to `path`.

    pyplot is not used, because it would choose a display for the whole process and keep
    the figure in memory until it is closed.

    Args:
        path: PNG or SVG file.
        size: Width and height in inches.
        rows: Number of rows of axes.
        columns: Number of columns of axes.
        title: Title above all axes; "" for none.
        options: Further arguments of matplotlib's `Figure.subplots`, such as `sharex`.

    Yields:
        The matplotlib Figure, and its Axes: a single one, or an array if there are
        several.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    # Equal figures are equal files: an SVG has random names and a date otherwise.
    style = {"axes.prop_cycle": cycler(color=PALETTE), "svg.hashsalt": "embax"}
    metadata = {"Date": None} if path.suffix == ".svg" else None
    with matplotlib.rc_context(style):
        # A Figure without pyplot draws to memory (Agg).
        picture = Figure(figsize=size, layout="constrained")
        axes = picture.subplots(rows, columns, **options)
        if title:
            picture.suptitle(title)
        yield picture, axes
        picture.savefig(path, dpi=DPI, format=path.suffix[1:], metadata=metadata)


def write_picture(path: Path, plot: Callable[[Path], object]) -> None:
    """Writes a picture as PNG and, beside it, as SVG for papers.

    Args:
        path: The PNG file; the SVG file has the same name.
        plot: Function that writes the picture to a path, in the format of its ending.
    """
    with atomic_write(path) as png, atomic_write(path.with_suffix(".svg")) as svg:
        plot(png)
        plot(svg)


def split_lines(names: Sequence[str]) -> list[list[str]]:
    """The lines of each panel: at most MAX_LINES, about as many in all panels."""
    panels = max(1, -(-len(names) // MAX_LINES))
    size = max(1, -(-len(names) // panels))
    return [list(names[i : i + size]) for i in range(0, len(names), size)]


def choose_line_style(number: int) -> dict[str, str]:
    """Color and marker of a line; the marker changes where the colors begin anew."""
    return {
        "color": f"C{number % MAX_LINES}",
        "marker": MARKERS[number // MAX_LINES % len(MARKERS)],
    }

"""Matplotlib figures that are written as PNG files, without a display."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DPI = 150


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
        path: PNG file.
        size: Width and height in inches.
        rows: Number of rows of axes.
        columns: Number of columns of axes.
        title: Title above all axes; "" for none.
        options: Further arguments of matplotlib's `Figure.subplots`, such as `sharex`.

    Yields:
        The matplotlib Figure, and its Axes: a single one, or an array if there are
        several.
    """
    from matplotlib.figure import Figure

    # A Figure without pyplot draws to memory (Agg).
    picture = Figure(figsize=size, layout="constrained")
    axes = picture.subplots(rows, columns, **options)
    if title:
        picture.suptitle(title)
    yield picture, axes
    picture.savefig(path, dpi=DPI, format="png")

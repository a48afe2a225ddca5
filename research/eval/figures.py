"""Matplotlib figures that are written as PNG files, without any display."""

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
    """(figure, axes) to draw on; written to `path` at the end of the `with` block.

    pyplot is not used: it would choose a display for the whole process and keep the
    figure in memory until it is closed.

    Args:
        path: PNG file.
        size: Width and height in inches.
        rows: Number of rows of axes.
        columns: Number of columns of axes.
        title: Title above all axes; "" for none.
        options: Arguments of matplotlib's `Figure.subplots`, such as `sharex`.

    Yields:
        The matplotlib Figure, and its Axes: a single one, or an array as `subplots`
        gives it.
    """
    from matplotlib.figure import Figure

    # A Figure without pyplot has the Agg canvas
    picture = Figure(figsize=size, layout="constrained")
    axes = picture.subplots(rows, columns, **options)
    if title:
        picture.suptitle(title)
    yield picture, axes
    picture.savefig(path, dpi=DPI, format="png")

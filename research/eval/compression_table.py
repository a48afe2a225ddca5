"""Table, JSON and plot of a compression study."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from research.eval.comparison.significance import mark_p
from research.eval.compression import CompressedScore, find_full
from research.eval.figures import figure
from research.eval.tables import markdown_page


def to_record(rows: Sequence[CompressedScore]) -> dict[str, Any]:
    """The rows as JSON; the main score is that of the full size in float32."""
    full = find_full(rows)
    return {"main_score": full.score, "rows": [row._asdict() for row in rows]}


def format_markdown(rows: Sequence[CompressedScore], title: str) -> str:
    """A table of the transforms at full size and of the best trades, largest first."""
    full = find_full(rows)
    # Hundreds of rows of smaller sizes are for the plot and the JSON
    size = full.depth, full.dim
    shown = [row for row in rows if row.is_best or (row.depth, row.dim) == size]
    # A line per row; what a task does not have stays empty
    cells = [
        [
            f"**{row.transform}**" if row.is_best else row.transform,
            f"{row.depth} x {row.dim}",
            f"{row.score:.2f}",
            f"{100 * row.score / full.score:.1f} %" if full.score else "",
            "" if row is full else f"{row.difference:+.2f}{mark_p(row.p_value)}",
            "" if row is full else f"{row.low:+.2f} to {row.high:+.2f}",
            "" if row is full or row.p_value is None else _format_p(row.p_value),
            f"{row.bytes_per_vector:,}",
            f"{row.fixed_bytes:,}",
            "" if row.recall is None else f"{row.recall:.1f}",
            "" if row.milliseconds is None else f"{row.milliseconds:.2f}",
        ]
        for row in sorted(shown, key=lambda row: -row.bytes_per_vector)
    ]
    # What the columns are, and how the differences are tested
    header = [
        *("transform", "size", "main score", "of full", "difference"),
        *("95 % interval", "p", "bytes", "bytes once", "recall@10", "ms / query"),
    ]
    tests = sum(row.p_value is not None for row in rows if row is not full)
    note = (
        "Bold: no row has at least this score in fewer bytes. Size: blocks x "
        "dimensions before the transform. Differences are from the full size in "
        "float32, with paired intervals; p is corrected by Holm for the "
        f"{tests} comparisons, and an asterisk is p < 0.05. recall@10: percent of the "
        "ten best documents of the full size in float32. ms / query: median of an "
        "exact search of all documents for one query."
    )
    if len(shown) < len(rows):
        note += f" {len(rows) - len(shown)} more rows of smaller sizes are in the JSON."
    return markdown_page(title, header, cells, note)


def plot_pareto(
    rows: Sequence[CompressedScore],
    title: str,
    path: Path,
    *,
    metric: str = "main score, %",
):
    """Draws scores over bytes per vector, in colors of the depth or the latency.

    Returns:
        The matplotlib Figure.
    """
    depths = sorted({row.depth for row in rows})
    # Of several depths, their own effect is larger than that of a search's milliseconds
    by_depth = len(depths) > 1 or rows[0].milliseconds is None
    label = "blocks" if by_depth else "ms per query"
    with figure(path, (9, 5.5)) as (picture, axes):
        points = axes.scatter(
            [row.bytes_per_vector for row in rows],
            [row.score for row in rows],
            c=[row.depth if by_depth else row.milliseconds for row in rows],
            cmap="viridis" if by_depth else "viridis_r",
            s=[36 if row.is_best else 12 for row in rows],
            zorder=3,
        )
        # The best trades, from the fewest bytes to the most
        best = sorted((r for r in rows if r.is_best), key=lambda r: r.bytes_per_vector)
        sizes = [row.bytes_per_vector for row in best]
        scores = [row.score for row in best]
        axes.plot(sizes, scores, color="gray", drawstyle="steps-post", zorder=2)
        # Their numbers, whose names are below the axes: there is no room at the points
        for number, row in enumerate(best, 1):
            axes.annotate(
                str(number),
                (row.bytes_per_vector, row.score),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=8,
            )
            name = f"{number}: {row.transform}, {row.depth} x {row.dim}"
            axes.plot([], [], " ", label=name)
        options = {"ncols": 2, "fontsize": 8, "handlelength": 0, "frameon": False}
        picture.legend(loc="outside lower center", **options)
        full = find_full(rows)
        axes.axhline(full.score, color="gray", linestyle=":", linewidth=1, zorder=1)
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="bytes per vector", ylabel=metric, title=title)
        picture.colorbar(points, ax=axes, label=label)
    return picture


def _format_p(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"

"""Markdown tables of scores, with `tabulate`."""

import re
from collections.abc import Sequence

from tabulate import tabulate


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is left-aligned, all others right-aligned.

    Args:
        header: Title of each column; may be an empty string.
        rows: Cells of each row, as formatted strings.

    Returns:
        The table, without a line break at the end.
    """
    # A bar would end the cell
    cells = [[re.sub(r"(?<!\\)\|", r"\|", cell) for cell in row] for row in rows]
    return tabulate(
        cells,
        headers=header,
        tablefmt="pipe",
        colalign=("left", *("right",) * (len(header) - 1)),
        disable_numparse=True,
    )


def markdown_page(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> str:
    """A Markdown page: a heading, a table and, unless empty, a note below it."""
    parts = [f"# {title}", markdown_table(header, rows), note]
    return "\n\n".join(filter(None, parts)) + "\n"


def escape_markdown(text: str) -> str:
    """A text as it is, on one line of a Markdown page or in a cell of a table."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", " ".join(text.split()))

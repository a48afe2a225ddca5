"""Markdown tables of scores, by `tabulate`."""

from collections.abc import Sequence

from tabulate import tabulate


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A pipe table whose first column is aligned left and all others right.

    Args:
        header: Title of each column; may be empty strings.
        rows: Cells of each row, already formatted; no number is parsed.

    Returns:
        The lines of the table, without a line break at the end.
    """
    return tabulate(
        rows,
        headers=header,
        tablefmt="pipe",
        colalign=("left", *("right",) * (len(header) - 1)),
        disable_numparse=True,
    )


def markdown_page(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], note: str = ""
) -> str:
    """A heading, the table and, if there is one, a paragraph below it."""
    parts = [f"# {title}", markdown_table(header, rows), note]
    return "\n\n".join(filter(None, parts)) + "\n"

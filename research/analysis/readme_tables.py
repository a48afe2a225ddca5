"""Tables of a README that are filled from files of results and headers of recipes."""

import ast
import re
from pathlib import Path

# <!-- results/NAME.md --> or <!-- recipes: NAME, NAME -->, a table, <!-- end -->
MARK = r"^<!-- (\S+\.md|recipes: [^>]+) -->$"
TABLE = re.compile(MARK + r"\n(.*?)^<!-- end -->$", re.M | re.S)
# What a header says of results: where they are, and their date
RESULTS = re.compile(r"(\w+/README\.md#[\w-]+), (\d+ [A-Z]\w+ \d{4})")


def fill_tables(readme: Path) -> str:
    """The README's text with the tables of the files that it names.

    Between a line `<!-- results/NAME.md -->` and the next line `<!-- end -->` stands
    what that file holds below its heading, as commands write it in `table.md`; after
    `<!-- recipes: NAME, NAME -->` a row for each recipe, from the header of NAME.py.
    Names are relative to the README's folder.

    Raises:
        ValueError: If a file is missing, a header says nothing of results, or a table
            has no end.
    """
    text = readme.read_text(encoding="utf-8")
    ends = len(TABLE.findall(text))
    starts = [match[0] for match in re.finditer(MARK, text, re.M)]
    if ends < len(starts):
        raise ValueError(
            f"{readme}: {len(starts)} tables begin, such as with {starts[0]!r}, "
            f"and {ends} end with '<!-- end -->'"
        )

    def fill(match: re.Match) -> str:
        kind, _, names = match[1].partition(": ")
        if kind == "recipes":
            recipes = [name.strip() for name in names.split(",")]
            body = _format_recipes(readme.parent, recipes)
        else:
            # The heading is the README's own
            page = _read_named_file(readme.parent / match[1], readme)
            body = re.sub(r"^# .*\n+", "", page).strip()
        return f"<!-- {match[1]} -->\n{body}\n<!-- end -->"

    return TABLE.sub(fill, text)


def _format_recipes(folder: Path, names: list[str]) -> str:
    """A Markdown table of recipes: name, title, papers, and when it was measured.

    Args:
        folder: Folder of the recipes and of the README with the table.
        names: Their paths in it, without .py.
    """
    rows = [["recipe", "what it trains or compares", "papers", "measured"], ["---"] * 4]
    rows += [[f"`{name}`", *_describe_recipe(folder, name)] for name in names]
    # Without padding, a changed row changes one line
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _describe_recipe(folder: Path, name: str) -> tuple[str, str, str]:
    """Title, links to papers and link to results, as the header of NAME.py has them."""
    path = folder / f"{name}.py"
    header = ast.get_docstring(ast.parse(_read_named_file(path, folder))) or ""
    # The title is the first line; "Source:" names the papers, "Expected:" the results
    title, _, rest = header.partition("\n")
    source, _, rest = rest.partition("Command:")
    expected = " ".join(rest.partition("Expected:")[2].split())
    papers = dict.fromkeys(re.findall(r"arXiv:([\d.]+\d)", source))
    links = [f"[{paper}](https://arxiv.org/abs/{paper})" for paper in papers]
    results = RESULTS.search(expected)
    if not results and not expected.startswith("not measured here"):
        raise ValueError(
            f"{path}: after 'Expected:', the header should say 'not measured here', or "
            "where the results are and their date, as in "
            "'notebooks/README.md#speed, 1 May 2026'"
        )
    # A header names files from the folder above
    measured = f"[{results[2]}](../{results[1]})" if results else ""
    return title.removesuffix("."), ", ".join(links), measured


def _read_named_file(path: Path, reader: Path) -> str:
    """The text of a file that a README names."""
    if not path.is_file():
        raise ValueError(f"{reader} names {path.name}, which does not exist")
    return path.read_text(encoding="utf-8")

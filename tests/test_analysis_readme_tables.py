"""Tables of READMEs that are filled from files of results and headers of recipes."""

import re
from pathlib import Path

import pytest

from research.analysis.readme_tables import fill_tables

ROOT = Path(__file__).parent.parent


def test_a_table_is_what_its_file_holds(tmp_path):
    page = "# Sizes\n\n|   | a |\n|:--|--:|\n| x | 1 |\n\nOne seed.\n"
    (tmp_path / "sizes.md").write_text(page)
    readme = tmp_path / "README.md"
    readme.write_text("Before\n\n<!-- sizes.md -->\nold\n<!-- end -->\n\nAfter\n")
    text = fill_tables(readme)
    body = page.partition("\n\n")[2]
    assert text == f"Before\n\n<!-- sizes.md -->\n{body}<!-- end -->\n\nAfter\n"
    # A second time nothing changes.
    readme.write_text(text)
    assert fill_tables(readme) == text


HEADER = '''"""One: a loss.

Source: A 2020, arXiv:2001.00001, after B, arXiv:1901.00002, and arXiv:2001.00001.
Command: python -m launch.train --config=configs/one.py, not arXiv:1801.00003
Expected: {}
"""
'''


def test_a_recipe_has_the_row_that_its_header_says(tmp_path):
    (tmp_path / "sub").mkdir()
    measured = "the row of\n    notes/README.md#some-part, 3 May\n    2026 (one seed)."
    (tmp_path / "one.py").write_text(HEADER.format(measured))
    (tmp_path / "sub" / "two.py").write_text(HEADER.format("not measured here."))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- recipes: one,\nsub/two -->\n<!-- end -->\n")
    papers = ", ".join(
        f"[{number}](https://arxiv.org/abs/{number})"
        for number in ("2001.00001", "1901.00002")
    )
    results = "[3 May 2026](../notes/README.md#some-part)"
    assert fill_tables(readme).splitlines() == [
        "<!-- recipes: one,",
        "sub/two -->",
        "| recipe | what it trains or compares | papers | measured |",
        "| --- | --- | --- | --- |",
        f"| `one` | One: a loss | {papers} | {results} |",
        f"| `sub/two` | One: a loss | {papers} |  |",
        "<!-- end -->",
    ]
    # A header has to say whether there are results
    (tmp_path / "one.py").write_text(HEADER.format("see notes/README.md."))
    with pytest.raises(
        ValueError, match="one.py: after 'Expected:', the header should"
    ):
        fill_tables(readme)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<!-- recipes: no -->\n<!-- end -->\n", "names no.py, which does not exist"),
        ("<!-- recipes: a,\nb -->\n| 1 |\n", "1 tables begin, .* and 0 end with"),
        ("<!-- gone.md -->\n<!-- end -->\n", "names gone.md, which does not exist"),
        ("<!-- gone.md -->\n| 1 |\n", "1 tables begin, .* and 0 end with '<!-- end"),
    ],
)
def test_a_table_without_its_file_or_end_is_a_sentence(tmp_path, text, sentence):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ValueError, match=sentence):
        fill_tables(readme)
    assert readme.read_text() == text


def test_the_tables_of_the_readmes_are_those_of_their_files():
    readmes = [*ROOT.glob("README.md"), *ROOT.glob("*/README.md")]
    for readme in readmes:
        assert fill_tables(readme) == readme.read_text()
    # Each file of results is shown.
    text = (ROOT / "notebooks" / "README.md").read_text()
    shown = set(re.findall(r"<!-- (\S+\.md) -->", text))
    assert shown == {f"results/{p.name}" for p in ROOT.glob("notebooks/results/*.md")}

"""Tables of a README that are filled from files of results."""

import re
from pathlib import Path

# <!-- results/NAME.md -->, what stands in the README, <!-- end -->
RESULT = re.compile(r"^<!-- (\S+\.md) -->\n(.*?)^<!-- end -->$", re.M | re.S)
START = re.compile(r"^<!-- \S+\.md -->$", re.M)


def fill_tables(readme: Path) -> str:
    """The README's text with the tables and notes of the files that it names.

    Between a line `<!-- results/NAME.md -->` and the next line `<!-- end -->` stands
    what that file holds below its heading, as commands write it in `table.md`. The name
    is relative to the README's folder.

    Raises:
        ValueError: If a file is missing, or a table has no end.
    """
    text = readme.read_text(encoding="utf-8")
    ends = len(RESULT.findall(text))
    starts = START.findall(text)
    if ends < len(starts):
        raise ValueError(
            f"{readme}: {len(starts)} tables begin, such as with {starts[0]!r}, "
            f"and {ends} end with '<!-- end -->'"
        )

    def fill(match: re.Match) -> str:
        path = readme.parent / match[1]
        if not path.is_file():
            raise ValueError(f"{readme} names {match[1]}, which does not exist")
        page = path.read_text(encoding="utf-8")
        # The heading is the README's own
        body = re.sub(r"^# .*\n+", "", page).strip()
        return f"<!-- {match[1]} -->\n{body}\n<!-- end -->"

    return RESULT.sub(fill, text)

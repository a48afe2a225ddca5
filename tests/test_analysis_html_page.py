"""Reports as one HTML file."""

import base64
import json
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from research.analysis.html_page import render_page
from research.eval.tables import escape_markdown, markdown_page

PNG = b"\x89PNG\r\n\x1a\n"


class Page(HTMLParser):
    """The tags, the attributes and the text of a page."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.links, self.text = [], [], []
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_pictures_are_inside_the_page(tmp_path):
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "a.png").write_bytes(PNG)
    (tmp_path / "evals" / "b.png").write_bytes(PNG)
    (tmp_path / "evals" / "b.svg").write_bytes(b"<svg/>")
    text = "# run\n\n![a](evals/a.png)\n\n![b](evals/b.png)\n"
    page = Page(render_page(text, tmp_path, {}))
    assert [link.partition(",")[0] for link in page.links] == [
        "data:image/png;base64",
        "data:image/svg+xml;base64",
    ]
    assert base64.b64decode(page.links[0].partition(",")[2]) == PNG
    assert not {"script", "link", "iframe"} & set(page.tags)


def test_html_in_texts_and_configs_is_shown_not_interpreted(tmp_path):
    text = "<script>alert(1)</script> | a_b_c *x* [y](http://z) $1\nend"
    table = markdown_page("found", ["text", "score"], [[escape_markdown(text), "0.5"]])
    content = render_page(table, tmp_path, {"Config": "<b>$title</b>"})
    page = Page(content)
    assert {"script", "em", "a", "b"}.isdisjoint(page.tags) and page.links == []
    assert text.replace("\n", " ") in "".join(page.text)
    assert "<b>$title</b>" in "".join(page.text)
    # The row has two cells, although the text has a bar.
    assert page.tags.count("td") == 2


def test_a_missing_picture_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        render_page("# run\n\n![x](none.png)", tmp_path, {})


def test_the_command_reports_a_run(tmp_path):
    config = {"objective": {"name": "mlm"}, "steps": 2, "batch_size": 8}
    config["evals"] = {"dev": {"name": "sts"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.json").write_text('{"encoder": {"depth": 2, "width": 8}}')
    rows = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.5}]
    rows.append({"step": 2, "eval/dev/main_score": 61.5, "eval/geometry/rank": 7.0})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "evals").mkdir()
    (tmp_path / "evals" / "search.md").write_text("# Search: owls\n\nnothing\n")
    command = [sys.executable, "-m", "launch.report", f"--workdir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "61.50" in done.stdout and "![" not in done.stdout
    # The curve and the course of the diagnostics are in the page, and beside it
    page = Page((tmp_path / "report.html").read_text())
    assert page.tags.count("img") == 2 and page.tags.count("h2") == 3
    assert {"Search: owls", "61.50", "Config"} <= set(page.text)
    names = {path.name for path in (tmp_path / "evals").iterdir()}
    assert {"curve.svg", "curve.png", "diagnostics.svg"} <= names

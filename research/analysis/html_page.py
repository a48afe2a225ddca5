"""A Markdown page as a single HTML file that needs no network: pictures are inside."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from string import Template

FORMATS = {".svg": "image/svg+xml", ".png": "image/png"}
# Colors and widths for light and dark screens, for phones and for print
PAGE = Path(__file__).with_name("page.html")


def render_page(text: str, folder: Path, details: Mapping[str, str]) -> str:
    """Renders a report as HTML with inline pictures and styles, and without scripts.

    Args:
        text: Markdown that begins with a heading; HTML in it is shown, not interpreted.
        folder: Folder that the paths of its pictures are relative to.
        details: {heading: text} of parts below, such as a config, which a click opens.

    Raises:
        FileNotFoundError: There is no such picture.
    """
    from markdown_it import MarkdownIt

    # HTML is off: texts of a corpus may hold scripts
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    # Pictures are parts of paragraphs
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                source = embed_picture(folder / str(child.attrGet("src")))
                child.attrSet("src", source)
    # Long texts are closed at first
    parts = [
        f"<details><summary>{html.escape(name)}</summary>"
        f"<pre>{html.escape(content)}</pre></details>"
        for name, content in details.items()
    ]
    return Template(PAGE.read_text(encoding="utf-8")).substitute(
        title=html.escape(text.partition("\n")[0].lstrip("# ")),
        body=parser.renderer.render(tokens, parser.options, {}),
        details="\n".join(parts),
    )


def embed_picture(path: Path) -> str:
    """A picture as a data URI, from the SVG file of the same name if there is one."""
    # An SVG file stays sharp when it is enlarged
    drawing = path.with_suffix(".svg")
    path = drawing if drawing.exists() else path
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{FORMATS[path.suffix]};base64,{content}"

"""A Markdown page as a single HTML file that needs no network: pictures are inside."""

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from string import Template

FORMATS = {".svg": "image/svg+xml", ".png": "image/png"}
PAGE = Template("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root {
  color-scheme: light dark;
  --text: #1f2328; --page: #fff; --line: #d1d9e0; --shade: #f3f5f7;
}
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e6ea; --page: #14171a; --line: #3d444d; --shade: #20252a; }
}
body {
  max-width: 62rem; margin: 0 auto; padding: 1rem;
  color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
h1, h2 { line-height: 1.25; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid var(--line); }
/* A wide table scrolls beside its first column. */
table {
  display: block; max-width: 100%; overflow-x: auto; border-collapse: collapse;
  font-size: .9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal;
}
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child {
  position: sticky; left: 0; max-width: 32rem; background: var(--page);
}
th { white-space: nowrap; }
img { max-width: 100%; height: auto; padding: .3rem; background: #fff; }
pre, summary { padding: .5rem .7rem; background: var(--shade); }
pre { margin: 0; overflow-x: auto; font-size: .8rem; }
details { margin: .6rem 0; }
summary { cursor: pointer; }
@media print { details { display: none; } }
</style>
</head>
<body>
$body
$details
</body>
</html>
""")


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

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for token in tokens:
        for child in token.children or ():
            if child.type == "image":
                source = embed_picture(folder / str(child.attrGet("src")))
                child.attrSet("src", source)
    parts = [
        f"<details><summary>{html.escape(name)}</summary>"
        f"<pre>{html.escape(content)}</pre></details>"
        for name, content in details.items()
    ]
    return PAGE.substitute(
        title=html.escape(text.partition("\n")[0].lstrip("# ")),
        body=parser.renderer.render(tokens, parser.options, {}),
        details="\n".join(parts),
    )


def embed_picture(path: Path) -> str:
    """A picture as a data URI, from the SVG file of the same name if there is one."""
    drawing = path.with_suffix(".svg")
    path = drawing if drawing.exists() else path
    content = base64.b64encode(path.read_bytes()).decode()
    return f"data:{FORMATS[path.suffix]};base64,{content}"

"""A report page: one plain, self-contained HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import html as markup
import os
from collections.abc import Sequence

from eenet.errors import visible
from eenet.report.sections import Block, Code, Example, Gallery, Picture, Section, Table
from eenet.tables.atomic import atomic_path

_STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem 1rem 3rem; max-width: 62rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
p, li { max-width: 44rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
caption { text-align: left; padding: .3rem 0; color: #444; }
th, td { padding: .25rem .7rem .25rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid #e4e4e4; }
th { font-weight: 600; border-bottom: 1px solid #888; vertical-align: bottom; }
th[scope=row] { font-weight: 400; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: #444; font-size: .9rem; max-width: 44rem; }
.examples { display: flex; flex-wrap: wrap; gap: .8rem; }
.examples figure { margin: 0; max-width: 11rem; }
.examples img { width: 5.5rem; image-rendering: pixelated; border: 1px solid #ccc; display: block; }
.examples figcaption { font-size: .8rem; overflow-wrap: anywhere; }
pre, code { font: .85rem/1.4 ui-monospace, Menlo, Consolas, monospace; }
pre { overflow-x: auto; background: #f5f5f5; padding: .6rem; }
summary { cursor: pointer; }
"""


def page(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        sections: In order.
        lead: What the reader should take away, above all sections.

    Returns:
        HTML with style and images inside: it can be mailed as it is.
    """
    parts = ""
    for index, section in enumerate(sections):
        body = "".join(map(_block, section.blocks))
        parts += f'<section>\n<h2 id="part-{index}">{escape(section.heading)}</h2>\n{body}</section>\n'
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{_block(lead) if lead else ''}{parts}"
        "</main>\n</body>\n</html>\n"
    )


def escape(text: str) -> str:
    """Return plain text as HTML."""
    return markup.escape("\n".join(map(visible, text.splitlines())))


def write_page(path: str | os.PathLike[str], html: str) -> None:
    """Write a page, atomically."""
    with atomic_path(path) as draft:
        draft.write_text(html, encoding="utf-8")


def _block(block: Block) -> str:
    match block:
        case Code():
            html = f"<pre>{escape(block)}</pre>"
        case str():
            html = f"<p>{escape(block)}</p>"
        case list():
            html = "".join(f"<li>{escape(item)}</li>\n" for item in block)
            html = f"<ul>\n{html}</ul>" if html else ""
        case Table(columns, rows, caption, folded=True):
            html = f"<details><summary>{escape(caption)}</summary>\n{_table(Table(columns, rows))}\n</details>"
        case Table():
            html = _table(block)
        case Picture(png, alt, caption):
            source = base64.b64encode(png).decode("ascii")
            below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
            html = f'<figure><img src="data:image/png;base64,{source}" alt="{escape(alt)}">{below}</figure>'
        case Gallery(heading, examples):
            figures = "\n".join(map(_example, examples))
            html = f'<h3>{escape(heading)}</h3>\n<div class="examples">\n{figures}\n</div>'
    return html + "\n"


def _table(table: Table) -> str:
    """Return a table that scrolls sideways on narrow screens; the first column heads the rows."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    title = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    body = ""
    for name, *cells in table.rows:
        rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(name)}</th>{rest}</tr>\n'
    return f'<div class="wide"><table>{title}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>'


def _example(example: Example) -> str:
    if example.image is None:
        return f"<figure><p>{escape(example.text)}</p><figcaption>{escape(example.caption)}</figcaption></figure>"
    from eenet.report.plots import image_png  # loads matplotlib

    return _block(Picture(image_png(example.image), f"input: {example.caption}", example.caption))

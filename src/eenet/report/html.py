"""The building blocks of a report page: one plain, self-contained HTML file that loads nothing from anywhere."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from matplotlib.figure import Figure

from eenet.core.files import atomic_path
from eenet.report.plots import png

__all__ = ["Section", "bullets", "figure", "image", "page", "paragraph", "table", "write_page"]

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


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        heading: Plain text.
        body: Finished HTML, made with the functions of this module.
    """

    heading: str
    body: str


def paragraph(text: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{escape(text)}</p>\n"


def bullets(items: Iterable[str]) -> str:
    """Return plain texts as a list; nothing for no items."""
    lines = "".join(f"<li>{escape(item)}</li>\n" for item in items)
    return f"<ul>\n{lines}</ul>\n" if lines else ""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """Return a table that scrolls sideways on narrow screens; the first column heads the rows.

    Args:
        columns: Headings.
        rows: Cells as plain text, as many as headings.
        caption: Said above the table.
    """
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(_row(row) for row in rows)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="wide"><table>{title}\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n'


def _row(cells: Sequence[str]) -> str:
    rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
    return f'<tr><th scope="row">{escape(cells[0])}</th>{rest}</tr>\n'


def image(data: bytes, alt: str, caption: str = "") -> str:
    """Return a PNG inlined into the page.

    Args:
        data: The bytes of the PNG.
        alt: What it shows, for those who do not see it.
        caption: Said below it.
    """
    source = base64.b64encode(data).decode("ascii")
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<figure><img src="data:image/png;base64,{source}" alt="{escape(alt, quote=True)}">{below}</figure>\n'


def figure(drawn: Figure, alt: str, caption: str = "") -> str:
    """Return a figure inlined into the page; arguments as for `image`."""
    return image(png(drawn), alt, caption)


def page(title: str, sections: Sequence[Section], lead: str = "") -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        sections: In order.
        lead: What the reader should take away, said first.

    Returns:
        HTML with style and images inside: it can be mailed as it is.
    """
    parts = [
        f'<section>\n<h2 id="part-{index}">{escape(section.heading)}</h2>\n{section.body}</section>\n'
        for index, section in enumerate(sections)
    ]
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style>\n</head>\n'
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{paragraph(lead) if lead else ''}{''.join(parts)}"
        "</main>\n</body>\n</html>\n"
    )


def write_page(path: str | os.PathLike[str], html: str) -> None:
    """Write a page, atomically."""
    with atomic_path(path) as draft:
        draft.write_text(html, encoding="utf-8")

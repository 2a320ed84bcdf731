"""A report page: one plain, self-contained HTML file that loads nothing from anywhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from eenet.report.sections import Block, Code, Example, Gallery, Markup, Section, Table
from eenet.report.svg import escape, image_source
from eenet.tables.atomic import atomic_path

_LONG = 12  # rows from which on a table is folded away
_WRAPPED = 40  # letters from which on a cell is broken into lines


def page(title: str, sections: Sequence[Section], lead: Sequence[Block] = ()) -> str:
    """Return a whole page.

    Args:
        title: Plain text.
        sections: In order; the page begins with a list of them.
        lead: What the reader should take away, above all sections.

    Returns:
        HTML with style, script and images inside: it can be mailed as it is.
    """
    parts, links = "", ""
    for index, section in enumerate(sections):
        body = "".join(map(_block, section.blocks))
        parts += f'<section>\n<h2 id="part-{index}">{escape(section.heading)}</h2>\n{body}</section>\n'
        links += f'<li><a href="#part-{index}">{escape(section.heading)}</a></li>\n'
    style, script = (files("eenet.report").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))
    contents = f'<nav aria-label="Contents"><ul>\n{links}</ul></nav>\n' if len(sections) > 1 else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{style}</style>\n</head>\n'
        f"<body>\n<main>\n<h1>{escape(title)}</h1>\n{''.join(map(_block, lead))}{contents}{parts}</main>\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def write_page(path: str | os.PathLike[str], html: str) -> None:
    """Write a page, atomically."""
    with atomic_path(path) as draft:
        draft.write_text(html, encoding="utf-8")


def _block(block: Block) -> str:
    match block:
        case Markup():
            html = str(block)
        case Code():
            html = f"<pre>{escape(block)}</pre>"
        case str():
            html = f"<p>{escape(block)}</p>"
        case list():
            html = "".join(f"<li>{escape(item)}</li>\n" for item in block)
            html = f"<ul>\n{html}</ul>" if html else ""
        case Table(_, rows, caption, folded):
            html = _table(block)
            if folded:
                html = _folded(caption, _table(replace(block, caption=""), caption))
            elif len(rows) > _LONG:
                html = _folded(f"Table of {len(rows)} rows", html)
        case Gallery(heading, examples, exit_index):
            figures = "\n".join(map(_example, examples))
            html = f'<h3>{escape(heading)}</h3>\n<div class="examples" data-left="0:{exit_index}">\n{figures}\n</div>'
    return html + "\n"


def _folded(summary: str, html: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>\n{html}\n</details>"


def _table(table: Table, called: str = "") -> str:
    """Return a table that scrolls sideways on narrow screens; the first column heads the rows, and stays."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in table.columns)
    title = f"<caption>{escape(table.caption)}</caption>" if table.caption else ""
    body = ""
    for name, *cells in table.rows:
        rest = "".join(f"<td{' class=long' * (len(cell) > _WRAPPED)}>{escape(cell)}</td>" for cell in cells)
        body += f'<tr><th scope="row">{escape(name)}</th>{rest}</tr>\n'
    label = escape(table.caption or called or ", ".join(table.columns[:3]))
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{label}"><table>{title}\n<thead><tr>{head}</tr>'
        f"</thead>\n<tbody>\n{body}</tbody></table></div>"
    )


def _example(example: Example) -> str:
    exits = f' data-exits="0:{",".join(map(str, example.exits))}"' if example.exits else ""
    caption = escape(example.caption)
    shown = f"<p>{escape(example.text)}</p>"
    if example.image is not None:
        shown = f'<img src="{image_source(example.image)}" alt="input: {caption}">'
    return f"<figure{exits}>{shown}<figcaption>{caption}</figcaption></figure>"

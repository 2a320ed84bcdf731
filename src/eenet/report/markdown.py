"""Markdown for the pages under ``docs/results/``, made from the same sections as the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eenet.errors import visible
from eenet.report.comparison import lead, table_sections
from eenet.report.sections import Block, Code, Section, Table


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, all others to the right.

    Args:
        columns: Headings.
        rows: Cells as plain text, as many as headings.
    """
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in (columns, rule, *rows))


def _cell(text: str) -> str:
    return visible(text.replace("|", "\\|").replace("\n", " "))


def comparison_markdown(comparison: Mapping[str, Any], *, title: str, command: str = "", intro: str = "") -> str:
    """Return a page about a comparison: utility at equal cost by budget, areas, exits, differences, who pays, caveats.

    Args:
        comparison: `Comparison.to_dict()`.
        title: Of the page.
        command: How to make the numbers again.
        intro: Markdown below the title, for example the plot.

    Returns:
        Markdown that ends with a newline.
    """
    sections = table_sections(comparison)
    if comparison.get("notes"):
        sections.append(Section("Caveats", [list(comparison["notes"])]))
    if command:
        sections.append(Section("Again", [Code(command)]))
    parts = [f"# {title}", *([intro] if intro else []), lead(comparison)]
    for section in sections:
        parts += [f"## {section.heading}", *map(_block, section.blocks)]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _block(block: Block) -> str:
    match block:
        case Code():
            return f"```\n{block}\n```"
        case str():
            return block
        case list():
            return "\n".join(f"* {item}" for item in block)
        case Table(columns, rows, caption):
            return f"{caption}\n\n".lstrip() + markdown_table(columns, rows)
    raise TypeError(f"{type(block).__name__} has no Markdown")

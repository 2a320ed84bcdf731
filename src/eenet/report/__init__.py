"""Results for readers: plots, one self-contained HTML page, Markdown for the docs. Contract JSON goes in.

The plots load matplotlib, and are loaded when one of them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from eenet.report.comparison import comparison_page, comparison_sections, groups_section
from eenet.report.html import page, write_page
from eenet.report.markdown import comparison_markdown, markdown_table
from eenet.report.sections import (
    Example,
    Section,
    about_section,
    bench_section,
    costs_section,
    examples_section,
    report_section,
)

if TYPE_CHECKING:
    from eenet.report.plots import exit_shares, gain_over_random, group_losses, png, save_figure, utility_cost

_PLOTS = ("exit_shares", "gain_over_random", "group_losses", "png", "save_figure", "utility_cost")

__all__ = [
    "Example",
    "Section",
    "about_section",
    "bench_section",
    "comparison_markdown",
    "comparison_page",
    "comparison_sections",
    "costs_section",
    "examples_section",
    "exit_shares",
    "gain_over_random",
    "group_losses",
    "groups_section",
    "markdown_table",
    "page",
    "png",
    "report_section",
    "save_figure",
    "utility_cost",
    "write_page",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever the name stands for
    """Load a plot when it is first used (PEP 562)."""
    if name not in _PLOTS:
        raise AttributeError(f"module 'eenet.report' has no attribute {name!r}")
    return getattr(importlib.import_module("eenet.report.plots"), name)

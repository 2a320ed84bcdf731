"""Results for readers: plots, one self-contained HTML page, Markdown for the docs. Contract JSON goes in.

The page is plain SVG with a little JavaScript. The plots for the docs load matplotlib, when one of them is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from eenet.lazy import lazy
from eenet.report.comparison import comparison_page, comparison_sections, groups_section, verdict
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
    sizes_section,
)

if TYPE_CHECKING:
    from eenet.report.plots import gain_over_random, png, save_figure, utility_cost

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
    "gain_over_random",
    "groups_section",
    "markdown_table",
    "page",
    "png",
    "report_section",
    "save_figure",
    "sizes_section",
    "utility_cost",
    "verdict",
    "write_page",
]
__getattr__, __dir__, _ = lazy(
    __name__,
    {"eenet.report.plots": ("gain_over_random", "png", "save_figure", "utility_cost")},
)

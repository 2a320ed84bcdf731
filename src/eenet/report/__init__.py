"""Results for readers: plots, one self-contained HTML page, Markdown for the docs. Contract JSON goes in."""

from eenet.report.comparison import comparison_page, comparison_sections
from eenet.report.groups import group_losses, groups_section
from eenet.report.html import Section, page, write_page
from eenet.report.markdown import comparison_markdown, markdown_table
from eenet.report.plots import exit_shares, gain_over_random, png, save_figure, utility_cost
from eenet.report.sections import (
    Example,
    about_section,
    bench_section,
    costs_section,
    examples_section,
    report_section,
)

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

"""Who pays for early exit: the part of a comparison about classes and other groups of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from eenet.report import html
from eenet.report.html import Section
from eenet.report.plots import evenly
from eenet.report.sections import percent

__all__ = ["GROUP_COLUMNS", "group_cells", "group_losses", "groups_section"]

_MOST_BUDGETS = 4  # panels and tables
_EVEN, _PAYS = "#9aa5b1", "#D55E00"

GROUP_COLUMNS = (
    "policy",
    "loss of all [points]",
    "spread [points]",
    "hardest hit",
    "samples",
    "its loss [points]",
    "95 % interval",
    "its exits [%]",
    "pays more",
    "how many do",
)
"""Headings of `group_cells`."""


def groups_section(comparison: Mapping[str, Any]) -> Section | None:
    """Return the section about who pays, None where the comparison knows neither classes nor groups.

    Args:
        comparison: The contract JSON of ``eenet compare``.
    """
    told = comparison.get("groups", ())
    if not told:
        return None
    said = (
        "What leaving early takes from each group: utility of the last exit minus utility under the policy, in points. "
        "A group pays more where its whole interval lies above the loss of all samples; the intervals hold at 95 % for "
        "all groups at once. The hardest hit is the group that surely loses most: largest lower end of the interval."
    )
    parts = [html.paragraph(said)]
    for by in dict.fromkeys(entry["by"] for entry in told):
        chosen = [entry for entry in told if entry["by"] == by]
        drawn = group_losses(comparison, by)
        caption = "Dots: groups, orange where they pay more than all samples together (the black line)."
        parts.append(html.figure(drawn, f"Loss by {by} and policy; the numbers are in the tables below.", caption))
        for budget in evenly(sorted({entry["budget"] for entry in chosen}), _MOST_BUDGETS):
            rows = [entry for entry in chosen if entry["budget"] == budget]
            title = f"By {by}, {_asked(rows[0], comparison['unit'])}"
            parts.append(html.table(GROUP_COLUMNS, [group_cells(row) for row in rows], title))
    return Section("Who pays for early exit", "".join(parts))


def group_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Return one policy at one budget as cells under `GROUP_COLUMNS`.

    Args:
        entry: One of the contract JSON's ``groups``.
    """
    worst = entry["groups"][0]
    return (
        entry["policy"],
        f"{entry['loss']:.2f}",
        f"{entry['spread']:.2f}",
        f"{entry['by']} {worst['name']}",
        f"{worst['num_samples']:.0f}",
        f"{worst['loss']:.2f}",
        f"{worst['low']:.2f} to {worst['high']:.2f}",
        " ".join(percent(share, 0) for share in worst["exit_distribution"]),
        "yes" if worst["pays_more"] else "no",
        f"{entry['pays_more']} of {entry['num_groups']}",
    )


def group_losses(comparison: Mapping[str, Any], by: str = "class") -> Figure:
    """Return the loss of every listed group as a dot, by policy, for up to four of the asked budgets.

    Args:
        comparison: The contract JSON.
        by: Which groups: ``class`` or ``group``.
    """
    told = [entry for entry in comparison["groups"] if entry["by"] == by]
    budgets = evenly(sorted({entry["budget"] for entry in told}), _MOST_BUDGETS)
    panels = [[entry for entry in told if entry["budget"] == budget] for budget in budgets]
    height = 0.7 + sum(0.3 * len(panel) + 0.55 for panel in panels)
    figure = Figure(figsize=(8.5, height), layout="constrained")
    ratios = [len(panel) for panel in panels]
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})
    for axes, panel in zip(grid[:, 0], panels, strict=True):
        for row, entry in enumerate(panel):
            _dots(axes, row, entry["groups"])
            axes.plot([entry["loss"]] * 2, [row - 0.35, row + 0.35], color="black", linewidth=2)
        axes.set_yticks(range(len(panel)), [entry["policy"] for entry in panel], fontsize=8.5)
        axes.set_ylim(len(panel) - 0.5, -0.5)
        axes.set_title(_asked(panel[0], comparison["unit"]), fontsize=10, loc="left")
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
    grid[-1, 0].set_xlabel("Loss by leaving early [points]")
    return figure


def _dots(axes: Any, row: int, groups: Sequence[Mapping[str, Any]]) -> None:  # noqa: ANN401 - matplotlib's
    colours = [_PAYS if group["pays_more"] else _EVEN for group in groups]
    axes.scatter([group["loss"] for group in groups], [row] * len(groups), c=colours, s=28, alpha=0.8, linewidths=0)
    axes.annotate(
        groups[0]["name"], (groups[0]["loss"], row), xytext=(5, 0), textcoords="offset points", fontsize=8, va="center"
    )


def _asked(entry: Mapping[str, Any], unit: str) -> str:
    value, text = f"{entry['budget']:.4g}", str(entry["budget_input"])
    typed = "" if text == f"{entry['budget']:g}" else f"{text} = "
    return f"asked: {typed}{value} {unit} per sample"

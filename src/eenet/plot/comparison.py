"""Pictures of comparisons and reports: utility over cost, gains over fixed exits, where samples leave, who pays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from eenet.errors import InputError
from eenet.evaluation.evaluate import Report
from eenet.evaluation.results import Comparison
from eenet.report import plots
from eenet.tables.checks import instance

_MOST_BUDGETS = 4  # in one figure: of more, so many spread over their range
_PAYS, _EVEN = "#D55E00", "#9aa5b1"


def utility_cost(comparison: Comparison) -> Figure:
    """Return utility over mean cost per sample, one curve per policy.

    Markers are what was realised on TEST at the asked budgets, crosses the exits for all samples; the bounds ``random``
    and ``oracle`` are dashed. The oracle, mostly luck, may leave the frame.

    Raises:
        InputError: It is no comparison.
    """
    return _plain(plots.utility_cost(_compared(comparison)))


def gain_over_static(comparison: Comparison) -> Figure:
    """Return how many points of utility each policy is above the best static mix at equal cost.

    Raises:
        InputError: It is no comparison.
    """
    return _plain(plots.gain_over_random(_compared(comparison)))


def exit_shares(result: Comparison | Report) -> Figure:
    """Return the share of the samples that left at each exit, as stacked bars.

    Args:
        result: Of a comparison, a bar per policy for up to four of the asked budgets; of a report, the one policy.

    Raises:
        InputError: It is neither.
    """
    if isinstance(result, Report):
        row = _of_report(result) | {"exit_distribution": result.exit_distribution}
        return _plain(_exit_shares([row], result.unit, len(result.exit_costs)))
    value = _compared(result)
    return _plain(_exit_shares(value["rows"], result.unit, len(value["exits"])))


def group_losses(result: Comparison | Report, by: str = "class") -> Figure:
    """Return what leaving early takes from each class or group, in points of utility, a dot each.

    Orange dots surely lose more than all samples together, whose loss is the black line.

    Args:
        result: Of a comparison, a row per policy for up to four of the asked budgets; of a report, the one policy.
        by: ``class``, or ``group`` for the groups given to `eenet.compare`; a report has one kind only.

    Raises:
        InputError: It is neither, or it knows no such groups.
    """
    if isinstance(result, Report):
        entries = [
            _of_report(result)
            | {"by": by, "loss": 100 * (result.full_utility - result.utility)}
            | {"groups": [vars(group) for group in result.by_group]}
        ]
        value: dict[str, Any] = {"groups": entries if result.by_group else [], "unit": result.unit}
    else:
        value = _compared(result)
    if not any(entry["by"] == by for entry in value["groups"]):
        known = ", ".join(sorted({entry["by"] for entry in value["groups"]})) or "neither classes nor groups"
        raise InputError(
            f"by {by!r} cannot be drawn: the result knows {known}. Pass labels, or groups, to what made it."
        )
    return _plain(_group_losses([entry for entry in value["groups"] if entry["by"] == by], result.unit))


def _compared(comparison: Comparison) -> dict[str, Any]:
    return instance(comparison, Comparison, "comparison").to_dict()


def _of_report(report: Report) -> dict[str, Any]:
    """Return what a panel says about the one policy of a report."""
    cost = report.cost if report.budget is None else report.budget
    return {"policy": "policy", "budget": cost, "budget_input": f"{cost:g}"}


def _plain(figure: Figure) -> Figure:
    """Return a figure in which names and units are text and no formulas, however it is saved."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    return figure


def _exit_shares(rows: Sequence[Mapping[str, Any]], unit: str, num_exits: int) -> Figure:
    figure, panels = _panels(rows, unit, row_height=0.27)
    colours = plots.exit_colours(num_exits)
    for axes, shown in panels:
        _bars(axes, shown, colours)
    axes = panels[-1][0]
    axes.set_xlabel("Share of the test samples [%]")
    handles = [axes.barh(0, 0, color=colour, label=f"exit {k}") for k, colour in enumerate(colours)]
    figure.legend(handles=handles, loc="outside upper center", ncols=min(num_exits, 8), frameon=False)
    return figure


def _group_losses(entries: Sequence[Mapping[str, Any]], unit: str) -> Figure:
    figure, panels = _panels(entries, unit, row_height=0.3)
    for axes, shown in panels:
        for row, entry in enumerate(shown):
            _dots(axes, row, entry["groups"])
            axes.plot([entry["loss"]] * 2, [row - 0.35, row + 0.35], color="black", linewidth=2)
        axes.set_yticks(range(len(shown)), [entry["policy"] for entry in shown], fontsize=8.5)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    panels[-1][0].set_xlabel("Loss by leaving early [points]")
    return figure


def _panels(
    entries: Sequence[Mapping[str, Any]], unit: str, *, row_height: float
) -> tuple[Figure, list[tuple[Axes, list[Mapping[str, Any]]]]]:
    """Return a figure with one panel per budget, four at most, each with its entries, one per policy."""
    budgets = sorted({entry["budget"] for entry in entries})
    if len(budgets) > _MOST_BUDGETS:
        budgets = [budgets[round(index)] for index in np.linspace(0, len(budgets) - 1, _MOST_BUDGETS)]
    # a budget typed in two ways has one panel
    groups = [list({one["policy"]: one for one in entries if one["budget"] == budget}.values()) for budget in budgets]
    ratios = [len(group) for group in groups]
    figure = Figure(figsize=(8.5, 0.9 + sum(row_height * ratio + 0.55 for ratio in ratios)), layout="constrained")
    grid = figure.subplots(len(groups), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for axes, group in zip(grid, groups, strict=True):
        budget, text = group[0]["budget"], str(group[0]["budget_input"])
        typed = "" if text == f"{budget:g}" else f"{text} = "
        axes.set_title(f"asked: {typed}{budget:.4g} {unit} per sample", fontsize=10, loc="left")
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure, list(zip(grid, groups, strict=True))


def _dots(axes: Axes, row: int, groups: Sequence[Mapping[str, Any]]) -> None:
    """Draw one dot per group, the first with its name."""
    colours = [_PAYS if group["pays_more"] else _EVEN for group in groups]
    axes.scatter([group["loss"] for group in groups], [row] * len(groups), c=colours, s=28, alpha=0.8, linewidths=0)
    axes.annotate(
        groups[0]["name"], (groups[0]["loss"], row), xytext=(5, 0), textcoords="offset points", fontsize=8, va="center"
    )


def _bars(axes: Axes, rows: Sequence[Mapping[str, Any]], colours: Sequence[Any]) -> None:
    """Draw one stacked bar per row, shares of 6 % and more written into it."""
    names = [row["policy"] for row in rows]
    shares = 100 * np.array([row["exit_distribution"] for row in rows])
    left = np.zeros(len(rows))
    for k, colour in enumerate(colours):
        bars = axes.barh(names, shares[:, k], left=left, color=colour, height=0.8, edgecolor="white", linewidth=0.5)
        texts = [f"{share:.0f}" if share >= 6 else "" for share in shares[:, k]]
        axes.bar_label(
            bars, texts, label_type="center", fontsize=7.5, color="white" if plots.is_dark(colour) else "black"
        )
        left += shares[:, k]
    axes.set_xlim(0, 100)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8.5, length=0)

"""Pictures of comparisons and reports: utility over cost, gains over fixed exits, where samples leave, who pays."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from eenet.errors import InputError
from eenet.evaluation.evaluate import Report
from eenet.evaluation.results import Comparison
from eenet.report import plots
from eenet.tables.checks import instance


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
        return _plain(plots.exit_shares({"rows": [row], "unit": result.unit, "exits": result.exit_costs}))
    return _plain(plots.exit_shares(_compared(result)))


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
    return _plain(plots.group_losses(value, by))


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

"""Markdown for the pages under ``docs/results/``, made from the same JSON as the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eenet.report.groups import GROUP_COLUMNS, group_cells
from eenet.report.sections import percent

__all__ = ["comparison_markdown", "markdown_table"]


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table: the first column to the left, all others to the right.

    Args:
        columns: Headings.
        rows: Cells as plain text, as many as headings.
    """
    rule = ["---"] + ["---:"] * (len(columns) - 1)
    return "".join(f"| {' | '.join(_cell(cell) for cell in row)} |\n" for row in (columns, rule, *rows))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def comparison_markdown(comparison: Mapping[str, Any], *, title: str, command: str = "", intro: str = "") -> str:
    """Return a page about a comparison: utility at equal cost by budget, areas, exits, differences, who pays, caveats.

    Args:
        comparison: `Comparison.to_dict()`.
        title: Of the page.
        command: How to make the numbers again.
        intro: Markdown said first, for example the plot.

    Returns:
        Markdown that ends with a newline.
    """
    unit, splits = comparison["unit"], comparison["splits"]
    drawn = "" if splits == 1 else f", means over {splits} redrawn splits"
    parts = [f"# {title}", *([intro] if intro else [])]
    parts.append(
        f"Fitted on {comparison['n_val']} samples, judged on {comparison['n_test']} others{drawn}. "
        f"Costs are per sample in {unit}; utilities in percent, read off each policy's own curve at the "
        "budget (equal cost). `random` (the best static mix) and `oracle` (knows the labels) are bounds."
    )
    parts.append("## Utility at equal cost\n\n" + _budgets(comparison))
    parts.append("## Asked and realised\n\n" + _realised(comparison))
    parts.append("## Every exit for all samples\n\n" + _exits(comparison))
    parts.append("## Differences of areas\n\n" + _pairs(comparison))
    if comparison.get("groups"):
        parts.append("## Who pays for early exit\n\n" + _groups(comparison))
    if comparison.get("notes"):
        parts.append("## Caveats\n\n" + "\n".join(f"* {note}" for note in comparison["notes"]))
    if command:
        parts.append(f"## Again\n\n```\n{command}\n```")
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _budgets(comparison: Mapping[str, Any]) -> str:
    """Return policies by budgets, the best area first."""
    area, sd = comparison["area"], comparison.get("area_sd", {})
    budgets = sorted({row["budget"] for row in comparison["rows"]})
    cells = {(row["policy"], row["budget"]): _utility(row, "utility_at_budget") for row in comparison["rows"]}
    names = sorted(area, key=lambda name: -area[name])
    rows = [(name, *(cells[name, budget] for budget in budgets), _spread(area[name], sd.get(name))) for name in names]
    return markdown_table(("policy", *(f"{budget:.4g}" for budget in budgets), "area"), rows)


def _realised(comparison: Mapping[str, Any]) -> str:
    rows = [
        (
            row["policy"],
            row["budget_input"],
            f"{row['budget']:.4g}",
            f"{row['val_cost']:.4g}",
            f"{row['test_cost']:.4g}",
            _utility(row, "test_utility"),
            " ".join(percent(share, 0) for share in row["exit_distribution"]),
            f"{row['fit_seconds']:.2f}",
        )
        for row in comparison["rows"]
        if row["policy"] != "oracle"
    ]
    columns = ("policy", "budget", "asked", "val cost", "test cost", "utility", "exits %", "fit s")
    return markdown_table(columns, rows)


def _exits(comparison: Mapping[str, Any]) -> str:
    reference = comparison["reference"]
    rows = [
        (f"exit {k}", f"{exit_['cost']:.4g}", percent(exit_["utility_test"]))
        for k, exit_ in enumerate(comparison["exits"])
    ]
    if reference is not None:
        last = percent(comparison["exits"][-1]["utility_test"])
        rows.append(("original model without exits", f"{reference:.4g}", last))
    return markdown_table(("all leave at", f"cost {comparison['unit']}", "utility"), rows)


def _pairs(comparison: Mapping[str, Any]) -> str:
    rows = [
        (
            f"{pair['a']} − {pair['b']}",
            f"{pair['difference']:+.2f}",
            f"{pair['low']:+.2f} to {pair['high']:+.2f}",
            "yes" if pair["significant"] else "no",
        )
        for pair in comparison["pairs"]
    ]
    method = f"\n95 % intervals: {comparison['pairs'][0]['method']}.\n" if rows else ""
    return markdown_table(("pair", "points", "95 % interval", "significant"), rows) + method


def _groups(comparison: Mapping[str, Any]) -> str:
    """Return every policy's hardest hit class or group at every asked budget."""
    rows = [(entry["policy"], entry["budget_input"], *group_cells(entry)[1:]) for entry in comparison["groups"]]
    said = (
        "\nLoss: utility of the last exit minus utility under the policy. Hardest hit: the largest lower end of the "
        "interval; the intervals hold at 95 % for all groups at once. A group pays more where its whole interval lies "
        "above the loss of all samples.\n"
    )
    return markdown_table((GROUP_COLUMNS[0], "budget", *GROUP_COLUMNS[1:]), rows) + said


def _utility(row: Mapping[str, Any], key: str) -> str:
    return _spread(row[key], row.get("sd", {}).get(key))


def _spread(value: float, sd: float | None) -> str:
    return percent(value) if sd is None else f"{percent(value)} ± {percent(sd)}"

"""The report page about a comparison, made from the contract JSON of ``eenet compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eenet.errors import InputError
from eenet.report import html, plots
from eenet.report.groups import groups_section
from eenet.report.html import Section
from eenet.report.sections import Example, about_section, bench_section, examples_section, percent, report_section

__all__ = ["comparison_page", "comparison_sections"]

_KEYS = ("unit", "reference", "n_val", "n_test", "splits", "exits", "rows", "area", "pairs", "curves")


def comparison_page(
    comparison: Mapping[str, Any],
    *,
    title: str = "Comparison of early-exit policies",
    report: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
    examples: Sequence[Example] = (),
    caveats: Sequence[str] = (),
    command: str = "",
) -> str:
    """Return the whole page about a comparison.

    Args:
        comparison: `Comparison.to_dict()` or what ``eenet compare --json`` wrote.
        title: Of the page.
        report: `Report.to_dict()` of one policy, to be shown in detail.
        bench: What ``eenet bench --json`` wrote.
        examples: Inputs to show by the exit they left at.
        caveats: Further things a reader should know.
        command: How to make the page again.

    Returns:
        One self-contained HTML page.

    Raises:
        InputError: The comparison lacks a key.
    """
    sections = comparison_sections(comparison)
    if report is not None:
        sections.append(report_section(report))
    if examples:
        sections.append(examples_section(examples))
    if bench is not None:
        sections.append(bench_section(bench))
    sections.append(Section("Caveats", html.bullets([*comparison.get("notes", ()), *caveats])))
    sections.append(about_section(command=command, seed=comparison.get("seed")))
    return html.page(title, sections, lead=_lead(comparison))


def comparison_sections(comparison: Mapping[str, Any]) -> list[Section]:
    """Return the sections about a comparison: curves, rows, exits, differences and who pays.

    Raises:
        InputError: The comparison lacks a key.
    """
    for key in _KEYS:
        if key not in comparison:
            raise InputError(
                f"comparison without {key!r} cannot be shown: it is not complete. Run `eenet compare` again."
            )
    curves = html.figure(
        plots.utility_cost(comparison),
        alt="Utility over mean cost per sample, one curve per policy; the numbers are in the tables below.",
        caption="Realised cost and utility on the test samples; markers: asked budgets; crosses: every exit for all "
        "samples. The oracle knows the labels: it is mostly luck, no goal, and may leave the frame.",
    )
    gains = html.figure(
        plots.gain_over_random(comparison),
        alt="Gain of every policy over the best static mix at equal cost.",
        caption="The same curves, as points of utility above the best mix of static exits at equal cost.",
    )
    bars = html.figure(
        plots.exit_shares(comparison),
        alt="Share of the test samples leaving at each exit; the numbers are in the table of policies.",
    )
    who_pays = groups_section(comparison)
    return [
        Section("Utility and cost", curves + gains),
        Section("Policies by budget: asked and realised", _rows(comparison)),
        Section("Area under the curves", _areas(comparison)),
        Section("Where the samples left", bars),
        Section("Every exit for all samples, and the full model", _exits(comparison)),
        Section("Differences between policies", _pairs(comparison)),
        *([] if who_pays is None else [who_pays]),
    ]


def _spread(value: float, sd: float | None) -> str:
    return percent(value) if sd is None else f"{percent(value)} ± {percent(sd)}"


def _lead(comparison: Mapping[str, Any]) -> str:
    """Say in two sentences what was compared and what came out."""
    area, exits = comparison["area"], comparison["exits"]
    policies = {name: value for name, value in area.items() if name not in ("random", "oracle")}
    drawn = "" if comparison["splits"] == 1 else f", means over {comparison['splits']} splits"
    said = (
        f"{len(policies)} policies, fitted on {comparison['n_val']} samples and judged on {comparison['n_test']} others"
        f"{drawn}. "
        f"All samples through the last exit: utility {percent(exits[-1]['utility_test'])} % at "
        f"{exits[-1]['cost']:.4g} {comparison['unit']} per sample."
    )
    if policies:
        best = max(policies, key=lambda name: policies[name])
        said += (
            f" Largest mean utility over the ten standard budgets: {best} with {percent(area[best])} % "
            f"(best static mix: {percent(area['random'])} %)."
        )
    return said


def _rows(comparison: Mapping[str, Any]) -> str:
    """Return one table per asked budget, the best utility at equal cost first."""
    unit, parts = comparison["unit"], []
    columns = (
        "policy",
        f"val cost [{unit}]",
        f"test cost [{unit}]",
        "test cost / asked [%]",
        "utility [%]",
        "utility at equal cost [%]",
        "exit distribution [%]",
        "fit [s]",
    )
    for budget, text in sorted({(row["budget"], str(row["budget_input"])) for row in comparison["rows"]}):
        rows = [row for row in comparison["rows"] if (row["budget"], str(row["budget_input"])) == (budget, text)]
        rows.sort(key=lambda row: -row["utility_at_budget"])
        typed = "" if text == f"{budget:g}" else f" ({text})"
        caption = f"Asked: {budget:.4g} {unit} per sample{typed}"
        parts.append(html.table(columns, [_cells(row) for row in rows], caption))
    said = "The budget holds on the fitting side; what was realised on the test side stands beside it."
    return html.paragraph(said) + "".join(parts)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    sd = row.get("sd", {})
    return (
        row["policy"],
        f"{row['val_cost']:.4g}",
        f"{row['test_cost']:.4g}",
        percent(row["test_cost"] / row["budget"], 1),
        _spread(row["test_utility"], sd.get("test_utility")),
        _spread(row["utility_at_budget"], sd.get("utility_at_budget")),
        " · ".join(percent(share, 0) for share in row["exit_distribution"]),
        f"{row['fit_seconds']:.2f}",
    )


def _areas(comparison: Mapping[str, Any]) -> str:
    area, sd, base = comparison["area"], comparison.get("area_sd", {}), comparison["area"]["random"]
    rows = [
        (name, _spread(value, sd.get(name)), f"{100 * (value - base):+.2f}")
        for name, value in sorted(area.items(), key=lambda item: -item[1])
    ]
    said = "Mean utility over ten standard budgets between the first and the last exit's cost."
    return html.table(("policy", "area [%]", "above random [points]"), rows, said)


def _exits(comparison: Mapping[str, Any]) -> str:
    unit, reference, exits = comparison["unit"], comparison["reference"], comparison["exits"]
    full = exits[-1]["cost"] if reference is None else reference
    rows = [
        (
            f"exit {k}",
            f"{exit_['cost']:.4g}",
            percent(exit_["cost"] / full, 1),
            _spread(exit_["utility_test"], exit_.get("sd", {}).get("utility_test")),
        )
        for k, exit_ in enumerate(exits)
    ]
    if reference is not None:
        rows.append(("original model without exits", f"{reference:.4g}", "100.0", percent(exits[-1]["utility_test"])))
    return html.table(("all samples leave at", f"cost [{unit}]", "% of full", "utility [%]"), rows)


def _pairs(comparison: Mapping[str, Any]) -> str:
    """Return the best policy's differences openly and all others folded away."""
    area, pairs = comparison["area"], comparison["pairs"]
    policies = [name for name in area if name not in ("random", "oracle")]
    if not pairs or not policies:
        return html.paragraph("Nothing to compare.")
    best = max(policies, key=lambda name: area[name])
    columns = ("pair", "difference [points]", "95 % interval", "significant")
    shown = [_pair(pair, best) for pair in pairs if best in (pair["a"], pair["b"])]
    others = [_pair(pair, pair["a"]) for pair in pairs if best not in (pair["a"], pair["b"])]
    said = (
        f"Differences of areas in points of utility, {best} (the largest area) against every other. "
        f"Significant: the 95 % interval leaves out 0. Method: {pairs[0]['method']}."
    )
    folded = f"<details><summary>All other pairs</summary>\n{html.table(columns, others)}</details>\n" if others else ""
    return html.paragraph(said) + html.table(columns, shown) + folded


def _pair(pair: Mapping[str, Any], first: str) -> tuple[str, ...]:
    """Return the cells of a pair, turned round so that ``first`` stands first."""
    flip = pair["a"] != first
    a, b = (pair["b"], pair["a"]) if flip else (pair["a"], pair["b"])
    sign = -1 if flip else 1
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    significant = "yes" if pair["significant"] else "no"
    return f"{a} − {b}", f"{sign * pair['difference']:+.2f}", f"{low:+.2f} to {high:+.2f}", significant

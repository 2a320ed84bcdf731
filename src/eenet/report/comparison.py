"""The report about a comparison, made from the contract JSON of ``eenet compare``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eenet.errors import InputError
from eenet.report import html
from eenet.report.explorer import explorer
from eenet.report.sections import (
    Block,
    Example,
    Markup,
    Section,
    Table,
    about_section,
    bench_section,
    cost_rows,
    examples_section,
    exit_shares,
    report_section,
)
from eenet.report.svg import escape

_SAME = "VAL and TEST are the same data: these are fitting numbers, not what to expect of others. "
_WHO_PAYS = "Who pays for early exit"
_TURNED = ("Who leaves where", "By which score", "Who pays")
_KEYS = ("unit", "reference", "n_val", "n_test", "splits", "exits", "rows", "area", "pairs", "curves")


def comparison_page(
    comparison: Mapping[str, Any],
    *,
    title: str = "Comparison of early-exit policies",
    report: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
    examples: Sequence[Example] = (),
    promise: str = "",
    more: Sequence[Section] = (),
    caveats: Sequence[str] = (),
    command: str = "",
    verdict: str = "",
    budget: float | None = None,
) -> str:
    """Return the whole page about a comparison.

    Args:
        comparison: `Comparison.to_dict()` or what ``eenet compare --json`` wrote.
        title: Of the page.
        report: `Report.to_dict()` of one policy, for a section about it.
        bench: What ``eenet bench --json`` wrote.
        profile: What ``eenet profile`` wrote: times at other budgets are estimated from it.
        examples: Inputs, listed by the exit they left at.
        promise: The statement of a certificate.
        more: Further sections, such as those about costs.
        caveats: Further things a reader should know.
        command: How to make the page again.
        verdict: Said first, at the budget where the slider begins, such as the sentence of `eenet.evaluation.saving`
            with measured times. Default: the same sentence with estimated times.
        budget: Where the slider begins, in the comparison's unit. Default: the first asked; where none was, the
            smallest that loses at most one point.

    Returns:
        One self-contained HTML page.

    Raises:
        InputError: The comparison lacks a key.
    """
    first, *others = _sections(comparison, bench=bench, profile=profile, verdict=verdict, budget=budget)
    turns = isinstance(first.blocks[0], Markup)
    said, *shown = first.blocks if turns else (verdict, *first.blocks)
    sections = [Section(first.heading, shown)]
    while others and others[0].heading in _TURNED:
        sections.append(others.pop(0))
    sections += [examples_section(examples)] if examples else []
    sections += [bench_section(bench)] if bench is not None else []
    sections += [Section("What is promised", [promise])] if promise else []
    sections += [] if report is None else [report_section(report)]
    sections += [*others, *more]
    notes = [*comparison.get("notes", ()), *caveats]
    sections += [Section("Caveats", [notes])] if notes else []
    sections.append(about_section(command=command, seed=comparison.get("seed")))
    return html.page(title, sections, lead=[*([said] if said else []), *_warnings(comparison)])


def comparison_sections(
    comparison: Mapping[str, Any],
    *,
    number: int = 0,
    bench: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
) -> list[Section]:
    """Return the sections about a comparison: what can be turned, what was compared, rows, exits, differences.

    Args:
        comparison: `Comparison.to_dict()`.
        number: Of the comparison on the page.
        bench: What ``eenet bench --json`` wrote.
        profile: What ``eenet profile`` wrote.

    Raises:
        InputError: The comparison lacks a key.
    """
    notes = [Section("Caveats", [list(comparison["notes"])])] if comparison.get("notes") else []
    return [*_sections(comparison, number=number, bench=bench, profile=profile), *notes]


def _sections(comparison: Mapping[str, Any], **turned: Any) -> list[Section]:  # noqa: ANN401 - passed through
    for key in _KEYS:
        if key not in comparison:
            raise InputError(
                f"comparison without {key!r} cannot be reported: it is not complete. Run `eenet compare` again."
            )
    found = explorer(comparison, **turned)
    tables = table_sections(comparison)
    parts: list[Section] = []
    if found is not None:
        leaving, scores, pays = _TURNED
        parts = [
            Section("What a budget saves and loses", [found.verdict, found.turn]),
            Section(leaving, [found.exits, found.budgets]),
            *([Section(scores, [found.scores])] if found.scores else []),
        ]
        if any(entry["pays_more"] for entry in comparison.get("groups", ())) or found.who_pays:
            parts.append(Section(pays, [*filter(None, [found.who_pays]), *tables[-1].blocks]))
        tables = [section for section in tables if section.heading != _WHO_PAYS]
    return [*parts, Section("What was compared", [lead(comparison)]), *tables]


def _warnings(comparison: Mapping[str, Any]) -> list[Block]:
    """Return what a reader must know beside the verdict."""
    said = _SAME * bool(comparison.get("same_data")) + _better_statics(comparison)
    return [Markup(f'<p class="warning">{escape(said)}</p>')] if said else []


def table_sections(comparison: Mapping[str, Any]) -> list[Section]:
    """Return the sections that are tables: all but the pictures."""
    exits = comparison["exits"]
    columns = ("all samples leave at", f"cost [{comparison['unit']}]", "% of full", "utility [%]")
    reached = [_shown(one, "utility_test") for one in exits]
    reached.append(reached[-1])  # of the original model, where that is known
    costs = cost_rows([one["cost"] for one in exits], comparison["reference"])
    names = [one.get("name", row[0]) for one, row in zip(exits, costs, strict=False)]
    names += [row[0] for row in costs[len(names) :]]
    rows = [(name, *row[1:], utility) for name, row, utility in zip(names, costs, reached, strict=False)]
    who_pays = groups_section(comparison)
    return [
        Section("Utility at equal cost", [utilities(comparison)]),
        Section("Asked and realised", [_realised(comparison)]),
        Section("Every exit for all samples", [Table(columns, rows)]),
        *([Section("Models without early exits", [_statics(comparison)])] if comparison.get("statics") else []),
        Section("Differences of areas", _differences(comparison)),
        *([] if who_pays is None else [who_pays]),
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    """Return a fraction in percent, with its standard deviation over splits where there is one."""
    sd = values.get("sd", {}).get(key)
    return f"{100 * values[key]:.2f}" + ("" if sd is None else f" ± {100 * sd:.2f}")


def lead(comparison: Mapping[str, Any]) -> str:
    """Say what came out, and what was compared."""
    area, unit, last = comparison["area"], comparison["unit"], comparison["exits"][-1]
    policies = _policies(area)
    means = "" if comparison["splits"] == 1 else f", means over {comparison['splits']} random splits"
    same = bool(comparison.get("same_data"))
    warning = _SAME * same
    judged = "the same" if same else f"{comparison['n_test']} others"
    summary = (
        f"{len(policies)} policies, fitted on {comparison['n_val']} samples and judged on {judged}"
        f"{means}. Costs are per sample in {unit}, utilities in percent; random (the best static mix) and oracle "
        f"(knows the labels) are bounds. All samples through the last exit: utility {last['utility_test']:.2%} at "
        f"{last['cost']:.4g} {unit}."
    )
    best = f"{_best(comparison, policies[0])}{_tested(comparison)} " if policies else ""
    return f"{warning}{best}{_better_statics(comparison)}{summary}"


def _best(comparison: Mapping[str, Any], best: str) -> str:
    """Say which policy has the largest area, and how far it is above random."""
    area = comparison["area"]
    pair = next((one for one in comparison["pairs"] if {one["a"], one["b"]} == {best, "random"}), None)
    beside = ""
    if pair is not None:
        *_, low, high = _oriented(pair, best)
        beside = f", {100 * (area[best] - area['random']):+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"
    verdict = (
        f"Largest mean utility over the ten standard budgets: {best} with {area[best]:.2%} (best static mix: "
        f"{area['random']:.2%}{beside})."
    )
    if pair is not None and low <= 0:
        verdict += " So it may be no better than the static mix, which does not look at the samples."
    return verdict


def _better_statics(comparison: Mapping[str, Any]) -> str:
    """Name the models without early exits that are better than every policy at their cost; empty without any."""
    said = ""
    for one in comparison.get("statics", ()):
        if one["better"]:
            interval = ""
            if one["low"] is not None:
                interval = (
                    f" ({one['policy']} minus the model: {one['difference']:+.2f} points, 95 % interval "
                    f"{one['low']:+.2f} to {one['high']:+.2f})"
                )
            said += (
                f"A static model, {one['name']}, has {one['utility']:.2%} at cost {one['cost']:.4g} "
                f"{comparison['unit']}: better than any policy here at that cost{interval}. "
            )
    return said


def _tested(comparison: Mapping[str, Any]) -> str:
    """Say what the tested differences show; empty where none was tested."""
    tested = comparison.get("family", {}).get("policy")
    found: dict[str, list[str]] = {"above": [], "below": [], "not told apart from": []}
    for pair in comparison["pairs"]:
        if tested is None or pair.get("p_holm") is None:
            continue
        other, difference, *_ = _oriented(pair, tested)
        found[("above" if difference > 0 else "below") if pair["significant"] else "not told apart from"].append(other)
    said = [f"{word} {', '.join(names)}" for word, names in found.items() if names]
    return f" Tested (Holm): {tested} is {'; '.join(said)}." if said else ""


def _oriented(pair: Mapping[str, Any], first: str) -> tuple[str, float, float, float]:
    """Return the other policy of a pair, and difference and interval as those of ``first`` minus it."""
    if pair["a"] == first:
        return pair["b"], pair["difference"], pair["low"], pair["high"]
    return pair["a"], -pair["difference"], -pair["high"], -pair["low"]


def who_pays(comparison: Mapping[str, Any]) -> str:
    """Say what the tested policy takes from the group that it hits hardest; empty where no groups are known."""
    policy = comparison.get("family", {}).get("policy") or next(iter(_policies(comparison["area"])), None)
    entries = [entry for entry in comparison.get("groups", ()) if entry["policy"] == policy]
    if not entries:
        return ""
    entry = max(entries, key=lambda entry: (entry["by"] == "group", entry["pays_more"], entry["groups"][0]["low"]))
    worst, many = entry["groups"][0], "classes" if entry["by"] == "class" else "groups"
    some = (
        f"{entry['pays_more'] or 'none'} of {entry['num_groups']} {many} surely lose{'s' * (entry['pays_more'] == 1)}"
    )
    return (
        f"Who pays: under {policy} at {entry['budget_input']}, {some} more than all samples together; "
        f"the hardest hit is {entry['by']} {worst['name']} (95 % interval of its loss {worst['low']:.2f} to "
        f"{worst['high']:.2f} points)."
    )


def _policies(area: Mapping[str, float]) -> list[str]:
    """Return the policies that are no bounds, the largest area first."""
    return sorted((name for name in area if name not in ("random", "oracle")), key=lambda name: -area[name])


def utilities(comparison: Mapping[str, Any]) -> Table:
    """Return policies by budgets, the best area first; of many budgets every second is left out first."""
    area, sd = comparison["area"], comparison.get("area_sd", {})
    budgets = sorted({row["budget"] for row in comparison["rows"]})
    cells = {(row["policy"], row["budget"]): _shown(row, "utility_at_budget") for row in comparison["rows"]}
    rows = [
        (
            name,
            *(cells[name, budget] for budget in budgets),
            _shown({"area": area[name], "sd": {"area": sd.get(name)}}, "area"),
            f"{100 * (area[name] - area['random']):+.2f}",
        )
        for name in sorted(area, key=lambda name: -area[name])
    ]
    caption = (
        f"Utility in percent at mean costs in {comparison['unit']}, read off each policy's own curve; area: the mean "
        "over ten standard budgets between the first and the last exit's cost, and how far it is above random, the "
        "best mix of exits that does not look at the samples."
    )
    named = [f"{budget:.4g}" for budget in budgets]
    least = [*named[1::2], *named[2::4]] if len(named) > 4 else []
    return Table(("policy", *named, "area", "above [points]"), rows, caption, least=least)


def _realised(comparison: Mapping[str, Any]) -> Table:
    """Return what every policy realised at every asked budget, the best utility at equal cost first."""
    unit = comparison["unit"]
    columns = {
        "policy": "{policy}",
        "budget": "{budget_input}",
        f"asked [{unit}]": "{budget:.4g}",
        f"val cost [{unit}]": "{val_cost:.4g}",
        f"test cost [{unit}]": "{test_cost:.4g}",
        "test cost / asked": "{share:.1%}",
        "utility [%]": "{realised}",
        "at equal cost [%]": "{equal}",
        "exits [%]": "{exits}",
        "fit [s]": "{fit_seconds:.2f}",
    }
    rows = [
        dict(row)
        | {"realised": _shown(row, "test_utility"), "equal": _shown(row, "utility_at_budget")}
        | {"exits": exit_shares(row["exit_distribution"]), "share": row["test_cost"] / row["budget"]}
        for row in sorted(comparison["rows"], key=lambda row: (row["budget"], -row["utility_at_budget"]))
    ]
    caption = "The budget holds on the calibration set (val); beside it is what was realised on the test set."
    least = ("fit [s]", f"asked [{unit}]", f"val cost [{unit}]", "test cost / asked", "exits [%]", "utility [%]")
    return Table.of(rows, columns, caption, least)


def _statics(comparison: Mapping[str, Any]) -> Table:
    """Return the models without early exits beside the policies at their cost."""
    columns = {
        "model": "{name}",
        f"cost [{comparison['unit']}]": "{cost:.4g}",
        "utility": "{utility:.2%}",
        "best policy at that cost": "{best_policy} {best_utility:.2%}",
        "tested policy minus model [points]": "{gap}",
    }
    rows = [dict(one) | {"gap": _gap(one)} for one in comparison["statics"]]
    return Table.of(rows, columns, "Utilities that were given as numbers count as exact.")


def _gap(static: Mapping[str, Any]) -> str:
    if static["policy"] is None:
        return "-"
    found = f"{static['policy']} {static['difference']:+.2f}"
    return found if static["low"] is None else f"{found} ({static['low']:+.2f} to {static['high']:+.2f})"


def _differences(comparison: Mapping[str, Any]) -> list[Block]:
    """Return the differences of the policy that is tested against the others openly, and all others folded away."""
    policies, pairs = _policies(comparison["area"]), comparison["pairs"]
    if not pairs or not policies:
        return ["Nothing to compare."]
    base = comparison.get("family", {}).get("policy", policies[0])  # the first edition knew no family
    columns = ("pair", "difference [points]", "95 % interval")
    first = [
        (*_pair_cells(pair, base), {"significant": "yes", "not significant": "no"}.get(verdict(pair), "-"))
        for pair in pairs
        if base in (pair["a"], pair["b"])
    ]
    others = [_pair_cells(pair, pair["a"]) for pair in pairs if base not in (pair["a"], pair["b"])]
    method = (
        f"Differences of areas in points of utility, {base} against every other, each with its own interval. Tested is "
        f"{base} against each other policy; significant: below 5 % after Holm's correction for the number of these "
        f"tests. Method: {pairs[0]['method']}."
    )
    return [
        Table((*columns, "significant"), first, method),
        *([Table(columns, others, "All other pairs: not tested", folded=True)] if others else []),
    ]


def verdict(pair: Mapping[str, Any]) -> str:
    """Return ``significant`` or ``not significant`` for a pair that is tested, and nothing for any other.

    Args:
        pair: Of the JSON of `eenet compare`.
    """
    if pair.get("p_holm") is None:
        return ""
    return "significant" if pair["significant"] else "not significant"


def _pair_cells(pair: Mapping[str, Any], first: str) -> tuple[str, ...]:
    """Return a pair as cells, turned round so that ``first`` comes first: names, difference, interval."""
    start = first if first in (pair["a"], pair["b"]) else pair["a"]
    other, difference, low, high = _oriented(pair, start)
    return f"{start} − {other}", f"{difference:+.2f}", f"{low:+.2f} to {high:+.2f}"


def groups_section(comparison: Mapping[str, Any]) -> Section | None:
    """Return the section about who pays, None where the comparison knows neither classes nor groups."""
    entries = comparison.get("groups", ())
    if not entries:
        return None
    explanation = (
        "What leaving early takes from each group: utility of the last exit minus utility under the policy, in points. "
        "A group pays more where its whole interval lies above the loss of all samples; the intervals hold at 95 % for "
        "all groups at once. The hardest hit is the group that surely loses most: largest lower end of the interval."
    )
    columns = {
        "policy": "{policy}",
        "budget": "{budget_input}",
        "loss of all [points]": "{loss:.2f}",
        "spread [points]": "{spread:.2f}",
        "hardest hit": "{by} {worst[name]}",
        "samples": "{worst[num_samples]:.0f}",
        "its loss [points]": "{worst[loss]:.2f}",
        "95 % interval": "{worst[low]:.2f} to {worst[high]:.2f}",
        "its exits [%]": "{exits}",
        "how many pay more": "{pays_more} of {num_groups}",
    }
    rows = [
        dict(entry) | {"worst": worst, "exits": exit_shares(worst["exit_distribution"])}
        for entry, worst in ((entry, entry["groups"][0]) for entry in entries)
    ]
    least = ("samples", "spread [points]", "its exits [%]", "95 % interval", "its loss [points]")
    return Section(_WHO_PAYS, [explanation, Table.of(rows, columns, least=least)])

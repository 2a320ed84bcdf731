"""What commands print about results: by default a screenful that starts with the verdict, all of it with `--all`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Annotated, Any

import numpy as np
import typer

from eenet.cli.curve import Curve
from eenet.cli.output import Part
from eenet.evaluation.results import BOUNDS
from eenet.report.comparison import lead, table_sections, who_pays
from eenet.report.sections import Table, bench_section

AllOption = Annotated[bool, typer.Option("--all", help="Print everything, not a screenful only.")]
_MOST_BUDGETS = 4  # on a screen; and for which groups are listed
_MOST_ROWS = 10
_MIX, _ALONE = "static mix", "each exit alone"


def comparison_parts(value: Mapping[str, Any], verdict: str, *, everything: bool) -> list[Part]:
    """Return what is printed of a comparison: verdict, curve and one short table, or everything but pictures.

    Args:
        value: The JSON of `eenet compare`.
        verdict: What was saved and lost, in a sentence.
        everything: Whether all tables and notes are printed; who pays then at one budget of many only.
    """
    curve, notes = _curve(value), value["notes"]
    if everything:
        entries = value["groups"]
        listed = _few(sorted({entry["budget"] for entry in entries}), 1)
        groups = [entry for entry in entries if entry["budget"] in listed]
        said = [f"Note: {note}" for note in notes]
        first = [verdict, ""] if value["saving"] or any(one["better"] for one in value["statics"]) else []
        return [*first, lead(value), "", curve, *table_sections({**value, "groups": groups}), *said]
    same = "VAL and TEST are the same data: these are fitting numbers, not what to expect of others. "
    asked = [who_pays(value)] if any(entry["by"] == "group" for entry in value["groups"]) else []
    more = f"--all prints every policy, difference and note ({len(notes)}); --out DIR plots and a page."
    return [f"{same * value['same_data']}{verdict}", curve, _short_table(value), *asked, more]


def _short_table(value: Mapping[str, Any]) -> Table:
    """Return the tested policy, the best other one, max_prob, the static mix and the best single exit, by budget."""
    area, tested = value["area"], value["family"]["policy"]
    others = sorted((name for name in area if name not in (*BOUNDS, tested)), key=lambda name: -area[name])
    wanted = [tested, *others[:1], "max_prob", "random"]
    names = list(dict.fromkeys(name for name in wanted if name in area))
    typed = {row["budget"]: row["budget_input"] for row in reversed(value["rows"])}
    budgets = _few(sorted(typed), _MOST_BUDGETS)
    reached = {(row["policy"], row["budget"]): row["utility_at_budget"] for row in value["rows"]}
    alone = [
        max((one["utility_test"] for one in value["exits"] if one["cost"] <= budget * (1 + 1e-9)), default=None)
        for budget in budgets
    ]
    called = {"random": f"random ({_MIX})"}
    rows = [
        (
            called.get(name, name),
            *(f"{100 * reached[name, budget]:.2f}" for budget in budgets),
            f"{100 * area[name]:.2f}",
        )
        for name in names
    ]
    rows.append(("best exit alone", *("-" if one is None else f"{100 * one:.2f}" for one in alone), "-"))
    columns = ["policy", *(_short(typed[budget], budget) for budget in budgets), "area"]
    caption = f"Utility [%] at equal mean cost in {value['unit']}; area: mean over standard budgets"
    return Table(columns, rows, caption)


def _short(typed: str, budget: float) -> str:
    """Return a budget as it was typed, a number in the unit of the costs with four digits."""
    return f"{budget:.4g}" if typed.replace(".", "").isdigit() else typed


def _curve(value: Mapping[str, Any]) -> Curve:
    """Return the curve of the tested policy above that of the static mix, and the exits."""
    lines = {
        name: [(point["cost"], point["utility"]) for point in value["curves"][key]]
        for name, key in ((value["family"]["policy"], value["family"]["policy"]), (_MIX, "random"))
        if key is not None
    }
    exits = [(one["cost"], one["utility_test"]) for one in value["exits"]]
    statics = [(one["cost"], one["utility"]) for one in value["statics"]]
    return Curve(lines=lines, points={_ALONE: exits, "without exits": statics}, unit=value["unit"])


def advice_parts(value: Mapping[str, Any], *, everything: bool) -> list[Part]:
    """Return what is printed of the JSON of `eenet advise`: the verdict, then what it rests on."""
    unit, advice = value["unit"], _which(value)
    columns = {
        "budget": "{short}",
        f"cost [{unit}]": "{budget:.4g}",
        "early exit": "{utility:.2%}",
        _MIX: "{static:.2%}",
        "points": "{points[0]:+.2f}",
        "95 % interval": "{points[1]:+.2f} to {points[2]:+.2f}",
        "best model": "{single}",
    }
    rows = [
        row
        | {"points": [100 * row[key] for key in ("difference", "low", "high")], "single": row["best_static"] or "-"}
        | {"short": _short(row["budget_input"], row["budget"])}
        for row in value["rows"]
    ]
    budgets = _few([row["budget"] for row in rows], len(rows) if everything else _MOST_BUDGETS)
    shown = [row for row in rows if row["budget"] in budgets]
    least = (f"cost [{unit}]", "best model", "95 % interval")
    table = Table.of(shown, columns, "At equal cost, on samples not fitted on", least)
    statics = [(one["cost"], one["utility"]) for one in value["statics"]]
    frontier = [(one["cost"], one["utility"]) for one in value["frontier"]]
    curve = Curve(lines={"early exit": frontier}, points={"without early exits": statics}, unit=unit)
    tiers = [tier["verdict"] for tier in value.get("tiers", ())]
    notes = [f"Note: {note}" for note in value["notes"]]
    if not everything:
        more = "--all prints every budget and model, and the assumptions made."
        return [value["verdict"], advice, *tiers, curve, table, more]
    points = {f"cost [{unit}]": "{cost:.4g}", "utility": "{utility:.2%}"}
    return [
        *(value["verdict"], advice, "", curve, "", table, ""),
        Table.of(value["statics"], {"model": "{name}"} | points, "Without early exits"),
        "",
        Table.of(value["frontier"], points, "Early exit with the kept exits, on samples not fitted on"),
        *tiers,
        *notes,
    ]


def _which(value: Mapping[str, Any]) -> str:
    """Say which exits to keep, and how; where early exit does not pay, only for whoever wants them all the same."""
    kept, dropped = ", ".join(map(str, value["kept"])), value["dropped"]
    if not dropped:
        return f"Keep all exits: {kept}." if value["pays"] else "No early exit is needed."
    first = "Keep exits" if value["pays"] else "If you want exits all the same: keep"
    return (
        f"{first} {kept}; drop {', '.join(map(str, dropped))}: "
        f"eenet fit --exits {kept.replace(' ', '')}, or model.without({list(dropped)})."
    )


def bench_parts(value: Mapping[str, Any], *, everything: bool) -> list[Part]:
    """Return what is printed of the JSON of `eenet bench`: the verdict, then the times."""
    left_out = len(value["rows"]) - _MOST_ROWS
    if everything or left_out <= 0:
        return [value["verdict"], bench_section(value)]
    shown = {**value, "rows": list(islice(value["rows"], _MOST_ROWS))}
    return [value["verdict"], bench_section(shown), f"--all prints {left_out} more rows."]


def _few(values: Sequence[float], most: int) -> list[float]:
    """Return at most so many values, spread over their range."""
    if len(values) <= most:
        return list(values)
    return [values[round(index)] for index in np.linspace(0, len(values) - 1, most + 2)[1:-1]]

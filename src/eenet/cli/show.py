"""How results look on the terminal: contract JSON in, tables out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from eenet.cli.names import BOUNDS
from eenet.cli.output import percent, shares, text_table

_MOST_BUDGETS = 4  # whose groups are shown


def _exits_table(value: Mapping[str, Any]) -> RenderableType:
    unit = value["unit"]
    rows = [(str(k), exit_["cost"], percent(exit_["utility_test"])) for k, exit_ in enumerate(value["exits"])]
    return text_table("Exits: what each costs and is worth on TEST", ("exit", f"cost {unit}", "utility"), rows)


def _named(policy: str) -> str:
    return f"{policy} (bound)" if policy in BOUNDS else policy


def comparison_tables(value: Mapping[str, Any]) -> list[RenderableType]:
    """Show a comparison: its exits, its rows by budget, its areas with the differences that matter, and who pays.

    Args:
        value: The contract JSON of `eenet compare`.
    """
    return [_exits_table(value), _rows_table(value), _areas_table(value), *_groups_tables(value)]


def _spread(value: float, sd: float | None) -> str:
    return percent(value) if sd is None else f"{100 * value:.2f} ± {100 * sd:.2f} %"


def _rows_table(value: Mapping[str, Any]) -> RenderableType:
    """Show what was asked for and what was realised, the best at equal cost first."""
    unit = value["unit"]
    columns = (
        "budget",
        "policy",
        f"asked {unit}",
        f"cost val {unit}",
        f"cost test {unit}",
        "utility",
        "at equal cost",
        "exits %",
        "fit s",
    )
    ordered = sorted(value["rows"], key=lambda row: (row["budget"], -row["utility_at_budget"]))
    rows = [
        (
            row["budget_input"],
            _named(row["policy"]),
            row["budget"],
            row["val_cost"],
            row["test_cost"],
            _spread(row["test_utility"], row.get("sd", {}).get("test_utility")),
            _spread(row["utility_at_budget"], row.get("sd", {}).get("utility_at_budget")),
            shares(row["exit_distribution"]),
            f"{row['fit_seconds']:.2f}",
        )
        for row in ordered
    ]
    return text_table("Policies: asked and realised", columns, rows)


def _areas_table(value: Mapping[str, Any]) -> RenderableType:
    """Show areas, and every policy's difference to the best one and to the plain one (max_prob, or the first named).

    All pairs would be too many to read; they are in the JSON.
    """
    area, sd = value["area"], value.get("area_sd", {})
    ordered = sorted(area, key=lambda name: -area[name])
    policies = [name for name in area if name not in BOUNDS]
    best = next((name for name in ordered if name in policies), None)
    plain = next((name for name in ("max_prob", *policies) if name in policies), None)
    bases = [name for name in dict.fromkeys((best, plain)) if name is not None]
    pairs = {(pair["a"], pair["b"]): (pair, 1) for pair in value["pairs"]}
    pairs |= {(pair["b"], pair["a"]): (pair, -1) for pair in value["pairs"]}
    columns = ["policy", "area"]
    for base in bases:
        columns += [f"minus {base}", "95 % interval", "significant"]
    rows = [
        (
            _named(name),
            _spread(area[name], sd.get(name)),
            *(text for base in bases for text in _difference(pairs.get((name, base)))),
        )
        for name in ordered
    ]
    method = f"; differences in points, interval: {value['pairs'][0]['method']}" if value["pairs"] else ""
    return text_table(f"Area: mean utility over the ten standard budgets{method}", columns, rows)


def _difference(found: tuple[Mapping[str, Any], int] | None) -> tuple[str, str, str]:
    """Return a pair, turned round if its sign says so, as difference, interval and verdict."""
    if found is None:
        return "", "", ""
    pair, sign = found
    low, high = sorted((sign * pair["low"], sign * pair["high"]))
    verdict = "significant" if pair["significant"] else "not significant"
    return f"{sign * pair['difference']:+.2f}", f"{low:+.2f} to {high:+.2f}", verdict


def _groups_tables(value: Mapping[str, Any]) -> list[RenderableType]:
    """Show every policy's hardest hit class or group: at the asked budgets, at the middle one if they are many."""
    told = value.get("groups", [])
    budgets = sorted({entry["budget"] for entry in told})
    shown = budgets if len(budgets) <= _MOST_BUDGETS else [budgets[len(budgets) // 2]]
    tables = []
    for by in dict.fromkeys(entry["by"] for entry in told):
        columns = (
            "budget",
            "policy",
            "loss of all",
            f"hardest hit {by}",
            "samples",
            "its loss",
            "95 % interval",
            "pays more",
            "how many do",
        )
        chosen = [entry for budget in shown for entry in told if (entry["by"], entry["budget"]) == (by, budget)]
        rows = [_group_cells(entry) for entry in chosen]
        title = f"Who pays for early exit, by {by}: points of utility below the last exit; interval for all at once"
        tables.append(text_table(title, columns, rows))
    return tables


def _group_cells(entry: Mapping[str, Any]) -> tuple[str, ...]:
    worst = entry["groups"][0]
    return (
        entry["budget_input"],
        entry["policy"],
        f"{entry['loss']:.2f}",
        worst["name"],
        f"{worst['num_samples']:.0f}",
        f"{worst['loss']:.2f}",
        f"{worst['low']:.2f} to {worst['high']:.2f}",
        "yes" if worst["pays_more"] else "no",
        f"{entry['pays_more']} of {entry['num_groups']}",
    )


def bench_table(value: Mapping[str, Any]) -> RenderableType:
    """Show a benchmark: full against adaptive, per engine and batch size.

    Args:
        value: The contract JSON of `eenet bench`.
    """
    columns = (
        "engine",
        "dtype",
        "batch",
        "full ms",
        "adaptive ms",
        "speedup",
        "ideal",
        "ideal FLOPs",
        "efficiency",
        "regrouped",
        "flips",
    )
    rows = [
        (
            row["engine"],
            row["dtype"],
            row["batch_size"],
            row["full_ms"],
            row["adaptive_ms"],
            f"{row['speedup']:.2f}x",
            f"{row['ideal_speedup']:.2f}x",
            f"{row['ideal_speedup_flops']:.2f}x",
            percent(row["efficiency"]),
            percent(row["regrouped_efficiency"]),
            row["flips"],
        )
        for row in value["rows"]
    ]
    title = f"Time per sample on {value['device']}, {value['threads']} threads"
    return text_table(title, columns, rows)


def profile_tables(value: Mapping[str, Any]) -> list[RenderableType]:
    """Show a profile: operations, and times per engine and batch size.

    Args:
        value: What `eenet profile` writes.
    """
    flops = value["flops"]
    tables: list[RenderableType] = [costs_table("Operations per sample", flops)]
    for row in value["latency"]:
        title = f"Time per sample: {row['engine']} {row['dtype']} on {row['device']}, batch size {row['batch_size']}"
        tables.append(costs_table(f"{title}, {value['threads']} threads", row))
    return tables


def costs_table(title: str, costs: Mapping[str, Any]) -> RenderableType:
    """Show a cost table: what leaving at each exit costs, in its unit and of the original model.

    Args:
        title: Said above the table.
        costs: As of `CostTable.to_dict`.
    """
    reference = costs["reference"]
    full = costs["cumulative"][-1] if reference is None else reference
    rows = [(str(k), cost, percent(cost / full)) for k, cost in enumerate(costs["cumulative"])]
    if reference is not None:
        rows.append(("original", reference, percent(1.0)))
    return text_table(
        title, ("exit", costs["unit"], "of the last exit" if reference is None else "of the original"), rows
    )


def demo_tables(value: Mapping[str, Any]) -> list[RenderableType]:
    """Show what the adaptive model of the demo did: budget, cost, accuracy, agreement with replay."""
    fit, real, timed = value["fit"], value["run"], value["bench"]["rows"][-1]
    unit, speedup = real["unit"], timed["speedup"]
    rows = [
        ("budget per sample", fit["budget_meaning"]),
        ("cost per sample, run for real", f"{real['mean_cost']:.4g} {unit} of {real['full_cost']:.4g}"),
        ("accuracy", f"{percent(real['accuracy'])} (all layers: {percent(real['full_accuracy'])})"),
        ("left at exits 0, 1, ...", f"{shares(real['exit_distribution'])} %"),
        (
            f"time per sample, batch size {timed['batch_size']}",
            f"{timed['adaptive_ms']:.3g} ms (all layers: {timed['full_ms']:.3g} ms, {speedup:.2f}x)",
        ),
        ("left where replay foretold", f"{real['same_exit']} of {real['num_samples']}"),
    ]
    return [text_table("The adaptive model on the test images", ("what", "value"), rows)]

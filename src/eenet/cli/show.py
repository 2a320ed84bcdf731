"""How results look on the terminal: contract JSON in, tables out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import RenderableType

from eenet.cli.names import BOUNDS
from eenet.cli.output import percent, shares, text_table


def _exits_table(value: Mapping[str, Any]) -> RenderableType:
    unit = value["unit"]
    rows = [(str(k), exit_["cost"], percent(exit_["utility_test"])) for k, exit_ in enumerate(value["exits"])]
    return text_table("Exits: what each costs and is worth on TEST", ("exit", f"cost {unit}", "utility"), rows)


def _named(policy: str) -> str:
    return f"{policy} (bound)" if policy in BOUNDS else policy


def comparison_tables(value: Mapping[str, Any]) -> list[RenderableType]:
    """Show a comparison: its exits, its rows by budget, its areas.

    Args:
        value: The contract JSON of `eenet compare`.
    """
    unit = value["unit"]
    columns = (
        "budget",
        "policy",
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
            row["val_cost"],
            row["test_cost"],
            percent(row["test_utility"]),
            percent(row["utility_at_budget"]),
            shares(row["exit_distribution"]),
            f"{row['fit_seconds']:.2f}",
        )
        for row in ordered
    ]
    areas = sorted(value["area"].items(), key=lambda item: -item[1])
    return [
        _exits_table(value),
        text_table("Policies", columns, rows),
        text_table(
            "Area: mean utility over the ten standard budgets",
            ("policy", "area"),
            [(_named(name), percent(area)) for name, area in areas],
        ),
    ]


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

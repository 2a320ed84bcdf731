"""The page of `speed.py`: what stopping early saves on the clock."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from eenet.experiments.pages import machine, spread, write_page
from eenet.report import markdown_table

COMMAND = "python benchmarks/speed.py --data-root DIR --runs runs --work runs/speed"
ROW_COLUMNS = (
    "engine",
    "format",
    "batch",
    "full, ms",
    "engine gain",
    "adaptive, ms",
    "exit gain",
    "ideal",
    "efficiency",
    "regrouped",
    "flips",
)


def speed_page(found: dict[str, Any], split: list[dict[str, Any]], options: argparse.Namespace) -> Path:
    """Write the page and return where it stands."""
    models = [model_section(value) for value in found.values()]
    rest = [fewer_section(found), splitting_section(split, found), overhead_section(found), paying_section(found)]
    return write_page(options.out / "speed.md", intro(found, options), *models, *rest, machine())


def intro(found: dict[str, Any], options: argparse.Namespace) -> str:
    """Return what was measured, and how to read it."""
    first = next(iter(found.values()))["engines"][0]
    return f"""# What stopping early saves

Made by `{COMMAND}`
on the runs its help names, seed {options.seed}, {first["threads"]} thread. Policy `auto`, fitted on the calibration
side to the smallest budget whose accuracy there is at most one point below the full model's; accuracies are those of
the test set.

* **full** is the original model without exits on the same engine and in the same number format; **engine gain** is
  eager PyTorch's full time divided by this engine's, at the same batch size; **exit gain** is full divided by adaptive.
* Times are milliseconds per sample: a pass over {first["samples"]} test samples in random order, divided by their
  number; full, adaptive, staged and regrouped passes take turns. Medians over {first["passes"]} passes, quartiles in
  brackets. Differences below ten percent are ties here: the machine is noisy.
* **ideal** is the exit gain if deciding, dropping samples and half-empty batches cost nothing: by the engine's own
  times of stages and heads at that batch size, in the same passes. **efficiency** is the share of that saving which was
  realised, **regrouped** the same with samples waiting for full batches (`AdaptiveModel.predict_all`); both are worked
  out from the medians, their brackets pass by pass, so that a noisy machine may put one beside the other.
* **flips** are samples that left elsewhere than replay says on logits recorded in eager float32 at another batch size.
* CIFAR-10 here is **re-compressed JPEG**, and trainings are short: accuracies may not be compared with published ones.
  Engines that are not in a model's table were not measured in this run.
"""


def model_section(value: dict[str, Any]) -> str:
    """Return one model on all engines."""
    chosen = value["chosen"]
    eager = {row["batch_size"]: row["full_ms"] for row in value["engines"][0]["rows"]}
    rows, notes = [], []
    for one in value["engines"]:
        if "error" in one:
            notes.append(f"* {one['engine']} {one['dtype']}: not measured. {one['error']}")
            continue
        for row in one["rows"]:
            rows.append(bench_row(row, eager[row["batch_size"]]))
    text = (
        f"Budget {chosen['budget']} of the original model's FLOPs. Accuracy on {chosen['test']} test samples "
        f"{100 * chosen['adaptive']:.2f} %, at {100 * chosen['cost']:.0f} % of the cost; full model "
        f"{100 * chosen['full']:.2f} %.\n\n"
    )
    table = markdown_table(ROW_COLUMNS, rows)
    return f"## {value['title']}\n\n{exits_table(value)}\n{text}{table}\n" + "".join(f"{note}\n" for note in notes)


def exits_table(value: dict[str, Any]) -> str:
    """Return what each exit gets right and costs: operations, and measured times with heads and decisions."""
    chosen = value["chosen"]
    measured = [(one["engine"], one["costs"]) for one in value["engines"] if "costs" in one]
    columns = ["exit", "accuracy, %", "FLOPs, %"]
    columns += [f"{engine}, batch {size}, ms" for engine, costs in measured for size in costs]
    rows = [
        (
            str(k),
            f"{100 * accuracy:.2f}",
            f"{100 * cost:.0f}",
            *(f"{at['cumulative'][k]:.2f}" for _, costs in measured for at in costs.values()),
        )
        for k, (accuracy, cost) in enumerate(zip(chosen["accuracy"], chosen["costs"], strict=True))
    ]
    full = tuple(f"{at['reference']:.2f}" for _, costs in measured for at in costs.values())
    return markdown_table(columns, [*rows, ("full", f"{100 * chosen['full']:.2f}", "100", *full)])


def bench_row(row: dict[str, Any], eager: float) -> tuple[str, ...]:
    """Return a row of a model's table."""
    return (
        row["engine"],
        row["dtype"],
        str(row["batch_size"]),
        spread(row["full_ms"], row["full_spread"]),
        f"{eager / row['full_ms']:.2f}",
        spread(row["adaptive_ms"], row["adaptive_spread"]),
        f"{row['speedup']:.2f}",
        f"{row['ideal_speedup']:.2f}",
        spread(row["efficiency"], row["efficiency_spread"]),
        spread(row["regrouped_efficiency"], row["regrouped_efficiency_spread"]),
        str(row["flips"]),
    )


def fewer_section(found: dict[str, Any]) -> str:
    """Return what is left of the losses at batch size 1 with the exits that are worth their time there."""
    columns = ("model", "engine", "exits", "budget", "accuracy, %", "adaptive, ms", "exit gain", "ideal", "efficiency")
    rows = [
        (
            value["title"],
            one["engine"],
            ", ".join(map(str, one["kept"])),
            one["chosen"]["budget"],
            f"{100 * one['chosen']['adaptive']:.2f}",
            spread(one["adaptive_ms"], one["adaptive_spread"]),
            f"{one['speedup']:.2f}",
            f"{one['ideal_speedup']:.2f}",
            spread(one["efficiency"], one["efficiency_spread"]),
            spread(100 * one["overhead"][1], (100 * one["overhead"][0], 100 * one["overhead"][2])),
        )
        for value in found.values()
        for one in value["fewer"]
    ]
    return (
        "## One sample at a time, with the exits that pay\n\nDeciding takes the same time for a small network as for a "
        "large one. Here only the exits that `eenet advise` keeps by the times measured at batch size 1 are left "
        "(numbered as above), and the policy is fitted to these times: the smallest budget, in percent of the full "
        "model's time, that loses at most one point on the calibration set. **overhead** is policy and bookkeeping, "
        "in percent of the full model's time.\n\n" + markdown_table((*columns, "overhead"), rows)
    )


def splitting_section(split: list[dict[str, Any]], found: dict[str, Any]) -> str:
    """Return what all stages in a row cost against the unsplit model, and the memory of both."""
    rows = [
        (
            row["model"],
            row["engine"],
            str(row["batch_size"]),
            spread(row["ratio"][1], (row["ratio"][0], row["ratio"][2])),
        )
        for row in split
    ]
    memory = ", ".join(f"{v['title'].split(' with')[0]} {v['memory']:.3f}" for v in found.values() if v["memory"])
    table = (
        "All four stages in a row without heads, by the unsplit model on the same engine, passes taking turns; median "
        f"and quartiles of the ratios.\n\n{markdown_table(('model', 'engine', 'batch', 'split / unsplit'), rows)}\n"
    )
    return (
        f"## What splitting costs\n\n{table if rows else ''}"
        f"Memory of weights and buffers, stages and original together, by the original's: {memory}. (The eager engine "
        "with `optimise`, and every engine of another runtime, holds a copy of its own.)\n"
    )


def overhead_section(found: dict[str, Any]) -> str:
    """Return the policy's and the bookkeeping's share."""
    rows = [
        (value["title"], one["engine"], size, spread(100 * q[1], (100 * q[0], 100 * q[2])))
        for value in found.values()
        for one in value["engines"]
        for size, q in one.get("overhead", {}).items()
    ]
    return (
        "## Policy and bookkeeping\n\nTime of the adaptive passes outside of stages and heads, in percent of the full "
        "model's time.\n\n" + markdown_table(("model", "engine", "batch", "%"), rows)
    )


def paying_section(found: dict[str, Any]) -> str:
    """Return where exits stop paying."""
    rows = [
        (value["title"], one["engine"], size, budget or "none")
        for value in found.values()
        for one in value["engines"]
        for size, budget in one.get("break_even", {}).items()
    ]
    return (
        "## Where exits stop paying\n\nThe largest budget (of the full model's FLOPs, in steps of 5 %) at which the "
        "measured times of stages, heads and decisions are below the time of the full model.\n\n"
        + markdown_table(("model", "engine", "batch", "budget"), rows)
    )

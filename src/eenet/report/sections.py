"""What a report is made of: sections of plain blocks, which become HTML or Markdown; and the sections about one result.

The results are a policy's report, a benchmark, costs and example inputs; for comparisons see `eenet.report.comparison`.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8

_MOST_GROUPS = 10
_GROUP_COLUMNS = {
    "group": "{name}",
    "samples": "{num_samples:.0f}",
    "utility": "{utility:.2%}",
    "last exit": "{full_utility:.2%}",
    "loss [points]": "{loss:.2f}",
    "95 % interval": "{low:.2f} to {high:.2f}",
    "exits [%]": "{exits}",
}


@dataclass(frozen=True, kw_only=True)
class Example:
    """An input, listed under the exit it left at.

    Attributes:
        exit_index: Where it left.
        caption: For example "8, answered 8".
        image: Grey or RGB, None for other inputs.
        text: The input itself where it is text.
        exits: Where it leaves at every position of the comparison's ``dial``; empty: it stays under ``exit_index``.
    """

    exit_index: int
    caption: str
    image: UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"] | None = None
    text: str = ""
    exits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of cells, plain text, as many as headings; HTML may fold them away under their caption.

    Where a terminal is too narrow, the columns named in ``least`` are left out, in that order.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    folded: bool = False
    least: Sequence[str] = ()

    @classmethod
    def of(
        cls,
        rows: Iterable[Mapping[str, Any]],
        columns: Mapping[str, str],
        caption: str = "",
        least: Sequence[str] = (),
    ) -> Table:
        """Return a table of values, given each heading with the format of its cell, such as ``{cost:.4g}``."""
        cells = [tuple(cell.format_map(row) for cell in columns.values()) for row in rows]
        return cls(tuple(columns), cells, caption, least=least)


@dataclass(frozen=True)
class Gallery:
    """Example inputs under a heading, those that left at one exit."""

    heading: str
    examples: Sequence[Example]
    exit_index: int


class Code(str):
    """A command."""


class Markup(str):
    """HTML made here, whose texts are escaped; for pages only."""


Block: TypeAlias = str | list[str] | Table | Gallery
"""A text stands for a paragraph, a list of texts for bullets."""


@dataclass(frozen=True)
class Section:
    """One part of a report: a heading, and what stands below it."""

    heading: str
    blocks: Sequence[Block]


def exit_shares(shares: Sequence[float]) -> str:
    """Return the shares of all exits in percent."""
    return " · ".join(f"{100 * share:.0f}" for share in shares)


def report_section(report: Mapping[str, Any]) -> Section:
    """Return the section about one policy on one table, from `Report.to_dict()`."""
    unit, budget = report["unit"], report["budget"]
    asked = "" if budget is None else f" (asked: {budget:.4g})"
    summary = (
        f"Over {report['num_samples']} samples the policy costs {report['cost']:.4g} {unit} per sample{asked} and "
        f"reaches a utility of {report['utility']:.2%}; the last exit alone reaches {report['full_utility']:.2%}."
    )
    columns = {
        "exit": "{k}",
        f"cost [{unit}]": "{cost:.4g}",
        "leave here": "{share:.1%}",
        "utility of those": "{those}",
        "utility of all here": "{everybody:.2%}",
    }
    keys = ("exit_costs", "exit_distribution", "exit_utility", "static_utility")
    rows = [
        {"k": k, "cost": cost, "share": share, "those": _or_dash(those, ".2%"), "everybody": everybody}
        for k, (cost, share, those, everybody) in enumerate(zip(*(report[key] for key in keys), strict=True))
    ]
    blocks: list[Block] = [summary, Table.of(rows, columns)]
    if report.get("by_group"):
        groups = report["by_group"][:_MOST_GROUPS]
        caption = "Who pays for leaving early: the classes or groups that surely lose most. Intervals for all together."
        losers = [group | {"exits": exit_shares(group["exit_distribution"])} for group in groups]
        blocks.append(Table.of(losers, _GROUP_COLUMNS, caption))
    return Section("The policy, exit by exit", blocks)


def _or_dash(value: float | None, how: str) -> str:
    return "–" if value is None else format(value, how)


def bench_section(bench: Mapping[str, Any]) -> Section:
    """Return the section about measured times, from the JSON of ``eenet bench``."""
    columns = {
        "engine": "{engine}",
        "dtype": "{dtype}",
        "batch": "{batch_size}",
        "full [ms]": "{full_ms:.4g}",
        "adaptive [ms]": "{adaptive_ms:.4g}",
        "speed-up": "{speedup:.2f}",
        "ideal": "{ideal_speedup:.2f}",
        "efficiency": "{efficiency}",
        "regrouped": "{regrouped_efficiency}",
        "flips": "{flips}",
    }
    shares = ("efficiency", "regrouped_efficiency")  # may be unknown
    rows = [dict(row) | {key: _or_dash(row.get(key), ".2f") for key in shares} for row in bench["rows"]]
    how = f"Time per sample, median over passes, on {bench['device']} with {_threads(bench['threads'])}."
    return Section("Measured time", [how, Table.of(rows, columns, least=("regrouped", "dtype"))])


def cost_rows(costs: Sequence[float], reference: float | None) -> list[tuple[str, str, str]]:
    """Return name, cost, and cost in percent of the full model of every exit, and of the original model if known."""
    full = costs[-1] if reference is None else reference
    named = [(f"exit {k}", cost) for k, cost in enumerate(costs)]
    named += [] if reference is None else [("original model without exits", reference)]
    return [(name, f"{cost:.4g}", f"{cost / full:.1%}") for name, cost in named]


def costs_section(costs: Mapping[str, Any]) -> Section:
    """Return the section about a cost table, from `CostTable.to_dict()` or one part of a profile's JSON."""
    details = [str(costs["engine"])] if "engine" in costs else []
    details += [f"batch size {costs['batch_size']}"] if "batch_size" in costs else []
    heading = "Costs per sample" + (f" ({', '.join(details)})" if details else "")
    columns = ("leaving at", f"cost [{costs['unit']}]", "% of full")
    rows: list[tuple[str, ...]] = list(cost_rows(costs["cumulative"], costs["reference"]))
    if "quartiles" not in costs:
        return Section(heading, [Table(columns, rows)])
    ends = [*costs["quartiles"], (costs["full"]["low"], costs["full"]["high"])]
    rows = [(*row, f"{low:.4g} to {high:.4g}") for row, (low, high) in zip(rows, ends, strict=True)]
    return Section(heading, [Table((*columns, "quartiles over passes"), rows)])


def sizes_section(profile: Mapping[str, Any]) -> Section:
    """Return the section about size and time of the model up to each exit, from the JSON of ``eenet profile``."""
    known = profile["parameters"]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in profile["latency"]:
        tokens = f", texts of {row['length']} tokens" if row.get("length") else ""
        groups.setdefault(f"{row['engine']} {row['dtype']}{tokens}", []).append(row)
    blocks: list[Block] = [_sizes(known, rows, caption) for caption, rows in (groups or {"": []}).items()]
    return Section("Size and time up to each exit", [*blocks, *_policy_size(known)])


def _sizes(known: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], caption: str) -> Table:
    """Return parameters, and the times of one engine at every batch size, of leaving at each exit."""
    exits = len(known["up_to"])
    columns = {
        "leaving at": [*(f"exit {k}" for k in range(exits)), "without exits"],
        "parameters [M]": [f"{count / 1e6:.4g}" for count in (*known["up_to"], known["full"])],
    }
    for row in rows:
        times = (*row["cumulative"], row["full"]["median"])
        columns[f"batch {row['batch_size']} [ms]"] = [f"{time:.4g}" for time in times]
    for row in rows:
        deciding = [f"{1000 * one['median']:.1f}" for one in row["decisions"]]
        columns[f"deciding, batch {row['batch_size']} [µs]"] = [*deciding, "-", "-"]
    return Table(tuple(columns), list(zip(*columns.values(), strict=True)), caption)


def _policy_size(known: Mapping[str, Any]) -> list[str]:
    """Say how many numbers the policy adds whose decisions were timed; nothing where that is not known."""
    if known["policy"] is None:
        return []
    each = known["policy"] / (len(known["up_to"]) - 1)
    return [f"The policy that decides adds {known['policy']} parameters: {each:.4g} per exit at which it decides."]


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def examples_section(examples: Sequence[Example]) -> Section:
    """Return the section with example inputs, grouped by the exit they left at."""
    turn = all(example.exits for example in examples)
    found = {k for example in examples for k in (example.exit_index, *example.exits)}
    galleries = [
        Gallery(f"Left at exit {k}", [example for example in examples if example.exit_index == k], k)
        for k in sorted(found)
    ]
    said = (
        "They move with the budget; answers are those of the policy that was run."
        if turn
        else "At the budget of the policy that was run: the slider moves none."
    )
    return Section("Example inputs by exit", [said, *galleries])


def about_section(*, command: str = "", seed: int | None = None) -> Section:
    """Return the section that says how the page was made: command, seed, machine and versions."""
    versions = [f"Python {platform.python_version()}"]
    for library in ("eenet", "numpy", "torch", "onnxruntime", "openvino"):
        try:
            versions.append(f"{library} {importlib.metadata.version(library)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    facts = [
        *([] if seed is None else [("seed", str(seed))]),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical cores"),
        ("software", ", ".join(versions)),
    ]
    return Section("How this page was made", [*([Code(command)] if command else []), Table(("what", "value"), facts)])

"""Sections of a report page, each from one result: a policy's report, a benchmark, costs, example inputs."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from matplotlib.image import imsave

from eenet.report import html
from eenet.report.html import Section

__all__ = [
    "Example",
    "about_section",
    "bench_section",
    "costs_section",
    "examples_section",
    "percent",
    "report_section",
]


_MOST_GROUPS = 10


@dataclass(frozen=True, kw_only=True)
class Example:
    """An input shown under the exit it left at.

    Attributes:
        exit_index: Where it left.
        caption: For example "8, answered 8".
        image: Grey or RGB, None for other inputs.
        text: The input itself where it is text.
    """

    exit_index: int
    caption: str
    image: UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"] | None = None
    text: str = ""


def report_section(report: Mapping[str, Any]) -> Section:
    """Return the section about one policy on one table, from `Report.to_dict()`."""
    unit, budget = report["unit"], report["budget"]
    asked = "" if budget is None else f" (asked: {budget:.4g})"
    said = (
        f"Over {report['num_samples']} samples the policy costs {report['cost']:.4g} {unit} per sample{asked} and "
        f"reaches a utility of {percent(report['utility'])} %; the last exit alone "
        f"reaches {percent(report['full_utility'])} %."
    )
    columns = ("exit", f"cost [{unit}]", "leave here [%]", "utility of those [%]", "utility of all here [%]")
    rows = [
        (str(k), f"{cost:.4g}", percent(share, 1), "–" if leaving is None else percent(leaving), percent(everybody))
        for k, (cost, share, leaving, everybody) in enumerate(
            zip(
                report["exit_costs"],
                report["exit_distribution"],
                report["exit_utility"],
                report["static_utility"],
                strict=True,
            )
        )
    ]
    body = html.paragraph(said) + html.table(columns, rows)
    return Section("The policy, exit by exit", body + _hardest_hit(report.get("by_group", ())))


def _hardest_hit(groups: Sequence[Mapping[str, Any]]) -> str:
    """Return the groups that lose most by leaving early, ten at most; nothing for no groups."""
    if not groups:
        return ""
    columns = ("group", "samples", "utility [%]", "last exit [%]", "loss [points]", "95 % interval", "exits [%]")
    rows = [
        (
            group["name"],
            f"{group['num_samples']:.0f}",
            percent(group["utility"]),
            percent(group["full_utility"]),
            f"{group['loss']:.2f}",
            f"{group['low']:.2f} to {group['high']:.2f}",
            " · ".join(percent(share, 0) for share in group["exit_distribution"]),
        )
        for group in groups[:_MOST_GROUPS]
    ]
    said = "Who pays for leaving early: the classes or groups that surely lose most. Intervals for all groups at once."
    return html.table(columns, rows, said)


def bench_section(bench: Mapping[str, Any]) -> Section:
    """Return the section about measured times, from the JSON of ``eenet bench``."""
    names = ("engine", "dtype", "batch", "full [ms]", "adaptive [ms]", "speed-up", "ideal", "efficiency")
    columns = (*names, "regrouped", "flips")

    def share(value: float | None) -> str:
        return "–" if value is None else f"{value:.2f}"

    rows = [
        (
            str(row["engine"]),
            str(row["dtype"]),
            str(row["batch_size"]),
            f"{row['full_ms']:.4g}",
            f"{row['adaptive_ms']:.4g}",
            f"{row['speedup']:.2f}",
            f"{row['ideal_speedup']:.2f}",
            share(row["efficiency"]),
            share(row.get("regrouped_efficiency")),
            str(row["flips"]),
        )
        for row in bench["rows"]
    ]
    said = f"Time per sample, median over passes, on {bench['device']} with {bench['threads']} threads."
    return Section("Measured time", html.paragraph(said) + html.table(columns, rows))


def costs_section(costs: Mapping[str, Any]) -> Section:
    """Return the section about a cost table, from `CostTable.to_dict()` or one part of a profile's JSON."""
    full = costs["cumulative"][-1] if costs["reference"] is None else costs["reference"]
    rows = [(f"exit {k}", f"{cost:.4g}", percent(cost / full, 1)) for k, cost in enumerate(costs["cumulative"])]
    if costs["reference"] is not None:
        rows.append(("original model without exits", f"{full:.4g}", "100.0"))
    details = [str(costs["engine"])] if "engine" in costs else []
    details += [f"batch size {costs['batch_size']}"] if "batch_size" in costs else []
    heading = "Costs per sample" + (f" ({', '.join(details)})" if details else "")
    return Section(heading, html.table(("leaving at", f"cost [{costs['unit']}]", "% of full"), rows))


def examples_section(examples: Sequence[Example]) -> Section:
    """Return the section with example inputs, grouped by the exit they left at."""
    parts = []
    for k in sorted({example.exit_index for example in examples}):
        shown = "".join(_example(example) for example in examples if example.exit_index == k)
        parts.append(f'<h3>Left at exit {k}</h3>\n<div class="examples">\n{shown}</div>\n')
    return Section("Example inputs by exit", "".join(parts))


def about_section(*, command: str = "", seed: int | None = None) -> Section:
    """Return the section that says how the page was made: command, seed, machine and versions."""
    facts = [
        *([] if seed is None else [("seed", str(seed))]),
        ("machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} logical cores"),
        ("threads", str(torch.get_num_threads())),
        ("software", f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"),
    ]
    shown = f"<pre>{escape(command)}</pre>\n" if command else ""
    return Section("How this page was made", shown + html.table(("what", "value"), facts))


def percent(value: float, digits: int = 2) -> str:
    """Return a fraction as a number of percent."""
    return f"{100 * value:.{digits}f}"


def _example(example: Example) -> str:
    if example.image is None:
        return f"<figure><p>{escape(example.text)}</p><figcaption>{escape(example.caption)}</figcaption></figure>\n"
    buffer = io.BytesIO()
    imsave(buffer, example.image, format="png", cmap="gray", vmin=0, vmax=255)
    return html.image(buffer.getvalue(), alt=f"input: {example.caption}", caption=example.caption)

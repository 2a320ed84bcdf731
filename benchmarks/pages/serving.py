"""The page of `serving.py`: a server whose samples leave between stages, beside the same one with the full model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eenet.experiments.pages import again, bullets, machine, write_page
from eenet.report import markdown_table

COMMANDS = (
    "python benchmarks/serving.py --data-root DIR --out runs/serving --prepare",
    "python benchmarks/serving.py --data-root DIR --out runs/serving",
)
CAVEATS = (
    "One machine, a server with one core and clients on another; each step takes a few seconds, so that the 99th "
    "percentile is read from some hundred or thousand requests.",
    "Both servers batch alike; the full model is one graph without exits.",
    "Clients send at times drawn beforehand, whatever the server does; latencies count from these times.",
    "Goodput: the most answers within the target a second, over the rates tried, where at least 99 % of the requests "
    "were answered within it.",
    "CIFAR-10 here is re-compressed JPEG: accuracies are lower than published ones.",
)


def serving_page(found: Mapping[str, Any], options: argparse.Namespace, titles: Mapping[str, str]) -> Path:
    """Write the page and return where it stands."""
    return write_page(
        options.page / "serving.md",
        "# A server that lets samples leave",
        _intro(options),
        *(_section(titles[name], one) for name, one in found.items()),
        bullets("Caveats", CAVEATS),
        again(*COMMANDS),
        machine(),
    )


def _intro(options: argparse.Namespace) -> str:
    return (
        "`eenet serve` beside the same server with the full model. The policy is that of the budget at which accuracy "
        "is one point below the full model's on the calibration samples. Engine: ONNX Runtime, one thread; batches of "
        f"{options.max_batch} at most. The target of the latency is the time of {options.slo_batches:g} such "
        "batches of the full model."
    )


def _section(title: str, one: Mapping[str, Any]) -> str:
    return "\n\n".join(
        (f"## {title}", _about(one), _goodput(one), _latencies(one), _overload(one), _rest(one)),
    )


def _about(one: Mapping[str, Any]) -> str:
    shares = ", ".join(f"{share:.0%}" for share in one["exit_distribution"])
    return (
        f"Budget {one['budget']}: accuracy {one['adaptive_accuracy']:.2%} instead of {one['accuracy'][-1]:.2%}, left "
        f"at the exits: {shares}. By stage times alone it would be {one['ideal']:.2f} times as fast "
        f"({one['full_ms']:.3g} and {one['adaptive_ms']:.3g} ms per sample). The target of the latency is "
        f"{one['slo_ms']:.0f} ms."
    )


def _goodput(one: Mapping[str, Any]) -> str:
    rows = []
    for form, found in one["forms"].items():
        goal = one["goals"][form]
        rows.append(
            (
                form,
                f"{found['full']['goodput']:.0f}",
                f"{found['adaptive']['goodput']:.0f}",
                _times(found["ratio"]),
                "" if goal is None else f"{goal:g}",
                _times(found["most_ratio"]),
                "-" if found["reached"] is None else f"{found['reached']:.0%}",
            )
        )
    head = ("tensors", "full, 1/s", "early exits, 1/s", "ratio", "goal", "ratio without target", "of the ideal")
    return "Goodput within the target:\n\n" + markdown_table(head, rows)


def _latencies(one: Mapping[str, Any]) -> str:
    rows = []
    for form, found in one["forms"].items():
        for kind, name in (("full", "full"), ("adaptive", "early exits")):
            half = found[kind]["half"]
            values = (half["p50_ms"], half["p99_ms"], half["last_p99_ms"] if kind == "adaptive" else None)
            rows.append((form, name, f"{half['rate']:.0f}", *map(_ms, values), _ms(found[kind]["burst_p99_ms"])))
    head = ("tensors", "server", "rate, 1/s", "p50, ms", "p99, ms", "p99 of the last exit, ms", "p99 in bursts, ms")
    return "At half of what the full model can do, and in bursts of 48 at the same mean rate:\n\n" + markdown_table(
        head, rows
    )


def _overload(one: Mapping[str, Any]) -> str:
    names = {"full": "full model", "fixed": "early exits, budget 100%", "slo": "early exits, `--slo-ms`"}
    rows = [
        (
            name,
            _ms(one["overload"][key]["p99_ms"]),
            f"{one['overload'][key]['kept']:.1%}",
            str(one["overload"][key]["refused"]),
            str(one["overload"][key]["lost"]),
            "-" if one["overload"][key]["accuracy"] is None else f"{one['overload'][key]['accuracy']:.2%}",
        )
        for key, name in names.items()
    ]
    head = ("server", "p99, ms", "within the target", "refused (429)", "lost", "accuracy of answers")
    return (
        f"At 150 % of what the full model can do ({one['overload']['rate']:.0f} requests a second). `--slo-ms` is 80 % "
        "of the target:\n\n" + markdown_table(head, rows)
    )


def _rest(one: Mapping[str, Any]) -> str:
    over, turned = one["overhead"], one["turned"]
    lines = [
        f"One request after the other, one sample each: the loop alone takes {over['bare']:.2f} ms; the server adds "
        f"{over['json_added']:.2f} ms with JSON and {over['binary_added']:.2f} ms with bytes (medians, with "
        "the client's work).",
        f"The dial turned {turned['turns']} times during {turned['requests']} requests: {turned['lost']} lost, "
        f"{turned['refused']} refused; {turned['strange']} answers are those of no policy at their exit, by the "
        "outputs recorded in PyTorch.",
    ]
    if soak := one.get("soak"):
        lines.append(
            f"{soak['requests']} requests over 256 connections: {soak['lost']} not answered; memory "
            f"{soak['first'] / 2**20:.0f} MiB after a twentieth of them, {soak['last'] / 2**20:.0f} MiB at the end."
        )
    return "\n".join(f"* {line}" for line in lines)


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"

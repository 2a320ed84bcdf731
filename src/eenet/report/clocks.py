"""How fast a model is that leaves early, estimated from measured times."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_TIMES = ("us", "ms", "s")
_LEAST = 0.02  # saved of the time: where less is saved, efficiency is chance


@dataclass(frozen=True, kw_only=True)
class Clock:
    """What leaving at each exit takes, on one engine at one batch size.

    Attributes:
        name: Of the engine, and its number format.
        batch_size: None where it is not known.
        full_ms: Time per sample of the original model.
        times: Of leaving at each exit, as a share of that.
        efficiency: Which part of the time saved on paper a run saved; 1 where none was measured.
    """

    name: str
    batch_size: int | None
    full_ms: float
    times: tuple[float, ...]
    efficiency: float = 1.0

    def speedup(self, exits: Sequence[float]) -> float:
        """Return how many times faster than the original model it is where these shares of the samples leave."""
        return 1 / (1 - self.efficiency * (1 - float(np.dot(exits, self.times))))


def clocks(
    comparison: Mapping[str, Any], bench: Mapping[str, Any] | None, profile: Mapping[str, Any] | None
) -> list[Clock]:
    """Return the clocks that benchmark and profile give; without either, that of costs in a unit of time.

    A benchmark saw one policy. Of the time that this would have saved if stages took what the profile measured, or,
    without it, as long as they cost, a part was saved: the efficiency, which is taken to be that of other budgets.

    Args:
        comparison: `Comparison.to_dict()`.
        bench: What ``eenet bench --json`` wrote.
        profile: What ``eenet profile`` wrote.
    """
    costs = [one["cost"] for one in comparison["exits"]]
    full = comparison["reference"] or costs[-1]
    known = list(_profiled(profile or {}, len(costs)))
    if bench is not None:
        return list(_benched(bench, known, [cost / full for cost in costs]))
    if known or comparison["unit"] not in _TIMES:
        return known
    per_ms = {"us": 1e-3, "ms": 1.0, "s": 1e3}[comparison["unit"]]
    return [Clock(name="costs", batch_size=None, full_ms=full * per_ms, times=tuple(cost / full for cost in costs))]


def _profiled(profile: Mapping[str, Any], num_exits: int) -> Iterator[Clock]:
    for row in profile.get("latency", ()):
        full = row["full"]["median"]
        if len(row["cumulative"]) == num_exits and not row.get("length"):
            times = tuple(time / full for time in row["cumulative"])
            yield Clock(name=_name(row), batch_size=row["batch_size"], full_ms=full, times=times)


def _benched(bench: Mapping[str, Any], known: Sequence[Clock], costs: Sequence[float]) -> Iterator[Clock]:
    by_name = {(one.name, one.batch_size): one.times for one in known}
    for row in bench["rows"]:
        exits = row.get("exit_distribution", ())
        if len(exits) != len(costs):
            continue
        times = by_name.get((_name(row), row["batch_size"]), tuple(costs))
        on_paper = 1 - float(np.dot(exits, times))
        if on_paper > _LEAST:
            efficiency = (1 - 1 / row["speedup"]) / on_paper
            yield Clock(
                name=_name(row),
                batch_size=row["batch_size"],
                full_ms=row["full_ms"],
                times=times,
                efficiency=efficiency,
            )


def _name(row: Mapping[str, Any]) -> str:
    return " ".join(str(row[key]) for key in ("engine", "dtype") if row.get(key))

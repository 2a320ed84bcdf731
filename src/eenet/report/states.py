"""What every budget of a comparison shows on its page, worked out beforehand: a `State` for each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from eenet.evaluation.saving import Saving, points
from eenet.report.clocks import Clock
from eenet.report.svg import Curve, Frame, Point, halves

_MOST_LOST = 1.0  # points, where the slider begins unless a budget was asked for
_BASELINE = "max_prob"
_BOUNDS = ("random", "oracle")


@dataclass(frozen=True, kw_only=True)
class State:
    """What one budget shows: texts by name, empty for none, and attributes of what is drawn."""

    text: dict[str, str] = field(default_factory=dict)
    draw: dict[str, dict[str, str]] = field(default_factory=dict)


def chosen_policy(comparison: Mapping[str, Any]) -> str | None:
    """Return the policy that is shown first: the tested one, else that with the largest area; None without any."""
    area = comparison["area"]
    tested = comparison.get("family", {}).get("policy")
    policies = sorted((name for name in area if name not in _BOUNDS), key=lambda name: -area[name])
    return tested if tested in area else next(iter(policies), None)


class Turned:
    """A comparison as a reader turns it: curves, points, and the state of every budget.

    Args:
        comparison: `Comparison.to_dict()`.
        policy: The policy that is turned.
        times: To estimate speed-ups from.
        number: Of the comparison on the page.
        verdict: Said at the first budget; empty for the sentence with estimated times.
        budget: Where the slider begins; None: see `eenet.report.explorer.explorer`.
    """

    def __init__(
        self,
        comparison: Mapping[str, Any],
        policy: str,
        times: Sequence[Clock],
        *,
        number: int,
        verdict: str,
        budget: float | None,
    ) -> None:
        self.comparison, self.policy, self.number, self.unit = comparison, policy, number, comparison["unit"]
        exits = comparison["exits"]
        self.full = comparison["reference"] or exits[-1]["cost"]
        self.original = "the last exit" if comparison["reference"] is None else "the original model"
        self.last = exits[-1]["utility_test"]
        dial = comparison.get("dial") or {}
        self.drawn = dial.get("scores", [])
        self.positions = dial.get("positions") or _from_rows(comparison, policy)
        self.times = list(times)
        self.curves = self._curves()
        self.points = [
            Point(name=f"exit {k}", cost=one["cost"], utility=100 * one["utility_test"]) for k, one in enumerate(exits)
        ]
        self.points += [
            Point(name=one["name"], cost=one["cost"], utility=100 * one["utility"], of_exit=False)
            for one in comparison.get("statics", ())
        ]
        shown = [one for one in self.curves if one.name != "oracle"]
        self.frame = Frame.around(
            self.full,
            [*(one.cost for one in self.points), *(cost for curve in shown for cost in curve.costs)],
            [*(one.utility for one in self.points), *(value for curve in shown for value in curve.utilities)],
        )
        self.savings = [self._saving(one) for one in self.positions]
        self.start = self._start(budget)
        self.states = [self._state(k) for k in range(len(self.positions))]
        if verdict:
            self.states[self.start].text["verdict"] = verdict
        self.now = self.states[self.start]

    def _start(self, budget: float | None) -> int:
        """Return the position where the slider begins."""
        if budget is None:
            asked = [row["budget"] for row in self.comparison["rows"] if row["policy"] == self.policy]
            budget = asked[0] if asked and asked[0] not in self.comparison.get("standard_budgets", ()) else None
        if budget is not None:
            return min(range(len(self.positions)), key=lambda k: abs(self.positions[k]["budget"] - budget))
        most = 100 * self.last - _MOST_LOST
        return next((k for k, one in enumerate(self.positions) if 100 * one["utility"] >= most), -1) % len(
            self.positions
        )

    def _saving(self, position: Mapping[str, Any]) -> Saving:
        """Return the saving at a budget, with estimated speed-ups by batch size of the first engine."""
        own = [clock for clock in self.times if clock.name == self.times[0].name and clock.batch_size]
        speedups = {clock.batch_size: clock.speedup(position["exit_distribution"]) for clock in own if clock.batch_size}
        known = position.get("saving") or self._by_means(position)
        values = {one.name: known[one.name] for one in fields(Saving) if one.name in known}
        values["gain"] = tuple(math.nan if value is None else value for value in values["gain"])
        values |= {"full_utility": math.nan} if values.get("full_utility") is None else {}
        values["lost_error"] = math.inf if values["lost_error"] is None else values["lost_error"]
        return Saving(**values | {"exits": tuple(values["exits"]), "speedups": speedups})

    def _by_means(self, position: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is known of a saving where samples are not: nothing about its chance."""
        exits, cost = self.comparison["exits"], position["cost"]
        cheap = [k for k, one in enumerate(exits) if one["cost"] <= cost * (1 + 1e-9)]
        best = max(cheap, key=lambda k: exits[k]["utility_test"]) if cheap else None
        return {
            "cost_share": cost / self.full,
            "unit": self.unit,
            "lost": 100 * (self.last - position["utility"]),
            "lost_error": math.inf,
            "exits": position["exit_distribution"],
            "static_exit": best,
            "static_lost": None if best is None else 100 * (self.last - exits[best]["utility_test"]),
            "gain": (math.nan,) * 3,
            "num_samples": self.comparison["n_test"],
        }

    def _curves(self) -> list[Curve]:
        """Return the policy, the best static mix and the baseline first, then all others by area."""
        area, curves = self.comparison["area"], self.comparison["curves"]
        first = [self.policy, "random", _BASELINE]
        others = sorted((name for name in curves if name not in (*first, "oracle")), key=lambda name: -area[name])
        names = [name for name in dict.fromkeys([*first, *others, "oracle"]) if name in curves]
        return [self._curve(name, shown=name in first) for name in names]

    def _curve(self, name: str, *, shown: bool) -> Curve:
        points = [(one["cost"], one["utility"]) for one in self.comparison["curves"][name]]
        if name == self.policy:
            points += [(one["cost"], one["utility"]) for one in self.positions]
        costs, utilities = zip(*dict(sorted(points)).items(), strict=True)
        note = {"random": "best static mix of exits", "oracle": "knows the labels: mostly luck, no goal"}.get(name, "")
        return Curve(name=name, costs=costs, utilities=[100 * one for one in utilities], shown=shown, note=note)

    # what one budget shows

    def _state(self, k: int) -> State:
        position, saving = self.positions[k], self.savings[k]
        texts, draw = self._numbers(position, saving), self._drawing(position)
        tone = "" if math.isnan(saving.gain[0]) and saving.pays else "pays" if saving.pays else "not"
        draw["verdict"] = {"class": f"verdict {tone}".strip()}
        texts |= {f"share-{i}": f"{one:.1%}" for i, one in enumerate(position["exit_distribution"])}
        for i, one in enumerate(position.get("exit_utility", ())):
            texts[f"those-{i}"] = "–" if one is None else f"{one:.1%}"
        for i, group in enumerate(position.get("who_pays", ())):
            texts |= {f"group-{i}": f"{group['by']} {group['name']}", f"size-{i}": f"{group['num_samples']:.0f}"}
            texts[f"loss-{i}"] = f"{group['loss']:.1f} ({group['low']:.1f} to {group['high']:.1f})"
        paying = position.get("num_paying", 0)
        texts["paying"] = {0: "nobody surely loses more", 1: "1 class or group surely loses more"}.get(
            paying, f"{paying} classes or groups surely lose more"
        )
        self._score(position, texts, draw)
        return State(text=texts, draw=draw)

    def _numbers(self, position: Mapping[str, Any], saving: Saving) -> dict[str, str]:
        lost = f"{round(saving.lost, 1) + 0.0:.1f}"
        texts = {
            "verdict": f"About {saving.sentence}" if saving.speedups and saving.pays else saving.sentence,
            "budget": f"{position['budget'] / self.full:.1%} of {self.original} = {position['budget']:.4g} {self.unit}",
            "cost": f"{saving.cost_share:.1%}",
            "cost_note": f"{position['cost']:.4g} of {self.full:.4g} {self.unit}",
            "lost": lost,
            "lost_note": f"± {1.96 * saving.lost_error:.1f}" if math.isfinite(saving.lost_error) else "",
            "utility": f"{position['utility']:.2%}",
            "utility_note": f"the last exit: {self.last:.2%}",
        }
        gain, low, high = saving.gain
        texts["gain"] = f"{gain:+.1f}" if math.isfinite(gain) else ""
        texts["gain_note"] = f"points; 95 % interval {low:+.1f} to {high:+.1f}" if math.isfinite(low + high) else ""
        fast = ""
        for i, clock in enumerate(self.times):
            speedup = clock.speedup(position["exit_distribution"])
            texts |= {f"speed-{i}": f"{speedup:.2f}x", f"ms-{i}": f"{clock.full_ms / speedup:.3g} ms"}
            fast = fast or f", about {speedup:.1f}x as fast"
        texts["now"] = f"Spends {saving.cost_share:.1%}, {points(saving.lost, verb=True)}{fast}."
        return texts

    def _drawing(self, position: Mapping[str, Any]) -> dict[str, dict[str, str]]:
        x, y = self.frame.at(position["cost"], 100 * position["utility"])
        draw = {"line": {"x1": x, "x2": x, "y1": y, "y2": "100%"}, "dot": {"cx": x, "cy": y}}
        for i, share in enumerate(position["exit_distribution"]):
            draw[f"bar-{i}"] = {"style": f"width:{100 * share:.2f}%"}
        return draw

    def _score(self, position: Mapping[str, Any], texts: dict[str, str], draw: dict[str, dict[str, str]]) -> None:
        if position.get("score") is None:
            return
        drawn = self.drawn[position["score"]]
        texts["what"] = f"The score: {drawn['what']}."
        for i, one in enumerate(drawn["exits"]):
            at = position["thresholds"][i] if i < len(position["thresholds"]) else 0.0
            if at <= 0:
                said = "all leave that came here"
            elif at >= 1:
                said = "nobody leaves here"
            else:
                said = f"leave from {at:.3f} on"
            area = "" if one["auroc"] is None else f"; AUROC {one['auroc']:.3f}"
            texts[f"score-{i}"] = f"{said}{area}"
            x = f"{100 * min(max(at, 0.002), 0.998):.2f}%"
            draw |= {
                f"right-{i}": {"d": halves(one["right"], up=True)},
                f"wrong-{i}": {"d": halves(one["wrong"], up=False)},
                f"at-{i}": {"x1": x, "x2": x},
            }


def _from_rows(comparison: Mapping[str, Any], policy: str) -> list[dict[str, Any]]:
    """Return the asked budgets as positions, of a comparison without dial."""
    rows = {row["budget"]: row for row in comparison["rows"] if row["policy"] == policy}
    return [
        {"budget": budget, "cost": row["test_cost"], "utility": row["test_utility"]}
        | {"exit_distribution": row["exit_distribution"]}
        for budget, row in sorted(rows.items())
    ]

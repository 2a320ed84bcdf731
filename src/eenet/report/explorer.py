"""The part of a page that a reader turns: one budget after the other, all worked out beforehand.

A slider chooses a `State`. The page is written in its first state, so that it can be read without JavaScript.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from eenet.errors import visible
from eenet.evaluation.saving import Saving, points
from eenet.report.clocks import Clock, clocks
from eenet.report.sections import Markup, Table, exit_shares
from eenet.report.svg import Curve, Frame, Point, chart, escape, halves, swatch

_MOST_LOST = 1.0  # points, where the slider begins unless a budget was asked for
_BASELINE = "max_prob"
_BOUNDS = ("random", "oracle")
_ESTIMATED = "Speed-ups are estimated from measured times: {how}."


@dataclass(frozen=True, kw_only=True)
class State:
    """What one budget shows: texts by name, empty for none, and attributes of what is drawn."""

    text: dict[str, str] = field(default_factory=dict)
    draw: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Explorer:
    """A comparison whose budget can be turned.

    Attributes:
        verdict: What is saved and lost at the budget.
        turn: Slider, numbers and chart.
        exits: Who leaves where.
        scores: By what they leave; empty where that is not known.
        who_pays: Empty where nobody surely pays more than others.
        budgets: The same of all budgets, as a table.
    """

    verdict: Markup
    turn: Markup
    exits: Markup
    scores: Markup
    who_pays: Markup
    budgets: Table


def chosen_policy(comparison: Mapping[str, Any]) -> str | None:
    """Return the policy that is shown first: the tested one, else that with the largest area; None without any."""
    area = comparison["area"]
    tested = comparison.get("family", {}).get("policy")
    policies = sorted((name for name in area if name not in _BOUNDS), key=lambda name: -area[name])
    return tested if tested in area else next(iter(policies), None)


def explorer(
    comparison: Mapping[str, Any],
    *,
    number: int = 0,
    bench: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
    verdict: str = "",
    budget: float | None = None,
) -> Explorer | None:
    """Return what can be turned; None where the comparison has no policy.

    Args:
        comparison: `Comparison.to_dict()`; without ``dial`` only the asked budgets can be chosen.
        number: Of this one on the page.
        bench: What ``eenet bench --json`` wrote.
        profile: What ``eenet profile`` wrote.
        verdict: Said at the first budget instead of the sentence with estimated times.
        budget: Where the slider begins, in the comparison's unit. Default: the first asked; where none was, the
            smallest that loses at most one point.
    """
    policy = chosen_policy(comparison)
    if policy is None:
        return None
    times = clocks(comparison, bench, profile)
    turned = _Turned(comparison, policy, times, number=number, verdict=verdict, budget=budget)
    return Explorer(
        verdict=turned.verdict(),
        turn=Markup(turned.slider() + turned.cards() + turned.plot()),
        exits=turned.exits(),
        scores=turned.scores(),
        who_pays=turned.who_pays(),
        budgets=turned.table(),
    )


class _Turned:
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
            "verdict": saving.sentence,
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

    # the page in its first state

    def _text(self, name: str, tag: str = "span", extra: str = "") -> str:
        return f'<{tag} data-text="{self.number}:{name}"{extra}>{escape(self.now.text.get(name, ""))}</{tag}>'

    def _drawn(self, name: str) -> str:
        known = self.now.draw.get(name, {})
        return f'data-draw="{self.number}:{name}" ' + " ".join(f'{key}="{value}"' for key, value in known.items())

    def _if(self, name: str) -> str:
        return f'data-if="{self.number}:{name}"' + ("" if self.now.text.get(name) else " hidden")

    def verdict(self) -> Markup:
        said = escape(self.now.text["verdict"])
        return Markup(f'<p data-text="{self.number}:verdict" {self._drawn("verdict")}>{said}</p>')

    def slider(self) -> str:
        i, states = (
            self.number,
            [{"text": {key: visible(text) for key, text in one.text.items()}, "draw": one.draw} for one in self.states],
        )
        data = json.dumps(states, ensure_ascii=True, separators=(",", ":"))
        for character in "<>&":
            data = data.replace(character, f"\\u{ord(character):04x}")
        return (
            f'<div class="turn"><label for="turn-{i}">Budget per sample: {self._text("budget")}</label>\n<div>'
            f'<button type="button" data-step="{i}:-1" aria-label="smaller budget">−</button>'
            f'<input type="range" id="turn-{i}" data-turn="{i}" min="0" max="{len(states) - 1}" step="1" '
            f'value="{self.start}">'
            f'<button type="button" data-step="{i}:1" aria-label="larger budget">+</button></div>\n'
            f"{self._text('now', extra=' class=now')}</div>\n"
            f'<script type="application/json" id="states-{i}">{data}</script>\n'
        )

    def cards(self) -> str:
        cards = [
            ("Realised cost", "cost", self._text("cost_note")),
            ("Points lost", "lost", self._text("lost_note")),
            ("Utility", "utility", self._text("utility_note")),
        ]
        if any(one.text["gain"] for one in self.states):
            cards.append(("Above the best static mix", "gain", self._text("gain_note")))
        for k, clock in enumerate(self.times[:4]):
            batch = "" if clock.batch_size is None else f", batch {clock.batch_size}"
            note = f"{self._text(f'ms-{k}')} instead of {clock.full_ms:.3g} ms, {escape(clock.name)}"
            cards.append((f"Speed-up{batch} (estimated)", f"speed-{k}", note))
        listed = "".join(
            f'<div><dt>{title}</dt><dd>{self._text(name)}<span class="muted">{note}</span></dd></div>\n'
            for title, name, note in cards
        )
        how = f'<p class="muted">{_ESTIMATED.format(how=self._how())}</p>\n' if self.times else ""
        return f'<dl class="cards">\n{listed}</dl>\n{how}'

    def _how(self) -> str:
        if any(clock.efficiency != 1 for clock in self.times):
            return (
                "of the time saved on paper, the part that the benchmark really saved (see Measured time) is taken "
                "to be the same at every budget"
            )
        return "the mean time of leaving at each exit, without that of decisions"

    def plot(self) -> str:
        i = self.number
        marker = {"line": self._drawn("line"), "dot": self._drawn("dot")}
        alt = (
            f"Utility over mean cost per sample: {', '.join(one.name for one in self.curves if one.shown)}, and every "
            "exit for all samples. The numbers are in the tables below."
        )
        boxes: dict[bool, str] = {True: "", False: ""}
        for k, one in enumerate(self.curves):
            note = f" ({escape(one.note)})" if one.note else ""
            boxes[one.shown] += (
                f'<label><input type="checkbox" data-curve="curve-{i}-{k}"{" checked" * one.shown}>{swatch(one, k)}'
                f"<span>{escape(one.name)}{note}</span></label>\n"
            )
        more = (
            f'<details class="more"><summary>{len(self.curves) - boxes[True].count("<label>")} other curves</summary>'
        )
        more += f'<fieldset class="legend"><legend>Other curves</legend>{boxes[False]}</fieldset></details>\n'
        drawn = chart(self.frame, self.curves, self.points, name=f"curve-{i}", alt=alt, marker=marker)
        bent = ", logarithmic" if self.frame.logarithmic else ""
        return (
            f'<figure><p class="axis">Utility on the test samples [%]</p>{drawn}\n'
            f'<p class="axis x">Mean cost per sample, % of {self.original} '
            f"(100 % = {self.full:.4g} {escape(self.unit)}){bent}</p>\n"
            f'<fieldset class="legend"><legend>Curves</legend>{boxes[True]}</fieldset>\n'
            f"{more if boxes[False] else ''}<figcaption>Realised cost and "
            f"utility on the test samples. Large dot: {escape(self.policy)} at the chosen budget. Circles: every exit "
            f"for all samples{'; diamonds: models without exits' * bool(self.comparison.get('statics'))}. The numbers "
            "are in the tables below.</figcaption></figure>\n"
        )

    def exits(self) -> Markup:
        known = "those-0" in self.now.text
        those = "<th scope=col>utility of those</th>" if known else ""
        head = f"<th scope=col>exit</th><th scope=col class=bar>leave here</th><th scope=col>share</th>{those}"
        rows = ""
        for k, one in enumerate(self.comparison["exits"]):
            name = escape(one.get("name", f"exit {k}"))
            cells = f'<td class="bar"><span class="fill" {self._drawn(f"bar-{k}")}></span></td>'
            cells += self._text(f"share-{k}", "td") + (self._text(f"those-{k}", "td") if known else "")
            everybody = "".join(
                f"<td class=fixed>{share:.1%}</td>" for share in (one["utility_test"], one["cost"] / self.full)
            )
            rows += f"<tr><th scope=row>{name}</th>{cells}{everybody}</tr>\n"
        head += "<th scope=col class=fixed>utility of all</th><th scope=col class=fixed>cost</th>"
        caption = (
            f"Where the test samples leave under {escape(self.policy)} at the chosen budget. Of those: "
            f"the samples that leave there; of all: if all samples left there. Cost: in % of {self.original}."
        )
        return Markup(
            f'<div class="wide" tabindex="0" role="region" aria-label="Who leaves where"><table class="bars"><caption>'
            f"{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
        )

    def scores(self) -> Markup:
        if not self.drawn:
            return Markup("")
        figures = ""
        for k in range(max(len(one["exits"]) for one in self.drawn)):
            right, wrong = self._drawn(f"right-{k}"), self._drawn(f"wrong-{k}")
            figures += (
                f"<figure {self._if(f'score-{k}')}><figcaption>exit {k}: {self._text(f'score-{k}')}</figcaption>"
                f'<svg class="small" role="img" aria-label="Scores at exit {k}, right and wrong samples, with the '
                'threshold"><svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none">'
                f'<path class="right" {right}/><path class="wrong" {wrong}/></svg>'
                f'<line class="threshold" y1="0" y2="100%" {self._drawn(f"at-{k}")}/></svg></figure>\n'
            )
        return Markup(
            f'<p><span class="key right"></span> right at that exit, upwards; <span class="key wrong"></span> wrong, '
            "downwards; each half has a scale of its own. Dashed: the threshold; samples to the right of it leave. "
            f"From 0 at the left to 1. {self._text('what')} AUROC: the chance that a right sample has a larger score "
            f'than a wrong one.</p>\n<div class="smalls">{figures}</div>\n'
        )

    def who_pays(self) -> Markup:
        most = max(len(one.get("who_pays", ())) for one in self.positions)
        if not most:
            return Markup("")
        rows = "".join(
            f"<tr {self._if(f'group-{k}')}>{self._text(f'group-{k}', 'th', ' scope=row')}"
            f"{self._text(f'size-{k}', 'td')}{self._text(f'loss-{k}', 'td')}</tr>\n"
            for k in range(most)
        )
        return Markup(
            f"<p>Leaving early at this budget: {self._text('paying')} than all samples together.</p>\n"
            '<div class="wide" tabindex="0" role="region" aria-label="Who pays"><table class="pays"><caption>Loss in '
            "points, with intervals that hold at 95 % for all groups together.</caption>\n<thead><tr><th scope=col>who"
            "</th><th scope=col>samples</th><th scope=col>loss (interval)</th></tr></thead>\n"
            f"<tbody>\n{rows}</tbody></table></div>\n"
        )

    def table(self) -> Table:
        """Return all budgets as rows."""
        times = {f"{clock.name} batch {clock.batch_size}": k for k, clock in enumerate(self.times)}
        columns = ("budget [% of full]", "cost [%]", "utility [%]", "points lost", *times, "exits [%]")
        rows = [
            (
                f"{100 * one['budget'] / self.full:.1f}",
                f"{100 * one['cost'] / self.full:.1f}",
                f"{100 * one['utility']:.2f}",
                f"{saving.lost:.2f}",
                *(state.text[f"speed-{k}"] for k in times.values()),
                exit_shares(one["exit_distribution"]),
            )
            for one, saving, state in zip(self.positions, self.savings, self.states, strict=True)
        ]
        return Table(columns, rows, f"{self.policy} at every budget of the slider", folded=True)


def _from_rows(comparison: Mapping[str, Any], policy: str) -> list[dict[str, Any]]:
    """Return the asked budgets as positions, of a comparison without dial."""
    rows = {row["budget"]: row for row in comparison["rows"] if row["policy"] == policy}
    return [
        {"budget": budget, "cost": row["test_cost"], "utility": row["test_utility"]}
        | {"exit_distribution": row["exit_distribution"]}
        for budget, row in sorted(rows.items())
    ]

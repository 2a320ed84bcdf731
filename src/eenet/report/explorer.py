"""The part of a page that a reader turns: one budget after the other, all worked out beforehand.

A slider chooses a `State`. The page is written in its first state, so that it can be read without JavaScript.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eenet.errors import visible
from eenet.report.clocks import clocks
from eenet.report.sections import Markup, Table, exit_shares
from eenet.report.states import Turned, chosen_policy
from eenet.report.svg import chart, escape, swatch

_ESTIMATED = "Speed-ups are estimated from measured times: {how}."


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
    turned = _Written(Turned(comparison, policy, times, number=number, verdict=verdict, budget=budget))
    return Explorer(
        verdict=turned.verdict(),
        turn=Markup(turned.slider() + turned.cards() + turned.plot()),
        exits=turned.exits(),
        scores=turned.scores(),
        who_pays=turned.who_pays(),
        budgets=turned.table(),
    )


class _Written:
    """The page in its first state."""

    def __init__(self, turned: Turned) -> None:
        self.of = turned

    def _text(self, name: str, tag: str = "span", extra: str = "") -> str:
        return f'<{tag} data-text="{self.of.number}:{name}"{extra}>{escape(self.of.now.text.get(name, ""))}</{tag}>'

    def _drawn(self, name: str) -> str:
        known = self.of.now.draw.get(name, {})
        return f'data-draw="{self.of.number}:{name}" ' + " ".join(f'{key}="{value}"' for key, value in known.items())

    def _if(self, name: str) -> str:
        return f'data-if="{self.of.number}:{name}"' + ("" if self.of.now.text.get(name) else " hidden")

    def verdict(self) -> Markup:
        said = escape(self.of.now.text["verdict"])
        return Markup(f'<p data-text="{self.of.number}:verdict" {self._drawn("verdict")}>{said}</p>')

    def slider(self) -> str:
        i, states = self.of.number, []
        for one in self.of.states:
            states.append({"text": {key: visible(text) for key, text in one.text.items()}, "draw": one.draw})
        data = json.dumps(states, ensure_ascii=True, separators=(",", ":"))
        for character in "<>&":
            data = data.replace(character, f"\\u{ord(character):04x}")
        return (
            f'<div class="turn"><label for="turn-{i}">Budget per sample: {self._text("budget")}</label>\n<div>'
            f'<button type="button" data-step="{i}:-1" aria-label="smaller budget">−</button>'
            f'<input type="range" id="turn-{i}" data-turn="{i}" min="0" max="{len(states) - 1}" step="1" '
            f'value="{self.of.start}">'
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
        if any(one.text["gain"] for one in self.of.states):
            cards.append(("Above the best static mix", "gain", self._text("gain_note")))
        for k, clock in enumerate(self.of.times[:4]):
            batch = "" if clock.batch_size is None else f", batch {clock.batch_size}"
            note = f"{self._text(f'ms-{k}')} instead of {clock.full_ms:.3g} ms, {escape(clock.name)}"
            cards.append((f"Speed-up{batch} (estimated)", f"speed-{k}", note))
        listed = "".join(
            f'<div><dt>{title}</dt><dd>{self._text(name)}<span class="muted">{note}</span></dd></div>\n'
            for title, name, note in cards
        )
        how = f'<p class="muted">{_ESTIMATED.format(how=self._how())}</p>\n' if self.of.times else ""
        return f'<dl class="cards">\n{listed}</dl>\n{how}'

    def _how(self) -> str:
        if any(clock.efficiency != 1 for clock in self.of.times):
            return (
                "of the time saved on paper, the part that the benchmark really saved (see Measured time) is taken "
                "to be the same at every budget"
            )
        return "the mean time of leaving at each exit, without that of decisions"

    def plot(self) -> str:
        i = self.of.number
        marker = {"line": self._drawn("line"), "dot": self._drawn("dot")}
        shown = ", ".join(one.name for one in self.of.curves if one.shown)
        alt = (
            f"Utility over mean cost per sample: {shown}, and every exit for all samples. The numbers are in the "
            "tables below."
        )
        boxes: dict[bool, str] = {True: "", False: ""}
        for k, one in enumerate(self.of.curves):
            note = f" ({escape(one.note)})" if one.note else ""
            boxes[one.shown] += (
                f'<label><input type="checkbox" data-curve="curve-{i}-{k}"{" checked" * one.shown}>{swatch(one, k)}'
                f"<span>{escape(one.name)}{note}</span></label>\n"
            )
        more = f'<details class="more"><summary>{boxes[False].count("<label>")} other curves</summary>'
        more += f'<fieldset class="legend"><legend>Other curves</legend>{boxes[False]}</fieldset></details>\n'
        drawn = chart(self.of.frame, self.of.curves, self.of.points, name=f"curve-{i}", alt=alt, marker=marker)
        models = "; diamonds: models without exits" * bool(self.of.comparison.get("statics"))
        bent = ", logarithmic" if self.of.frame.logarithmic else ""
        return (
            f'<figure><p class="axis">Utility on the test samples [%]</p>{drawn}\n'
            f'<p class="axis x">Mean cost per sample, % of {self.of.original} '
            f"(100 % = {self.of.full:.4g} {escape(self.of.unit)}){bent}</p>\n"
            f'<fieldset class="legend"><legend>Curves</legend>{boxes[True]}</fieldset>\n'
            f"{more if boxes[False] else ''}<figcaption>Realised cost and "
            f"utility on the test samples. Large dot: {escape(self.of.policy)} at the chosen budget. Circles: every "
            f"exit for all samples{models}. The numbers are in the tables below.</figcaption></figure>\n"
        )

    def exits(self) -> Markup:
        known = "those-0" in self.of.now.text
        those = "<th scope=col>utility of those</th>" if known else ""
        head = f"<th scope=col>exit</th><th scope=col class=bar>leave here</th><th scope=col>share</th>{those}"
        rows = ""
        for k, one in enumerate(self.of.comparison["exits"]):
            name = escape(one.get("name", f"exit {k}"))
            cells = f'<td class="bar"><span class="fill" {self._drawn(f"bar-{k}")}></span></td>'
            cells += self._text(f"share-{k}", "td") + (self._text(f"those-{k}", "td") if known else "")
            everybody = "".join(
                f"<td class=fixed>{share:.1%}</td>" for share in (one["utility_test"], one["cost"] / self.of.full)
            )
            rows += f"<tr><th scope=row>{name}</th>{cells}{everybody}</tr>\n"
        head += "<th scope=col class=fixed>utility of all</th><th scope=col class=fixed>cost</th>"
        caption = (
            f"Where the test samples leave under {escape(self.of.policy)} at the chosen budget. Of those: "
            f"the samples that leave there; of all: if all samples left there. Cost: in % of {self.of.original}."
        )
        return Markup(
            f'<div class="wide" tabindex="0" role="region" aria-label="Who leaves where"><table class="bars"><caption>'
            f"{caption}</caption>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
        )

    def scores(self) -> Markup:
        if not self.of.drawn:
            return Markup("")
        figures = ""
        for k in range(max(len(one["exits"]) for one in self.of.drawn)):
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
        most = max(len(one.get("who_pays", ())) for one in self.of.positions)
        if not most:
            return Markup("")
        rows = "".join(
            f"<tr {self._if(f'group-{k}')}>{self._text(f'group-{k}', 'th', ' scope=row')}"
            f"{self._text(f'size-{k}', 'td')}{self._text(f'loss-{k}', 'td')}</tr>\n"
            for k in range(most)
        )
        return Markup(
            f"<p>Leaving early at this budget: {self._text('paying')} than all samples together.</p>\n"
            f'<div class="wide" tabindex="0" role="region" aria-label="Who pays" {self._if("group-0")}>'
            '<table class="pays"><caption>Loss in points, with intervals that hold at 95 % for all groups together.'
            "</caption>\n<thead><tr><th scope=col>who</th><th scope=col>samples</th><th scope=col>loss (interval)</th>"
            f"</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
        )

    def table(self) -> Table:
        """Return all budgets as rows."""
        times = {f"{clock.name} batch {clock.batch_size}": k for k, clock in enumerate(self.of.times)}
        columns = ("budget [% of full]", "cost [%]", "utility [%]", "points lost", *times, "exits [%]")
        rows = [
            (
                f"{100 * one['budget'] / self.of.full:.1f}",
                f"{100 * one['cost'] / self.of.full:.1f}",
                f"{100 * one['utility']:.2f}",
                f"{saving.lost:.2f}",
                *(state.text[f"speed-{k}"] for k in times.values()),
                exit_shares(one["exit_distribution"]),
            )
            for one, saving, state in zip(self.of.positions, self.of.savings, self.of.states, strict=True)
        ]
        return Table(columns, rows, f"{self.of.policy} at every budget of the slider", folded=True)

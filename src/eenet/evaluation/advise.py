"""Whether leaving early pays on some data, and with which exits: a judgement on one table, no model needed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from eenet.errors import InputError, TableError
from eenet.evaluation.compare import Progress, counter
from eenet.evaluation.exits import Samples, best_models, choose_exits, cross_validated, static_mix
from eenet.evaluation.parts import CostParts, StaticModel
from eenet.evaluation.statistics import Curve, SampledCurve, bootstrap, bootstrap_interval
from eenet.policies.replay import Replayer
from eenet.policies.scorers import Confidence, confidence_scorer
from eenet.tables.costs import Budget, BudgetLike, CostTable, standard_budgets
from eenet.tables.table import ExitTable

_LEAST = 50  # samples below which nothing can be said
_LOSS = 0.01  # of utility that may be lost where savings are compared
_LEAST_SAVING = 0.05  # of the cost, below which leaving early is not worth the trouble
_LATE = 0.7  # share of the original model's cost from which on the first exit is late
_HEAVY = 0.05  # share of the original model's cost from which on heads and decisions are heavy
_WIDE = 500  # samples below which the interval is wide anyway
_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the costs, where curves have points


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """Leaving early and its alternatives at one budget, at equal cost; each sample judged by fits without it.

    Attributes:
        budget: Mean cost per sample.
        budget_input: As it was asked for.
        utility: Of leaving early.
        static: Of the best mix of models without early exits.
        difference: Between the two.
        low: Lower end of its 95 % interval.
        high: Upper end.
        best_static: Name of the best single static model that the budget pays for; None if there is none.
    """

    budget: float
    budget_input: str
    utility: float
    static: float
    difference: float
    low: float
    high: float
    best_static: str | None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """What to do about the exits of a model.

    Attributes:
        kept: Exits worth their cost, the last one among them.
        dropped: The others, for ``MultiExitModel.without``.
        costs: With the kept exits only.
        frontier: Cost and cross-validated utility of leaving early with the kept exits, from cheap to expensive.
        statics: Each exit alone, the original model, and the models the user named.
        asked: The user's budgets in words; empty if none were named.
        rows: One per wanted budget.
        difference: Leaving early minus the best static mix, mean over the wanted budgets, with its 95 % interval.
        saving: Share of the original model's cost that leaving early saves one point of utility below it; None if it
            does not get there.
        static_saving: The same of the best static mix.
        majority: Utility of always answering with the most frequent class; 0 where classes are not known.
        num_samples: In the table.
        notes: What was assumed.
    """

    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    costs: CostTable
    frontier: tuple[tuple[float, float], ...]
    statics: tuple[StaticModel, ...]
    asked: tuple[str, ...]
    rows: tuple[AdviceRow, ...]
    difference: tuple[float, float, float]
    saving: float | None
    static_saving: float | None
    majority: float
    num_samples: int
    notes: tuple[str, ...]

    @property
    def pays(self) -> bool:
        """Whether leaving early is better at equal cost, and saves something where no budget was asked for."""
        return self.difference[1] > 0 and (bool(self.asked) or self._saves)

    @property
    def _saves(self) -> bool:
        return self.saving is not None and self.saving >= _LEAST_SAVING

    @cached_property
    def reasons(self) -> tuple[str, ...]:
        """What speaks for or against it, each from a number."""
        return tuple(self._for() if self.pays else self._against())

    @property
    def verdict(self) -> str:
        """Whether leaving early pays, in a sentence, with the reasons."""
        listed = "; ".join(self.reasons)
        return f"Early exit pays here: {listed}." if self.pays else f"Early exit does not pay here, because {listed}."

    def _words(self) -> tuple[str, str]:
        """Say at which budgets, and how large the difference is there."""
        one, asked = len(self.asked) == 1, bool(self.asked)
        where = f"at {self.asked[0]}" if one else f"over the {'budgets asked for' if asked else 'standard budgets'}"
        difference, low, high = (100 * value for value in self.difference)
        return where, f"{difference:+.2f} points, 95 % interval {low:+.2f} to {high:+.2f}"

    def _for(self) -> Iterator[str]:
        early, static = np.mean([(row.utility, row.static) for row in self.rows], axis=0).tolist()
        where, points = self._words()
        yield (
            f"{where} it is worth {_percent(early)} where the best static mix is worth {_percent(static)} at equal "
            f"cost ({points})"
        )
        if self._saves:
            yield (
                f"one point below the original model it saves {_percent(self.saving)} of the cost, the best static mix "
                f"{_percent(self.static_saving)}"
            )

    def _against(self) -> Iterator[str]:
        (_, low, high), (where, points) = self.difference, self._words()
        exits = len(self.kept) + len(self.dropped)
        named = [self.statics[i].name for i in best_models(self.statics) if i >= exits]
        if low <= 0:
            better = "better" if high < 0 else "as good within the interval"
            yield f"{where} the best static mix is {better} at equal cost (leaving early: {points})"
        if low <= 0 and named:
            yield f"the mix has models that you named ({', '.join(named)})"
        if not self._saves:
            yield (
                f"one point below the original model it saves {_percent(self.saving)} of the cost, less than "
                f"{100 * _LEAST_SAVING:g} %"
            )
        yield from self._about_exits()
        if low <= 0 < high and self.num_samples < _WIDE:
            yield f"{self.num_samples} samples cannot tell small gains from none"

    def _about_exits(self) -> Iterator[str]:
        full, name = self.costs.full, self.costs.full_name
        *early, last = self.statics[: len(self.kept) + len(self.dropped)]
        if early[0].cost >= _LATE * full:
            yield f"the cheapest exit already costs {_percent(early[0].cost / full)} of {name}"
        if self.costs.reference is not None and self.costs.high >= (1 + _HEAVY) * full:
            yield f"heads and decisions add {_percent(self.costs.high / full - 1)} to the original model"
        best = max(model.utility for model in early)
        noise = 2 * (best * (1 - best) / self.num_samples) ** 0.5
        if self.majority > 0 and best <= self.majority + noise:
            yield (
                f"early exits know hardly anything: the best of them is right on {_percent(best)}, always answering "
                f"the most frequent class on {_percent(self.majority)}"
            )
        good = next((k for k, model in enumerate(early) if model.utility >= last.utility - _LOSS), None)
        if good is not None and early[good].cost < full:
            yield (
                f"exit {good} alone is within one point of the original model ({_percent(early[good].utility)} "
                f"against {_percent(last.utility)}) at {_percent(early[good].cost / full)} of its cost, so a model cut "
                "there needs no policy"
            )

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        difference, low, high = self.difference
        names = ("pays", "verdict", "reasons", "kept", "dropped", "saving", "static_saving", "num_samples", "notes")
        return {name: getattr(self, name) for name in names} | {
            **self.costs.to_dict(),
            "frontier": [{"cost": cost, "utility": utility} for cost, utility in self.frontier],
            "statics": [dict(vars(model)) for model in self.statics],
            "rows": [dict(vars(row)) for row in self.rows],
            "difference": difference,
            "low": low,
            "high": high,
        }


def advise(
    table: ExitTable,
    costs: CostTable | None = None,
    budgets: Sequence[BudgetLike] = (),
    *,
    parts: CostParts | None = None,
    statics: Sequence[StaticModel] = (),
    confidence: Confidence = "max_prob",
    folds: int = 5,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> Advice:
    """Say which exits are worth their cost, and whether leaving early with them pays at all.

    In each fold exits are chosen and thresholds on a confidence fitted on the other folds; the samples of the fold are
    judged by them. The alternative is the best static mix: of each exit alone without the other heads, the original
    model, and the models named (the ``random`` bound, for models cut there). It is chosen on the samples it is judged
    on, which if anything favours it. Leaving early **pays** if it is better at equal cost: if the lower end of the
    paired bootstrap interval of the difference, averaged over the wanted budgets, is above zero. Without budgets of the
    user's it must also save at least 5 % of the cost at one point below the original model. The interval covers the
    chance in the samples, not that in the folds.

    The exits named are then chosen on all samples. Where labels are known, what a budget below the cheapest exit does
    not cover is answered with the most frequent class; that is how sets of exits with different first exits are
    compared. Where costs differ from sample to sample, their means count.

    Args:
        table: Calibration data that took no part in training, with labels or utility, and with every exit that could be
            kept.
        costs: Default: the table's own.
        budgets: Wanted mean costs per sample; default: the ten standard ones.
        parts: What the costs are made of; default: heads count as part of the stages before them.
        statics: Other models, at what they cost and are worth.
        confidence: What samples leave by: of classes the name of a confidence, of features that of a column.
        folds: Of the cross-validation.
        seed: Of folds, searches and bootstrap.
        resamples: Of the bootstrap.
        progress: Called with what was finished, steps done and steps in all.

    Raises:
        TableError: The table has neither labels nor utility, no costs, or fewer than 50 samples; or costs and parts
            disagree.
        BudgetError: A budget is below the cost of exit 0.
        InputError: Fewer than 2 folds, or there is no such confidence or column.
    """
    costs = table.priced(costs).require_costs()
    samples = _samples(table, confidence)
    if folds < 2:
        raise InputError(f"folds {folds} are too few: each fold is judged by fits on the others. Pass at least 2.")
    parts = _agreeing(costs, parts)
    wanted = tuple(costs.budget(budget) for budget in dict.fromkeys(budgets or standard_budgets(costs)))
    values = [budget.value for budget in wanted]
    models = _statics(samples, costs, parts, statics)
    step = counter(progress, folds + 1)
    reachable = min(values) if budgets else math.inf
    choose = partial(choose_exits, parts=parts, budgets=values, reachable=reachable, seed=seed)
    judged = partial(cross_validated, samples, parts, folds=folds, seed=seed)
    top = max(costs.high, models[costs.num_exits - 1].cost)
    grid = sorted({*values, *(costs.low + share * (top - costs.low) for share in _SHARES)})
    early, static = judged(grid, choose, step=step), static_mix(samples, models, grid)
    kept = choose(samples)
    step("exits chosen on all samples")
    kept_costs = CostTable(parts.cumulative(kept), costs.unit, costs.reference)
    points = judged((kept_costs.low, *standard_budgets(kept_costs), kept_costs.high), lambda _: kept).mean()
    rows, difference = _compared(early, static, samples, wanted, models, resamples=resamples, seed=seed)
    target = float(samples.utility[:, -1].mean()) - _LOSS
    return Advice(
        kept=kept,
        dropped=tuple(k for k in range(costs.num_exits) if k not in kept),
        costs=kept_costs,
        frontier=tuple(zip(points.costs.tolist(), points.utilities.tolist(), strict=True)),
        statics=models,
        asked=tuple(budget.meaning for budget in wanted) if budgets else (),
        rows=rows,
        difference=difference,
        saving=_saving(early.mean(), target, costs.full),
        static_saving=_saving(static.mean(), target, costs.full),
        majority=float(samples.majority.mean()),
        num_samples=len(samples),
        notes=tuple(_notes(parts, statics)),
    )


def _samples(table: ExitTable, confidence: Confidence) -> Samples:
    """Return what the advice is made on."""
    utility = table.require_utility("advice")
    if table.num_samples < _LEAST:
        raise TableError(
            f"{table.name} of {table.num_samples} samples says too little: exits are chosen on some and judged on "
            f"others. Record at least {_LEAST}, better thousands."
        )
    majority = np.zeros(table.num_samples)
    if table.utility_is_accuracy:
        majority = (table.labels == np.bincount(table.labels).argmax()).astype(np.float64)
    scorer = confidence_scorer(confidence, None if table.has_classes else table.feature_names)
    return Samples(scores=Replayer(table).scores(scorer), utility=utility, majority=majority)


def _agreeing(costs: CostTable, parts: CostParts | None) -> CostParts:
    """Return the parts of the costs, having checked that they add up to them."""
    if parts is None:
        return CostParts.of_costs(costs)
    added = parts.cumulative(range(len(parts.stages)))
    if len(added) != costs.num_exits or not np.allclose(added, costs.cumulative, rtol=1e-4):
        raise TableError(
            f"costs {', '.join(f'{c:g}' for c in costs.cumulative)} {costs.unit} disagree with their parts, which add "
            f"up to {', '.join(f'{c:g}' for c in added)}. Take both from one profile."
        )
    return parts


def _statics(
    samples: Samples, costs: CostTable, parts: CostParts, named: Sequence[StaticModel]
) -> tuple[StaticModel, ...]:
    """Return every exit alone, the original model last, and the models the user named."""
    last = costs.num_exits - 1
    utility = samples.utility.mean(axis=0).tolist()
    alone = [StaticModel(name=f"exit {k} alone", cost=parts.alone(k), utility=utility[k]) for k in range(last)]
    whole = parts.alone(last) if costs.reference is None else costs.reference
    return (*alone, StaticModel(name="the original model", cost=whole, utility=utility[last]), *named)


def _compared(
    early: SampledCurve,
    static: SampledCurve,
    samples: Samples,
    wanted: Sequence[Budget],
    models: Sequence[StaticModel],
    *,
    resamples: int,
    seed: int,
) -> tuple[tuple[AdviceRow, ...], tuple[float, float, float]]:
    """Return leaving early and its alternatives at every budget, and the mean difference with its interval."""
    read = bootstrap(
        {"early": early, "static": static},
        anchor=SampledCurve(costs=np.zeros((1, len(samples))), utilities=samples.majority[None]),
        num_samples=len(samples),
        budgets=[budget.value for budget in wanted],
        resamples=resamples,
        seed=seed,
    )
    gaps, nothing = read["early"] - read["static"], (0.0, float(samples.majority.mean()))
    curves, rows = (early.mean(nothing), static.mean(nothing)), []
    for budget, gap in zip(wanted, gaps.T, strict=True):
        utility, other = (one.at(budget.value) for one in curves)
        low, high = bootstrap_interval(gap)
        payable = [model for model in models if model.cost <= budget.value * (1 + 1e-9)]
        row = AdviceRow(
            budget=budget.value,
            budget_input=budget.text,
            utility=utility,
            static=other,
            difference=utility - other,
            low=low,
            high=high,
            best_static=max(payable, key=lambda model: model.utility).name if payable else None,
        )
        rows.append(row)
    return tuple(rows), (float(np.mean([row.difference for row in rows])), *bootstrap_interval(gaps.mean(axis=1)))


def _saving(early: Curve, target: float, full: float) -> float | None:
    """Return the share of a cost that is saved where the utility first reaches a target; None if it never does."""
    reached = np.flatnonzero(early.utilities >= target)
    if not len(reached):
        return None
    around = slice(max(0, int(reached[0]) - 1), int(reached[0]) + 1)  # on the straight line from the point before
    return 1.0 - float(np.interp(target, early.utilities[around], early.costs[around])) / full


def _notes(parts: CostParts, named: Sequence[StaticModel]) -> Iterator[str]:
    """Say what was assumed."""
    if not parts.known:
        yield (
            "What single heads cost is not known: dropping an exit is taken to save nothing further on, and a model "
            "cut at an exit to cost what leaving there does. Pass a profile for the truth."
        )
    if named:
        yield "The utilities of the static models named are taken as exact, and as if on data like VAL."


def _percent(value: float | None) -> str:
    return "nothing" if value is None else f"{100 * value:.1f} %"

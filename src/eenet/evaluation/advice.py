"""Whether leaving early pays on some data, and with which exits: a judgement on one table, no model needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import torch

from eenet.core.costs import Budget, BudgetLike, CostTable, standard_budgets
from eenet.core.scorers import ConfidenceScorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import InputError, TableError
from eenet.evaluation.compare import counter
from eenet.evaluation.heldout import Sides, StaticModel, best_models, judge_sides, kept_frontier, saving
from eenet.evaluation.parts import CostParts
from eenet.evaluation.runs import Progress
from eenet.evaluation.subsets import Samples, choose_exits
from eenet.evaluation.verdict import LOSS, Findings

__all__ = ["Advice", "AdviceRow", "CostParts", "StaticModel", "advise"]

_LEAST = 50  # samples below which nothing can be said


@dataclass(frozen=True, kw_only=True)
class AdviceRow:
    """Leaving early and its alternatives at one budget, on held-out samples, at equal cost.

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
        pays: Whether leaving early pays.
        verdict: So in a sentence, with the reasons.
        reasons: One by one.
        kept: Exits worth their cost, the last one among them.
        dropped: The others, for ``MultiExitModel.without``.
        costs: With the kept exits only.
        frontier: Cost and held-out utility of leaving early with the kept exits, from cheap to dear.
        statics: The original model, each exit alone, and the models handed in.
        rows: One per wanted budget.
        difference: Leaving early minus the best static mix, mean over the wanted budgets, with its 95 % interval.
        saving: Share of the original model's cost that leaving early saves one point of utility below it; None if it
            does not get there.
        static_saving: The same of the best static mix.
        num_samples: In the table.
        notes: What was assumed.
    """

    pays: bool
    verdict: str
    reasons: tuple[str, ...]
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    costs: CostTable
    frontier: tuple[tuple[float, float], ...]
    statics: tuple[StaticModel, ...]
    rows: tuple[AdviceRow, ...]
    difference: tuple[float, float, float]
    saving: float | None
    static_saving: float | None
    num_samples: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        difference, low, high = self.difference
        return {
            "pays": self.pays,
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "kept": list(self.kept),
            "dropped": list(self.dropped),
            **self.costs.to_dict(),
            "frontier": [{"cost": cost, "utility": utility} for cost, utility in self.frontier],
            "statics": [vars(model) for model in self.statics],
            "rows": [vars(row) for row in self.rows],
            "difference": difference,
            "low": low,
            "high": high,
            "saving": self.saving,
            "static_saving": self.static_saving,
            "num_samples": self.num_samples,
            "notes": list(self.notes),
        }


def advise(
    table: ExitTable,
    costs: CostTable | None = None,
    budgets: Sequence[BudgetLike] = (),
    *,
    parts: CostParts | None = None,
    statics: Sequence[StaticModel] = (),
    folds: int = 5,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress | None = None,
) -> Advice:
    """Say which exits are worth their cost, and whether leaving early with them pays at all.

    In each fold exits are chosen and thresholds on the largest probability fitted on the other folds; the samples held
    out are left by them. The other side is the best static mix: of each exit alone without the other heads, the
    original model, and the models handed in (the ``random`` bound, for models cut there). It is chosen on the samples
    it is judged on, which if anything favours it. Leaving early **pays** if it is better at equal cost: if the lower
    end of the paired bootstrap interval of the difference, averaged over the wanted budgets, is above zero. Without
    budgets of the user's it must also save at least 5 % of the cost at one point below the original model. The interval
    knows the luck of the samples, not that of the folds.

    The exits named are then chosen on all samples. Where labels are known, what a budget below the cheapest exit does
    not cover is answered with the commonest class; that is how sets of exits with different beginnings are compared.

    Args:
        table: Calibration data that took no part in training, with labels or utility, and with every exit that could be
            kept.
        costs: Default: the table's own.
        budgets: Wanted mean costs per sample; default: the ten standard ones.
        parts: What the costs are made of; default: heads count as part of the stages before them.
        statics: Other models, at what they cost and are worth.
        folds: Of the cross-validation.
        seed: Of folds, searches and bootstrap.
        resamples: Of the bootstrap.
        progress: Told what was finished, steps done and steps in all.

    Raises:
        TableError: The table has neither labels nor utility, no costs, or fewer than 50 samples; or costs and parts
            disagree.
        BudgetError: A budget is below the cost of exit 0.
        InputError: Fewer than 2 folds.
    """
    costs = costs or table.require_costs()
    samples = _samples(table)
    if folds < 2:
        raise InputError(f"folds {folds} are too few: samples are held out in turn. Pass at least 2.")
    parts = _agreeing(costs, parts)
    asked = tuple(costs.budget(budget) for budget in dict.fromkeys(budgets))
    wanted = tuple(budget.value for budget in asked) or standard_budgets(costs)
    reachable = min(wanted) if asked else None
    every = _statics(samples, costs, parts, statics)
    step = counter(progress, folds + 1, 1)
    shared: dict[str, Any] = {"reachable": reachable, "seed": seed}
    sides = judge_sides(samples, parts, every, wanted, folds=folds, resamples=resamples, progress=step, **shared)
    kept = choose_exits(samples, parts, wanted, **shared)
    step("exits chosen on all samples")
    kept_costs = CostTable(parts.cumulative(kept), costs.unit, costs.reference)
    rows = tuple(_row(sides, every, value, budget) for value, budget in zip_longest(wanted, asked))
    findings = _findings(
        samples, every, sides, rows, costs=kept_costs, asked=asked, difference=sides.difference(wanted)
    )
    return Advice(
        pays=findings.pays,
        verdict=findings.sentence,
        reasons=findings.reasons,
        kept=kept,
        dropped=tuple(k for k in range(costs.num_exits) if k not in kept),
        costs=kept_costs,
        frontier=kept_frontier(samples, kept, kept_costs, folds=folds, seed=seed),
        statics=every,
        rows=rows,
        difference=findings.difference,
        saving=findings.saving,
        static_saving=findings.static_saving,
        num_samples=len(samples),
        notes=_notes(parts, statics),
    )


def _findings(
    samples: Samples,
    statics: Sequence[StaticModel],
    sides: Sides,
    rows: Sequence[AdviceRow],
    *,
    costs: CostTable,
    asked: Sequence[Budget],
    difference: tuple[float, float, float],
) -> Findings:
    """Return what the verdict follows from."""
    utilities = samples.utility.mean(dim=0).tolist()
    target, exits = utilities[-1] - LOSS, len(utilities)
    return Findings(
        difference=difference,
        asked=tuple(budget.meaning for budget in asked),
        early=float(np.mean([row.utility for row in rows])),
        static=float(np.mean([row.static for row in rows])),
        given=tuple(model.name for model in statics[exits:] if model in best_models(statics)),
        saving=saving(sides.early, target, costs.full),
        static_saving=saving(sides.static, target, costs.full),
        costs=costs,
        alone=tuple(model.cost for model in statics[:exits]),
        utilities=tuple(utilities),
        guess=float(samples.guess.mean()),
        num_samples=len(samples),
    )


def _samples(table: ExitTable) -> Samples:
    """Return what the advice is made on."""
    utility = table.require_utility("advice")
    if table.num_samples < _LEAST:
        raise TableError(
            f"table {table.split or '(unnamed)'!r} of {table.num_samples} samples says too little: exits are chosen on "
            f"some and judged on others. Record at least {_LEAST}, better thousands."
        )
    guess = torch.zeros(table.num_samples, dtype=torch.float64)
    if table.labels is not None and table.utility_is_accuracy:
        guess = (table.labels == table.labels.mode().values).double()
    return Samples(scores=Replayer(table).scores(ConfidenceScorer("max_prob")), utility=utility, guess=guess)


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
    samples: Samples, costs: CostTable, parts: CostParts, given: Sequence[StaticModel]
) -> tuple[StaticModel, ...]:
    """Return every exit alone, the original model last, and the models handed in."""
    last = costs.num_exits - 1
    utility = samples.utility.mean(dim=0).tolist()
    alone = [StaticModel(name=f"exit {k} alone", cost=parts.alone(k), utility=utility[k]) for k in range(last)]
    whole = parts.alone(last) if costs.reference is None else costs.reference
    return (*alone, StaticModel(name="the original model", cost=whole, utility=utility[last]), *given)


def _row(sides: Sides, statics: Sequence[StaticModel], value: float, budget: Budget | None) -> AdviceRow:
    """Return leaving early and its alternatives at one budget."""
    payable = [model for model in statics if model.cost <= value * (1 + 1e-9)]
    difference, low, high = sides.difference([value])
    return AdviceRow(
        budget=value,
        budget_input=f"{value:.4g}" if budget is None else budget.text,
        utility=sides.curve(sides.early).at(value),
        static=sides.curve(sides.static).at(value),
        difference=difference,
        low=low,
        high=high,
        best_static=max(payable, key=lambda model: model.utility).name if payable else None,
    )


def _notes(parts: CostParts, given: Sequence[StaticModel]) -> tuple[str, ...]:
    """Say what was assumed."""
    notes = []
    if not parts.known:
        notes.append(
            "What single heads cost is not known: dropping an exit is taken to save nothing further on, and a model "
            "cut at an exit to cost what leaving there does. Pass a profile for the truth."
        )
    if given:
        notes.append("The utilities of the static models handed in are taken as exact, and as if on data like VAL.")
    return tuple(notes)

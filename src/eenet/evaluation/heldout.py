"""Leaving early, on samples it was not fitted on, and models without early exits, side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from eenet.core.costs import CostTable, standard_budgets
from eenet.errors import InputError
from eenet.evaluation.parts import CostParts
from eenet.evaluation.statistics import Curve, SampledCurve, bootstrap_areas, bootstrap_interval, curve
from eenet.evaluation.subsets import Held, Samples, choose_exits, fit_frontier, held_out, mixed
from eenet.schedulers.ensemble import folds_of
from eenet.schedulers.thresholds import frontier

__all__ = ["Sides", "StaticModel", "best_models", "judge_sides", "kept_frontier", "saving"]

_SHARES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the costs, where curves have points


@dataclass(frozen=True, kw_only=True)
class StaticModel:
    """A model without early exits that could be used instead.

    Attributes:
        name: What it is called.
        cost: Per sample, in the unit of the costs.
        utility: What its answers are worth on data like the table's, a fraction.
    """

    name: str
    cost: float
    utility: float

    def __post_init__(self) -> None:
        """Refuse what is no model."""
        if not (math.isfinite(self.cost) and self.cost > 0 and 0 <= self.utility <= 1):
            raise InputError(
                f"static model {self.name!r} of cost {self.cost:g} and utility {self.utility:g} is not possible: costs "
                "are positive, utilities from 0 to 1. Correct it."
            )


def best_models(models: Sequence[StaticModel]) -> list[StaticModel]:
    """Return the models on the upper concave envelope: no mix of others is better."""
    cost, utility = (
        torch.tensor([getattr(m, key) for m in models], dtype=torch.float64) for key in ("cost", "utility")
    )
    return [models[i] for i in frontier(cost, utility)]


@dataclass(frozen=True, kw_only=True)
class Sides:
    """Leaving early and the best static mix at the same budgets, sample by sample.

    Attributes:
        early: Leaving early.
        static: The best static mix.
        guess: Utility of every sample at no cost, where both curves begin.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """

    early: SampledCurve
    static: SampledCurve
    guess: Float[np.ndarray, " sample"]
    resamples: int
    seed: int

    def curve(self, side: SampledCurve) -> Curve:
        """Return a side's curve."""
        anchor = (0.0, float(self.guess.mean()))
        return curve(side.costs.mean(axis=1), side.utilities.mean(axis=1), anchor=anchor)

    def difference(self, budgets: Sequence[float]) -> tuple[float, float, float]:
        """Return how much better leaving early is on average over budgets at equal cost, with a 95 % interval."""
        drawn = bootstrap_areas(
            {"early": self.early, "static": self.static},
            anchor_cost=0.0,
            anchor_utility=self.guess,
            budgets=budgets,
            resamples=self.resamples,
            seed=self.seed,
        )
        low, high = bootstrap_interval(drawn["early"], drawn["static"])
        return self.curve(self.early).area(budgets) - self.curve(self.static).area(budgets), low, high


def judge_sides(
    samples: Samples,
    parts: CostParts,
    statics: Sequence[StaticModel],
    wanted: Sequence[float],
    *,
    reachable: float | None,
    folds: int,
    resamples: int,
    seed: int,
    progress: Callable[[str], None],
) -> Sides:
    """Choose exits and fit on all folds but one, judge on that one, in turn; static models have it easier.

    The best static mix is chosen on the very samples it is judged on: if anything, it looks better than it is.

    Args:
        samples: All of them.
        parts: Of the costs of all exits.
        statics: Each exit alone, the original model, then models handed in.
        wanted: Mean costs per sample.
        reachable: See `choose_exits`.
        folds: How many.
        resamples: Of the bootstrap.
        seed: Of folds, searches and bootstrap.
        progress: Told of every fold that is done.
    """
    exits = len(parts.stages)
    costs = [model.cost for model in statics]
    low, high = parts.cumulative(range(exits))[0], max(parts.cumulative(range(exits))[-1], costs[exits - 1])
    grid = sorted({*wanted, *(low + share * (high - low) for share in _SHARES)})
    fold = folds_of(len(samples), folds, seed)
    early = np.empty((2, len(grid), len(samples)))
    for f in range(folds):
        rows = (fold == f).nonzero().squeeze(1)
        rest, judged = samples.select((fold != f).nonzero().squeeze(1)), samples.select(rows)
        kept = choose_exits(rest, parts, wanted, reachable=reachable, seed=seed)
        own = parts.cumulative(kept)
        held = held_out(fit_frontier(rest.keeping(kept), own, seed=seed), judged.keeping(kept), own, grid)
        early[:, :, rows.numpy()] = torch.stack([held.cost, held.utility]).numpy()
        progress(f"fold {f}")
    static = _static_mix(samples, costs, [model.utility for model in statics[exits:]], grid)
    return Sides(
        early=SampledCurve(costs=early[0], utilities=early[1]),
        static=SampledCurve(costs=static.cost.numpy(), utilities=static.utility.numpy()),
        guess=samples.guess.numpy(),
        resamples=resamples,
        seed=seed,
    )


def _static_mix(samples: Samples, costs: Sequence[float], given: Sequence[float], grid: Sequence[float]) -> Held:
    """Return what the best mixes of static models do; they are chosen on the samples they are judged on."""
    level = torch.tensor(costs, dtype=torch.float64)
    known = torch.tensor(given, dtype=torch.float64)
    gain = torch.cat([samples.utility.mean(dim=0), known])
    best = frontier(level, gain)
    earned = torch.cat([samples.utility.T, known[:, None].expand(-1, len(samples))])[best]
    spent = level[best, None].expand(-1, len(samples))
    return mixed(spent, earned, level[best], gain[best], guess=samples.guess, budgets=grid)


def saving(side: SampledCurve, target: float, full: float) -> float | None:
    """Return the share of a cost that is saved where a side's utility first reaches a target; None if it never does."""
    order = side.costs.mean(axis=1).argsort()
    costs, utilities = side.costs.mean(axis=1)[order], side.utilities.mean(axis=1)[order]
    reached = np.flatnonzero(utilities >= target)
    if not len(reached):
        return None
    i = int(reached[0])
    cost = float(costs[i])
    if i:  # on the straight line from the point before
        cost = float(np.interp(target, utilities[i - 1 : i + 1], costs[i - 1 : i + 1]))
    return 1.0 - cost / full


def kept_frontier(
    samples: Samples, kept: tuple[int, ...], costs: CostTable, *, folds: int, seed: int
) -> tuple[tuple[float, float], ...]:
    """Return realised cost and utility with some exits at the standard budgets, all samples held out."""
    grid = (costs.low, *standard_budgets(costs), costs.high)
    shown = samples.keeping(kept)
    fold = folds_of(len(samples), folds, seed)
    cost, utility = np.zeros(len(grid)), np.zeros(len(grid))
    for f in range(folds):
        rest, judged = (shown.select(rows.nonzero().squeeze(1)) for rows in (fold != f, fold == f))
        held = held_out(fit_frontier(rest, costs.cumulative, seed=seed), judged, costs.cumulative, grid)
        cost += held.cost.sum(dim=1).numpy() / len(samples)
        utility += held.utility.sum(dim=1).numpy() / len(samples)
    found = curve(cost, utility, anchor=(float(cost[0]), float(utility[0])))
    return tuple(zip(found.costs.tolist(), found.utilities.tolist(), strict=True))

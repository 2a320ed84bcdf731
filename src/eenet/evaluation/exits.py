"""Which exits are worth their cost, and what leaving early with them brings on samples that were not fitted on.

All of it works on plain arrays: how sure each exit is of each sample, what its answer is worth, and costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64

from eenet.evaluation.parts import CostParts, StaticModel
from eenet.evaluation.statistics import SampledCurve
from eenet.schedulers.ensemble import folds_of
from eenet.schedulers.search import Cuts, frontier, outcomes, search

_ROWS = 4000  # samples that thresholds are fitted on at most
_MULTIPLIERS = 32  # of cost, in the approximate fit
_TOLERANCE = 1.0  # standard errors within which fewer exits are preferred


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """What a choice is made on.

    Attributes:
        scores: How sure each exit is; larger leaves first.
        utility: What answering there is worth.
        majority: What answering with the most frequent class, at no cost, is worth; 0 where classes are not known.
    """

    scores: Float[np.ndarray, "sample exit"]
    utility: Float[np.ndarray, "sample exit"]
    majority: Float[np.ndarray, " sample"]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.scores)

    def select(self, rows: np.ndarray) -> Samples:
        """Return some samples only, by their numbers or flags."""
        return Samples(scores=self.scores[rows], utility=self.utility[rows], majority=self.majority[rows])

    def keeping(self, kept: Sequence[int]) -> Samples:
        """Return the same samples with some exits only."""
        return replace(self, scores=self.scores[:, list(kept)], utility=self.utility[:, list(kept)])


class Frontier(NamedTuple):
    """The best thresholds found, from cheap to expensive, with their mean cost and utility on the fitting samples."""

    thresholds: Float[np.ndarray, "candidate exit"]
    cost: Float[np.ndarray, " candidate"]
    utility: Float[np.ndarray, " candidate"]


@dataclass(frozen=True, kw_only=True)
class Outcome(SampledCurve):
    """Cost and utility of every sample at every budget, in expectation over coins.

    The worth is the utility less overspending, charged at what more cost was worth on the fitting samples.
    """

    worth: Float64[np.ndarray, "budget sample"]


def fit_frontier(samples: Samples, costs: Sequence[float], *, seed: int = 0, approximate: bool = False) -> Frontier:
    """Return the best thresholds found on at most 4000 of the samples, for cumulative costs.

    An approximate fit takes a tenth of the time, for comparing many sets of exits.
    """
    step = -(-len(samples) // _ROWS)
    scores, utility, cumulative = samples.scores[::step], samples.utility[::step], np.array(costs)
    thresholds = _backwards(scores, utility, cumulative) if approximate else search(scores, utility, cumulative, seed)
    cost, gain = outcomes(scores, utility, cumulative, thresholds)
    best = frontier(cost, gain)
    return Frontier(thresholds[best], cost[best], gain[best])


def _backwards(scores: np.ndarray, utility: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Return thresholds for many Lagrange multipliers of cost, from the last exit to the first; and every static exit.

    At each exit the samples that come first in score order leave, as many as gain most over what the later thresholds
    give them. All samples count, also those that leave earlier: that makes it fast, and not quite the best.
    """
    exits = scores.shape[1]
    scale = max(float(np.abs(np.diff(utility.mean(axis=0))).max()), 1e-3) / (costs[-1] - costs[0])
    multipliers = scale * np.logspace(-1.5, 1.5, _MULTIPLIERS)[:, None]
    thresholds = np.full((_MULTIPLIERS, exits), -math.inf, dtype=np.float32)
    going_on = utility[:, -1] - multipliers * costs[-1]  # [multiplier, sample]
    for k in reversed(range(exits - 1)):
        leaving = utility[:, k] - multipliers * costs[k]
        thresholds[:, k] = Cuts(scores[:, k]).best(leaving - going_on)
        going_on = np.where(scores[:, k] >= thresholds[:, k, None], leaving, going_on)
    static = np.where(np.eye(exits, dtype=np.bool_), -math.inf, math.inf)
    static[:, -1] = -math.inf
    return np.concatenate([static.astype(np.float32), thresholds])


def apply(fitted: Frontier, samples: Samples, costs: Sequence[float], budgets: Sequence[float]) -> Outcome:
    """Return what fitted thresholds do to other samples at some budgets, mixed between two candidates as by a dial."""
    reached = samples.scores[None] >= fitted.thresholds[:, None]
    reached[:, :, -1] = True
    index = reached.argmax(axis=2)  # [candidate, sample]
    spent, earned = np.array(costs)[index], samples.utility[np.arange(len(samples)), index]
    return mixed(spent, earned, fitted.cost, fitted.utility, majority=samples.majority, budgets=budgets)


def mixed(
    spent: Float[np.ndarray, "candidate sample"],
    earned: Float[np.ndarray, "candidate sample"],
    cost: Float[np.ndarray, " candidate"],
    utility: Float[np.ndarray, " candidate"],
    *,
    majority: Float[np.ndarray, " sample"],
    budgets: Sequence[float],
) -> Outcome:
    """Return the mixtures of neighbouring candidates that meet some budgets on the fitting samples.

    Below the cheapest candidate the rest of the samples is answered with the most frequent class, at no cost.

    Args:
        spent: Cost of every sample.
        earned: Utility of every sample.
        cost: Mean cost of each candidate on the fitting samples, increasing.
        utility: Mean utility there.
        majority: Utility of every sample without any cost.
        budgets: Mean costs per sample.
    """
    base = float(majority.mean()) if len(majority) else 0.0
    levels, heights = np.append(0.0, cost), np.append(base, utility)
    spent = np.concatenate([np.zeros((1, spent.shape[1])), spent])
    earned = np.concatenate([majority[None], earned])
    wanted = np.array(budgets) * (1 + 1e-12)
    low = np.searchsorted(levels, wanted, side="right") - 1
    high = np.minimum(low + 1, len(levels) - 1)
    width = np.where(high > low, levels[high] - levels[low], 1.0)
    share = np.where(high > low, (wanted - levels[low]) / width, 0.0)[:, None]
    slope = np.where(high > low, (heights[high] - heights[low]) / width, 0.0)[:, None]
    costs, utilities = ((1 - share) * each[low] + share * each[high] for each in (spent, earned))
    over = costs - np.array(budgets)[:, None]
    return Outcome(costs=costs, utilities=utilities, worth=utilities - slope * over)


def choose_exits(
    samples: Samples, parts: CostParts, budgets: Sequence[float], *, reachable: float = math.inf, seed: int = 0
) -> tuple[int, ...]:
    """Return the exits worth their cost: backward elimination, each set judged on samples it was not fitted on.

    From all exits the one whose loss hurts least is dropped, again and again. Each set tried is fitted on one half and
    judged on the other, both ways; of those within one standard error of the best, the one with the fewest exits is
    returned.

    Args:
        samples: To choose on.
        parts: Of the costs of all exits.
        budgets: Wanted mean costs per sample, weighed alike.
        reachable: The cheapest kept exit may not cost more than this.
        seed: Of the halves.
    """

    def judged(kept: tuple[int, ...]) -> np.ndarray:
        halves = cross_validated(samples, parts, budgets, lambda _: kept, folds=2, seed=seed, approximate=True)
        return halves.worth.mean(axis=0)

    kept = tuple(range(len(parts.stages)))
    tried = {kept: judged(kept)}
    while len(kept) > 2:
        smaller = [tuple(k for k in kept if k != dropped) for dropped in kept[:-1]]
        smaller = [one for one in smaller if parts.cumulative(one)[0] <= reachable * (1 + 1e-9)]
        if not smaller:
            break
        tried |= {one: judged(one) for one in smaller}
        kept = max(smaller, key=lambda one: tried[one].mean())
    best = max(tried.values(), key=np.mean)
    near = [
        one
        for one, value in tried.items()
        if (best - value).mean() <= _TOLERANCE * (best - value).std(ddof=1) / math.sqrt(len(best))
    ]
    return min(near, key=lambda one: (len(one), -tried[one].mean()))


def cross_validated(
    samples: Samples,
    parts: CostParts,
    budgets: Sequence[float],
    choose: Callable[[Samples], tuple[int, ...]],
    *,
    folds: int,
    seed: int,
    approximate: bool = False,
    step: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Return what becomes of every sample at some budgets, exits chosen and thresholds fitted without its fold."""
    fold = folds_of(len(samples), folds, seed)
    found = np.empty((3, len(budgets), len(samples)))
    for f in range(folds):
        rest, own = samples.select(fold != f), samples.select(fold == f)
        kept = choose(rest)
        cumulative = parts.cumulative(kept)
        fitted = fit_frontier(rest.keeping(kept), cumulative, seed=seed, approximate=approximate)
        part = apply(fitted, own.keeping(kept), cumulative, budgets)
        found[:, :, fold == f] = part.costs, part.utilities, part.worth
        step(f"fold {f}")
    return Outcome(costs=found[0], utilities=found[1], worth=found[2])


def best_models(models: Sequence[StaticModel]) -> list[int]:
    """Return which models lie on the upper concave envelope: no mix of others is better."""
    return frontier(np.array([model.cost for model in models]), np.array([model.utility for model in models]))


def static_mix(samples: Samples, models: Sequence[StaticModel], budgets: Sequence[float]) -> Outcome:
    """Return what becomes of every sample under the best mix of models: each exit alone, then models of no table.

    It is chosen on the very samples it is judged on: if anything, it looks better than it is.
    """
    cost, gain = (np.array([getattr(model, key) for model in models]) for key in ("cost", "utility"))
    alone, exits = samples.utility.T, samples.utility.shape[1]
    earned = np.concatenate([alone, np.broadcast_to(gain[exits:, None], (len(models) - exits, len(samples)))])
    best = best_models(models)
    spent = np.broadcast_to(cost[best, None], (len(best), len(samples)))
    return mixed(spent, earned[best], cost[best], gain[best], majority=samples.majority, budgets=budgets)

"""Which exits are worth their cost, and how early exit with them does on samples that were not fitted on.

All of it works on plain numbers: the scores and utility of each exit on each sample, and costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Int

from eenet.errors import EenetError, ShapeError, TableError
from eenet.evaluation.statistics import SampledCurve
from eenet.schedulers.base import folds_of, standard_error
from eenet.schedulers.search import Cuts, frontier, outcomes, search
from eenet.tables.checks import COSTS, number
from eenet.tables.costs import CostTable

_ROWS = 4000  # samples that thresholds are fitted on at most
_MULTIPLIERS = 32  # of cost, in the approximate fit
_TOLERANCE = 1.0  # standard errors within which fewer exits are preferred


@dataclass(frozen=True, kw_only=True)
class CostParts:
    """The costs of exits in parts, so that those of a model with fewer exits can be added up.

    Attributes:
        stages: Cost of each stage; that of what every sample needs once (the first state; of maps, the answer) belongs
            to stage 0.
        heads: Cost of each head.
        decisions: Cost of deciding at each early exit; none by default.
        known: Whether heads were measured; if not, they count as part of their stage, and dropping an exit makes later
            ones no cheaper.

    Raises:
        ShapeError: Numbers of stages, heads and decisions that do not fit, or fewer than two stages.
        TableError: A cost that is negative or not finite.
    """

    stages: tuple[float, ...]
    heads: tuple[float, ...]
    decisions: tuple[float, ...] = ()
    known: bool = True

    def __post_init__(self) -> None:
        """Refuse parts that cannot be added up."""
        exits = len(self.stages)
        if exits < 2 or len(self.heads) != exits or len(self.decisions) not in (0, exits - 1):
            raise ShapeError(
                f"costs of {exits} stages, {len(self.heads)} heads and {len(self.decisions)} decisions do not fit: "
                "each of at least 2 stages has one head, and each early exit may have one decision. Give one cost each."
            )
        for name in ("stages", "heads", "decisions"):
            for k, value in enumerate(getattr(self, name)):
                number(value, f"costs of {name} at exit {k}", 0, COSTS[1], error=TableError)

    @classmethod
    def of_costs(cls, costs: CostTable) -> CostParts:
        """Return the parts where only the costs of leaving are known."""
        return cls(stages=costs.stage_costs, heads=(0.0,) * costs.num_exits, known=False)

    @classmethod
    def of_models(cls, costs: CostTable) -> CostParts:
        """Return the parts where every exit is a model by itself: alone, or left out, none needs another one."""
        return cls(stages=(0.0,) * costs.num_exits, heads=costs.stage_costs)

    @classmethod
    def of_profile(cls, profile: Mapping[str, Any], costs: CostTable) -> CostParts | None:
        """Return the parts of those costs in the JSON of ``eenet profile`` that equal the given ones, in their unit.

        None where there are no such costs.

        Raises:
            TableError: The record is damaged.
        """
        latency = profile.get("latency")
        for record in (profile.get("flops"), *(latency if isinstance(latency, list) else ())):
            try:
                own = CostTable.from_dict(record)
                same = own.convert(costs.unit).cumulative
            except EenetError:  # no costs, or of another kind
                continue
            if len(same) == costs.num_exits and np.allclose(same, costs.cumulative, rtol=1e-12):
                return cls._of_record(record, same[-1] / own.high)
        return None

    @classmethod
    def _of_record(cls, record: Mapping[str, Any], factor: float) -> CostParts:
        def part(value: Any) -> float:  # noqa: ANN401 - a number, or a spread with its median
            return factor * number(value["median"] if isinstance(value, Mapping) else value, "cost", error=TableError)

        try:
            first, *others = map(part, record["stages"])
            return cls(
                stages=(part(record["start"]) + part(record.get("answer", 0.0)) + first, *others),
                heads=tuple(map(part, record["heads"])),
                decisions=tuple(map(part, record.get("decisions", ()))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"costs are damaged: {error} in stages or heads. Profile the model again.") from error

    def cumulative(self, kept: Sequence[int]) -> tuple[float, ...]:
        """Return the cost of leaving at each kept exit in a model that has only these; the last exit is one of them."""
        stage = list(accumulate(self.stages))
        asides = accumulate(self.heads[k] + (self.decisions[k] if k < len(self.decisions) else 0.0) for k in kept)
        return tuple(stage[k] + aside for k, aside in zip(kept, asides, strict=True))

    def alone(self, k: int) -> float:
        """Return the cost of a model that ends at an exit and has no other."""
        return sum(self.stages[: k + 1]) + self.heads[k]


@dataclass(frozen=True, kw_only=True)
class StaticModel:
    """A model without early exits that could be used instead.

    Attributes:
        name: What it is called.
        cost: Per sample, in the unit of the costs.
        utility: Of its answers on data like the table's, a fraction.
        utilities: The same on each sample of the table, where it was recorded there: differences then have an interval.
    """

    name: str
    cost: float
    utility: float
    utilities: Float64[np.ndarray, " sample"] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse impossible numbers."""
        number(self.cost, f"cost of the static model {self.name!r}", *COSTS)
        number(self.utility, f"utility of the static model {self.name!r}", 0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Return name, cost and utility as JSON values."""
        return {key: getattr(self, key) for key in ("name", "cost", "utility")}


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples:
    """The samples that exits are chosen and judged on.

    Attributes:
        scores: Of each exit; the largest leave first.
        utility: Of answering at each exit.
        majority: Utility of answering with the most frequent class, at no cost; 0 where classes are not known.
        groups: Number of every sample's group; see `ExitTable.group_index`.
    """

    scores: Float[np.ndarray, "sample exit"]
    utility: Float[np.ndarray, "sample exit"]
    majority: Float[np.ndarray, " sample"]
    groups: Int[np.ndarray, " sample"]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.scores)

    def select(self, rows: np.ndarray) -> Samples:
        """Return some samples only, by their numbers or flags."""
        return Samples(**{name: values[rows] for name, values in vars(self).items()})

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

    The net utility is less by what was spent beyond the budget, times the utility per cost on the fitting samples.
    """

    net: Float64[np.ndarray, "budget sample"]


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
    """Return thresholds for many Lagrange multipliers of cost, found from the last exit to the first; and static exits.

    At each exit that number of samples with the largest scores leaves whose gain over the later exits is largest. All
    samples count, also those that leave earlier: that makes it fast, and slightly worse than the search.
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
    """Return the outcome of fitted thresholds on other samples at some budgets; a dial would mix them alike."""
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

    ``cost`` (increasing) and ``utility`` are the means on the fitting samples. Below the cheapest candidate the rest of
    the samples is answered with the most frequent class, at no cost.
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
    return Outcome(costs=costs, utilities=utilities, net=utilities - slope * over)


def choose_exits(
    samples: Samples, parts: CostParts, budgets: Sequence[float], *, reachable: float = math.inf, seed: int = 0
) -> tuple[int, ...]:
    """Return the exits worth their cost: backward elimination, each set judged on samples it was not fitted on.

    Again and again the exit is dropped whose absence costs the least utility. Each set tried is fitted on one half and
    judged on the other, both ways, over all budgets alike; of those within one standard error of the best, the one with
    the fewest exits is returned. The cheapest kept exit costs at most ``reachable``.
    """

    def judged(kept: tuple[int, ...]) -> np.ndarray:
        halves = cross_validated(samples, parts, budgets, lambda _: kept, folds=2, seed=seed, approximate=True)
        return np.asarray(halves.net.mean(axis=0))

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
        if (best - value).mean() <= _TOLERANCE * standard_error(best - value, samples.groups)
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
    """Return the outcome of every sample at some budgets, exits chosen and thresholds fitted without its fold."""
    fold = folds_of(samples.groups, folds, seed)
    found = np.empty((3, len(budgets), len(samples)))
    for f in range(int(fold.max()) + 1):
        rest, own = samples.select(fold != f), samples.select(fold == f)
        kept = choose(rest)
        cumulative = parts.cumulative(kept)
        fitted = fit_frontier(rest.keeping(kept), cumulative, seed=seed, approximate=approximate)
        part = apply(fitted, own.keeping(kept), cumulative, budgets)
        found[:, :, fold == f] = part.costs, part.utilities, part.net
        step(f"fold {f}")
    return Outcome(costs=found[0], utilities=found[1], net=found[2])


def best_models(models: Sequence[StaticModel]) -> list[int]:
    """Return which models lie on the upper concave envelope: no mix of others is better."""
    return frontier(np.array([model.cost for model in models]), np.array([model.utility for model in models]))


def static_mix(samples: Samples, models: Sequence[StaticModel], budgets: Sequence[float]) -> Outcome:
    """Return the outcome of every sample under the best mix of models: each exit alone, then models of no table.

    It is chosen on the samples it is judged on: if anything, it looks better than it is.
    """
    cost, gain = (np.array([getattr(model, key) for model in models]) for key in ("cost", "utility"))
    alone, exits = samples.utility.T, samples.utility.shape[1]
    named = [np.full(len(samples), m.utility) if m.utilities is None else m.utilities for m in models[exits:]]
    earned = np.concatenate([alone, np.array(named).reshape(-1, len(samples))])
    best = best_models(models)
    spent = np.broadcast_to(cost[best, None], (len(best), len(samples)))
    return mixed(spent, earned[best], cost[best], gain[best], majority=samples.majority, budgets=budgets)

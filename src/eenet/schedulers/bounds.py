"""What no policy can beat, and what every policy should: bounds computed on tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.costs import BudgetLike, CostTable
from eenet.core.table import ExitTable
from eenet.schedulers.thresholds import frontier

__all__ = ["BoundPoint", "oracle", "static_mix"]


@dataclass(frozen=True)
class BoundPoint:
    """What a bound reaches at a budget.

    Attributes:
        cost: Mean cost per sample it spends, in the unit of the cost table.
        utility: Mean utility.
        distribution: Share of samples at each exit.
    """

    cost: float
    utility: float
    distribution: tuple[float, ...]


def static_mix(val: ExitTable, test: ExitTable, costs: CostTable, budget: BudgetLike) -> BoundPoint:
    """Return the lower bound ``random``: the best mix of exits chosen blindly, for every sample alike.

    Args:
        val: Where the mix is chosen.
        test: Where it is judged, in expectation over the coin.
        costs: Of the exits.
        budget: Mean cost per sample.
    """
    value = min(costs.budget(budget).value, costs.high)
    cost = torch.tensor(costs.cumulative, dtype=torch.float64)
    hull = frontier(cost, val.require_utility("random").mean(dim=0))
    shares = torch.zeros(costs.num_exits, dtype=torch.float64)
    below = max(i for i in hull if costs.cumulative[i] <= value)
    above = next((i for i in hull if costs.cumulative[i] > value), below)
    weight = (
        0.0
        if above == below
        else (value - costs.cumulative[below]) / (costs.cumulative[above] - costs.cumulative[below])
    )
    shares[below] += 1 - weight
    shares[above] += weight
    return BoundPoint(
        cost=min(float(shares @ cost), value),
        utility=float(test.require_utility("random").mean(dim=0) @ shares),
        distribution=tuple(shares.tolist()),
    )


def oracle(test: ExitTable, costs: CostTable, budget: BudgetLike) -> BoundPoint:
    """Return the upper bound ``oracle``: the best any assignment of exits could do, knowing what each answer is worth.

    A fractional knapsack with one choice per sample: each sample's exits form a concave frontier of cost and utility;
    its steps, over all samples, are taken in order of gain per cost until the budget is spent. Bounds every policy
    that answers with one exit; mostly luck with labels, hence no goal.

    Args:
        test: With labels or utility.
        costs: Of the exits.
        budget: Mean cost per sample.
    """
    utility = test.require_utility("oracle")
    n, exits = utility.shape
    value = min(costs.budget(budget).value, costs.high)
    level, step_cost, step_gain = _concave_steps(utility, torch.tensor(costs.cumulative, dtype=torch.float64))
    useful = step_gain > 0
    ratio = torch.where(useful, step_gain / step_cost, 0.0).flatten()
    order = ratio.argsort(descending=True, stable=True)
    order = order[useful.flatten()[order]]
    spent = step_cost.flatten()[order].cumsum(0) / n
    room = value - costs.low
    taken = int(torch.searchsorted(spent, room, right=True))
    part = 0.0
    if taken < len(order):
        before = float(spent[taken - 1]) if taken else 0.0
        part = max(0.0, (room - before) * n / float(step_cost.flatten()[order[taken]]))
    gain = step_gain.flatten()[order]
    total = float(gain[:taken].sum()) + (part * float(gain[taken]) if taken < len(order) else 0.0)
    final = torch.zeros(n, dtype=torch.long)
    rows = order[:taken] // step_cost.shape[1]
    final.scatter_reduce_(0, rows, level.flatten()[order[:taken]], reduce="amax")
    shares = torch.bincount(final, minlength=exits).double() / n
    cost = (
        costs.low
        + (float(spent[taken - 1]) if taken else 0.0)
        + part * (float(step_cost.flatten()[order[taken]]) / n if part else 0.0)
    )
    return BoundPoint(
        cost=min(cost, value), utility=(float(utility[:, 0].sum()) + total) / n, distribution=tuple(shares.tolist())
    )


def _concave_steps(
    utility: Float[Tensor, "sample exit"], cost: Float[Tensor, " exit"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, per sample, the exits on its concave frontier after exit 0, with cost and gain of each step."""
    n, exits = utility.shape
    level = torch.zeros(n, exits - 1, dtype=torch.long)
    step_cost, step_gain = torch.ones(n, exits - 1, dtype=torch.float64), torch.zeros(n, exits - 1, dtype=torch.float64)
    at = torch.zeros(n, dtype=torch.long)
    for step in range(exits - 1):
        here = utility.gather(1, at[:, None])
        slope = (utility - here) / (cost - cost[at][:, None]).clamp_min(torch.finfo(torch.float64).tiny)
        slope[torch.arange(exits) <= at[:, None]] = 0.0
        best, target = slope.max(dim=1)  # the steepest way up from here is the next corner of the frontier
        moves = best > 0
        level[:, step] = torch.where(moves, target, at)
        step_cost[:, step] = torch.where(moves, cost[target] - cost[at], 1.0)
        step_gain[:, step] = torch.where(moves, utility.gather(1, target[:, None]).squeeze(1) - here.squeeze(1), 0.0)
        at = torch.where(moves, target, at)
    return level, step_cost, step_gain

"""What no policy can beat, and what every policy should: bounds computed on tables."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int

from eenet.schedulers.search import frontier
from eenet.tables.checks import instance
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.table import ExitTable


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
    """Return the lower bound ``random``: the best mix of exits for all samples alike, whatever their outputs.

    It is chosen on ``val`` and judged on ``test``, in expectation over the coin. On a table whose cost differs from
    sample to sample, that cost counts.
    """
    _check(costs, val, test)
    value = min(costs.budget(budget).value, costs.high)
    cost, real = (
        np.array(costs.cumulative) if table.cost is None else table.leaving_costs.mean(axis=0) for table in (val, test)
    )
    hull = frontier(cost, val.require_utility("random").mean(axis=0))
    shares = np.zeros(costs.num_exits)
    below = max((i for i in hull if cost[i] <= value), default=0)
    above = next((i for i in hull if cost[i] > value), below)
    weight = 0.0 if above == below else (value - cost[below]) / (cost[above] - cost[below])
    shares[below] += 1 - weight
    shares[above] += weight
    spent = float(shares @ real)
    return BoundPoint(
        cost=spent if test.cost is not None else min(spent, value),
        utility=float(test.require_utility("random").mean(axis=0) @ shares),
        distribution=tuple(shares.tolist()),
    )


def oracle(test: ExitTable, costs: CostTable, budget: BudgetLike) -> BoundPoint:
    """Return the upper bound ``oracle``: the best any assignment of exits could do, knowing each answer's utility.

    A fractional knapsack with one choice per sample: each sample's exits form a concave frontier of cost and utility;
    its steps, over all samples, are taken in order of gain per cost until the budget is spent. Bounds every policy that
    answers with one exit; mostly luck with labels, hence no goal. On a table whose cost differs from sample to sample,
    that cost counts.
    """
    _check(costs, test)
    utility = test.require_utility("oracle")
    n, exits = utility.shape
    cost = np.array([costs.cumulative]) if test.cost is None else test.leaving_costs
    first, last = (float(cost[:, k].mean()) for k in (0, -1))
    value = max(min(costs.budget(budget).value, last), first)
    level, step_cost, step_gain = _concave_steps(utility, np.broadcast_to(cost, utility.shape))
    useful = np.flatnonzero(step_gain > 0)
    order = useful[np.argsort(-(step_gain.flat[useful] / step_cost.flat[useful]), kind="stable")]
    spent = np.append(0.0, step_cost.flat[order].cumsum() / n)
    gained = np.append(0.0, step_gain.flat[order].cumsum())
    taken = int(np.searchsorted(spent, value - first, side="right")) - 1  # whole steps
    part = value - first - spent[taken] if taken < len(order) else 0.0  # of the next step, in cost
    ratio = n * float(step_gain.flat[order[taken]] / step_cost.flat[order[taken]]) if taken < len(order) else 0.0
    final = np.zeros(n, dtype=np.int64)
    np.maximum.at(final, order[:taken] // (exits - 1), level.flat[order[:taken]])
    return BoundPoint(
        cost=min(float(first + spent[taken] + part), value),
        utility=(float(utility[:, 0].sum() + gained[taken]) + part * ratio) / n,
        distribution=tuple((np.bincount(final, minlength=exits) / n).tolist()),
    )


def _check(costs: CostTable, *tables: ExitTable) -> None:
    instance(costs, CostTable, "costs")
    for table in tables:
        instance(table, ExitTable, "table")
        costs.require(table.num_exits, "the table")


def _concave_steps(
    utility: Float[np.ndarray, "sample exit"], cost: Float[np.ndarray, "sample exit"]
) -> tuple[Int[np.ndarray, "sample step"], Float64[np.ndarray, "sample step"], Float64[np.ndarray, "sample step"]]:
    """Return, per sample, the exits on its concave frontier after exit 0, with cost and gain of each step."""
    n, exits = utility.shape
    rows = np.arange(n)
    level = np.zeros((n, exits - 1), dtype=np.int64)
    step_cost, step_gain = np.ones((n, exits - 1)), np.zeros((n, exits - 1))
    at = np.zeros(n, dtype=np.int64)
    for step in range(exits - 1):
        gain, more = utility - utility[rows, at][:, None], cost - cost[rows, at][:, None]
        slope = np.divide(gain, more, out=np.zeros_like(utility), where=more > 0)
        target = slope.argmax(axis=1)  # the steepest way up from here is the next corner of the frontier
        moves = slope[rows, target] > 0
        level[:, step] = np.where(moves, target, at)
        step_cost[:, step] = np.where(moves, more[rows, target], 1.0)
        step_gain[:, step] = np.where(moves, gain[rows, target], 0.0)
        at = level[:, step]
    return level, step_cost, step_gain

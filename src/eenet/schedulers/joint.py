"""Joint threshold search: all thresholds at once, for the most utility within the budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.costs import BudgetLike, CostTable
from eenet.core.scorers import ConfidenceScorer, Scorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.thresholds import between, frontier, geometric_shares, outcomes, thresholds_for_shares

__all__ = ["JointScheduler", "joint_dial", "search"]

_PRICES = 40  # values of the multiplier, evenly spaced in its logarithm
_SWEEPS = 8  # rounds of coordinate ascent over all exits
_ROUNDS = 3  # ascents, each from the best of the pool so far
_BLOCK = 4_000_000  # entries of a [candidate, sample] matrix held at a time


def joint_dial(scorer: Scorer, table: ExitTable, costs: CostTable, seed: int, what: str) -> Dial:
    """Return a dial of a scorer whose thresholds are searched jointly.

    Only the concave frontier is kept, so the dial ends where spending more bought nothing on the fitting data.

    Args:
        scorer: Orders the samples at each exit.
        table: Calibration data.
        costs: Of the table's exits.
        seed: Of the random starts and of the coin that mixes.
        what: Name of the caller, for messages.
    """
    utility = table.require_utility(what)
    scores = Replayer(table).scores(scorer)
    cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
    thresholds = search(scores, utility, cumulative, seed)
    cost, gain = _judge(scores, utility, cumulative, thresholds)
    kept = frontier(cost, gain)
    return Dial.of_thresholds(scorer, thresholds[kept], (cost[kept], gain[kept]), costs, seed)


def search(
    scores: Float[Tensor, "sample exit"],
    utility: Float[Tensor, "sample exit"],
    costs: Float[Tensor, " exit"],
    seed: int,
) -> Float[Tensor, "candidate exit"]:
    """Return threshold vectors that trade utility for cost well, for every price of cost.

    For a price ``lambda`` the objective ``mean u - lambda c`` is raised one threshold at a time: given the others, the
    best prefix of the samples in score order is exact, by one cumulative sum. Coordinate ascent sticks in local
    optima, so every price starts from the best of a pool, which holds geometric and random proportions and what all
    prices found so far.

    Args:
        scores: Larger leaves first; the last column is not used.
        utility: What answering at each exit is worth.
        costs: Cumulative costs.
        seed: Of the random proportions.
    """
    pool = _starts(scores, costs, seed)
    cost, gain = _judge(scores, utility, costs, pool)
    prices = _prices(costs, gain)
    ascent = _Ascent(scores, utility, costs)
    for round_ in range(_ROUNDS):
        value = gain - prices[:, None] * cost
        best = value.topk(2 if round_ == 0 else 1, dim=1).indices.T  # two starts at first: cheap insurance
        found = torch.cat([ascent.climb(pool[row], prices) for row in best])
        fresh = torch.unique(found, dim=0)
        fresh_cost, fresh_gain = _judge(scores, utility, costs, fresh)
        pool, cost, gain = torch.cat([pool, fresh]), torch.cat([cost, fresh_cost]), torch.cat([gain, fresh_gain])
    return pool


def _prices(costs: Tensor, gain: Tensor) -> Tensor:
    """Return multipliers from 0 to one at which the cheapest exit wins."""
    scale = max(float(gain.max() - gain.min()), 1e-6) / float(costs[-1] - costs[0])
    grid = torch.logspace(math.log10(0.01 * scale), math.log10(100 * scale), _PRICES - 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), grid])


def _starts(scores: Tensor, costs: Tensor, seed: int) -> Tensor:
    """Return thresholds for geometric and random proportions, and every static exit."""
    exits = scores.shape[1]
    geometric = geometric_shares(torch.linspace(float(costs[0]), float(costs[-1]), 41, dtype=torch.float64), costs)
    draws = torch.rand(60, exits, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    random = (-draws.clamp_min(1e-9).log()) ** 2  # uneven on purpose: some exits nearly closed
    shares = torch.cat([geometric, random / random.sum(dim=1, keepdim=True)])
    block = max(1, _BLOCK // len(scores))
    found = torch.cat([thresholds_for_shares(scores, part) for part in torch.split(shares, block)])
    static = torch.where(torch.eye(exits, dtype=torch.bool), -math.inf, torch.tensor(math.inf))
    static[:, -1] = -math.inf
    return torch.cat([static, found])


def _judge(scores: Tensor, utility: Tensor, costs: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """Return cost and utility of each candidate, in blocks of bounded memory."""
    block = max(1, _BLOCK // len(scores))
    results = [outcomes(scores, utility, costs, part) for part in torch.split(thresholds, block)]
    cost, gain = (torch.cat(parts) for parts in zip(*results, strict=True))
    return cost, gain


class _Ascent:
    """Coordinate ascent on thresholds, many candidates at a time; sorts once."""

    def __init__(self, scores: Tensor, utility: Tensor, costs: Tensor) -> None:
        self.utility, self.costs, self.scores = utility, costs, scores
        self.order = scores[:, :-1].argsort(dim=0, descending=True)
        ordered = scores[:, :-1].gather(0, self.order)
        self.cuttable = torch.ones_like(ordered, dtype=torch.bool)  # a cut after row i separates two different scores
        self.cuttable[:-1] = ordered[:-1] > ordered[1:]
        everyone = torch.full((1, ordered.shape[1]), -math.inf)
        nobody = torch.full((1, ordered.shape[1]), math.inf)
        inner = between(ordered[:-1], ordered[1:])
        self.thresholds = torch.cat([nobody, inner, everyone])  # by number of samples in score order that reach it

    def climb(self, thresholds: Tensor, prices: Tensor) -> Tensor:
        """Return thresholds at a local optimum for each (start, price) pair."""
        block = max(1, _BLOCK // len(self.scores))
        parts = zip(torch.split(thresholds, block), torch.split(prices, block), strict=True)
        return torch.cat([self._climb(start.clone(), price) for start, price in parts])

    def _climb(self, thresholds: Tensor, prices: Tensor) -> Tensor:
        worth = (
            self.utility.T.float()[None] - (prices[:, None] * self.costs).float()[:, :, None]
        )  # [candidate, exit, sample]
        reach = self.scores.T[None] >= thresholds[:, :, None]
        for _ in range(_SWEEPS):
            before = thresholds.clone()
            staying = worth[:, -1]
            later = [staying]
            for k in range(
                worth.shape[1] - 2, 0, -1
            ):  # what going on beyond exit k-1 is worth, under the later thresholds
                staying = torch.where(reach[:, k], worth[:, k], staying)
                later.append(staying)
            inside: Tensor | None = None
            for k, going_on in zip(range(worth.shape[1] - 1), reversed(later), strict=True):
                gain = worth[:, k] - going_on
                gain = gain if inside is None else gain * inside
                thresholds[:, k] = self._best_cut(gain, k)
                reach[:, k] = self.scores[:, k] >= thresholds[:, k, None]
                inside = ~reach[:, k] if inside is None else inside & ~reach[:, k]
            if torch.equal(before, thresholds):
                break
        return thresholds

    def _best_cut(self, gain: Tensor, k: int) -> Tensor:
        """Return the threshold at exit ``k`` whose leaving prefix in score order gains most."""
        total = gain[:, self.order[:, k]].cumsum(dim=1)
        total[:, ~self.cuttable[:, k]] = -math.inf
        best, last = total.max(dim=1)
        return self.thresholds[torch.where(best > 0, last + 1, 0), k]


@dataclass(frozen=True, kw_only=True)
class JointScheduler(Scheduler):
    """Leaves by a confidence, with all thresholds searched jointly for the most utility within the budget.

    Attributes:
        confidence: ``"max_prob"``, ``"certainty"``, ``"margin"``, or a function of log-probabilities.
    """

    confidence: str | Callable[[Tensor], Tensor] = "max_prob"

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Search thresholds for all budgets; see `Scheduler.sweep`.

        On the fitting data a larger budget never lowers utility. The policy may stay below a budget where spending more
        bought nothing.
        """
        return joint_dial(
            ConfidenceScorer(self.confidence), table, costs or table.require_costs(), self.seed, "fitting joint"
        )

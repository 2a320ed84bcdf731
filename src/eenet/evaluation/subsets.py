"""What a model with fewer of its exits would answer at a budget, and the search for the exits to keep.

All of it works on plain tensors: how sure each exit is of each sample, what its answer is worth, and costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.evaluation.parts import CostParts
from eenet.schedulers.ensemble import folds_of
from eenet.schedulers.joint import search
from eenet.schedulers.thresholds import between, frontier, outcomes

__all__ = ["Held", "Samples", "choose_exits", "fit_frontier", "held_out", "mixed", "worth"]

_ROWS = 4000  # samples that thresholds are fitted on at most
_PRICES = 32  # of cost, in the quick fit
_TOLERANCE = 1.0  # standard errors within which fewer exits are preferred


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What a choice is made on.

    Attributes:
        scores: How sure each exit is; larger leaves first.
        utility: What answering there is worth.
        guess: What naming the commonest class, at no cost, is worth; 0 where classes are not known.
    """

    scores: Float[Tensor, "sample exit"]
    utility: Float[Tensor, "sample exit"]
    guess: Float[Tensor, " sample"]

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.scores)

    def select(self, rows: Int[Tensor, " row"]) -> Samples:
        """Return some samples only."""
        return Samples(scores=self.scores[rows], utility=self.utility[rows], guess=self.guess[rows])

    def keeping(self, kept: Sequence[int]) -> Samples:
        """Return the same samples with some exits only."""
        columns = list(kept)
        return Samples(scores=self.scores[:, columns], utility=self.utility[:, columns], guess=self.guess)


@dataclass(frozen=True)
class Held:
    """What every budget brought on samples that were not fitted on, in expectation over coins.

    Attributes:
        cost: Of every sample.
        utility: Of every sample.
        slope: What more cost was worth per unit on the fitting side, at each budget.
    """

    cost: Float[Tensor, "budget sample"]
    utility: Float[Tensor, "budget sample"]
    slope: Float[Tensor, " budget"]


def fit_frontier(
    samples: Samples, costs: Sequence[float], *, seed: int = 0, quick: bool = False
) -> tuple[Float[Tensor, "candidate exit"], Float[Tensor, " candidate"], Float[Tensor, " candidate"]]:
    """Return the best thresholds found, from cheap to dear, with their cost and utility on the fitting side.

    Args:
        samples: To fit on; at most 4000 of them are used.
        costs: Cumulative, one per exit.
        seed: Of the search.
        quick: A tenth of the time, for comparing many sets of exits.
    """
    step = -(-len(samples) // _ROWS)
    scores, utility = samples.scores[::step], samples.utility[::step]
    cumulative = torch.tensor(costs, dtype=torch.float64)
    thresholds = _backwards(scores, utility, cumulative) if quick else search(scores, utility, cumulative, seed)
    block = max(1, 4_000_000 // len(scores))
    results = [outcomes(scores, utility, cumulative, part) for part in torch.split(thresholds, block)]
    cost, gain = (torch.cat(parts) for parts in zip(*results, strict=True))
    kept = frontier(cost, gain)
    return thresholds[kept], cost[kept], gain[kept]


def _backwards(
    scores: Float[Tensor, "sample exit"], utility: Float[Tensor, "sample exit"], costs: Float[Tensor, " exit"]
) -> Float[Tensor, "candidate exit"]:
    """Return thresholds for a range of prices of cost, from the last exit to the first; and every static exit.

    At each exit the samples in front in score order leave, as many as gain most over what the later thresholds give
    them. All samples count, also those that leave earlier: that is what makes it quick, and not quite the best.
    """
    exits = scores.shape[1]
    scale = float(utility.mean(dim=0).diff().abs().max().clamp_min(1e-3)) / float(costs[-1] - costs[0])
    prices = scale * torch.logspace(-1.5, 1.5, _PRICES, dtype=torch.float64)[:, None]
    thresholds = torch.full((_PRICES, exits), -math.inf)
    going_on = utility[:, -1] - prices * costs[-1]  # [price, sample]
    for k in reversed(range(exits - 1)):
        leaving = utility[:, k] - prices * costs[k]
        order = scores[:, k].argsort(descending=True)
        best, last = (leaving - going_on)[:, order].cumsum(dim=1).max(dim=1)
        ordered = scores[order, k]
        cut = between(ordered[last], ordered[(last + 1).clamp_max(len(ordered) - 1)])
        cut = torch.where(last + 1 < len(ordered), cut, -math.inf)
        thresholds[:, k] = torch.where(best > 0, cut, math.inf)
        going_on = torch.where(scores[:, k] >= thresholds[:, k, None], leaving, going_on)
    static = torch.where(torch.eye(exits, dtype=torch.bool), -math.inf, torch.tensor(math.inf))
    static[:, -1] = -math.inf
    return torch.cat([static, thresholds])


def held_out(
    fitted: tuple[Float[Tensor, "candidate exit"], Float[Tensor, " candidate"], Float[Tensor, " candidate"]],
    samples: Samples,
    costs: Sequence[float],
    budgets: Sequence[float],
) -> Held:
    """Return what fitted thresholds do to other samples at some budgets.

    Between two candidates they are mixed, as a dial does. Below the cheapest exit the rest of the samples is answered
    with the commonest class, at no cost.

    Args:
        fitted: What `fit_frontier` returned.
        samples: To judge on.
        costs: Cumulative, one per exit.
        budgets: Mean costs per sample.
    """
    thresholds, cost, gain = fitted
    first = (samples.scores[None] >= thresholds[:, None]).int()
    first[:, :, -1] = 1
    index = first.argmax(dim=2)  # [candidate, sample]
    spent = torch.tensor(costs, dtype=torch.float64)[index]
    earned = samples.utility[torch.arange(len(samples)), index]
    return mixed(spent, earned, cost, gain, guess=samples.guess, budgets=budgets)


def mixed(
    spent: Float[Tensor, "candidate sample"],
    earned: Float[Tensor, "candidate sample"],
    cost: Float[Tensor, " candidate"],
    gain: Float[Tensor, " candidate"],
    *,
    guess: Float[Tensor, " sample"],
    budgets: Sequence[float],
) -> Held:
    """Return the mixes of neighbouring candidates that meet some budgets on the fitting side.

    Args:
        spent: Cost of every sample.
        earned: Utility of every sample.
        cost: Mean cost of each candidate on the fitting side, increasing.
        gain: Mean utility there.
        guess: Utility of every sample without any cost.
        budgets: Mean costs per sample.
    """
    base = float(guess.mean()) if len(guess) else 0.0
    levels = torch.cat([torch.zeros(1, dtype=torch.float64), cost.double()])
    heights = torch.cat([torch.tensor([base], dtype=torch.float64), gain.double()])
    spent = torch.cat([torch.zeros(1, spent.shape[1], dtype=torch.float64), spent.double()])
    earned = torch.cat([guess.double()[None], earned.double()])
    wanted = torch.tensor(list(budgets), dtype=torch.float64) * (1 + 1e-12)
    low = (torch.searchsorted(levels, wanted, right=True) - 1).clamp(0, len(levels) - 1)
    high = (low + 1).clamp_max(len(levels) - 1)
    width = (levels[high] - levels[low]).clamp_min(torch.finfo(torch.float64).tiny)
    share = torch.where(high > low, (wanted - levels[low]) / width, 0.0)[:, None]
    slope = torch.where(high > low, (heights[high] - heights[low]) / width, 0.0)
    return Held((1 - share) * spent[low] + share * spent[high], (1 - share) * earned[low] + share * earned[high], slope)


def worth(held: Held, budgets: Sequence[float]) -> Float[Tensor, " sample"]:
    """Return what every sample is worth on average over budgets, overspending charged at the going price."""
    over = held.cost - torch.tensor(list(budgets), dtype=torch.float64)[:, None]
    return (held.utility - held.slope[:, None] * over).mean(dim=0)


def choose_exits(
    samples: Samples, parts: CostParts, budgets: Sequence[float], *, reachable: float | None = None, seed: int = 0
) -> tuple[int, ...]:
    """Return the exits worth their cost: backward elimination, each set judged on samples it was not fitted on.

    From all exits the one whose loss hurts least is dropped, again and again. Of all sets tried, the best on held-out
    halves is found; of those within one standard error of it, the one with the fewest exits is returned.

    Args:
        samples: To choose on.
        parts: Of the costs of all exits.
        budgets: Wanted mean costs per sample, weighed alike.
        reachable: The cheapest kept exit may not cost more than this; default: no limit.
        seed: Of the halves.

    Returns:
        Indices in increasing order, the last exit among them.
    """
    fold = folds_of(len(samples), 2, seed)
    sides = [samples.select((fold == f).nonzero().squeeze(1)) for f in range(2)]

    def judged(kept: tuple[int, ...]) -> Tensor:
        costs = parts.cumulative(kept)
        shown = [side.keeping(kept) for side in sides]
        held = [held_out(fit_frontier(a, costs, quick=True), b, costs, budgets) for a, b in (shown, reversed(shown))]
        return torch.cat([worth(one, budgets) for one in held])

    last = len(parts.stages) - 1
    kept = tuple(range(last + 1))
    tried = {kept: judged(kept)}
    while len(kept) > 2:
        smaller = [tuple(k for k in kept if k != dropped) for dropped in kept[:-1]]
        if reachable is not None:
            smaller = [one for one in smaller if parts.cumulative(one)[0] <= reachable * (1 + 1e-9)]
        if not smaller:
            break
        tried |= {one: judged(one) for one in smaller}
        kept = max(smaller, key=lambda one: float(tried[one].mean()))
    best = max(tried.values(), key=lambda value: float(value.mean()))
    near = [
        one
        for one, value in tried.items()
        if float((best - value).mean()) <= _TOLERANCE * float((best - value).std()) / math.sqrt(len(best))
    ]
    return min(near, key=lambda one: (len(one), -float(tried[one].mean())))

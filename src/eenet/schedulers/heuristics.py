"""The rules EENet is compared with: a confidence, and exit proportions in geometric progression; patience."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.confidence import max_prob, squash, vote_share
from eenet.core.costs import BudgetLike, CostTable
from eenet.core.scorers import ConfidenceScorer, Scorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.thresholds import geometric_shares, outcomes, thresholds_for_shares

__all__ = ["GeometricScheduler", "PatienceScheduler", "VoteScheduler", "VoteScorer", "geometric_dial"]

_TARGETS = 201  # mean costs at which geometric proportions are solved; between them policies are mixed


def geometric_dial(
    scorer: Scorer,
    table: ExitTable,
    costs: CostTable,
    seed: int,
    what: str,
    *,
    base: Float[Tensor, " exit"] | None = None,
    steps: Float[Tensor, " exit"] | None = None,
) -> Dial:
    """Return a dial of a scorer whose exit shares form a geometric progression.

    Args:
        scorer: Orders the samples at each exit.
        table: Calibration data.
        costs: Of the table's exits.
        seed: Of the coin that mixes.
        what: Name of the caller, for messages.
        base: Shares that the progression tilts; default: equal ones.
        steps: Exponents of the progression; default: the numbers of the exits.
    """
    utility = table.require_utility(what)
    scores = Replayer(table).scores(scorer)
    cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
    targets = torch.linspace(costs.low, costs.high, _TARGETS, dtype=torch.float64)
    # memory of one block of candidates stays near 20 MB, whatever the number of samples
    block = max(1, 2_000_000 // table.num_samples)
    shares = torch.split(geometric_shares(targets, cumulative, base, steps), block)
    thresholds = torch.cat([thresholds_for_shares(scores, part) for part in shares])
    thresholds[0, :-1] = -math.inf  # the ends exactly: everybody leaves first, everybody stays to the last
    thresholds[-1, :-1] = math.inf
    results = [outcomes(scores, utility, cumulative, part) for part in torch.split(thresholds, block)]
    cost, gain = (torch.cat(parts) for parts in zip(*results, strict=True))
    return Dial.of_thresholds(scorer, thresholds, (cost, gain), costs, seed)


@dataclass(frozen=True, kw_only=True)
class GeometricScheduler(Scheduler):
    """Leaves by a confidence, with exit shares in geometric progression ``P_k ~ rho^k`` that spend the whole budget.

    Attributes:
        confidence: ``"max_prob"`` (MSDNet), ``"certainty"`` (BranchyNet), ``"margin"``, or a function of
            log-probabilities ``[sample, class] -> [sample]``.

    Source:
        MSDNet (Huang et al., ICLR 2018); BranchyNet (Teerapittayanon et al., ICPR 2016) for the entropy.
    """

    confidence: str | Callable[[Tensor], Tensor] = "max_prob"

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit thresholds for all budgets; see `Scheduler.sweep`."""
        scorer = ConfidenceScorer(self.confidence)
        return geometric_dial(scorer, table, costs or table.require_costs(), self.seed, "fitting a confidence")


class VoteScorer(Scorer):
    """Share of the exits seen that agree, ties broken by the newest exit's largest probability."""

    compares_classes = True

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the vote share plus a tie-breaker smaller than the least difference between two shares."""
        return vote_share(seen) * seen.shape[1] + squash(max_prob(seen[:, -1])) / 2


@dataclass(frozen=True, kw_only=True)
class VoteScheduler(Scheduler):
    """Leaves when enough of the exits seen voted for the same class; geometric exit shares.

    Source:
        EENet (arXiv 2301.07099), its form of PABEE for networks of few exits.
    """

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit thresholds for all budgets; see `Scheduler.sweep`."""
        return geometric_dial(VoteScorer(), table, costs or table.require_costs(), self.seed, "fitting vote")


@dataclass(frozen=True, kw_only=True)
class PatienceScheduler(Scheduler):
    """Leaves when a number of consecutive exits agree; one patience for all exits.

    The budget is met by mixing two neighbouring numbers.

    Source:
        PABEE (Zhou et al., NeurIPS 2020).
    """

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Evaluate every patience; see `Scheduler.sweep`."""
        costs = costs or table.require_costs()
        scorer = ConfidenceScorer("streak")
        exits = table.num_exits
        # agreement of 1, 2, ... exits in a row; K agree only at the last exit, where all leave anyway
        thresholds = torch.arange(1, exits + 1, dtype=torch.float32)[:, None].repeat(1, exits) - 0.5
        thresholds[:, -1] = -math.inf
        thresholds[-1, :-1] = math.inf
        cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
        outcome = outcomes(
            Replayer(table).scores(scorer), table.require_utility("fitting patience"), cumulative, thresholds
        )
        return Dial.of_thresholds(scorer, thresholds, outcome, costs, self.seed)

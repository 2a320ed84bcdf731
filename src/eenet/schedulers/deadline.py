"""A deadline on every single sample, on top of the budget on their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eenet.core.costs import Budget, BudgetLike, CostTable
from eenet.core.policy import ConfidenceScorer, MixedPolicy, Policy, ScorePolicy, Scorer
from eenet.core.table import ExitTable
from eenet.errors import BudgetError, InputError
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.eenet import EENetScorer
from eenet.schedulers.heuristics import VoteScorer
from eenet.schedulers.rivals import PceeScorer

__all__ = ["ClosedScorer", "DeadlineScheduler"]


class ClosedScorer(Scorer):
    """A scorer that knows the first exits only; from the last of them on it scores 0, for all leave there.

    For scorers of your own. Those of the library are given weights for the closed exits instead, and can be saved.

    Args:
        scorer: Of the open exits.
        open_exits: How many there are.
    """

    def __init__(self, scorer: Scorer, open_exits: int) -> None:
        super().__init__()
        self.scorer, self.open_exits = scorer, open_exits

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the scorer's score where there is a choice."""
        if seen.shape[1] >= self.open_exits:
            return torch.zeros(len(seen), device=seen.device)
        result: Tensor = self.scorer(seen, features)
        return result

    def settings(self) -> dict[str, object]:
        """Return how many exits are open; the scorer inside is described by itself."""
        return {"open_exits": self.open_exits}


@dataclass(frozen=True, kw_only=True)
class DeadlineScheduler(Scheduler):
    """Lets no sample cost more than a deadline: exits beyond it are closed, and another scheduler uses the rest.

    Guarantee: every sample costs at most the deadline, on any data, as far as the cost table is right: with measured
    times that is what a sample costs on average, not what the slowest takes. The budget holds as the inner
    scheduler promises it; percentages keep referring to the original model.

    Attributes:
        scheduler: Fitted on the exits within the deadline; its seed counts, the one here does not.
        deadline: What no sample may exceed, written as a budget: a number in the table's unit, with a unit
            (``"2.5ms"``), or a percentage.

    Example:
        >>> from eenet.schedulers import GeometricScheduler
        >>> from eenet.testing import synthetic_table
        >>> scheduler = DeadlineScheduler(scheduler=GeometricScheduler(), deadline="3ms")
        >>> scheduler.fit(synthetic_table(500), budget="50%").num_exits  # costs are 1, 2, 3 and 4 ms
        4
    """

    scheduler: Scheduler
    deadline: BudgetLike

    def limit(self, costs: CostTable) -> Budget:
        """Return the deadline in the unit of the costs.

        Raises:
            BudgetError: It is no cost, or no exit can be reached within it.
        """
        value = self.deadline.value if isinstance(self.deadline, Budget) else self.deadline
        try:
            return costs.budget(value)
        except BudgetError as error:  # the forms are a budget's, and so are the mistakes one can make
            told = str(error).replace("mean cost", "cost").replace("budget", "deadline")
            raise BudgetError(told) from error

    def open_exits(self, costs: CostTable) -> int:
        """Return how many exits lie within the deadline, at least 1.

        Raises:
            BudgetError: As `limit`.
        """
        limit = self.limit(costs).value
        # an exit's own cost, typed or computed, must not fail by rounding
        return sum(cost <= limit or math.isclose(cost, limit, rel_tol=1e-9) for cost in costs.cumulative)

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit the inner scheduler on the open exits; see `Scheduler.sweep`.

        Raises:
            BudgetError: No exit can be reached within the deadline.
            InputError: The inner scheduler's policies are neither a `ScorePolicy` nor mixed of such.
        """
        costs = costs or table.require_costs()
        asked = None if budgets is None else [costs.budget(budget) for budget in budgets]
        exits = self.open_exits(costs)
        utility = table.require_utility("fitting under a deadline")
        if exits == 1:
            only = ScorePolicy(ConfidenceScorer("max_prob"), torch.full((costs.num_exits,), -math.inf))
            return Dial((only,), (costs.low,), (float(utility[:, 0].mean()),), costs, self.scheduler.seed)
        within = CostTable(costs.cumulative[:exits], costs.unit, costs.full)
        dial = self.scheduler.sweep(_first_exits(table, exits, within), within, asked)
        widen = _Widening(exits, costs.num_exits)
        return replace(dial, policies=tuple(widen(policy) for policy in dial.policies), costs=costs)


def _first_exits(table: ExitTable, exits: int, costs: CostTable) -> ExitTable:
    """Return the table of the first exits."""
    cut: dict[str, Any] = {
        key: None if getattr(table, key) is None else getattr(table, key)[:, :exits]
        for key in ("logits", "utility", "features", "confidence")
    }
    return replace(table, costs=costs, **cut)


class _Widening:
    """Turns policies of the first exits into policies of all exits that never go further; scorers stay shared."""

    def __init__(self, open_exits: int, num_exits: int) -> None:
        self.open_exits, self.num_exits = open_exits, num_exits
        self._scorers: dict[Scorer, Scorer] = {}

    def __call__(self, policy: Policy) -> Policy:
        if isinstance(policy, MixedPolicy):
            return MixedPolicy(self(policy.a), self(policy.b), policy.weight, policy.seed)
        if not isinstance(policy, ScorePolicy) or type(policy).answer is not Policy.answer:
            raise InputError(
                f"policy of class {type(policy).__name__} does not fit a deadline: closing exits is known for "
                f"ScorePolicy and mixtures of it. Use another scheduler."
            )
        closed = policy.thresholds.new_full((self.num_exits - self.open_exits,), -math.inf)
        return ScorePolicy(self._scorer(policy.scorer), torch.cat([policy.thresholds, closed]))

    def _scorer(self, scorer: Scorer) -> Scorer:
        """Return a scorer that may be asked at every exit, one for all policies that share it."""
        if self.open_exits == self.num_exits:
            return scorer
        if scorer not in self._scorers:
            self._scorers[scorer] = _widened(scorer, self.open_exits, self.num_exits)
        return self._scorers[scorer]


def _widened(scorer: Scorer, open_exits: int, num_exits: int) -> Scorer:
    """Return a scorer of all exits that scores as before where there is a choice; elsewhere its score means nothing."""
    closed = num_exits - open_exits
    if isinstance(scorer, ConfidenceScorer | VoteScorer):
        return scorer  # it works for any number of exits
    if isinstance(scorer, EENetScorer):
        weight = nn.functional.pad(scorer.weight, (0, closed, 0, closed))
        return EENetScorer(num_exits, scorer.num_classes, weight)
    if isinstance(scorer, PceeScorer):
        edges, means = (torch.cat([rows, rows[-1:].repeat(closed, 1)]) for rows in (scorer.edges, scorer.means))
        return PceeScorer(num_exits, scorer.bins, scorer.confidence.confidence, edges, means)
    return ClosedScorer(scorer, open_exits)

"""A deadline on every single sample, on top of the budget on their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from eenet.core.combined import MixedPolicy, TransformedPolicy
from eenet.core.costs import Budget, BudgetLike, CostTable
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import ConfidenceScorer, Scorer
from eenet.core.table import ExitTable
from eenet.core.transform import Transform
from eenet.errors import BudgetError, InputError
from eenet.schedulers.base import Dial, Scheduler

__all__ = ["DeadlineScheduler"]

_Part = TypeVar("_Part", Scorer, Transform)


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
            InputError: The inner scheduler's policies are not made of `ScorePolicy` alone.
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
        self._known: dict[Any, Any] = {}

    def __call__(self, policy: Policy) -> Policy:
        if isinstance(policy, MixedPolicy):
            return MixedPolicy(self(policy.a), self(policy.b), policy.weight, policy.seed)
        if isinstance(policy, TransformedPolicy):
            return TransformedPolicy(self._widened(policy.transform), self(policy.policy))
        if not isinstance(policy, ScorePolicy) or type(policy).answer is not Policy.answer:
            raise InputError(
                f"policy of class {type(policy).__name__} does not fit a deadline: closing exits is known for "
                f"ScorePolicy and what is made of it. Use another scheduler."
            )
        closed = policy.thresholds.new_full((self.num_exits - self.open_exits,), -math.inf)
        return ScorePolicy(self._widened(policy.scorer), torch.cat([policy.thresholds, closed]))

    def _widened(self, part: _Part) -> _Part:
        """Return a scorer or transform that may be asked at every exit, one for all policies that share it."""
        if self.open_exits == self.num_exits:
            return part
        if part not in self._known:
            self._known[part] = part.widened(self.num_exits)
        widened: _Part = self._known[part]
        return widened

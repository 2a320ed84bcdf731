"""`Scheduler` and `Dial`: settings in, policies out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from eenet.core.combined import MixedPolicy
from eenet.core.costs import BudgetLike, CostTable
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import Scorer
from eenet.core.table import ExitTable

__all__ = ["Dial", "Scheduler"]


@dataclass(frozen=True)
class Dial:
    """One fit for all budgets: policies from cheap to dear, mixed to meet a budget between two of them.

    Attributes:
        policies: In order of increasing cost.
        fit_costs: Expected mean cost of each on the data it was fitted on.
        fit_utilities: Mean utility of each on that data.
        costs: The costs it was fitted with.
        seed: Of the coin that mixes.
        reason: Why this dial and no other, where there was a choice.
    """

    policies: tuple[Policy, ...]
    fit_costs: tuple[float, ...]
    fit_utilities: tuple[float, ...]
    costs: CostTable
    seed: int = 0
    reason: str = ""

    def at(self, budget: BudgetLike) -> Policy:
        """Return the policy for a budget, without fitting again.

        Guarantee: on the data the dial was fitted on, its expected mean cost is at most the budget.

        Args:
            budget: A mean cost per sample: a number in the table's unit, with a unit, or a percentage.

        Raises:
            BudgetError: No number, a foreign unit, or below the cost of exit 0.
        """
        value = self.costs.budget(budget).value
        above = next((i for i, cost in enumerate(self.fit_costs) if cost > value), len(self.policies))
        if above == len(self.policies):
            return self.policies[-1]
        below = max(above - 1, 0)
        if self.fit_costs[below] >= value * (1 - 1e-6):  # met already: no mixing for a rounding error
            return self.policies[below]
        low, high = self.fit_costs[below], self.fit_costs[above]
        # a hair less than the exact weight, so that rounding cannot carry the expectation over the budget
        weight = (value - low) / (high - low) * (1 - 1e-9) if high > low else 0.0
        if weight <= 0:
            return self.policies[below]
        return MixedPolicy(self.policies[above], self.policies[below], weight, self.seed)

    @classmethod
    def of_thresholds(
        cls,
        scorer: Scorer,
        thresholds: Float[Tensor, "candidate exit"],
        outcome: tuple[Float[Tensor, " candidate"], Float[Tensor, " candidate"]],
        costs: CostTable,
        seed: int,
    ) -> Dial:
        """Build a dial from threshold vectors on one scorer.

        Args:
            scorer: Shared by all policies.
            thresholds: One vector per candidate; of several at the same cost the most useful one is kept.
            outcome: Cost and utility of each candidate on the fitting data.
            costs: The costs they were fitted with.
            seed: Of the coin that mixes.
        """
        cost, utility = outcome
        order = sorted(range(len(cost)), key=lambda i: (float(cost[i]), -float(utility[i])))
        kept = [i for j, i in enumerate(order) if j == 0 or cost[i] > cost[order[j - 1]]]
        return cls(
            policies=tuple(ScorePolicy(scorer, thresholds[i]) for i in kept),
            fit_costs=tuple(float(cost[i]) for i in kept),
            fit_utilities=tuple(float(utility[i]) for i in kept),
            costs=costs,
            seed=seed,
        )


@dataclass(frozen=True, kw_only=True)
class Scheduler(ABC):
    """Learns from a table where to leave. Holds settings only; fitting returns a new object.

    Attributes:
        seed: Of everything random: starts, folds, the coin that mixes policies.
    """

    seed: int = 0

    @abstractmethod
    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit once for all budgets.

        Args:
            table: Calibration data that took no part in training, with labels or utility.
            costs: Default: the table's own.
            budgets: Where the dial shall be most accurate; default: the ten standard budgets.

        Raises:
            TableError: The table has neither labels nor utility, or no costs are known.
            BudgetError: One of the budgets cannot be used.
        """

    def fit(self, table: ExitTable, costs: CostTable | None = None, *, budget: BudgetLike) -> Policy:
        """Fit for one budget.

        Args:
            table: Calibration data that took no part in training, with labels or utility.
            costs: Default: the table's own.
            budget: A mean cost per sample: a number in the table's unit, with a unit (``"2.5ms"``), or a percentage.

        Returns:
            A policy whose expected mean cost on ``table`` is at most the budget.

        Raises:
            TableError: The table has neither labels nor utility, or no costs are known.
            BudgetError: The budget is no number, has a foreign unit or is below the cost of exit 0.
        """
        known = costs or table.require_costs()
        asked = known.budget(budget)  # refused here, before any fitting
        return self.sweep(table, known, [asked]).at(asked)

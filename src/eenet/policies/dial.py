"""`Dial`: one fit for all budgets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from jaxtyping import Float

from eenet.errors import InputError
from eenet.policies.mixture import mixed
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.scorers import Scorer
from eenet.tables.checks import instance, listed, number
from eenet.tables.costs import BudgetLike, CostTable


@dataclass(frozen=True, eq=False)
class Dial:
    """One fit for all budgets: policies from cheap to expensive, mixed to meet a budget between two of them.

    Attributes:
        policies: In order of increasing cost.
        fit_costs: Expected mean cost of each on the data it was fitted on.
        fit_utilities: Mean utility of each on that data.
        costs: The costs it was fitted with.
        seed: Of the coin that mixes.
        reason: Why this dial and no other, where there was a choice.

    Raises:
        InputError: The lists differ in length, are empty, hold what is no number, or costs do not rise.
        ShapeError: The policies and costs differ in their number of exits.
    """

    policies: tuple[Policy, ...]
    fit_costs: tuple[float, ...]
    fit_utilities: tuple[float, ...]
    costs: CostTable
    seed: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        number(self.seed, "seed", whole=True)
        instance(self.costs, CostTable, "costs")
        for name in ("fit_costs", "fit_utilities"):
            values = listed(getattr(self, name), name)
            object.__setattr__(self, name, tuple(number(value, name) for value in values))
        for policy in listed(self.policies, "policies"):
            instance(policy, Policy, "policy").require(self.costs.num_exits)
        sizes = {len(self.policies), len(self.fit_costs), len(self.fit_utilities)}
        if len(sizes) > 1 or 0 in sizes or any(b <= a for a, b in pairwise(self.fit_costs)):
            raise InputError(
                f"policies of {len(self.policies)} and costs {list(self.fit_costs)} are no dial: every policy has a "
                "cost and a utility, and costs rise. Sort them by cost."
            )

    def __repr__(self) -> str:
        """Say what budgets it reaches, and what was reached on the data it was fitted on."""
        (low, *_, high), (least, *_, most) = self.fit_costs * 2, self.fit_utilities * 2
        return (
            f"Dial of {len(self.policies)} policies for {self.costs.num_exits} exits: on the samples it was fitted on "
            f"they cost {low:.4g} to {high:.4g} {self.costs.unit} per sample, with a utility of {least:.2%} to "
            f"{most:.2%}. {self.reason or 'Ask it for one with .at(budget).'}"
        )

    def at(self, budget: BudgetLike) -> Policy:
        """Return the policy for a budget, without fitting again.

        Guarantee: on the data the dial was fitted on, its expected mean cost is at most the budget.

        Args:
            budget: A mean cost per sample: a number in the table's unit, with a unit, or a percentage.

        Raises:
            BudgetError: No number, a foreign unit, or below the cost of exit 0.
        """
        below, weight = self._place(budget)
        if not weight:
            return self.policies[below]
        return mixed(self.policies[below + 1], self.policies[below], weight, self.seed)

    def _place(self, budget: BudgetLike) -> tuple[int, float]:
        """Return the dearest policy within a budget, and which share of the samples can follow the next one."""
        value = self.costs.budget(budget).value
        above = bisect_right(self.fit_costs, value)
        below = max(above - 1, 0)
        low = self.fit_costs[below]
        if above == len(self.policies) or low >= value * (1 - 1e-6):  # met already: no mixing for a rounding error
            return below, 0.0
        # a little less than the exact weight, so that rounding cannot carry the expectation over the budget
        return below, (value - low) / (self.fit_costs[above] - low) * (1 - 1e-9)

    def capped(self, budget: BudgetLike) -> Dial:
        """Return the same dial up to a budget: given more, it spends no more than that.

        Errors are those of `at`.
        """
        below, weight = self._place(budget)
        kept = below + 1
        policies, fit_costs, fit_utilities = self.policies[:kept], self.fit_costs[:kept], self.fit_utilities[:kept]
        if weight:
            cost, utility = (
                (1 - weight) * values[below] + weight * values[kept] for values in (self.fit_costs, self.fit_utilities)
            )
            policies = (*policies, self.at(budget))
            fit_costs, fit_utilities = (*fit_costs, cost), (*fit_utilities, utility)
        return replace(self, policies=policies, fit_costs=fit_costs, fit_utilities=fit_utilities)

    def map(self, change: Callable[[Policy], Policy], costs: CostTable | None = None) -> Dial:
        """Return the same dial with what ``change`` makes of each policy, of the same cost and utility."""
        return replace(self, policies=tuple(change(policy) for policy in self.policies), costs=costs or self.costs)

    def from_source(self, source: str) -> Dial:
        """Return the same dial of policies fitted on a table of the model with this fingerprint."""
        return self.map(lambda policy: policy.from_source(source))

    @classmethod
    def of_thresholds(
        cls,
        scorer: Scorer,
        thresholds: Float[np.ndarray, "candidate exit"],
        outcome: tuple[Float[np.ndarray, " candidate"], Float[np.ndarray, " candidate"]],
        costs: CostTable,
        seed: int,
    ) -> Dial:
        """Build a dial from threshold vectors on one scorer; see `of_candidates`.

        Args:
            scorer: Shared by all policies.
            thresholds: One vector per candidate.
            outcome: Cost and utility of each candidate on the fitting data.
            costs: The costs they were fitted with.
            seed: Of the coin that mixes.
        """
        found = [(float(c), float(u), ScorePolicy(scorer, row)) for row, c, u in zip(thresholds, *outcome, strict=True)]
        return cls.of_candidates(found, costs, seed)

    @classmethod
    def of_candidates(cls, found: Sequence[tuple[float, float, Policy]], costs: CostTable, seed: int) -> Dial:
        """Build a dial from policies with their cost and utility; of several at one cost the most useful is kept."""
        order = sorted(found, key=lambda one: (one[0], -one[1]))
        kept = [one for j, one in enumerate(order) if j == 0 or one[0] > order[j - 1][0]]
        fit_costs, fit_utilities, policies = zip(*kept, strict=True)
        return cls(policies=policies, fit_costs=fit_costs, fit_utilities=fit_utilities, costs=costs, seed=seed)

"""What one policy does on one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eenet.evaluation.groups import Group, GroupsLike, class_grouping, group_rows, group_stats, grouping
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer, exit_distribution
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.table import ExitTable


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one policy did on one table, beside what every exit alone would have done there.

    Utility is a fraction; costs are per sample in ``unit``.

    Attributes:
        num_samples: Samples replayed.
        unit: Of all costs.
        budget: Mean cost per sample that was asked for, where one was.
        cost: Realised mean cost per sample.
        utility: Realised mean utility.
        expected_cost: The same as ``cost`` in expectation over the coin of a mixed policy.
        expected_utility: The same as ``utility`` in expectation over the coin.
        exit_costs: Cost of leaving at each exit; the mean where it differs from sample to sample.
        exit_distribution: Share of the samples that left at each exit; sums to 1.
        exit_utility: Mean utility of those who left at each exit, None where nobody did.
        static_utility: Mean utility of answering everything at that exit.
        full_cost: Cost of the original model where known, else of the last exit.
        full_utility: Mean utility of the last exit on all samples.
        by_group: Who pays for leaving early: every class, or every group given, those that surely lose most first.
            Empty where neither is known.
    """

    num_samples: int
    unit: str
    budget: float | None
    cost: float
    utility: float
    expected_cost: float
    expected_utility: float
    exit_costs: tuple[float, ...]
    exit_distribution: tuple[float, ...]
    exit_utility: tuple[float | None, ...]
    static_utility: tuple[float, ...]
    full_cost: float
    full_utility: float
    by_group: tuple[Group, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        return vars(self) | {"by_group": [dict(vars(group)) for group in self.by_group]}


def evaluate(
    policy: Policy,
    table: ExitTable,
    costs: CostTable | None = None,
    *,
    budget: BudgetLike | None = None,
    groups: GroupsLike | None = None,
) -> Report:
    """Return what a policy costs and is worth on recorded outputs.

    Row numbers are the sample ids, so a mixed policy's coin falls as in `replay`. The numbers are unbiased only on
    data that took no part in training, fitting or choosing.

    Args:
        policy: The fixed rule.
        table: Outputs to replay; needs labels or utility.
        costs: Instead of the table's own.
        budget: What was asked for, to be listed beside what was realised.
        groups: Group of every sample, a whole number or a name, to see who pays; the classes if not given.

    Raises:
        TableError: The table has neither labels nor utility, or there are no costs.
        ShapeError: Policy, table and costs have different numbers of exits, or there is not one group per sample.
    """
    table = table.priced(costs)
    known, static = table.require_costs(), table.require_utility("evaluate").mean(axis=0)
    replayer = Replayer(table)
    exit_index = replayer.exit_index(policy)
    utility = replayer.utility(policy, exit_index)
    expected_cost, expected_utility = replayer.expected(policy)
    grouped = class_grouping(table) if groups is None else grouping(groups, table.num_samples)
    left = [exit_index == k for k in range(known.num_exits)]
    return Report(
        num_samples=table.num_samples,
        unit=known.unit,
        budget=None if budget is None else known.budget(budget).value,
        cost=replayer.mean_cost(exit_index),
        utility=float(utility.mean()),
        expected_cost=expected_cost,
        expected_utility=expected_utility,
        exit_costs=known.cumulative,
        exit_distribution=tuple(exit_distribution(exit_index, known.num_exits).tolist()),
        exit_utility=tuple(float(utility[here].mean()) if here.any() else None for here in left),
        static_utility=tuple(static.tolist()),
        full_cost=known.full,
        full_utility=float(static[-1]),
        by_group=group_rows(grouped.names, [group_stats(grouped, table, exit_index, utility)]) if grouped else (),
    )

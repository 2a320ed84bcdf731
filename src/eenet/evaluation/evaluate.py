"""What one policy does on one table."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from eenet.core.costs import BudgetLike, CostTable
from eenet.core.policy import Policy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, exit_distribution
from eenet.errors import ShapeError, TableError
from eenet.evaluation.groups import Group, GroupsLike, class_grouping, group_rows, group_stats, grouping

__all__ = ["Report", "evaluate"]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one policy did on one table, beside what every exit alone would have done there.

    Utility is a fraction; costs are per sample in ``unit``.

    Attributes:
        num_samples: Samples replayed.
        unit: Of all costs.
        budget: Mean cost per sample that was asked for, where it was told.
        cost: Realised mean cost per sample.
        utility: Realised mean utility.
        expected_cost: The same as ``cost`` in expectation over the coin of a mixed policy.
        expected_utility: The same as ``utility`` in expectation over the coin.
        exit_costs: Cost of leaving at each exit.
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
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
        return plain | {"by_group": [group.to_dict() for group in self.by_group]}


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
        budget: What was asked for, to stand beside what was realised.
        groups: Group of every sample, a whole number or a name, to see who pays; the classes if not given.

    Returns:
        Realised cost and utility, exit by exit and group by group.

    Raises:
        TableError: The table has neither labels nor utility, or there are no costs.
        ShapeError: Policy, table and costs have different numbers of exits, or there is not one group per sample.
    """
    costs = table.costs if costs is None else costs
    if costs is None:
        raise TableError("costs None are missing: the table has none of its own. Pass costs=CostTable(...).")
    for what, count in (("policy", policy.num_exits), ("costs", costs.num_exits)):
        if count != table.num_exits:
            raise ShapeError(
                f"{what} of {count} exits does not fit: the table has {table.num_exits} exits. Pass its own."
            )
    static = table.require_utility("evaluate").double().mean(dim=0)
    replayer = Replayer(table)
    exit_index, utility = replayer.exit_index(policy), replayer.utility(policy).double()
    expected_cost, expected_utility = replayer.expected(policy, costs)
    spent = torch.tensor(costs.cumulative, dtype=torch.float64)[exit_index]
    return Report(
        num_samples=table.num_samples,
        unit=costs.unit,
        budget=None if budget is None else costs.budget(budget).value,
        cost=spent.mean().item(),
        utility=utility.mean().item(),
        expected_cost=float(expected_cost),
        expected_utility=float(expected_utility),
        exit_costs=costs.cumulative,
        exit_distribution=tuple(exit_distribution(exit_index, costs.num_exits).tolist()),
        exit_utility=_utility_by_exit(exit_index, utility, costs.num_exits),
        static_utility=tuple(static.tolist()),
        full_cost=costs.full,
        full_utility=static[-1].item(),
        by_group=_by_group(exit_index, utility, table, costs, groups),
    )


def _by_group(
    exit_index: Int64[Tensor, " sample"],
    utility: Float64[Tensor, " sample"],
    table: ExitTable,
    costs: CostTable,
    groups: GroupsLike | None,
) -> tuple[Group, ...]:
    """Return what early exit did to every group, or to every class if none are given."""
    if groups is not None:
        known = grouping(groups, table.num_samples)
    elif table.labels is not None:
        known = class_grouping(table.labels.numpy(), table.num_classes)
    else:
        return ()
    full = table.require_utility("evaluate")[:, -1]
    stats = group_stats(exit_index.numpy(), utility.numpy(), full.numpy(), known, costs.num_exits)
    return group_rows(known.names, [stats], costs.cumulative)


def _utility_by_exit(
    exit_index: Int64[Tensor, " sample"], utility: Float64[Tensor, " sample"], num_exits: int
) -> tuple[float | None, ...]:
    """Return the mean utility of those who left at each exit, None where nobody did."""
    counts = torch.bincount(exit_index, minlength=num_exits)
    sums = torch.bincount(exit_index, weights=utility, minlength=num_exits)
    pairs = zip(counts.tolist(), sums.tolist(), strict=True)
    return tuple(total / count if count else None for count, total in pairs)

"""Cost and utility of one policy on one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eenet.evaluation.groups import Group, GroupsLike, group_rows, group_stats, groupings
from eenet.evaluation.segmentation import Confusion, MapReport, check_confusion
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer, exit_distribution
from eenet.tables.checks import instance
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.display import frame, notebook, samples
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, kw_only=True)
class Report:
    """Cost and utility of one policy on one table, beside those of every exit alone.

    Utility is a fraction; costs are per sample in ``unit``.

    Attributes:
        num_samples: Samples replayed.
        unit: Of all costs.
        budget: The mean cost per sample that was asked for, if any.
        cost: Realised mean cost.
        utility: Realised mean utility; of maps, that of single images as the table contains it.
        expected_cost: Mean cost in expectation over the coin of a mixed policy.
        expected_utility: Mean utility in expectation over the coin.
        exit_costs: Cost of leaving at each exit; the mean where it differs from sample to sample.
        exit_distribution: Share of the samples that left at each exit; sums to 1.
        exit_utility: Mean utility of the samples that left at each exit; None for an exit without any.
        static_utility: Mean utility of answering everything at each exit.
        full_cost: Cost of the original model where known, else of the last exit.
        full_utility: Mean utility of the last exit on all samples.
        by_group: The loss of every class, or of every group given; those that surely lose most first. Empty where
            neither is known.
        maps: The quality of a data set's maps, where confusion counts were given.
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
    maps: MapReport | None = None

    def __repr__(self) -> str:
        """Say what was spent and reached, where samples left, and what the last exit alone reaches."""
        asked = "" if self.budget is None else f" (budget {self.budget:.4g})"
        left = ", ".join(f"{share:.1%} at exit {k}" for k, share in enumerate(self.exit_distribution) if share)
        return (
            f"{samples(self.num_samples)}: {self.cost:.4g} {self.unit} per sample{asked}, "
            f"{self.cost / self.full_cost:.1%} of the full cost, with a utility "
            f"of {self.utility:.2%} (last exit alone: {self.full_utility:.2%}). Samples left: {left}."
        )

    def to_frame(self) -> pandas.DataFrame:
        """Return one row per exit: its cost, the share that left there, their utility, and that of all samples there.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        return frame(self._rows())

    def _repr_html_(self) -> str:
        """Return a sentence and the exits for a notebook."""
        return notebook(str(self), self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        keys = ("cost", "share", "utility", "static_utility")
        columns = (self.exit_costs, self.exit_distribution, self.exit_utility, self.static_utility)
        return [{"exit": k} | dict(zip(keys, row, strict=True)) for k, row in enumerate(zip(*columns, strict=True))]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        values = {key: value for key, value in vars(self).items() if key != "maps"}
        values["by_group"] = [dict(vars(group)) for group in self.by_group]
        return values | ({} if self.maps is None else vars(self.maps))


def evaluate(
    policy: Policy,
    table: ExitTable,
    costs: CostTable | None = None,
    *,
    budget: BudgetLike | None = None,
    groups: GroupsLike | None = None,
    confusion: Confusion | None = None,
) -> Report:
    """Return cost and utility of a policy on recorded outputs.

    Row numbers are the sample ids, so a mixed policy's coin falls as in `replay`. The numbers are unbiased only on
    data that took no part in training, fitting or choosing.

    Args:
        policy: The fixed rule.
        table: Outputs to replay; needs labels or utility.
        costs: Instead of the table's own.
        budget: What was asked for, to be listed beside what was realised.
        groups: Group of every sample, a whole number or a name; default: the classes.
        confusion: Of a table of maps, the counts recorded with it (`load_confusion`): adds the mean IoU of the data
            set.

    Raises:
        TableError: The table has neither labels nor utility, or there are no costs.
        ShapeError: Policy, table, costs, groups or confusion do not belong together.
    """
    instance(table, ExitTable, "table")
    if confusion is not None:
        check_confusion(table, confusion)
    table = table.with_costs(costs)
    known, static = table.require_costs(), table.require_utility("evaluate").mean(axis=0)
    replayer = Replayer(table)
    exit_index = replayer.exit_index(policy)
    utility = replayer.utility(policy, exit_index)
    expected_cost, expected_utility = replayer.expected(policy)
    left = [exit_index == k for k in range(known.num_exits)]
    leaving = np.stack(left, axis=1).astype(np.float64)
    grouped = [
        group_rows(one.names, [group_stats(one, table, leaving, utility)]) for one in groupings(table, groups)[-1:]
    ]
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
        by_group=grouped[0] if grouped else (),
        maps=None if confusion is None else MapReport.of(confusion, exit_index),
    )

"""A scheduler behind a transform: what the exits say is calibrated or combined first, then scheduled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from eenet.core.combined import TransformedPolicy
from eenet.core.costs import BudgetLike, CostTable
from eenet.core.table import ExitTable
from eenet.core.transform import Transform
from eenet.schedulers.base import Dial, Scheduler

__all__ = ["TransformedScheduler", "behind"]


@dataclass(frozen=True, kw_only=True)
class TransformedScheduler(Scheduler):
    """Fits a transform, then a scheduler on what the transform makes of the table.

    Attributes:
        scheduler: Sees transformed outputs only; its seed counts for policies, the one here for the transform.
        fit_transform: A function of table and seed: `fit_ensemble`, `fit_geometric_ensemble` (Zero Time Waste),
            `fit_calibration`, or one of yours.

    Example:
        >>> from eenet.schedulers import GeometricScheduler, fit_geometric_ensemble
        >>> from eenet.testing import synthetic_table
        >>> ztw = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_geometric_ensemble)
        >>> ztw.fit(synthetic_table(500), budget="50%").num_exits
        4
    """

    scheduler: Scheduler
    fit_transform: Callable[[ExitTable, int], Transform]

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit the transform and the scheduler; see `Scheduler.sweep`.

        Raises:
            TableError: The table has no labels, or its utility is not simply whether the answer is right.
            InputError: The table is transformed already.
        """
        costs = costs or table.require_costs()
        transform = self.fit_transform(table, self.seed)
        return behind(transform, self.scheduler.sweep(table.transformed(transform), costs, budgets))


def behind(transform: Transform, dial: Dial) -> Dial:
    """Return a dial that was fitted on a transformed table as one for what the model says."""
    return replace(dial, policies=tuple(TransformedPolicy(transform, policy) for policy in dial.policies))

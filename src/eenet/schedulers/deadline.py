"""A deadline on every single sample, on top of the budget on their mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

from eenet.errors import BudgetError, TableError
from eenet.policies.dial import Dial
from eenet.policies.policy import static_policy
from eenet.schedulers.base import Scheduler
from eenet.schedulers.thresholds import any_scorer
from eenet.tables.costs import Budget, BudgetLike, CostTable
from eenet.tables.table import ExitTable


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

    Raises:
        TableError: On fitting: the table's cost differs from sample to sample.
        BudgetError: On fitting: no exit can be reached within the deadline.
        InputError: On fitting: the inner scheduler's policies are of a class of yours that cannot be extended.

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
        try:
            return costs.budget(self.deadline)
        except BudgetError as error:  # the forms are a budget's, and so are the mistakes one can make
            raise BudgetError(str(error).replace("mean cost", "cost").replace("budget", "deadline")) from error

    def open_exits(self, costs: CostTable) -> int:
        limit = self.limit(costs).value
        # an exit's own cost, typed or computed, must not fail by rounding
        return sum(cost <= limit or math.isclose(cost, limit, rel_tol=1e-9) for cost in costs.cumulative)

    def unsuited(self, table: ExitTable) -> str:
        if table.cost is not None:
            return "leaving at one exit costs every sample something else, which is known only afterwards"
        return self.scheduler.unsuited(table)

    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        if table.cost is not None:
            raise TableError(
                f"deadline {self.deadline} cannot be kept: in {table.name} {self.unsuited(table)}. Pass one cost per "
                "exit."
            )
        costs = table.require_costs()
        exits = self.open_exits(costs)
        if exits == costs.num_exits:
            return self.scheduler.dial(table, budgets)
        if exits == 1:
            only = static_policy(any_scorer(table), 0, costs.num_exits)
            utility = table.require_utility("fitting under a deadline")
            return Dial((only,), (costs.low,), (float(utility[:, 0].mean()),), costs, self.scheduler.seed)
        within = CostTable(costs.cumulative[:exits], costs.unit, costs.full)
        dial = self.scheduler.dial(table.until(exits, within), budgets)
        return dial.map(lambda policy: policy.extended(costs.num_exits), costs)

"""`Scheduler`: settings in, policies out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from eenet.errors import InputError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.tables.costs import BudgetLike, CostTable, standard_budgets
from eenet.tables.table import ExitTable


@dataclass(frozen=True, kw_only=True)
class Scheduler(ABC):
    """Learns from a table where to leave. Holds settings only; fitting returns a new object.

    Subclass it with `dial`; `sweep` and `fit` check what they are given and call it.

    Attributes:
        at_least: Settings that must be finite and no less than a number.
        positive: Settings that must be finite and above 0.
        seed: Of everything random: starts, folds, the coin that mixes policies.

    Raises:
        InputError: A setting is outside its range.
    """

    at_least: ClassVar[dict[str, float]] = {}
    positive: ClassVar[tuple[str, ...]] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name in (*self.at_least, *self.positive):
            value, least = getattr(self, name), self.at_least.get(name, 0)
            if not math.isfinite(value) or value < least or (value == 0 and name in self.positive):
                limit = "above 0" if name in self.positive else f"at least {least:g}"
                raise InputError(
                    f"{name} {value:g} cannot be used: it must be finite and {limit}. Choose such a number."
                )

    @abstractmethod
    def dial(self, table: ExitTable, budgets: tuple[float, ...]) -> Dial:
        """Return one fit for all budgets.

        Args:
            table: Calibration data with utility and costs: both are there.
            budgets: Where the dial shall be most accurate, rising, in the unit of the costs.
        """

    def open_exits(self, costs: CostTable) -> int:
        """Return how many exits the scheduler may use: all, unless a deadline closes some."""
        return costs.num_exits

    @final
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
        priced = table.priced(costs)
        priced.require_utility(f"fitting {type(self).__name__}")
        known = priced.require_costs()
        asked = standard_budgets(known) if budgets is None else budgets
        return self.dial(priced, tuple(sorted({known.budget(budget).value for budget in asked})))

    @final
    def fit(self, table: ExitTable, costs: CostTable | None = None, *, budget: BudgetLike) -> Policy:
        """Fit for one budget: a number in the table's unit, with a unit (``"2.5ms"``), or a percentage.

        Returns:
            A policy whose expected mean cost on ``table`` is at most the budget.

        Raises:
            TableError: As of `sweep`.
            BudgetError: The budget is no number, has a foreign unit or is below the cost of exit 0.
        """
        asked = table.priced(costs).require_costs().budget(budget)  # refused here, before any fitting
        return self.sweep(table, costs, [asked]).at(asked)

"""`Scheduler`: settings in, policies out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float, Float64, Int

from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.tables.checks import instance, listed, number
from eenet.tables.costs import BudgetLike, CostTable, standard_budgets
from eenet.tables.display import samples
from eenet.tables.table import ExitTable

LEAST_SAMPLES = 50
"""Samples below which a calibration set is small: fitting, comparing and advising go on, after one warning."""


_said = ContextVar("_said", default=False)


def warn_if_small(*tables: ExitTable) -> AbstractContextManager[None]:
    """Warn where a table has fewer than `LEAST_SAMPLES` samples, and not again inside the context returned."""
    small = None if _said.get() else next((one for one in tables if one.num_samples < LEAST_SAMPLES), None)
    if small is not None:
        warnings.warn(
            f"{small.name} of {samples(small.num_samples)} is small: with fewer than {LEAST_SAMPLES}, results are "
            "mostly chance. Record more, better thousands.",
            stacklevel=3,
        )
    return _saying_nothing()


@contextmanager
def _saying_nothing() -> Iterator[None]:
    token = _said.set(True)
    try:
        yield
    finally:
        _said.reset(token)


@dataclass(frozen=True, kw_only=True)
class Scheduler(ABC):
    """Learns from a table where to leave. Holds settings only; fitting returns a new object.

    Subclass it with `dial`; `sweep` and `fit` check their arguments and call it.

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
        number(self.seed, "seed", 0, whole=True)
        for name in self.positive:
            number(getattr(self, name), name, above=0)
        for name, least in self.at_least.items():
            number(getattr(self, name), name, least)

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

    def unsuited(self, table: ExitTable) -> str:
        """Return why the scheduler cannot be fitted on a table such as this one; empty where it can."""
        return ""

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

        Warns:
            UserWarning: The table has fewer than 50 samples.
        """
        table = instance(table, ExitTable, "table").with_costs(costs)
        table.require_utility(f"fitting {type(self).__name__}")
        known = table.require_costs()
        asked = standard_budgets(known) if budgets is None else listed(budgets, "budgets")
        values = tuple(sorted({known.budget(budget).value for budget in asked}))
        with warn_if_small(table):
            return self.dial(table, values).from_source(table.source)

    @final
    def fit(self, table: ExitTable, costs: CostTable | None = None, *, budget: BudgetLike) -> Policy:
        """Fit for one budget: a number in the table's unit, with a unit (``"2.5ms"``), or a percentage.

        Other arguments and errors are those of `sweep`.

        Returns:
            A policy whose expected mean cost on ``table`` is at most the budget.
        """
        asked = (
            instance(table, ExitTable, "table").with_costs(costs).require_costs().budget(budget)
        )  # refused here, before any fitting
        return self.sweep(table, costs, [asked]).at(asked)


def folds_of(num_samples: int, folds: int, seed: int) -> Int[np.ndarray, " sample"]:
    """Return which fold each sample belongs to, at random; folds are of equal size, within one."""
    return _shuffled(num_samples, seed) % folds


def sampled(table: ExitTable, most: int, seed: int) -> ExitTable:
    """Return a random part of a table that has more samples than ``most``, in the table's order."""
    return table if table.num_samples <= most else table.select(sampled_rows(table.num_samples, most, seed))


def sampled_rows(num_samples: int, most: int, seed: int) -> Int[np.ndarray, " row"]:
    """Return the rows of a random part that has at most ``most`` samples, in order."""
    return np.sort(_shuffled(num_samples, seed)[:most])


def _shuffled(num_samples: int, seed: int) -> Int[np.ndarray, " sample"]:
    return np.random.default_rng(int(number(seed, "seed", 0, whole=True))).permutation(num_samples)


def blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield slices that together cover a range, each of at most ``size``."""
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def multipliers(gain: float, costs: Float[np.ndarray, " exit"], top: float, count: int) -> Float64[np.ndarray, " one"]:
    """Return Lagrange multipliers of cost: 0, then evenly spaced in their logarithm, up to where exit 0 wins.

    ``gain`` is by how much exits differ in utility; the largest multiplier is ``top`` times that per cost.
    """
    scale = gain / float(costs[-1] - costs[0])
    return np.append(0.0, np.geomspace(0.01 * scale, top * scale, count - 1))

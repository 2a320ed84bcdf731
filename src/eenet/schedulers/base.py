"""`Scheduler`: settings in, policies out."""

from __future__ import annotations

import heapq
import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
from jaxtyping import Float, Float64, Int

from eenet.errors import TableError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.tables.checks import instance, listed, number
from eenet.tables.costs import BudgetLike, CostTable, standard_budgets
from eenet.tables.display import samples
from eenet.tables.table import ExitTable

LEAST_SAMPLES = 50
"""Samples below which a calibration set is small: fitting, comparing and advising go on, after one warning."""

LEAST_GROUPS = 5
"""Groups of samples below which nothing is said about others: a table with fewer is refused."""

_FOLDS = 5

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

        Where samples belong together (`ExitTable.group`), the scheduler is fitted without some groups, too, five times
        at most, and the dial's costs are what policies cost on groups that they were not fitted on, or on the table,
        if that is more: new samples are of other groups.

        Args:
            table: Calibration data that took no part in training, with labels or utility.
            costs: Default: the table's own.
            budgets: Where the dial shall be most accurate; default: the ten standard budgets.

        Raises:
            TableError: The table has neither labels nor utility, or no costs are known, or it has groups, but fewer
                than 5.
            BudgetError: One of the budgets cannot be used.

        Warns:
            UserWarning: The table has fewer than 50 samples.
        """
        table = instance(table, ExitTable, "table").with_costs(costs)
        table.require_utility(f"fitting {type(self).__name__}")
        known = table.require_costs()
        asked = standard_budgets(known) if budgets is None else listed(budgets, "budgets")
        values = tuple(sorted({known.budget(budget).value for budget in asked}))
        if table.group is not None:
            require_groups(table, LEAST_GROUPS, f"fitting {type(self).__name__}")
        with warn_if_small(table):
            dial = self.dial(table, values)
            if table.group is not None:
                dial = _costed_on_other_groups(self, dial, table, values)
            return dial.from_source(table.source)

    @final
    def fit(self, table: ExitTable, costs: CostTable | None = None, *, budget: BudgetLike) -> Policy:
        """Fit for one budget: a number in the table's unit, with a unit (``"2.5ms"``), or a percentage.

        Other arguments and errors are those of `sweep`.

        Returns:
            A policy whose expected mean cost on ``table`` is at most the budget; where the table has groups, so is what
            it is estimated to cost on others.
        """
        asked = (
            instance(table, ExitTable, "table").with_costs(costs).require_costs().budget(budget)
        )  # refused here, before any fitting
        return self.sweep(table, costs, [asked]).at(asked)


def require_groups(table: ExitTable, least: int, what: str) -> None:
    """Refuse a table whose samples belong together in fewer groups than ``what`` needs, with a `TableError`."""
    if table.num_groups < least:
        raise TableError(
            f"{table.name} of {table.num_groups} groups is too small: {what} holds groups out in turn, and needs "
            f"{least} to say anything about others. Record more, or drop the groups, if new samples come from the "
            "same: dataclasses.replace(table, group=None)."
        )


def _costed_on_other_groups(scheduler: Scheduler, dial: Dial, table: ExitTable, budgets: Sequence[float]) -> Dial:
    """Return the same dial with what its policies cost on groups that they were not fitted on, where that is more.

    The cost of unseen groups is estimated as a rising function of the cost on the fitting groups, from dials that were
    fitted without each fold of groups, as in cross-validation.
    """
    costs, fold = table.require_costs(), folds_of(table.group_index, _FOLDS, scheduler.seed)
    grid = sorted({*standard_budgets(costs), *budgets})
    fitted, unseen = np.zeros((2, len(grid)))
    for f in range(int(fold.max()) + 1):
        rest, held = (table.select(rows) for rows in (fold != f, fold == f))
        part = scheduler.dial(rest, tuple(grid))
        # costs that differ from sample to sample are those of the fold in a dial: its least may be above a budget
        policies = [part.at(max(budget, part.costs.low)) for budget in grid]
        share = held.num_samples / table.num_samples
        fitted += share * _mean_costs(rest, policies)
        unseen += share * _mean_costs(held, policies)
    low, high = costs.low, max(costs.high, fitted.max())
    order = np.argsort(fitted, kind="stable")
    x, y = np.array([low, *fitted[order], high]), np.array([low, *unseen[order], high])
    expected = np.maximum(dial.fit_costs, np.interp(dial.fit_costs, x, np.maximum.accumulate(y))).tolist()
    found = list(zip(expected, dial.fit_utilities, dial.policies, strict=True))
    return replace(Dial.of_candidates(found, dial.costs, dial.seed), reason=dial.reason)


def _mean_costs(table: ExitTable, policies: Sequence[Policy]) -> Float64[np.ndarray, " policy"]:
    replayer = Replayer(table)
    replayer.prepare(policies)
    return np.array([replayer.expected(policy)[0] for policy in policies])


def folds_of(groups: Int[np.ndarray, " sample"], folds: int, seed: int) -> Int[np.ndarray, " sample"]:
    """Return which fold each sample belongs to, at random; samples of one group are in one fold.

    Args:
        groups: Number of every sample's group (`ExitTable.group_index`: without groups, every sample is its own).
        folds: How many; as many as there are groups, where these are fewer. All have samples.
        seed: Of the order of the groups. Large groups are given out first, each to the smallest fold, so folds of
            groups of equal size differ by one group at most.

    Raises:
        TableError: There is 1 group: it cannot be held out and fitted on.
    """
    sizes, index = _sizes(groups)
    folds = min(folds, len(sizes))
    place = _shuffled(len(sizes), seed)
    if sizes.min() == sizes.max():  # as below, without a loop over samples
        return np.asarray((place % folds)[index])
    of_group, loads = np.empty(len(sizes), dtype=np.int64), [(0, f) for f in range(folds)]
    for g in np.lexsort((place, -sizes)).tolist():
        load, fold = loads[0]
        of_group[g] = fold
        heapq.heapreplace(loads, (load + int(sizes[g]), fold))
    return np.asarray(of_group[index])


def sides_of(
    groups: Int[np.ndarray, " sample"], count: int, seed: int | Sequence[int]
) -> tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]:
    """Return the rows of two sides, in random order; samples of one group are beside each other, on one side.

    The first side has ``count`` samples, or as near to that as whole groups come. Arguments and errors are otherwise
    those of `folds_of`.
    """
    sizes, index = _sizes(groups)
    order = _shuffled(len(sizes), seed)
    ends = sizes[order].cumsum()[:-1]
    rows = np.argsort(np.argsort(order)[index], kind="stable")
    cut = int(ends[np.abs(ends - count).argmin()])
    return rows[:cut], rows[cut:]


def sampled(table: ExitTable, most: int, seed: int) -> ExitTable:
    """Return a random part of a table that has more samples than ``most``, in the table's order, of whole groups."""
    return table if table.num_samples <= most else table.select(sampled_rows(table.group_index, most, seed))


def sampled_rows(groups: Int[np.ndarray, " sample"], most: int, seed: int) -> Int[np.ndarray, " row"]:
    """Return the rows of a random part that has at most ``most`` samples, of whole groups, at least two, in order."""
    if len(groups) <= most:
        return np.arange(len(groups))
    sizes, index = _sizes(groups)
    order = _shuffled(len(sizes), seed)
    kept = max(2, int((sizes[order].cumsum() <= most).sum()))
    return np.flatnonzero(np.isin(index, order[:kept]))


def standard_error(values: Float[np.ndarray, " sample"], groups: Int[np.ndarray, " sample"]) -> float:
    """Return the standard error of a mean over samples whose groups are independent; infinite for 1 group.

    Source:
        Liang and Zeger, Longitudinal Data Analysis Using Generalized Linear Models, Biometrika 73, 1986: the
        cluster-robust variance, here of a mean.
    """
    count = int(groups.max()) + 1
    if count < 2:
        return math.inf
    if count == len(values):
        return float(values.std(ddof=1)) / math.sqrt(len(values))
    sums = np.bincount(groups, weights=values - values.mean())
    return math.sqrt(float(sums @ sums) * count / (count - 1)) / len(values)


def _sizes(groups: Int[np.ndarray, " sample"]) -> tuple[Int[np.ndarray, " group"], Int[np.ndarray, " sample"]]:
    """Return the number of samples in each group, and the number of every sample's group."""
    _, index, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        raise TableError(
            f"table of {len(sizes)} group cannot be split: samples that belong together stay on one side, so at least "
            "2 groups are needed. Record more, or drop the groups: dataclasses.replace(table, group=None)."
        )
    return sizes, index


def _shuffled(count: int, seed: int | Sequence[int]) -> Int[np.ndarray, " one"]:
    seeds = [int(number(one, "seed", 0, whole=True)) for one in (seed if isinstance(seed, Sequence) else [seed])]
    return np.random.default_rng(seeds).permutation(count)


def blocks(start: int, stop: int, size: int) -> Iterator[slice]:
    """Yield slices that together cover a range, each of at most ``size``."""
    return (slice(first, min(first + size, stop)) for first in range(start, stop, size))


def multipliers(gain: float, costs: Float[np.ndarray, " exit"], top: float, count: int) -> Float64[np.ndarray, " one"]:
    """Return Lagrange multipliers of cost: 0, then evenly spaced in their logarithm, up to where exit 0 wins.

    ``gain`` is by how much exits differ in utility; the largest multiplier is ``top`` times that per cost.
    """
    scale = gain / float(costs[-1] - costs[0])
    return np.append(0.0, np.geomspace(0.01 * scale, top * scale, count - 1))

"""Keeping the mean cost at the budget while inputs become harder or the machine slower.

A fitted policy keeps its budget on data like the calibration data, at the costs it was fitted with. When either
changes, its mean cost drifts. A `BudgetController` watches what samples really cost and moves along a `Dial`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import SupportsFloat, TypeAlias, final

import numpy as np
from jaxtyping import Float64, Int

from eenet.errors import InputError, ShapeError, TableError
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import blocks
from eenet.tables.checks import array_of, instance, number
from eenet.tables.costs import Budget, BudgetLike, CostTable
from eenet.tables.table import ExitTable

CostsLike: TypeAlias = np.ndarray | Sequence[float] | SupportsFloat | None
_PASSED = "Pass what state_dict() returned."
_STATE = ("samples", "spent", "debt", "base", "span")


@dataclass(frozen=True, eq=False)
class ControlTrace:
    """What became of a stream of recorded samples under a controller, in their order.

    Attributes:
        exit_index: 0-based exit of each sample.
        cost: Per sample, in the unit of the cost table.
        target: What was asked of the dial when each sample came.
        utility: Of each answer; None where the table cannot tell.
    """

    exit_index: Int[np.ndarray, " sample"]
    cost: Float64[np.ndarray, " sample"]
    target: Float64[np.ndarray, " sample"]
    utility: Float64[np.ndarray, " sample"] | None = None

    @property
    def mean_cost(self) -> float:
        """Mean cost per sample."""
        return float(self.cost.mean())


@final
class BudgetController:
    """Steers along a dial so that the long-run mean of the realised cost stays at the budget.

    Ask for `policy`, run a batch with it, report what its samples cost with `update`, and so on. The target asked of
    the dial is ``base - debt / span``: dual ascent on the mean-cost constraint (the debt is the multiplier, up to
    a factor), with a ``base`` that drifts against the debt until it is paid. Both steps count samples, not batches. The
    target never leaves the dial; at its expensive end, credit that could not be spent soon lapses, so that the
    controller answers soon when costs rise; at its cheap end debt is kept, unless ``forgive`` says otherwise.

    Guarantee: for any sequence of costs, as long as the dial's cheapest policy stays within the budget, the overall
    mean exceeds it by at most `worst_debt` divided by the number of samples. When inputs stop changing, the mean comes
    back to the budget, up to chance. Nothing is promised about single samples or short stretches, nor about the
    utility on data unlike the calibration data, nor while even the cheapest policy costs more than the budget.

    Thread-safe: batches may ask for policies and report costs from several threads, in any order.

    Args:
        dial: As returned by `Scheduler.sweep`.
        budget: Mean cost per sample: a number in the dial's unit, with a unit, or a percentage.
        horizon: Over about how many samples a deviation is corrected. A short horizon answers fast; a long one wanders
            less and costs less utility. Never shorter than two batches, whatever is set.
        forgive: Whether debt beyond what steers to the cheap end lapses too. Then a time in which the budget could not
            be met is not paid back: the mean of the time after it meets the budget, the overall mean need not.

    Raises:
        BudgetError: As of `Dial.at`.
        InputError: ``horizon`` is not positive.

    Source:
        The debt is a virtual queue (Neely, Stochastic Network Optimization with Application to Communication and
        Queueing Systems, 2010); the drifting base is integral action with anti-windup, as of a PI controller.

    Example:
        >>> from eenet.schedulers import JointScheduler
        >>> from eenet.testing import synthetic_table
        >>> dial = JointScheduler().sweep(synthetic_table(1000))
        >>> controller = BudgetController(dial, "50%")
        >>> hard = synthetic_table(8000, seed=1)
        >>> trace = controller.replay(hard, CostTable((1.2, 2.4, 3.6, 4.8), "ms"))  # a slower machine
        >>> round(trace.mean_cost, 2)
        2.0
    """

    def __init__(self, dial: Dial, budget: BudgetLike, *, horizon: int = 500, forgive: bool = False) -> None:
        number(horizon, "horizon", above=0)
        self.dial, self.forgive = instance(dial, Dial, "dial"), forgive
        self.budget = dial.costs.budget(budget).value
        self.samples = 0
        self._low, self._high = max(dial.fit_costs[0], dial.costs.low), max(dial.fit_costs[-1], dial.costs.low)
        self._spent, self._debt = 0.0, 0.0
        self._base = self._inside(self.budget)
        self._span = float(horizon)
        self._policy: Policy | None = None
        self._lock = threading.RLock()

    @property
    def policy(self) -> Policy:
        """The policy for the next batch."""
        return self.steering()[0]

    def steering(self) -> tuple[Policy, float]:
        """Return the policy for the next batch and the `target` that it was asked of the dial for, of one moment."""
        with self._lock:
            target = self.target
            if self._policy is None:
                self._policy = self.dial.at(Budget(target, "", "", self.dial.costs.unit))  # nothing to be parsed
            return self._policy, target

    def turn(self, budget: BudgetLike) -> None:
        """Steer to another budget from now on, with what was learnt about the costs; debt and credit end.

        Raises:
            BudgetError: As of `Dial.at`.
        """
        value = self.dial.costs.budget(budget).value
        with self._lock:
            self._base = self._inside(self._base + value - self.budget)
            self.budget, self.samples, self._spent, self._debt = value, 0, 0.0, 0.0
            self._policy = None

    @property
    def target(self) -> float:
        """What is asked of the dial now: a mean cost as it was on the fitting data, not a prediction."""
        with self._lock:
            return self._inside(self._base - self._debt / self._span)

    @property
    def mean_cost(self) -> float:
        """Mean realised cost of all samples so far; NaN before the first."""
        with self._lock:
            return self._spent / self.samples if self.samples else math.nan

    @property
    def debt(self) -> float:
        """What is still to be paid back, in cost units; negative: credit. Without lapses ``spent - samples * B``."""
        return self._debt

    def worst_debt(self, highest_cost: float, batch_size: int = 1) -> float:
        """Return the most the spending can ever be above ``samples * budget``, if the cheapest policy stays within.

        Divided by the number of samples, it bounds what the overall mean exceeds the budget by. ``highest_cost`` is the
        most a sample can cost, the slowest machine included; ``batch_size`` the largest.
        """
        number(highest_cost, "highest_cost", 0)
        number(batch_size, "batch_size", 1, whole=True)
        steers = (self._high - self._low) * max(self._span, 2.0 * batch_size)
        return steers + batch_size * max(highest_cost - self.budget, 0.0)

    def update(self, costs: CostsLike, samples: int | None = None) -> None:
        """Take in what a batch cost, in the dial's unit.

        Args:
            costs: Of each sample, such as `Prediction.cost` (anything array-like); or one number, the mean over the
                batch, such as its measured milliseconds divided by its samples.
            samples: How many samples that one number stands for (default 1).

        Raises:
            InputError: No sample, no costs, or costs that are negative or not finite.
            ShapeError: Another number of samples than of costs.
        """
        total, count = _total(costs, samples)
        with self._lock:
            self._take_in(total, count)

    def _take_in(self, total: float, count: int) -> None:
        if (span := 2.0 * count) > self._span:  # correct over more samples, without a jump of the target
            self._base = self._inside(self._base - self._debt / self._span + self._debt / span)
            self._span = span
        self._spent += total
        self.samples += count
        # credit that more than steers to the expensive end lapses, and such debt if it is to be forgiven
        most = (self._high - self._low) * self._span
        debt = max(self._debt + total - count * self.budget, -most)
        self._debt = min(debt, most) if self.forgive else debt
        drift = count * self._debt / (4 * self._span**2)  # critically damped where cost follows the target
        free = self._base - self._debt / self._span
        # no drift further out while the target already stands at that end of the dial
        if (drift > 0 and free > self._low) or (drift < 0 and free < self._high):
            self._base = self._inside(self._base - drift)
        self._policy = None

    def replay(self, table: ExitTable, costs: CostTable | None = None, *, batch_size: int = 32) -> ControlTrace:
        """Send a recorded table through the controller, batch by batch in the order of its rows.

        The controller goes on from where it is; call again with another table or other costs to go on under other
        conditions. Sample ids count on from `samples`, as `AdaptiveModel` counts.

        Args:
            table: What every exit said.
            costs: What samples really cost now; default: the table's own (by sample where it has that), or the dial's.
            batch_size: Samples between two updates; the last batch may be smaller.

        Raises:
            InputError: ``batch_size`` is not positive.
            ShapeError: Dial, table and costs differ in their number of exits.
        """
        batch_size = int(number(batch_size, "batch_size", 1, whole=True))
        instance(table, ExitTable, "table")
        if self.dial.costs.num_exits != table.num_exits:
            raise ShapeError(
                f"dial of {self.dial.costs.num_exits} exits does not fit: the table has {table.num_exits}. Use those "
                "of one model."
            )
        replayer = Replayer(table.with_costs(costs or (self.dial.costs if table.costs is None else None)))
        exit_index = np.empty(table.num_samples, dtype=np.int64)
        cost, target = np.empty((2, table.num_samples))
        utility: np.ndarray | None = np.empty(table.num_samples)
        for rows in blocks(0, table.num_samples, batch_size):
            ids = np.arange(self.samples, self.samples + rows.stop - rows.start)
            policy, target[rows] = self.steering()
            stops = exit_index[rows] = replayer.exit_index(policy, rows, ids)
            try:
                if utility is not None:
                    utility[rows] = replayer.utility(policy, stops, rows, ids)
            except TableError:  # answers of this policy cannot be judged on the table
                utility = None
            cost[rows] = replayer.cost(stops, rows)
            self.update(cost[rows])
        return ControlTrace(exit_index, cost, target, utility)

    def state_dict(self) -> dict[str, float]:
        """Return what was learnt so far, as numbers; dial, budget and settings are not part of it."""
        with self._lock:
            values = (self.samples, self._spent, self._debt, self._base, self._span)
        return dict(zip(_STATE, map(float, values), strict=True))

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a state that `state_dict` returned; an `InputError` where a number is missing or not finite."""
        given: Mapping[str, float] = instance(state, Mapping, "state", _PASSED)
        least = {"samples": 0.0, "span": 1e-9}
        values = [number(given.get(name), f"{name} of the state", least.get(name, -math.inf)) for name in _STATE]
        with self._lock:
            samples, self._spent, self._debt, base, self._span = values
            self.samples, self._base = int(samples), self._inside(base)
            self._policy = None

    def _inside(self, target: float) -> float:
        return min(max(target, self._low), self._high)


def _total(costs: CostsLike, samples: int | None) -> tuple[float, int]:
    """Return the sum of the costs and how many samples they stand for."""
    if costs is None:
        raise InputError(
            "costs are missing: a controller learns from what samples cost. Give AdaptiveModel the cost table, or "
            "measure the batch."
        )
    values = array_of("costs", costs)
    if values.dtype.kind not in "fiu":
        raise InputError(f"costs of type {values.dtype} cannot be used: numbers are needed. Pass Prediction.cost.")
    values = values.astype(np.float64)
    if samples is not None:
        samples = int(number(samples, "samples", 1, whole=True))
    count = samples if values.ndim == 0 and samples is not None else values.size
    if values.ndim > 1 or samples not in (None, count):
        raise ShapeError(
            f"costs of shape {values.shape} do not fit: one number per sample is needed, or one for all. Pass "
            "Prediction.cost, or the mean and its number of samples."
        )
    if count < 1:
        raise InputError(f"costs of {count} samples teach nothing: at least 1 is needed. Leave empty batches out.")
    least, mean = float(values.min()), float(values.mean())
    if not math.isfinite(mean) or least < 0:
        raise InputError(
            f"costs with a mean of {mean:g} and a least of {least:g} cannot be used: each must be finite and not "
            "negative. Check the measurement."
        )
    return mean * count, count

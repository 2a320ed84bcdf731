"""One split of a comparison: fit every scheduler on one side, replay all its budgets on the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from eenet.core.costs import CostTable
from eenet.core.policy import Policy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.evaluation.groups import Grouping, GroupStats, group_stats
from eenet.evaluation.statistics import Curve, SampledCurve, curve
from eenet.schedulers.base import Scheduler
from eenet.schedulers.bounds import oracle, static_mix

__all__ = ["BOUNDS", "Point", "PolicyRun", "Progress", "SplitRun", "run_split"]

BOUNDS = ("random", "oracle")
"""Rows that are no policies: the lower and the upper bound."""

Progress = Callable[[str, int, int], None]
"""Told what was just finished, how many steps are done and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One policy at one budget.

    Attributes:
        budget: Mean cost per sample asked for.
        val_cost: What it costs on the fitting side, in expectation over the coin.
        test_cost: Realised mean cost on the test side.
        test_utility: Realised mean utility on the test side.
        exit_distribution: Share of the test side leaving at each exit.
    """

    budget: float
    val_cost: float
    test_cost: float
    test_utility: float
    exit_distribution: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class PolicyRun:
    """One policy at all budgets of one split.

    Attributes:
        fit_seconds: Wall time of the whole sweep over the budgets.
        points: In the order of the budgets.
        samples: The points sample by sample, None where they were not to be kept.
        exits: Where every sample left at every point, None where they were not to be kept, and for bounds.
        groups: What it did to classes and other groups, by what the groups are and budget; empty for bounds.
    """

    fit_seconds: float
    points: tuple[Point, ...]
    samples: SampledCurve | None
    exits: Int[np.ndarray, "point sample"] | None = None
    groups: dict[tuple[str, float], GroupStats] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SplitRun:
    """All policies and both bounds on one split.

    Attributes:
        runs: By policy name, the bounds last.
        static_utility: Mean test utility of answering everything at each exit.
        anchor_utility: Test utility of every sample at exit 0.
        anchor_cost: Cost of leaving at exit 0.
    """

    runs: dict[str, PolicyRun]
    static_utility: tuple[float, ...]
    anchor_utility: Float[np.ndarray, " sample"]
    anchor_cost: float

    def curve(self, name: str) -> Curve:
        """Return a policy's curve: its points joined from the anchor."""
        points = self.runs[name].points
        return curve(
            np.array([point.test_cost for point in points]),
            np.array([point.test_utility for point in points]),
            anchor=(self.anchor_cost, self.static_utility[0]),
        )


def run_split(
    val: ExitTable,
    test: ExitTable,
    schedulers: Mapping[str, Scheduler],
    costs: CostTable,
    budgets: Sequence[float],
    *,
    keep_samples: bool,
    groupings: Sequence[Grouping] = (),
    grouped_at: Collection[float] = (),
    progress: Callable[[str], None],
) -> SplitRun:
    """Fit every scheduler once and replay the policy of every budget.

    Args:
        val: Fitting side.
        test: Judging side.
        schedulers: By the name they go under.
        costs: Of both sides.
        budgets: Mean cost per sample, without repetitions.
        keep_samples: Whether to keep every point sample by sample (for the bootstrap).
        groupings: Groups of the judging side to be told apart.
        grouped_at: Budgets at which they are.
        progress: Told each policy's name when it is done.

    Returns:
        Every policy's points, then the bounds `random` and `oracle`.
    """
    utility = test.require_utility("compare").numpy()
    judge = _Judge(
        val=Replayer(val),
        test=Replayer(test),
        costs=costs,
        keep_samples=keep_samples,
        groupings=groupings,
        grouped_at=grouped_at,
        full_utility=utility[:, -1],
    )
    runs: dict[str, PolicyRun] = {}
    for name, scheduler in schedulers.items():
        started = time.perf_counter()
        dial = scheduler.sweep(val, costs, budgets=list(budgets))
        policies = [dial.at(budget) for budget in budgets]
        runs[name] = judge.run(policies, budgets, fit_seconds=time.perf_counter() - started)
        progress(name)
    runs["random"] = _random(val, test, costs, budgets, utility if keep_samples else None)
    runs["oracle"] = _oracle(val, test, costs, budgets)
    progress("bounds")
    return SplitRun(
        runs=runs,
        static_utility=tuple(utility.mean(axis=0).tolist()),
        anchor_utility=utility[:, 0],
        anchor_cost=costs.low,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Judge:
    """Replays policies on both sides of a split; attributes as of `run_split`."""

    val: Replayer
    test: Replayer
    costs: CostTable
    keep_samples: bool
    groupings: Sequence[Grouping]
    grouped_at: Collection[float]
    full_utility: Float[np.ndarray, " sample"]

    def run(self, policies: Sequence[Policy], budgets: Sequence[float], fit_seconds: float) -> PolicyRun:
        """Replay one policy per budget."""
        prices = np.array(self.costs.cumulative)
        points, sample_costs, sample_utilities, exits = [], [], [], []
        groups: dict[tuple[str, float], GroupStats] = {}
        for policy, budget in zip(policies, budgets, strict=True):
            exit_index = self.test.exit_index(policy).numpy()
            spent, gained = prices[exit_index], self.test.utility(policy).numpy()
            points.append(self._point(policy, budget, exit_index, gained))
            if self.keep_samples:
                sample_costs.append(spent.astype(np.float32))
                sample_utilities.append(gained.astype(np.float32))
                exits.append(exit_index.astype(np.int16))
            if budget in self.grouped_at:
                for grouping in self.groupings:
                    groups[grouping.by, budget] = group_stats(
                        exit_index, gained, self.full_utility, grouping, len(prices)
                    )
        samples = None
        if self.keep_samples:
            samples = SampledCurve(costs=np.stack(sample_costs), utilities=np.stack(sample_utilities))
        return PolicyRun(
            fit_seconds=fit_seconds,
            points=tuple(points),
            samples=samples,
            exits=np.stack(exits) if self.keep_samples else None,
            groups=groups,
        )

    def _point(
        self,
        policy: Policy,
        budget: float,
        exit_index: Int[np.ndarray, " sample"],
        gained: Float[np.ndarray, " sample"],
    ) -> Point:
        shares = np.bincount(exit_index, minlength=self.costs.num_exits) / len(exit_index)
        return Point(
            budget=budget,
            val_cost=float(self.val.expected(policy, self.costs)[0]),
            test_cost=float(np.array(self.costs.cumulative)[exit_index].mean()),
            test_utility=float(gained.mean(dtype=np.float64)),
            exit_distribution=tuple(shares.tolist()),
        )


def _random(
    val: ExitTable,
    test: ExitTable,
    costs: CostTable,
    budgets: Sequence[float],
    utility: Float[np.ndarray, "sample exit"] | None,
) -> PolicyRun:
    """Return the best mix of static exits chosen on the fitting side, in expectation over its coin."""
    started = time.perf_counter()
    bounds = [static_mix(val, test, costs, budget) for budget in budgets]
    seconds = time.perf_counter() - started
    points = tuple(
        Point(
            budget=budget,
            val_cost=bound.cost,  # a static mix costs the same on both sides
            test_cost=bound.cost,
            test_utility=bound.utility,
            exit_distribution=tuple(bound.distribution),
        )
        for budget, bound in zip(budgets, bounds, strict=True)
    )
    samples = None
    if utility is not None:
        shares = np.array([point.exit_distribution for point in points])
        every = np.repeat((shares @ np.array(costs.cumulative))[:, None], len(utility), axis=1)
        samples = SampledCurve(costs=every.astype(np.float32), utilities=(shares @ utility.T).astype(np.float32))
    return PolicyRun(fit_seconds=seconds, points=points, samples=samples)


def _oracle(val: ExitTable, test: ExitTable, costs: CostTable, budgets: Sequence[float]) -> PolicyRun:
    """Return the best any assignment of exits could do within the budget, knowing all utilities."""
    started = time.perf_counter()
    bounds = [(oracle(val, costs, budget), oracle(test, costs, budget)) for budget in budgets]
    seconds = time.perf_counter() - started
    points = tuple(
        Point(
            budget=budget,
            val_cost=on_val.cost,
            test_cost=on_test.cost,
            test_utility=on_test.utility,
            exit_distribution=tuple(on_test.distribution),
        )
        for budget, (on_val, on_test) in zip(budgets, bounds, strict=True)
    )
    return PolicyRun(fit_seconds=seconds, points=points, samples=None)

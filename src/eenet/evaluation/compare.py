"""Comparing policies at equal cost on their own curves, over one split or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, TypeAlias

import numpy as np

from eenet.errors import InputError, TableError
from eenet.evaluation.groups import (
    Grouping,
    GroupsLike,
    GroupStats,
    PolicyGroups,
    class_grouping,
    group_rows,
    group_stats,
    grouping,
)
from eenet.evaluation.results import Budgets, Comparison, PolicyRun, SplitRun, summarise
from eenet.evaluation.statistics import SampledCurve, bootstrap
from eenet.policies.replay import Replayer, exit_distribution
from eenet.schedulers.base import Scheduler
from eenet.schedulers.bounds import BoundPoint, oracle, static_mix
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.table import ExitTable

BOUNDS = ("random", "oracle")
"""Rows that are no policies: the lower and the upper bound."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what was just finished, how many steps are done and how many there are."""

_FAR = 0.25  # relative distance of mean costs from which on it is mentioned
_COST_TOLERANCE = 1e-6  # files may hold float32


def compare(
    val: ExitTable,
    test: ExitTable,
    schedulers: Mapping[str, Scheduler],
    budgets: Sequence[BudgetLike] = (),
    costs: CostTable | None = None,
    *,
    splits: int = 1,
    groups: GroupsLike | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resamples: int = 1000,
) -> Comparison:
    """Compare schedulers: fitted on one table, judged on the other, at equal realised cost.

    Every scheduler is fitted by one sweep over the asked budgets and the ten standard ones. Its curve is the realised
    (test cost, test utility) points, joined linearly from exit 0 and flat beyond the last; policies are compared on
    their curves, never at the nominal budget. The bounds ``random`` (best static mix chosen on ``val``) and
    ``oracle`` (knows the test utilities) are always among the rows. Where costs differ from sample to sample, budgets
    refer to the means over ``val``, and each table's realised costs are its own.

    With one split, pairs carry a paired bootstrap interval over the test samples: it covers the chance in the test
    data, not that in fitting. With more, both tables are pooled and split anew at their sizes, which is fair only where
    training saw neither; rows are means, and pairs carry the corrected resampled t interval of Nadeau and Bengio.

    Who pays for early exit is listed for every class (where there are labels) and every group, at the asked budgets.

    Args:
        val: Calibration set; needs labels or utility.
        test: Test set; same exits, columns and costs.
        schedulers: By the name they shall go under.
        budgets: Mean costs per sample to list as rows; empty = the ten standard ones.
        costs: Instead of the tables' own.
        splits: How many random splits; 1 = the tables as given.
        groups: Group of every sample of ``test``, a whole number or a name; only with one split.
        seed: Of the splits and of the bootstrap; the schedulers have their own.
        progress: Called with what was finished, steps done and steps in all.
        resamples: Of the bootstrap.

    Raises:
        TableError: The tables disagree, or lack costs or utility.
        BudgetError: A budget is below the cost of exit 0.
        InputError: ``splits`` below 1, groups with several splits, or a scheduler is named like a bound.
        ShapeError: There is not one group per sample of ``test``, or costs are of another number of exits.
    """
    if splits < 1:
        raise InputError(f"splits {splits} is too few: the tables are used at least once. Pass splits >= 1.")
    if groups is not None and splits > 1:
        raise InputError(
            f"groups with splits {splits} cannot be told apart: they belong to the samples of TEST, and splits mix "
            "these with others. Pass splits=1."
        )
    given = None if groups is None else grouping(groups, test.num_samples)
    shared: dict[str, Any] = {"seed": seed, "progress": progress, "resamples": resamples}
    return compared(val, test, schedulers, budgets, costs, splits=splits, given=given, **shared)


def compared(
    val: ExitTable,
    test: ExitTable,
    schedulers: Mapping[str, Scheduler],
    budgets: Sequence[BudgetLike],
    costs: CostTable | None,
    *,
    splits: int = 1,
    given: Grouping | None = None,
    judged: Callable[[SplitRun, ExitTable], SplitRun] = lambda run, test: run,
    notes: Sequence[str] = (),
    seed: int,
    progress: Progress | None,
    resamples: int,
) -> Comparison:
    """Compare schedulers as `compare` does, by any measure.

    ``given`` are the groups, checked; ``judged`` is called with each split's run and its test set and returns the same
    judged by another measure; ``notes`` stand before the others.
    """
    _check_tables(val, test, schedulers)
    val, test = _priced(val, test, costs)
    asked = Budgets.read(val.require_costs(), budgets)
    step = counter(progress, len(schedulers) + 1, splits)
    runs = [
        judged(_Split(*tables, asked, _groupings(tables[1], given), keep=splits == 1).run(schedulers, step), tables[1])
        for tables in random_splits(val, test, splits, seed)
    ]
    resampled = {}
    if splits == 1:
        resampled = bootstrap(
            {name: one.resampled for name, one in runs[0].runs.items() if one.resampled is not None},
            anchor=runs[0].anchor,
            num_samples=test.num_samples,
            budgets=asked.standard,
            resamples=resamples,
            seed=seed,
        )
    found = tuple(_groups(runs, asked, _groupings(test, given)))
    every = (*notes, *_notes(val, test, runs, asked))
    return summarise(runs, val, test, asked, seed=seed, resampled=resampled, groups=found, notes=every)


def _check_tables(val: ExitTable, test: ExitTable, schedulers: Mapping[str, Scheduler]) -> None:
    """Refuse what cannot be compared, before anything is fitted."""
    for key, a, b in (
        ("outputs", *("logits" if table.has_classes else "features" for table in (val, test))),
        ("exits", val.num_exits, test.num_exits),
        ("classes" if val.has_classes else "features", val.num_columns, test.num_columns),
        ("source", val.source or test.source, test.source or val.source),
    ):
        if a != b:
            raise TableError(f"VAL and TEST disagree in {key}: {a} and {b}. Record both from the same model.")
    val.require_utility("compare")
    test.require_utility("compare")
    for name in BOUNDS:
        if name in schedulers:
            raise InputError(f"scheduler {name!r} has a bound's name: {name} is always compared. Give it another name.")


def _priced(val: ExitTable, test: ExitTable, costs: CostTable | None) -> tuple[ExitTable, ExitTable]:
    """Return both tables with the costs they are judged by: those of one table serve both, those of two must agree.

    Where they differ from sample to sample, only the unit must be the same.
    """
    first, second = val.costs, test.costs
    if costs is not None or first is None or second is None:
        shared = costs or first or second
        return val.priced(shared), test.priced(shared)
    if first.unit != second.unit:
        raise TableError(
            f"VAL and TEST disagree in cost_unit: {first.unit} and {second.unit}. Record both with one profile."
        )
    if (val.cost is None) != (test.cost is None):
        one, other = ("VAL", "TEST") if test.cost is None else ("TEST", "VAL")
        raise TableError(
            f"costs of {one} differ from sample to sample, those of {other} do not: they cannot be compared. Record "
            "both alike, or pass costs for both."
        )
    if val.cost is not None:
        return val, test
    pairs = zip((*first.cumulative, first.reference), (*second.cumulative, second.reference), strict=True)
    for k, (a, b) in enumerate(pairs):
        if not (a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=_COST_TOLERANCE))):
            key = f"costs of exit {k}" if k < first.num_exits else "cost_reference"
            both = " and ".join("none" if value is None else f"{value:g}" for value in (a, b))
            raise TableError(f"VAL and TEST disagree in {key}: {both} {first.unit}. Record both with one profile.")
    return val, test.priced(first)


def random_splits(val: ExitTable, test: ExitTable, splits: int, seed: int) -> Iterator[tuple[ExitTable, ExitTable]]:
    """Yield calibration and test set of every split: as given for one, else chosen at random from both pooled."""
    if splits == 1:
        yield val, test
        return
    pool = ExitTable.concat([val, test])
    for split in range(splits):
        order = np.random.default_rng([seed, split]).permutation(pool.num_samples)
        yield pool.select(np.sort(order[: val.num_samples])), pool.select(np.sort(order[val.num_samples :]))


def counter(progress: Progress | None, steps: int, splits: int = 1) -> Callable[[str], None]:
    """Return a function that reports to ``progress`` whenever a step of a split is done."""
    done = count(1)

    def step(name: str) -> None:
        index = next(done)
        if progress is not None:
            label = name if splits == 1 else f"{name} (split {(index - 1) // steps + 1})"
            progress(label, index, steps * splits)

    return step


class _Split:
    """Fits on VAL and judges on TEST, groups told apart at the asked budgets, samples kept only for the bootstrap."""

    def __init__(
        self, val: ExitTable, test: ExitTable, budgets: Budgets, groupings: Sequence[Grouping], *, keep: bool
    ) -> None:
        self.val, self.test, self.budgets, self.groupings, self.keep = val, test, budgets, groupings, keep
        self.costs, self.utility = val.require_costs(), test.require_utility("compare")
        # the mean cost of exit 0 of a random split may be above a budget, where costs differ from sample to sample
        self.values = [max(value, self.costs.low) for value in budgets.values]
        self.replayers = Replayer(val), Replayer(test)

    def run(self, schedulers: Mapping[str, Scheduler], step: Callable[[str], None]) -> SplitRun:
        """Fit every scheduler once and replay the policy of every budget; the bounds come last."""
        runs = {}
        for name, scheduler in schedulers.items():
            runs[name] = self._fitted(scheduler)
            step(name)
        random = self._bound(lambda table, value: static_mix(self.val, table, self.costs, value))
        if self.keep:
            shares = random.points["exit_distribution"]  # its samples in expectation over its coin
            costs, utilities = (
                (shares @ each.T).astype(np.float32) for each in (self.test.leaving_costs, self.utility)
            )
            random = replace(random, resampled=SampledCurve(costs=costs, utilities=utilities))
        runs |= {"random": random, "oracle": self._bound(lambda table, value: oracle(table, self.costs, value))}
        step("bounds")
        return SplitRun(
            runs=runs,
            static_cost=np.array(self.test.require_costs().cumulative),
            static_utility=self.utility.mean(axis=0),
            anchor=SampledCurve(costs=self.test.leaving_costs[:, :1].T, utilities=self.utility[:, :1].T),
        )

    def _fitted(self, scheduler: Scheduler) -> PolicyRun:
        started = time.perf_counter()
        dial = scheduler.sweep(self.val, budgets=self.values)
        policies = [dial.at(value) for value in self.values]
        seconds = time.perf_counter() - started
        on_val, on_test = self.replayers
        on_val.prepare(policies)
        on_test.prepare(policies)
        asked = {budget.value for budget in self.budgets.asked}
        points, kept = [], []
        groups: dict[tuple[str, float], GroupStats] = {}
        for budget, policy in zip(self.budgets.values, policies, strict=True):
            exit_index = on_test.exit_index(policy)
            utility = on_test.utility(policy, exit_index)
            expected = sum(share * on_val.mean_cost(on_val.exit_index(part)) for share, part in policy.components())
            shares = exit_distribution(exit_index, self.test.num_exits)
            points.append((expected, on_test.mean_cost(exit_index), float(utility.mean()), shares))
            if self.keep:
                cost = on_test.cost(exit_index)
                kept.append((cost.astype(np.float32), utility.astype(np.float32), exit_index.astype(np.int16)))
            for known in self.groupings if budget in asked else ():
                groups[known.by, budget] = group_stats(known, self.test, exit_index, utility)
        resampled = exits = None
        if self.keep:
            costs, utilities, exits = (np.stack(column) for column in zip(*kept, strict=True))
            resampled = SampledCurve(costs=costs, utilities=utilities)
        return PolicyRun(fit_seconds=seconds, points=_columns(points), resampled=resampled, exits=exits, groups=groups)

    def _bound(self, reached: Callable[[ExitTable, float], BoundPoint]) -> PolicyRun:
        """Return what a bound reaches on both tables at every budget."""
        started = time.perf_counter()
        found = [[reached(table, value) for table in (self.val, self.test)] for value in self.values]
        points = [(on_val.cost, on_test.cost, on_test.utility, on_test.distribution) for on_val, on_test in found]
        return PolicyRun(fit_seconds=time.perf_counter() - started, points=_columns(points))


def _columns(points: Sequence[tuple[Any, ...]]) -> dict[str, np.ndarray]:
    """Return the points of a `PolicyRun` from what they are at every budget."""
    names = ("val_cost", "test_cost", "test_utility", "exit_distribution")
    return {name: np.array(column) for name, column in zip(names, zip(*points, strict=True), strict=True)}


def _groupings(test: ExitTable, given: Grouping | None) -> list[Grouping]:
    """Return what test samples are told apart by: their classes where known, and the groups given."""
    return [known for known in (class_grouping(test), given) if known is not None]


def _groups(runs: Sequence[SplitRun], budgets: Budgets, groupings: Sequence[Grouping]) -> Iterator[PolicyGroups]:
    """Yield what every policy did to every grouping at every asked budget, typed twice or not."""
    first = {budget.value: budget.text for budget in reversed(budgets.asked)}
    for value, text in sorted(first.items()):
        for name, run in runs[0].runs.items():
            for known in groupings if run.groups else ():
                rows = group_rows(known.names, [split.runs[name].groups[known.by, value] for split in runs])
                yield PolicyGroups(policy=name, budget=value, budget_input=text, by=known.by, groups=rows)


def _notes(val: ExitTable, test: ExitTable, runs: Sequence[SplitRun], budgets: Budgets) -> Iterator[str]:
    """Yield what a reader should know before believing the numbers."""
    if len(runs) == 1:
        yield "Intervals cover the chance in the test samples, not that in fitting: the policies were fitted once."
    else:
        yield f"VAL and TEST were pooled and split anew {len(runs)} times: fair only if training saw neither of them."
    yield "Significance is per pair and not corrected for the number of pairs."
    if not (val.source and test.source):
        yield "VAL, TEST or both do not name their source: that they come from the same model was not checked."
    if val.num_samples == test.num_samples and np.array_equal(val.outputs[:16], test.outputs[:16]):
        yield "VAL and TEST start with the same samples: if they are the same data, these are fitting numbers."
    if val.cost is not None:
        yield "Costs differ from sample to sample: budgets and percentages refer to the means over VAL."
        first, second = (np.array(table.require_costs().cumulative) for table in (val, test))
        far = np.abs(second / first - 1)
        if far.max() > _FAR:
            k = int(far.argmax())
            yield (
                f"Costs of exit {k} are {first[k]:.4g} on VAL and {second[k]:.4g} on TEST: were both measured alike?"
            )
    unit, asked = budgets.costs.unit, np.array(budgets.values)
    for name, run in runs[0].runs.items():
        cost = run.points["val_cost"]
        over = cost / asked
        if over.max() > 1 + 1e-6:
            worst = int(over.argmax())
            yield (
                f"{name} costs {cost[worst]:.4g} {unit} on VAL where {asked[worst]:.4g} was asked "
                f"(over budget at {int((over > 1 + 1e-6).sum())} of {len(asked)} budgets)."
            )
    for budget in budgets.asked:
        if budget.value > budgets.costs.high:
            yield f"Budget {budget.text} is above the last exit ({budgets.costs.high:.4g} {unit}): it limits nothing."

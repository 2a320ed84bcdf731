"""Comparing policies at equal cost on their own curves, over one split or many."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from eenet.errors import InputError, TableError
from eenet.evaluation.exits import StaticModel
from eenet.evaluation.groups import GroupsLike, GroupStats, PolicyGroups, group_rows, group_stats, groupings
from eenet.evaluation.notes import notes_on
from eenet.evaluation.results import BOUNDS, Budgets, Comparison, Family, PolicyRun, SplitRun, summarise
from eenet.evaluation.saving import saving_at
from eenet.evaluation.segmentation import Confusion, check_confusion, iou_of_marginals, marginals
from eenet.evaluation.statics import beside_statics, check_statics
from eenet.evaluation.statistics import Measure, SampledCurve, bootstrap, curve
from eenet.evaluation.turned import Turning
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import LEAST_GROUPS, Scheduler, require_groups, sides_of, warn_if_small
from eenet.schedulers.bounds import BoundPoint, oracle, static_mix
from eenet.schedulers.paying import most_that_pays, saving_note
from eenet.tables.checks import instance, number
from eenet.tables.costs import BudgetLike, CostTable
from eenet.tables.table import ExitTable

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with what was just finished, how many steps are done and how many there are."""

_TOLERANCE = 1e-6  # between equal costs: files may contain float32
_MAPS = (
    "Utility is the data set's mean IoU: counts are summed over images, each at its exit, before they are divided. "
    "Policies are fitted to the utility of single images. There is no oracle: a mean IoU is no mean over images."
)


def compare(
    val: ExitTable,
    test: ExitTable,
    schedulers: Mapping[str, Scheduler],
    budgets: Sequence[BudgetLike] = (),
    costs: CostTable | None = None,
    *,
    confusion: Confusion | None = None,
    groups: GroupsLike | None = None,
    statics: Sequence[StaticModel] = (),
    splits: int = 1,
    cap: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
    resamples: int = 4000,
    check_source: bool = True,
) -> Comparison:
    """Compare schedulers, fitted on one table and judged on the other, at equal realised cost.

    Every scheduler is fitted by one sweep over the asked budgets and the ten standard ones. Its curve is the realised
    (test cost, test utility) points, joined linearly from exit 0 and flat beyond the last; policies are compared on
    their curves, never at the nominal budget. The bounds ``random`` (best static mix chosen on ``val``) and
    ``oracle`` (knows the test utilities) are always among the rows. Where costs differ from sample to sample, budgets
    refer to the means over ``val``, and each table's realised costs are its own.

    With one split, pairs have a paired bootstrap interval over the test samples: it covers the chance in the test
    data, not that in fitting. With more, both tables are pooled and split anew at their sizes, which is fair only where
    training saw neither; rows are means, and pairs have the corrected resampled t interval of Nadeau and Bengio.

    With the confusion counts of maps, utility on TEST is the mean IoU of the data set, each image answered at its
    exit. That is no mean over images: the bootstrap resamples images and sums their counts anew, and there is no
    ``oracle``. Policies, ``random`` among them, are fitted to the utility of single images all the same.

    Where samples belong together (`ExitTable.group`), whole groups are resampled, and random splits keep them on one
    side.

    Args:
        val: Calibration set; needs labels or utility.
        test: Test set; same exits, columns and costs.
        schedulers: By the name they shall have in the results.
        budgets: Mean costs per sample to list as rows; empty = the ten standard ones.
        costs: Instead of the tables' own.
        confusion: Of ``test``, for tables of maps (`load_confusion`).
        groups: Group of every sample of ``test``, a whole number or a name; losses of classes are listed as well.
        statics: Models without early exits to be held against the policies at their cost; with ``utilities``, those of
            the samples of ``test``.
        splits: How many random splits; 1 = the tables as given, and needed with groups or confusion.
        cap: Let every policy spend no more than pays on held-out samples of ``val`` (`most_that_pays`); that fits each
            scheduler five times more.
        seed: Of the splits and of the bootstrap; the schedulers have their own.
        progress: Called with what was finished, steps done and steps in all.
        resamples: Of the bootstrap.
        check_source: Refuse tables recorded from two models, where both are known.

    Raises:
        TableError: The tables disagree, or lack costs or utility, or one has groups, but fewer than 5.
        BudgetError: A budget is below the cost of exit 0.
        InputError: ``splits`` below 1, arguments that exclude each other, or a scheduler with the name of a bound.
        ShapeError: Groups, statics, confusion or costs that do not fit the tables.

    Warns:
        UserWarning: A table has fewer than 50 samples.
    """
    splits, resamples, seed = (
        int(number(value, name, low, whole=True))
        for name, value, low in (("splits", splits, 1), ("resamples", resamples, 1), ("seed", seed, 0))
    )
    for table, called in ((val, "val"), (test, "test")):
        instance(table, ExitTable, called)
    _check_settings(schedulers, splits=splits, groups=groups is not None, confusion=confusion is not None)
    if not check_source:
        val, test = replace(val, source=""), replace(test, source="")
    _check_tables(val, test, costs)
    if confusion is not None:
        check_confusion(test, confusion)
    val, test = _with_costs(val, test, costs)
    check_statics(statics, test.num_samples, "TEST")
    asked, known = Budgets.read(val.require_costs(), budgets), groupings(test, groups)
    step = counter(progress, len(schedulers) + 1, splits)
    with warn_if_small(val, test):
        runs = [
            _Split(tables, asked, groups, confusion, keep=splits == 1, cap=cap).run(schedulers, step)
            for tables in random_splits(val, test, splits, seed)
        ]
    resampled = {}
    if splits == 1:
        resampled = bootstrap(
            {name: one.sampled for name, one in runs[0].runs.items() if one.sampled is not None},
            anchor=runs[0].anchor,
            budgets=asked.standard,
            groups=runs[0].groups,
            resamples=resamples,
            seed=seed,
        )
    found = tuple(_groups(runs, asked, {one.by: one.names for one in known}))
    maps = [] if confusion is None else [_MAPS]
    notes = [*maps, *notes_on(val, test, runs, asked), *saving_note(schedulers, cap=cap)]
    done = summarise(runs, val, test, asked, seed=seed, resampled=resampled, groups=found, notes=notes)
    beside = beside_statics(done, statics, runs, resamples=resamples, seed=seed)
    return replace(done, statics=tuple(vars(one) for one in beside))


def _check_settings(schedulers: Mapping[str, Scheduler], *, splits: int, groups: bool, confusion: bool) -> None:
    """Refuse arguments that cannot be used, or not together."""
    instance(schedulers, Mapping, "schedulers", "Pass them by name.")
    for name, scheduler in schedulers.items():
        instance(scheduler, Scheduler, f"scheduler {name!r}")
    given = {"groups": groups, "confusion": confusion, f"splits {splits}": splits > 1}
    found = [name for name, is_given in given.items() if is_given]
    if len(found) > 1:
        raise InputError(
            f"{' with '.join(found)} cannot be used: groups and confusion belong to the samples of TEST, which splits "
            "mix with others, and a mean IoU is one number for all groups. Pass one of them."
        )
    for name in BOUNDS:
        if name in schedulers:
            raise InputError(f"scheduler {name!r} has a bound's name: {name} is always compared. Give it another name.")


def _check_tables(val: ExitTable, test: ExitTable, costs: CostTable | None) -> None:
    """Refuse tables that cannot be compared, before anything is fitted."""
    for (key, a), (_, b) in zip(_facts(val, test, costs), _facts(test, val, costs), strict=False):
        if not (a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=_TOLERANCE))):
            both = " and ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in (a, b))
            force = ", or pass check_source=False (on the command line --force)" if key == "source" else ""
            raise TableError(
                f"VAL and TEST disagree in {key}: {both}. Record both from the same model and with one profile{force}."
            )
    val.require_utility("compare")
    test.require_utility("compare")
    for table in (val, test):
        if table.group is not None:
            require_groups(table, LEAST_GROUPS, "comparing")


def _facts(table: ExitTable, other: ExitTable, costs: CostTable | None) -> Iterator[tuple[str, object]]:
    """Yield what must be the same for both tables; costs only where both have their own."""
    yield "outputs", "logits" if table.has_classes else "features"
    yield "exits", table.num_exits
    yield "classes" if table.has_classes else "features", table.num_columns
    for key in ("feature_names", "exit_names"):
        yield key, ", ".join(getattr(table, key) or getattr(other, key))
    yield "source", table.source or other.source
    if costs is None and table.costs is not None and other.costs is not None:
        yield "cost_unit", table.costs.unit
        yield "costs that differ from sample to sample", "no" if table.cost is None else "yes"
        if table.cost is None:
            yield from ((f"costs of exit {k}", cost) for k, cost in enumerate(table.costs.cumulative))
            yield "cost_reference", table.costs.reference or "none"


def _with_costs(val: ExitTable, test: ExitTable, costs: CostTable | None) -> tuple[ExitTable, ExitTable]:
    """Return both tables with the same costs, those of one serving both; or each with its own costs per sample."""
    if costs is None and val.cost is not None and test.cost is not None:
        return val, test
    shared = costs or val.costs or test.costs
    return val.with_costs(shared), test.with_costs(shared)


def random_splits(val: ExitTable, test: ExitTable, splits: int, seed: int) -> Iterator[tuple[ExitTable, ExitTable]]:
    """Yield calibration and test set of every split: as given for one, else chosen at random from both pooled."""
    if splits == 1:
        yield val, test
        return
    pool = ExitTable.concat([val, test])
    for split in range(splits):
        fitting, judging = sides_of(pool.group_index, val.num_samples, [seed, split])
        yield pool.select(np.sort(fitting)), pool.select(np.sort(judging))


def counter(progress: Progress | None, steps: int, splits: int = 1) -> Callable[[str], None]:
    """Return a function that reports to ``progress`` whenever a step of a split is done."""
    done = count(1)

    def step(name: str) -> None:
        index = next(done)
        if progress is not None:
            label = name if splits == 1 else f"{name} (split {(index - 1) // steps + 1})"
            progress(label, index, steps * splits)

    return step


class _Expected(NamedTuple):
    """What one policy does, in expectation over its coin: mean costs, and of every TEST sample the rest."""

    val_cost: float
    test_cost: float
    cost: np.ndarray
    utility: np.ndarray
    gained: np.ndarray
    leaving: np.ndarray


class _Split:
    """Fits on VAL and judges on TEST; keeps single samples only for the bootstrap, groups only at the asked budgets."""

    def __init__(
        self,
        tables: tuple[ExitTable, ExitTable],
        budgets: Budgets,
        groups: GroupsLike | None,
        confusion: Confusion | None,
        *,
        keep: bool,
        cap: bool,
    ) -> None:
        self.val, self.test = val, test = tables
        self.budgets, self.keep, self.cap = budgets, keep, cap
        self.costs, self.groupings = val.require_costs(), groupings(test, groups)
        # the mean cost of exit 0 of a random split may be above a budget, where costs differ from sample to sample
        self.values = [max(value, self.costs.low) for value in budgets.values]
        self.replayers = Replayer(val), Replayer(test)
        self.maps = confusion is not None
        # of every sample at every exit, the numbers from whose means the measure makes a utility
        self.gained = test.require_utility("compare") if confusion is None else marginals(confusion)
        self.measure: Measure = iou_of_marginals if self.maps else np.asarray
        self.static = np.stack([test.require_costs().cumulative, self.measure(self.gained.mean(axis=0))])

    def run(self, schedulers: Mapping[str, Scheduler], step: Callable[[str], None]) -> SplitRun:
        """Fit every scheduler once and replay the policy of every budget; the bounds come last."""
        runs = {}
        tested = Family.of(list(schedulers)).policy if self.keep and not self.maps else None
        for name, scheduler in schedulers.items():
            runs[name] = self._fitted(scheduler, first=name == tested)
            step(name)
        runs["random"] = self._bound(partial(static_mix, self.val), is_mix=True)
        if not self.maps:
            runs["oracle"] = self._bound(oracle, is_mix=False)
        step("bounds")
        anchor = self._sampled(self.test.leaving_costs[:, :1].T, self.gained[None, :, 0])
        return SplitRun(runs=runs, static=self.static, anchor=anchor, groups=self.test.group_index)

    def _sampled(self, costs: np.ndarray, gained: np.ndarray) -> SampledCurve:
        return SampledCurve(costs=costs, utilities=gained, measure=self.measure)

    def _fitted(self, scheduler: Scheduler, *, first: bool) -> PolicyRun:
        started = time.perf_counter()
        dial = scheduler.sweep(self.val, budgets=self.values)
        most = most_that_pays(scheduler, self.val) if self.cap else math.inf
        if math.isfinite(most):
            dial = dial.capped(most)
        policies = [dial.at(value) for value in self.values]
        seconds = time.perf_counter() - started
        for replayer in self.replayers:
            replayer.prepare(policies)
        points, kept, asked = [], [], {budget.value for budget in self.budgets.asked}
        groups: dict[tuple[str, float], GroupStats] = {}
        for budget, policy in zip(self.budgets.values, policies, strict=True):
            found = self._expected(policy)
            shares = found.leaving.mean(axis=0)
            points.append((found.val_cost, found.test_cost, float(self.measure(found.gained.mean(axis=0))), shares))
            if self.keep:
                kept.append((found.cost.astype(np.float32), found.gained.astype(np.float32)))
            for known in self.groupings if budget in asked else ():
                groups[known.by, budget] = group_stats(known, self.test, found.leaving, found.utility)
        sampled = self._sampled(*(np.stack(each) for each in zip(*kept, strict=True))) if kept else None
        turned = Turning(self.replayers[1], self.groupings).over(dial, sorted(asked)) if first else None
        wanted = {one: policies[self.budgets.values.index(one.value)] for one in self.budgets.asked}
        saved = saving_at(wanted, *self.replayers) if first else None
        more = {"sampled": sampled, "groups": groups, "cap": most, "dial": turned, "saved": saved}
        return self._judged(*zip(*points, strict=True), seconds=seconds, **more)

    def _expected(self, policy: Policy) -> _Expected:
        """Return what a policy does in expectation over its coin: each component is replayed once on each table."""
        on_val, on_test = self.replayers
        rows, cost, utility = np.arange(self.test.num_samples), *np.zeros((2, self.test.num_samples))
        leaving, gained = np.zeros((len(rows), self.test.num_exits)), np.zeros(self.gained[:, 0].shape)
        val_cost = test_cost = 0.0
        for share, part in policy.components():
            stops = on_test.exit_index(part)
            earned = on_test.utility(part, stops)
            val_cost += share * on_val.mean_cost(on_val.exit_index(part))
            test_cost += share * on_test.mean_cost(stops)
            cost += share * on_test.cost(stops)
            utility += share * earned
            gained += share * (self.gained[rows, stops] if self.maps else earned)
            leaving[rows, stops] += share
        return _Expected(val_cost, test_cost, cost, utility, gained, leaving)

    def _bound(self, reached: Callable[[ExitTable, CostTable, float], BoundPoint], *, is_mix: bool) -> PolicyRun:
        """Return the points of a bound at every budget; a static mix is judged in expectation over its coin."""
        started = time.perf_counter()
        found = [[reached(table, self.costs, value) for table in (self.val, self.test)] for value in self.values]
        costs = np.array([[point.cost for point in pair] for pair in found])
        utility, shares = (np.array([getattr(pair[1], key) for pair in found]) for key in ("utility", "distribution"))
        sampled = None
        if is_mix:
            utility = self.measure(np.tensordot(shares, self.gained.mean(axis=0), axes=1))
        if is_mix and self.keep:
            each = (np.tensordot(shares, one, axes=(1, 1)) for one in (self.test.leaving_costs, self.gained))
            sampled = self._sampled(*(one.astype(np.float32) for one in each))
        return self._judged(*costs.T, utility, shares, seconds=time.perf_counter() - started, sampled=sampled)

    def _judged(self, *columns: Sequence[Any] | np.ndarray, seconds: float, **more: Any) -> PolicyRun:  # noqa: ANN401
        """Return a run from its costs on VAL and TEST, utility and exit distribution at every budget."""
        names = ("val_cost", "test_cost", "test_utility", "exit_distribution")
        points = {name: np.array(column) for name, column in zip(names, columns, strict=True)}
        cost, utility = self.static[:, 0].tolist()
        joined = curve(points["test_cost"], points["test_utility"], anchor=(cost, utility))
        points["utility_at_budget"] = np.array([joined.at(budget) for budget in self.budgets.values])
        points["fit_seconds"] = np.full(len(self.values), seconds)
        return PolicyRun(points=points, area=joined.area(self.budgets.standard), **more)


def _groups(runs: Sequence[SplitRun], budgets: Budgets, names: Mapping[str, Sequence[str]]) -> Iterator[PolicyGroups]:
    """Yield every policy's groups by kind at every asked budget, each budget once."""
    first = {budget.value: budget.text for budget in reversed(budgets.asked)}
    for value, text in sorted(first.items()):
        for name, run in runs[0].runs.items():
            for by in names if run.groups else ():
                rows = group_rows(names[by], [split.runs[name].groups[by, value] for split in runs])
                yield PolicyGroups(policy=name, budget=value, budget_input=text, by=by, groups=rows)

"""Comparing policies at equal cost on their own curves, over one split or many."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, count
from typing import Any

import numpy as np
import torch

from eenet.core.costs import Budget, BudgetLike, CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.errors import InputError, TableError
from eenet.evaluation.results import Comparison, Pair, Row
from eenet.evaluation.runs import BOUNDS, Progress, SplitRun, run_split
from eenet.evaluation.statistics import bootstrap_areas, bootstrap_interval, nadeau_bengio
from eenet.schedulers.base import Scheduler

__all__ = ["Comparison", "compare"]

_COST_TOLERANCE = 1e-6  # files may hold float32


def compare(
    val: ExitTable,
    test: ExitTable,
    schedulers: Mapping[str, Scheduler],
    budgets: Sequence[BudgetLike] = (),
    costs: CostTable | None = None,
    *,
    splits: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
    resamples: int = 1000,
) -> Comparison:
    """Compare schedulers: fitted on one side, judged on the other, at equal realised cost.

    Every scheduler is fitted by one sweep over the asked budgets and the ten standard ones. Its curve is the realised
    (test cost, test utility) points, joined linearly from exit 0 and flat beyond the last; policies are compared on
    their curves, never at the nominal budget. The bounds ``random`` (best static mix chosen on ``val``) and
    ``oracle`` (knows the test utilities) are always among the rows.

    With one split, pairs carry a paired bootstrap interval over the test samples: it knows the luck of the test data,
    not that of fitting. With more, both sides are pooled and redrawn at their sizes, which is fair only where
    training saw neither; rows are means, and pairs carry the corrected resampled t interval of Nadeau and Bengio.

    Args:
        val: Fitting side; needs labels or utility.
        test: Judging side; same exits, classes and costs.
        schedulers: By the name they shall go under.
        budgets: Mean costs per sample to show as rows; empty = the ten standard ones.
        costs: Instead of the tables' own.
        splits: How often the two sides are drawn; 1 = as given.
        seed: Of the splits and of the bootstrap; the schedulers have their own.
        progress: Told what was finished, steps done and steps in all.
        resamples: Of the bootstrap.

    Returns:
        Rows, areas, pairs and curves.

    Raises:
        TableError: The tables disagree, or lack costs or utility.
        BudgetError: A budget is below the cost of exit 0.
        InputError: ``splits`` below 1, or a scheduler is named like a bound.
    """
    _check(val, test, schedulers, splits)
    costs = _agreed_costs(val, test, costs)
    standard = tuple(standard_budgets(costs))
    asked = list(dict.fromkeys(costs.budget(budget) for budget in (budgets or standard)))  # each once
    values = sorted({*standard, *(budget.value for budget in asked)})
    step = _counter(progress, len(schedulers) + 1, splits)
    runs = [
        run_split(val_side, test_side, schedulers, costs, values, keep_samples=splits == 1, progress=step)
        for val_side, test_side in _sides(val, test, splits, seed)
    ]
    areas = {name: np.array([run.curve(name).area(standard) for run in runs]) for name in runs[0].runs}
    return Comparison(
        unit=costs.unit,
        reference=costs.reference,
        n_val=val.num_samples,
        n_test=test.num_samples,
        splits=splits,
        seed=seed,
        exits=_exits(runs, costs),
        full={"cost": costs.full, "utility_test": float(np.mean([run.static_utility[-1] for run in runs]))},
        rows=tuple(_rows(runs, asked, values)),
        area={name: float(area.mean()) for name, area in areas.items()},
        area_sd={name: _sd(area) for name, area in areas.items()} if splits > 1 else {},
        pairs=tuple(_pairs(runs, areas, standard, num_fit=val.num_samples, seed=seed, resamples=resamples)),
        curves={name: _mean_curve(runs, name) for name in runs[0].runs},
        standard_budgets=standard,
        notes=tuple(_notes(val, test, costs, runs, asked)),
    )


def _counter(progress: Progress | None, steps: int, splits: int) -> Callable[[str], None]:
    """Return what tells ``progress`` how far the comparison is, whenever a step of a split is done."""
    done = count(1)

    def step(name: str) -> None:
        index = next(done)
        if progress is not None:
            shown = name if splits == 1 else f"{name} (split {(index - 1) // steps + 1})"
            progress(shown, index, steps * splits)

    return step


def _agreed_costs(val: ExitTable, test: ExitTable, costs: CostTable | None) -> CostTable:
    """Return the costs both sides are judged by."""
    if costs is not None:
        if costs.num_exits != val.num_exits:
            raise TableError(
                f"costs of {costs.num_exits} exits do not fit: the tables have {val.num_exits}. Give one per exit."
            )
        return costs
    first, second = val.costs, test.costs
    if first is None or second is None:
        if first is None and second is None:
            raise TableError("costs None are missing: neither VAL nor TEST has costs. Pass costs=CostTable(...).")
        return first or second  # type: ignore[return-value]  # one of them is there
    if first.unit != second.unit:
        raise TableError(
            f"VAL and TEST disagree in cost_unit: {first.unit} and {second.unit}. Record both with one profile."
        )
    exits = [
        (f"costs of exit {k}", *pair) for k, pair in enumerate(zip(first.cumulative, second.cumulative, strict=True))
    ]
    for key, a, b in (*exits, ("cost_reference", first.reference, second.reference)):
        if not (a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=_COST_TOLERANCE))):
            shown = " and ".join("none" if value is None else f"{value:g}" for value in (a, b))
            raise TableError(f"VAL and TEST disagree in {key}: {shown} {first.unit}. Record both with one profile.")
    return first


def _check(val: ExitTable, test: ExitTable, schedulers: Mapping[str, Scheduler], splits: int) -> None:
    """Refuse what cannot be compared, before anything is fitted."""
    widths = [None if table.features is None else table.features.shape[2] for table in (val, test)]
    for key, a, b in (
        ("exits", val.num_exits, test.num_exits),
        ("classes", val.num_classes, test.num_classes),
        ("features", widths[0], widths[1]),
    ):
        if a != b:
            shown = " and ".join("none" if value is None else str(value) for value in (a, b))
            raise TableError(f"VAL and TEST disagree in {key}: {shown}. Record both from the same model.")
    val.require_utility("compare")
    test.require_utility("compare")
    if splits < 1:
        raise InputError(f"splits {splits} is too few: the sides are drawn at least once. Pass splits >= 1.")
    for name in BOUNDS:
        if name in schedulers:
            raise InputError(f"scheduler {name!r} has a bound's name: {name} is always compared. Give it another name.")


def _sides(val: ExitTable, test: ExitTable, splits: int, seed: int) -> Iterator[tuple[ExitTable, ExitTable]]:
    """Yield the two sides of every split: as given for one, else redrawn from their pool at their sizes."""
    if splits == 1:
        yield val, test
        return
    pool = ExitTable.concat([val, test])
    for split in range(splits):
        generator = np.random.default_rng([seed, split])
        order = torch.from_numpy(generator.permutation(pool.num_samples))
        first, second = order[: val.num_samples], order[val.num_samples :]
        yield pool.select(first.sort().values), pool.select(second.sort().values)


def _sd(values: np.ndarray) -> float:
    """Return the standard deviation over splits."""
    return float(values.std(ddof=1))


def _exits(runs: Sequence[SplitRun], costs: CostTable) -> tuple[dict[str, Any], ...]:
    """Return cost and test utility of every exit alone."""
    utility = np.array([run.static_utility for run in runs])
    exits: list[dict[str, Any]] = []
    for k, cost in enumerate(costs.cumulative):
        exits.append({"cost": cost, "utility_test": float(utility[:, k].mean())})
        if len(runs) > 1:
            exits[-1]["sd"] = {"utility_test": _sd(utility[:, k])}
    return tuple(exits)


def _rows(runs: Sequence[SplitRun], asked: Sequence[Budget], values: Sequence[float]) -> Iterator[Row]:
    """Yield one row per asked budget and policy: means over the splits."""
    for budget in asked:
        index = values.index(budget.value)
        for name in runs[0].runs:
            fields: dict[str, list[Any]] = {
                "val_cost": [run.runs[name].points[index].val_cost for run in runs],
                "test_cost": [run.runs[name].points[index].test_cost for run in runs],
                "test_utility": [run.runs[name].points[index].test_utility for run in runs],
                "utility_at_budget": [run.curve(name).at(budget.value) for run in runs],
                "exit_distribution": [run.runs[name].points[index].exit_distribution for run in runs],
                "fit_seconds": [run.runs[name].fit_seconds for run in runs],
            }
            means = {key: np.mean(column, axis=0).tolist() for key, column in fields.items()}
            means["exit_distribution"] = tuple(means["exit_distribution"])
            sd = (
                {key: np.std(column, axis=0, ddof=1).tolist() for key, column in fields.items()}
                if len(runs) > 1
                else None
            )
            yield Row(policy=name, budget=budget.value, budget_input=budget.text, sd=sd, **means)


def _pairs(
    runs: Sequence[SplitRun],
    areas: Mapping[str, np.ndarray],
    standard: Sequence[float],
    *,
    num_fit: int,
    seed: int,
    resamples: int,
) -> Iterator[Pair]:
    """Yield every pair of policies, and every policy against `random`, with its interval."""
    single = len(runs) == 1
    names = [name for name in areas if name != "oracle"]  # the order of the schedulers, then random
    redrawn: Mapping[str, np.ndarray] = {}
    if single and len(names) > 1:
        kept = {name: run for name in names if (run := runs[0].runs[name].samples) is not None}
        redrawn = bootstrap_areas(
            kept,
            anchor_cost=runs[0].anchor_cost,
            anchor_utility=runs[0].anchor_utility,
            budgets=standard,
            resamples=resamples,
            seed=seed,
        )
    for a, b in combinations(names, 2):
        differences = areas[a] - areas[b]
        if single:
            low, high = bootstrap_interval(redrawn[a], redrawn[b])
        else:
            low, high = nadeau_bengio(differences, num_fit=num_fit, num_test=len(runs[0].anchor_utility))
        yield Pair(
            a=a,
            b=b,
            difference=float(differences.mean()),
            low=low,
            high=high,
            significant=low > 0 or high < 0,
            method="paired bootstrap" if single else "corrected resampled t (Nadeau-Bengio)",
        )


def _mean_curve(runs: Sequence[SplitRun], name: str) -> tuple[dict[str, float], ...]:
    """Return the anchor and a policy's points by rising cost, each the mean over the splits."""
    anchor = (runs[0].anchor_cost, float(np.mean([run.static_utility[0] for run in runs])))
    costs = np.mean([[point.test_cost for point in run.runs[name].points] for run in runs], axis=0)
    utilities = np.mean([[point.test_utility for point in run.runs[name].points] for run in runs], axis=0)
    points = sorted([anchor, *zip(costs.tolist(), utilities.tolist(), strict=True)])
    return tuple({"cost": cost, "utility": utility} for cost, utility in points)


def _notes(
    val: ExitTable, test: ExitTable, costs: CostTable, runs: Sequence[SplitRun], asked: Sequence[Budget]
) -> Iterator[str]:
    """Yield what a reader should know before believing the numbers."""
    if len(runs) == 1:
        yield "Intervals know the luck of the test samples, not that of fitting: the policies were fitted once."
    else:
        yield f"VAL and TEST were pooled and redrawn {len(runs)} times: fair only if training saw neither of them."
    yield "Significance is per pair and not corrected for the number of pairs."
    if val.num_samples == test.num_samples and torch.equal(val.logits[:16], test.logits[:16]):
        yield "VAL and TEST start with the same samples: if they are the same data, these are fitting numbers."
    for name, run in runs[0].runs.items():
        over = [point for point in run.points if point.val_cost > point.budget * (1 + 1e-6)]
        if over:
            worst = max(over, key=lambda point: point.val_cost / point.budget)
            yield (
                f"{name} costs {worst.val_cost:.4g} {costs.unit} on VAL where {worst.budget:.4g} was asked "
                f"(over budget at {len(over)} of {len(run.points)} budgets)."
            )
    for budget in asked:
        if budget.value > costs.high:
            yield f"Budget {budget.text} is above the last exit ({costs.high:.4g} {costs.unit}): the full path."

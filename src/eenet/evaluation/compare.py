"""Comparing policies at equal cost on their own curves, over one split or many."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, count
from typing import Any

import numpy as np
import torch

from eenet.core.costs import Budget, BudgetLike, CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.evaluation.groups import Grouping, GroupsLike, class_grouping, group_rows, grouping
from eenet.evaluation.results import BOOTSTRAP, Comparison, Pair, PolicyGroups, Row
from eenet.evaluation.runs import Progress, SplitRun, run_split
from eenet.evaluation.sides import agreed_costs, check_sides, draw_sides
from eenet.evaluation.statistics import bootstrap_areas, bootstrap_interval, nadeau_bengio
from eenet.schedulers.base import Scheduler

__all__ = ["Comparison", "asked_budgets", "budget_values", "compare", "counter", "gathered"]


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
    """Compare schedulers: fitted on one side, judged on the other, at equal realised cost.

    Every scheduler is fitted by one sweep over the asked budgets and the ten standard ones. Its curve is the realised
    (test cost, test utility) points, joined linearly from exit 0 and flat beyond the last; policies are compared on
    their curves, never at the nominal budget. The bounds ``random`` (best static mix chosen on ``val``) and
    ``oracle`` (knows the test utilities) are always among the rows.

    With one split, pairs carry a paired bootstrap interval over the test samples: it knows the luck of the test data,
    not that of fitting. With more, both sides are pooled and redrawn at their sizes, which is fair only where
    training saw neither; rows are means, and pairs carry the corrected resampled t interval of Nadeau and Bengio.

    Who pays for early exit is told for every class (where there are labels) and every group, at the asked budgets.

    Args:
        val: Fitting side; needs labels or utility.
        test: Judging side; same exits, classes and costs.
        schedulers: By the name they shall go under.
        budgets: Mean costs per sample to show as rows; empty = the ten standard ones.
        costs: Instead of the tables' own.
        splits: How often the two sides are drawn; 1 = as given.
        groups: Group of every sample of ``test``, a whole number or a name; only with one split.
        seed: Of the splits and of the bootstrap; the schedulers have their own.
        progress: Told what was finished, steps done and steps in all.
        resamples: Of the bootstrap.

    Returns:
        Rows, areas, pairs and curves.

    Raises:
        TableError: The tables disagree, or lack costs or utility.
        BudgetError: A budget is below the cost of exit 0.
        InputError: ``splits`` below 1, groups with several splits, or a scheduler is named like a bound.
        ShapeError: There is not one group per sample of ``test``.
    """
    check_sides(val, test, schedulers, splits, grouped=groups is not None)
    given = None if groups is None else grouping(groups, test.num_samples)
    costs = agreed_costs(val, test, costs)
    standard = tuple(standard_budgets(costs))
    asked = asked_budgets(costs, budgets)
    values = budget_values(costs, asked)
    step = counter(progress, len(schedulers) + 1, splits)
    runs = [
        run_split(
            val_side,
            test_side,
            schedulers,
            costs,
            values,
            keep_samples=splits == 1,
            groupings=_groupings(test_side, given),
            grouped_at={budget.value for budget in asked},
            progress=step,
        )
        for val_side, test_side in draw_sides(val, test, splits, seed)
    ]
    return gathered(
        runs,
        (val, test),
        costs,
        asked,
        seed=seed,
        redrawn=_redrawn(runs[0], standard, seed, resamples) if splits == 1 else {},
        groups=tuple(_groups(runs, asked, costs, _groupings(test, given))),
    )


def gathered(
    runs: Sequence[SplitRun],
    sides: tuple[ExitTable, ExitTable],
    costs: CostTable,
    asked: Sequence[Budget],
    *,
    seed: int,
    redrawn: Mapping[str, np.ndarray],
    groups: tuple[PolicyGroups, ...] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Return what the runs of all splits amount to.

    Args:
        runs: One per split, at the asked and the standard budgets.
        sides: The tables as they were given.
        costs: Of both.
        asked: Budgets shown as rows.
        seed: Of the splits and of the bootstrap.
        redrawn: With one split, areas of every policy on the same resamples.
        groups: Who pays.
        notes: Said before all others.
    """
    val, test = sides
    standard = tuple(standard_budgets(costs))
    values = budget_values(costs, asked)
    areas = {name: np.array([run.curve(name).area(standard) for run in runs]) for name in runs[0].runs}
    return Comparison(
        unit=costs.unit,
        reference=costs.reference,
        n_val=val.num_samples,
        n_test=test.num_samples,
        splits=len(runs),
        seed=seed,
        exits=_exits(runs, costs),
        full={"cost": costs.full, "utility_test": float(np.mean([run.static_utility[-1] for run in runs]))},
        rows=tuple(_rows(runs, asked, values)),
        area={name: float(area.mean()) for name, area in areas.items()},
        area_sd={name: _sd(area) for name, area in areas.items()} if len(runs) > 1 else {},
        pairs=tuple(_pairs(runs, areas, redrawn, num_fit=val.num_samples)),
        groups=groups,
        curves={name: _mean_curve(runs, name) for name in runs[0].runs},
        standard_budgets=standard,
        notes=(*notes, *_notes(val, test, costs, runs, asked)),
    )


def asked_budgets(costs: CostTable, budgets: Sequence[BudgetLike]) -> list[Budget]:
    """Return the budgets to be shown, each once; the ten standard ones where none is named."""
    return list(dict.fromkeys(costs.budget(budget) for budget in (budgets or standard_budgets(costs))))


def budget_values(costs: CostTable, asked: Sequence[Budget]) -> list[float]:
    """Return the budgets that policies are fitted for: the standard ones and those asked for."""
    return sorted({*standard_budgets(costs), *(budget.value for budget in asked)})


def counter(progress: Progress | None, steps: int, splits: int) -> Callable[[str], None]:
    """Return what tells ``progress`` how far the comparison is, whenever a step of a split is done."""
    done = count(1)

    def step(name: str) -> None:
        index = next(done)
        if progress is not None:
            shown = name if splits == 1 else f"{name} (split {(index - 1) // steps + 1})"
            progress(shown, index, steps * splits)

    return step


def _groupings(test: ExitTable, given: Grouping | None) -> list[Grouping]:
    """Return what the samples of a side are told apart by: their classes where known, and the groups given."""
    classes = [] if test.labels is None else [class_grouping(test.labels.numpy(), test.num_classes)]
    return classes if given is None else [*classes, given]


def _groups(
    runs: Sequence[SplitRun], asked: Sequence[Budget], costs: CostTable, groupings: Sequence[Grouping]
) -> Iterator[PolicyGroups]:
    """Yield what every policy did to every grouping at every asked budget, typed twice or not."""
    first = {budget.value: budget for budget in reversed(asked)}
    for value in sorted(first):
        for name, run in runs[0].runs.items():
            for known in groupings if run.groups else ():
                stats = [split.runs[name].groups[known.by, value] for split in runs]
                yield PolicyGroups(
                    policy=name,
                    budget=value,
                    budget_input=first[value].text,
                    by=known.by,
                    groups=group_rows(known.names, stats, costs.cumulative),
                )


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


def _redrawn(run: SplitRun, standard: Sequence[float], seed: int, resamples: int) -> dict[str, np.ndarray]:
    """Return every policy's area on the same resamples of the test samples."""
    return bootstrap_areas(
        {name: one.samples for name, one in run.runs.items() if one.samples is not None},
        anchor_cost=run.anchor_cost,
        anchor_utility=run.anchor_utility,
        budgets=standard,
        resamples=resamples,
        seed=seed,
    )


def _pairs(
    runs: Sequence[SplitRun], areas: Mapping[str, np.ndarray], redrawn: Mapping[str, np.ndarray], *, num_fit: int
) -> Iterator[Pair]:
    """Yield every pair of policies, and every policy against `random`, with its interval."""
    single = len(runs) == 1
    names = [name for name in areas if name != "oracle"]  # the order of the schedulers, then random
    for a, b in combinations(names, 2):
        differences = 100 * (areas[a] - areas[b])  # in points
        if single:
            interval = bootstrap_interval(100 * redrawn[a], 100 * redrawn[b])
        else:
            interval = nadeau_bengio(differences, num_fit=num_fit, num_test=len(runs[0].anchor_utility))
        method = BOOTSTRAP if single else "corrected resampled t (Nadeau-Bengio)"
        yield Pair.of(a, b, float(differences.mean()), interval, method)


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
            yield f"Budget {budget.text} is above the last exit ({costs.high:.4g} {costs.unit}): it limits nothing."

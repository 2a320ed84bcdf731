"""Comparing policies on maps: a data set's mean IoU at equal mean cost, with a bootstrap over images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core.costs import BudgetLike, CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.evaluation.compare import asked_budgets, budget_values, counter, gathered
from eenet.evaluation.results import Comparison
from eenet.evaluation.runs import PolicyRun, Progress, SplitRun, run_split
from eenet.evaluation.segmentation import check_confusion, marginals, mean_of_iou
from eenet.evaluation.sides import agreed_costs, check_sides
from eenet.evaluation.statistics import Redraw, redrawn_areas
from eenet.schedulers.base import Scheduler

__all__ = ["compare_dense"]

_NOTE = (
    "Utility is the data set's mean IoU: counts are summed over images, each at its exit, before they are divided. "
    "Policies are fitted to the utility of single images. There is no oracle: a mean IoU is no mean over images."
)


def compare_dense(
    val: ExitTable,
    test: ExitTable,
    confusion: Int[Tensor, "sample exit class class"],
    schedulers: Mapping[str, Scheduler],
    budgets: Sequence[BudgetLike] = (),
    *,
    costs: CostTable | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resamples: int = 1000,
) -> Comparison:
    """Compare schedulers on tables of maps: fitted on one side's images, judged by the other side's mean IoU.

    As `compare`, with one difference: what a choice of exits is worth is the mean IoU of the whole data set, each image
    answered at its exit. That is no mean over images, so the bootstrap draws images and sums their counts anew, and
    there is no row ``oracle``. The bound ``random`` is the best static mix chosen on ``val`` by the utility of images,
    its counts being those expected of the coin.

    Args:
        val: Fitting side; its utility is that of images.
        test: Judging side; same exits, classes and costs.
        confusion: Counts of the judging side; see `eenet.evaluation.load_confusion`.
        schedulers: By the name they shall go under.
        budgets: Mean costs per image to show as rows; empty = the ten standard ones.
        costs: Instead of the tables' own.
        seed: Of the bootstrap; the schedulers have their own.
        progress: Told what was finished, steps done and steps in all.
        resamples: Of the bootstrap.

    Returns:
        A comparison whose utilities, areas and differences are of the data set's mean IoU.

    Raises:
        TableError: The tables disagree, or lack costs or utility.
        BudgetError: A budget is below the cost of exit 0.
        InputError: A scheduler is named like a bound.
        ShapeError: The counts are not of the judging side.
    """
    check_sides(val, test, schedulers, 1, grouped=False)
    check_confusion(test, confusion)
    costs = agreed_costs(val, test, costs)
    asked = asked_budgets(costs, budgets)
    values = budget_values(costs, asked)
    step = counter(progress, len(schedulers) + 1, 1)
    run = run_split(val, test, schedulers, costs, values, keep_samples=True, progress=step)
    counts = marginals(confusion)
    choices = {name: _choices(one, costs.num_exits) for name, one in run.runs.items() if name != "oracle"}
    cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
    first = torch.eye(costs.num_exits, dtype=torch.float64)[None, :1]
    redrawn = redrawn_areas(
        {name: _redraw(chosen, counts, cumulative) for name, chosen in choices.items()},
        anchor=_redraw(first, counts, cumulative),
        num_samples=test.num_samples,
        budgets=standard_budgets(costs),
        resamples=resamples,
        seed=seed,
    )
    judged = _judged(run, choices, counts)
    return gathered([judged], (val, test), costs, asked, seed=seed, redrawn=redrawn, notes=(_NOTE,))


def _choices(run: PolicyRun, num_exits: int) -> Float[Tensor, "point chooser exit"]:
    """Return the share with which each image leaves at each exit; one row for all images where they are alike."""
    if run.exits is None:
        return torch.tensor([point.exit_distribution for point in run.points], dtype=torch.float64)[:, None]
    return torch.nn.functional.one_hot(torch.from_numpy(run.exits).long(), num_exits).double()


def _chosen(
    choice: Float[Tensor, "chooser exit"], counts: Float[Tensor, "sample exit kind class"]
) -> Float[Tensor, "sample kind class"]:
    """Return what is counted of each image if it leaves as chosen."""
    return (choice[:, :, None, None] * counts).sum(dim=1)


def _redraw(
    choices: Float[Tensor, "point chooser exit"],
    counts: Float[Tensor, "sample exit kind class"],
    cumulative: Float[Tensor, " exit"],
) -> Redraw:
    """Return what draws a curve anew from resampled images."""

    def points(weights: Float[np.ndarray, "resample sample"]) -> tuple[np.ndarray, np.ndarray]:
        drawn = torch.from_numpy(weights)
        costs, utilities = [], []
        for choice in choices:
            spent = (choice @ cumulative).expand(len(counts))
            summed = drawn @ _chosen(choice, counts).flatten(1)
            costs.append(drawn @ spent)
            utilities.append(mean_of_iou(summed.view(len(drawn), *counts.shape[2:])))
        return torch.stack(costs, dim=1).numpy(), torch.stack(utilities, dim=1).numpy()

    return points


def _judged(
    run: SplitRun,
    choices: Mapping[str, Float[Tensor, "point chooser exit"]],
    counts: Float[Tensor, "sample exit kind class"],
) -> SplitRun:
    """Return a run with the data set's mean IoU in place of the mean utility of its images."""
    runs = {}
    for name, chosen in choices.items():
        worth = [float(mean_of_iou(_chosen(choice, counts).sum(dim=0))) for choice in chosen]
        points = [replace(point, test_utility=value) for point, value in zip(run.runs[name].points, worth, strict=True)]
        runs[name] = replace(run.runs[name], points=tuple(points))
    return replace(run, runs=runs, static_utility=tuple(mean_of_iou(counts.sum(dim=0)).tolist()))

"""Judging maps: pixel accuracy and mean IoU from confusion counts, of a policy, a dial, or many policies compared."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int

from eenet.errors import ShapeError, TableError
from eenet.evaluation.compare import Progress, compared
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.results import Comparison, PolicyRun, SplitRun
from eenet.evaluation.statistics import Curve, Points, curve
from eenet.policies.dial import Dial
from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import Scheduler
from eenet.tables import storage
from eenet.tables.costs import BudgetLike, CostTable, standard_budgets
from eenet.tables.table import ExitTable

CONFUSION = "confusion"
"""Key under which a stored table keeps confusion counts ``[sample, exit, true class, answered class]``."""

_NOTE = (
    "Utility is the data set's mean IoU: counts are summed over images, each at its exit, before they are divided. "
    "Policies are fitted to the utility of single images. There is no oracle: a mean IoU is no mean over images."
)


def load_confusion(path: str | os.PathLike[str]) -> Int[np.ndarray, "sample exit class class"]:
    """Return the confusion counts that stand beside a stored table; those of a folder are memory-mapped.

    Raises:
        TableError: There are none, or the file is missing or damaged.
    """
    found = find_confusion(path)
    if found is None:
        raise TableError(
            f"table {path} lacks confusion counts: key {CONFUSION!r} is needed. Record it from a model of maps."
        )
    return found


def find_confusion(path: str | os.PathLike[str]) -> Int[np.ndarray, "sample exit class class"] | None:
    """Return the same, or None where the table keeps none."""
    array = storage.read(path, (CONFUSION,)).get(CONFUSION)
    if array is None:
        return None
    if array.ndim != 4 or array.shape[2] != array.shape[3] or array.dtype.kind not in "iu":
        raise TableError(
            f"{CONFUSION} of shape {array.shape} and type {array.dtype} does not fit: whole numbers [sample, exit, "
            "class, class] are needed. Record the table again."
        )
    return array.astype(np.int64, copy=False)


def pixel_accuracy(confusion: Int[np.ndarray, "*counted class class"]) -> Float[np.ndarray, "*counted"]:
    """Return the share of the pixels, counted by true and answered class, that are right; 1 where there are none."""
    right, every = np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1))
    return np.where(every > 0, right / np.maximum(every, 1), 1.0)


def class_iou(confusion: Int[np.ndarray, "*counted class class"]) -> Float[np.ndarray, "*counted class"]:
    """Return the intersection over union of every class; NaN for a class that does not occur."""
    return _iou(_marginals(confusion))


def mean_iou(confusion: Int[np.ndarray, "*counted class class"]) -> Float[np.ndarray, "*counted"]:
    """Return the mean intersection over union of the classes that occur; 1 where no pixel counts.

    Pixels wrongly answered with a class that does not occur count as misses of their true class.

    Args:
        confusion: Pixels by true class (first) and answered class; of one image, or summed over a data set.
    """
    return _mean_iou(_marginals(confusion))


def _mean_iou(counts: Float64[np.ndarray, "*counted kind class"]) -> Float64[np.ndarray, "*counted"]:
    """Return `mean_iou` from `_marginals`, or from sums of them."""
    iou = _iou(counts)
    occurring = np.count_nonzero(~np.isnan(iou), axis=-1)
    return np.where(occurring > 0, np.nansum(iou, axis=-1) / np.maximum(occurring, 1), 1.0)


def _marginals(confusion: Int[np.ndarray, "*counted class class"]) -> Float64[np.ndarray, "*counted kind class"]:
    """Return per class the pixels that are right, that truly are of it, and that were answered with it."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([right, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-2).astype(np.float64)


def _iou(counts: Float64[np.ndarray, "*counted kind class"]) -> Float64[np.ndarray, "*counted class"]:
    right, occurring, answered = np.moveaxis(counts, -2, 0)
    union = np.maximum(occurring + answered - right, 1e-300)
    return np.where(occurring > 0, right / union, np.nan)


def counts_at(
    confusion: Int[np.ndarray, "sample exit class class"], exit_index: Int[np.ndarray, " image"]
) -> Int[np.ndarray, "class class"]:
    """Return the data set's confusion counts if each image leaves at its exit; see `miou`."""
    if exit_index.shape != confusion.shape[:1]:
        raise ShapeError(
            f"exit_index of shape {tuple(exit_index.shape)} does not fit: confusion counts are of {len(confusion)} "
            "images. Give one exit per image."
        )
    return np.sum([confusion[exit_index == k, k].sum(axis=0) for k in range(confusion.shape[1])], axis=0)


def miou(confusion: Int[np.ndarray, "sample exit class class"], exit_index: Int[np.ndarray, " image"]) -> float:
    """Return the data set's mean IoU if each image leaves at its exit: counts are summed before they are divided.

    Raises:
        ShapeError: Another number of exits than of images.
    """
    return float(mean_iou(counts_at(confusion, exit_index)))


@dataclass(frozen=True, kw_only=True)
class DenseReport:
    """What one policy did on one table of maps.

    Attributes:
        images: Costs, exits, and the utility of images as the table holds it, which policies are fitted to.
        miou: Mean IoU over the data set: counts are summed over images, each at its exit, before they are divided.
        pixel_accuracy: Share of all counted pixels that are right.
        class_iou: IoU of every class over the data set; None for a class that does not occur.
        static_miou: Mean IoU of answering everything at each exit.
        static_pixel_accuracy: Share of right pixels when answering everything at each exit.
    """

    images: Report
    miou: float
    pixel_accuracy: float
    class_iou: tuple[float | None, ...]
    static_miou: tuple[float, ...]
    static_pixel_accuracy: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values, those of the images among them."""
        return self.images.to_dict() | {key: value for key, value in vars(self).items() if key != "images"}


def evaluate_dense(
    policy: Policy,
    table: ExitTable,
    confusion: Int[np.ndarray, "sample exit class class"],
    costs: CostTable | None = None,
    *,
    budget: BudgetLike | None = None,
) -> DenseReport:
    """Return what a policy costs and what its maps are worth over a data set.

    Args:
        policy: As for `evaluate`, like all else.
        table: Summaries to replay, with the utility of images.
        confusion: Counts of the same images; see `load_confusion`.
        costs: Instead of the table's own.
        budget: What was asked for.

    Raises:
        TableError: The table has no utility, or there are no costs.
        ShapeError: Policy, table, confusion and costs do not belong together.
    """
    _check_confusion(table, confusion)
    images = evaluate(policy, table, costs, budget=budget)
    total = counts_at(confusion, Replayer(table).exit_index(policy))
    static = confusion.sum(axis=0)
    return DenseReport(
        images=images,
        miou=float(mean_iou(total)),
        pixel_accuracy=float(pixel_accuracy(total)),
        class_iou=tuple(None if math.isnan(value) else value for value in class_iou(total).tolist()),
        static_miou=tuple(mean_iou(static).tolist()),
        static_pixel_accuracy=tuple(pixel_accuracy(static).tolist()),
    )


def dense_curve(
    dial: Dial,
    table: ExitTable,
    confusion: Int[np.ndarray, "sample exit class class"],
    *,
    budgets: Sequence[BudgetLike] = (),
) -> Curve:
    """Return a data set's mean IoU as a function of mean cost: a dial's realised points, joined from exit 0.

    Args:
        dial: What a scheduler's sweep returned; its costs count.
        table: Summaries to replay, of images the dial was not fitted on.
        confusion: Counts of the same images.
        budgets: Mean costs per image; empty = the ten standard ones.

    Raises:
        BudgetError: A budget is below the cost of exit 0.
        ShapeError: Dial, table and confusion do not belong together.
    """
    _check_confusion(table, confusion)
    replayer = Replayer(table if table.cost is not None else table.priced(dial.costs))
    exits = [replayer.exit_index(dial.at(budget)) for budget in budgets or standard_budgets(dial.costs)]
    return curve(
        np.array([replayer.mean_cost(exit_index) for exit_index in exits]),
        np.array([miou(confusion, exit_index) for exit_index in exits]),
        anchor=(replayer.table.require_costs().low, float(mean_iou(confusion[:, 0].sum(axis=0)))),
    )


def _check_confusion(table: ExitTable, confusion: Int[np.ndarray, "sample exit class class"]) -> None:
    """Refuse counts that are not of a table's images."""
    classes = sum(name[:1] == "p" and name[1:].isdigit() for name in table.feature_names) or confusion.shape[2]
    wanted = (table.num_samples, table.num_exits, classes, classes)
    if confusion.shape != wanted:
        raise ShapeError(
            f"confusion of shape {confusion.shape} does not fit: the table has {wanted[0]} images, {wanted[1]} "
            f"exits and {wanted[2]} classes. Pass the counts recorded with it."
        )


def compare_dense(
    val: ExitTable,
    test: ExitTable,
    confusion: Int[np.ndarray, "sample exit class class"],
    schedulers: Mapping[str, Scheduler],
    budgets: Sequence[BudgetLike] = (),
    *,
    costs: CostTable | None = None,
    seed: int = 0,
    progress: Progress | None = None,
    resamples: int = 1000,
) -> Comparison:
    """Compare schedulers on tables of maps: fitted on one table's images, judged by the other's mean IoU.

    As `compare`, with one difference: what a choice of exits is worth is the mean IoU of the whole data set, each image
    answered at its exit. That is no mean over images, so the bootstrap resamples images and sums their counts anew, and
    there is no row ``oracle``. The bound ``random`` is the best static mix chosen on ``val`` by the utility of images,
    its counts being those expected of the coin.

    Args:
        val: As for `compare`, like all else; its utility is that of images.
        test: Test set.
        confusion: Counts of the test images; see `load_confusion`.
        schedulers: By name.
        budgets: Mean costs per image.
        costs: Instead of the tables' own.
        seed: Of the bootstrap.
        progress: Called after every step.
        resamples: Of the bootstrap.

    Raises:
        TableError, BudgetError, InputError: As `compare`.
        ShapeError: The counts are not of the test images.
    """
    _check_confusion(test, confusion)
    shared: dict[str, Any] = {"seed": seed, "progress": progress, "resamples": resamples}
    judged = partial(_by_counts, counts=_marginals(confusion))
    return compared(val, test, schedulers, budgets, costs, judged=judged, notes=(_NOTE,), **shared)


def _by_counts(run: SplitRun, test: ExitTable, counts: Float64[np.ndarray, "sample exit kind class"]) -> SplitRun:
    """Return what a split's policies are worth by the mean IoU of the data set; the oracle is left out."""
    runs = {}
    for name, one in run.runs.items():
        if name != "oracle":
            curve = _CountedCurve(*zip(*_chosen(one, test, counts), strict=True))
            points = one.points | {"test_utility": np.array([_mean_iou(own.sum(axis=0)) for own in curve.counts])}
            runs[name] = replace(one, points=points, resampled=curve)
    anchor = _CountedCurve((test.leaving_costs[:, 0],), (counts[:, 0],))
    return replace(run, runs=runs, static_utility=_mean_iou(counts.sum(axis=0)), anchor=anchor)


def _chosen(
    run: PolicyRun, test: ExitTable, counts: Float64[np.ndarray, "sample exit kind class"]
) -> Iterator[tuple[Float64[np.ndarray, " sample"], Float64[np.ndarray, "sample kind class"]]]:
    """Yield, for every point of a run, cost and counts of every image where it leaves; of a mix their expectation."""
    if run.exits is None:
        for shares in run.points["exit_distribution"]:
            yield test.leaving_costs @ shares, np.tensordot(counts, shares, axes=(1, 0))
    else:
        rows = np.arange(len(counts))
        for exits in run.exits:
            yield test.leaving_costs[rows, exits], counts[rows, exits]


@dataclass(frozen=True, eq=False)
class _CountedCurve:
    """Cost and counts of every image at every point of a curve: on resampled images the counts are summed anew."""

    costs: tuple[Float64[np.ndarray, " sample"], ...]
    counts: tuple[Float64[np.ndarray, "sample kind class"], ...]

    def __call__(self, weights: Float[np.ndarray, "resample sample"]) -> Points:
        """Return the points on resamples."""
        utilities = [_mean_iou(np.tensordot(weights, own, axes=(1, 0))) for own in self.counts]
        return weights @ np.stack(self.costs, axis=1), np.stack(utilities, axis=1)

"""Judging maps: pixel accuracy and mean IoU from confusion counts, and what a policy makes of a data set's."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.core import table_files
from eenet.core.costs import BudgetLike, CostTable, standard_budgets
from eenet.core.policy import Policy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import ShapeError, TableError
from eenet.evaluation.evaluate import Report, evaluate
from eenet.evaluation.statistics import Curve, curve
from eenet.schedulers.base import Dial

__all__ = [
    "CONFUSION",
    "DenseReport",
    "class_iou",
    "counts_at",
    "dense_curve",
    "evaluate_dense",
    "find_confusion",
    "load_confusion",
    "marginals",
    "mean_iou",
    "mean_of_iou",
    "miou",
    "pixel_accuracy",
]

CONFUSION = "confusion"
"""Key under which a stored table keeps confusion counts ``[sample, exit, true class, answered class]``."""


def load_confusion(path: str | os.PathLike[str]) -> Int[Tensor, "sample exit class class"]:
    """Return the confusion counts that stand beside a stored table; those of a folder are memory-mapped.

    Args:
        path: What `eenet.inference.record_dense.record_dense` wrote.

    Raises:
        TableError: There are none, or the file is missing or damaged.
    """
    found = find_confusion(path)
    if found is None:
        raise TableError(
            f"table {path} lacks confusion counts: key {CONFUSION!r} is needed. Record it from a model of maps."
        )
    return found


def find_confusion(path: str | os.PathLike[str]) -> Int[Tensor, "sample exit class class"] | None:
    """Return the same, or None where the table keeps none.

    Raises:
        TableError: The file is missing or damaged, or what it holds are no counts.
    """
    array = table_files.read(path, (CONFUSION,)).get(CONFUSION)
    if array is None:
        return None
    if array.ndim != 4 or array.shape[2] != array.shape[3] or array.dtype.kind not in "iu":
        raise TableError(
            f"{CONFUSION} of shape {array.shape} and type {array.dtype} does not fit: whole numbers [sample, exit, "
            "class, class] are needed. Record the table again."
        )
    return torch.from_numpy(array.astype(np.int64, copy=False))


def pixel_accuracy(confusion: Int[Tensor, "*counted class class"]) -> Float[Tensor, "*counted"]:
    """Return the share of the counted pixels that are right; 1 where there are none.

    Args:
        confusion: Pixels by true class (first) and answered class.
    """
    right = confusion.diagonal(dim1=-2, dim2=-1).sum(dim=-1).double()
    every = confusion.sum(dim=(-2, -1)).double()
    return torch.where(every > 0, right / every.clamp_min(1), 1.0)


def class_iou(confusion: Int[Tensor, "*counted class class"]) -> Float[Tensor, "*counted class"]:
    """Return the intersection over union of every class; NaN for a class that does not occur.

    Args:
        confusion: Pixels by true class (first) and answered class.
    """
    return _iou(marginals(confusion))


def mean_iou(confusion: Int[Tensor, "*counted class class"]) -> Float[Tensor, "*counted"]:
    """Return the mean intersection over union of the classes that occur; 1 where no pixel counts.

    Pixels wrongly answered with a class that does not occur count as misses of their true class.

    Args:
        confusion: Pixels by true class (first) and answered class; of one image, or summed over a data set.
    """
    return mean_of_iou(marginals(confusion))


def mean_of_iou(counts: Float[Tensor, "*counted kind class"]) -> Float[Tensor, "*counted"]:
    """Return `mean_iou` from what `counts_at` sums up."""
    return _iou(counts).nanmean(dim=-1).nan_to_num(nan=1.0)


def marginals(confusion: Int[Tensor, "*counted class class"]) -> Float[Tensor, "*counted kind class"]:
    """Return per class the pixels that are right, that truly are of it, and that were answered with it."""
    right = confusion.diagonal(dim1=-2, dim2=-1)
    return torch.stack([right, confusion.sum(dim=-1), confusion.sum(dim=-2)], dim=-2).double()


def _iou(counts: Float[Tensor, "*counted kind class"]) -> Float[Tensor, "*counted class"]:
    right, occurring, answered = counts.unbind(dim=-2)
    return torch.where(occurring > 0, right / (occurring + answered - right).clamp_min(1e-300), torch.nan)


def counts_at(
    confusion: Int[Tensor, "sample exit class class"], exit_index: Int[Tensor, " image"]
) -> Int[Tensor, "class class"]:
    """Return the data set's confusion counts if each image leaves at its exit.

    Args:
        confusion: Of every image at every exit.
        exit_index: Where each image leaves.

    Raises:
        ShapeError: Another number of exits than of images.
    """
    if exit_index.shape != confusion.shape[:1]:
        raise ShapeError(
            f"exit_index of shape {tuple(exit_index.shape)} does not fit: confusion counts are of {len(confusion)} "
            "images. Give one exit per image."
        )
    total = torch.zeros(confusion.shape[2:], dtype=torch.int64)
    for k in range(confusion.shape[1]):
        total += confusion[exit_index == k, k].sum(dim=0)
    return total


def miou(confusion: Int[Tensor, "sample exit class class"], exit_index: Int[Tensor, " image"]) -> float:
    """Return the data set's mean IoU if each image leaves at its exit: counts are summed before they are divided.

    Args:
        confusion: Of every image at every exit; see `load_confusion`.
        exit_index: Where each image leaves.

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
        return self.images.to_dict() | {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "class_iou": list(self.class_iou),
            "static_miou": list(self.static_miou),
            "static_pixel_accuracy": list(self.static_pixel_accuracy),
        }


def evaluate_dense(
    policy: Policy,
    table: ExitTable,
    confusion: Int[Tensor, "sample exit class class"],
    costs: CostTable | None = None,
    *,
    budget: BudgetLike | None = None,
) -> DenseReport:
    """Return what a policy costs and what its maps are worth over a data set.

    Row numbers are the sample ids, so a mixed policy's coin falls as in `replay`.

    Args:
        policy: The fixed rule.
        table: Summaries to replay, with the utility of images.
        confusion: Counts of the same images; see `load_confusion`.
        costs: Instead of the table's own.
        budget: What was asked for, to stand beside what was realised.

    Raises:
        TableError: The table has no utility, or there are no costs.
        ShapeError: Policy, table, confusion and costs do not belong together.
    """
    check_confusion(table, confusion)
    images = evaluate(policy, table, costs, budget=budget)
    total = counts_at(confusion, Replayer(table).exit_index(policy))
    static = confusion.sum(dim=0)
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
    confusion: Int[Tensor, "sample exit class class"],
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
    check_confusion(table, confusion)
    cumulative = torch.tensor(dial.costs.cumulative, dtype=torch.float64)
    replayer = Replayer(table)
    exits = [replayer.exit_index(dial.at(budget)) for budget in budgets or standard_budgets(dial.costs)]
    return curve(
        np.array([float(cumulative[index].mean()) for index in exits]),
        np.array([miou(confusion, index) for index in exits]),
        anchor=(dial.costs.low, float(mean_iou(confusion[:, 0].sum(dim=0)))),
    )


def check_confusion(table: ExitTable, confusion: Int[Tensor, "sample exit class class"]) -> None:
    """Refuse counts that are not of a table's images.

    Raises:
        ShapeError: They differ in images, exits or classes.
    """
    wanted = (table.num_samples, table.num_exits, table.num_classes, table.num_classes)
    if tuple(confusion.shape) != wanted:
        raise ShapeError(
            f"confusion of shape {tuple(confusion.shape)} does not fit: the table has {wanted[0]} images, {wanted[1]} "
            f"exits and {wanted[2]} classes. Pass the counts recorded with it."
        )

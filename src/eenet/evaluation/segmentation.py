"""Maps: pixel accuracy and mean IoU from confusion counts, of single images and of whole data sets."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int

from eenet.errors import ShapeError, TableError
from eenet.tables import storage
from eenet.tables.table import ExitTable

CONFUSION = "confusion"
"""Key under which a stored table keeps its confusion counts."""

Confusion: TypeAlias = Int[np.ndarray, "sample exit class class"]
"""Confusion counts of maps: pixels by image, exit, true class and answered class."""


def load_confusion(path: str | os.PathLike[str]) -> Confusion:
    """Return the confusion counts stored beside a table; those of a folder are memory-mapped.

    Raises:
        TableError: There are none, or the file is missing or damaged.
    """
    found = find_confusion(path)
    if found is None:
        raise TableError(
            f"table {path} lacks confusion counts: key {CONFUSION!r} is needed. Record it from a model of maps."
        )
    return found


def find_confusion(path: str | os.PathLike[str]) -> Confusion | None:
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


def check_confusion(table: ExitTable, confusion: Confusion) -> None:
    """Refuse counts that are not of a table's images."""
    if not hasattr(confusion, "shape") or len(confusion.shape) != 4:
        raise ShapeError(
            f"confusion of type {type(confusion).__name__} does not fit: counts [sample, exit, class, class] are "
            "needed. Pass what load_confusion returns."
        )
    classes = sum(name[:1] == "p" and name[1:].isdigit() for name in table.feature_names) or confusion.shape[2]
    wanted = (table.num_samples, table.num_exits, classes, classes)
    if confusion.shape != wanted:
        raise ShapeError(
            f"confusion of shape {confusion.shape} does not fit: the table has {wanted[0]} images, {wanted[1]} "
            f"exits and {wanted[2]} classes. Pass the counts recorded with it."
        )


def pixel_accuracy(confusion: Int[np.ndarray, "*counted class class"]) -> Float[np.ndarray, "*counted"]:
    """Return the share of pixels that are right; 1 where no pixel counts."""
    right, every = np.trace(confusion, axis1=-2, axis2=-1), confusion.sum(axis=(-2, -1))
    return np.where(every > 0, right / np.maximum(every, 1), 1.0)


def mean_iou(confusion: Int[np.ndarray, "*counted class class"]) -> Float[np.ndarray, "*counted"]:
    """Return the mean intersection over union of the classes that occur; 1 where no pixel counts.

    Pixels wrongly answered with a class that does not occur count as misses of their true class.

    Args:
        confusion: Pixels by true class (first) and answered class; of one image, or summed over a data set.
    """
    return iou_of_marginals(marginals(confusion))


def marginals(confusion: Int[np.ndarray, "*counted class class"]) -> Float64[np.ndarray, "*counted kind class"]:
    """Return three numbers of pixels per class: right, truly of the class, and answered with it."""
    right = np.diagonal(confusion, axis1=-2, axis2=-1)
    return np.stack([right, confusion.sum(axis=-1), confusion.sum(axis=-2)], axis=-2).astype(np.float64)


def iou_of_marginals(counts: Float[np.ndarray, "*counted kind class"]) -> Float[np.ndarray, "*counted"]:
    """Return `mean_iou` from `marginals`, or from sums or means of them."""
    iou = class_iou(counts)
    occurring = np.count_nonzero(~np.isnan(iou), axis=-1)
    return np.where(occurring > 0, np.nansum(iou, axis=-1) / np.maximum(occurring, 1), 1.0)


def class_iou(counts: Float[np.ndarray, "*counted kind class"]) -> Float[np.ndarray, "*counted class"]:
    """Return the intersection over union of every class from the same; NaN for a class that does not occur."""
    right, occurring, answered = np.moveaxis(counts, -2, 0)
    union = np.maximum(occurring + answered - right, 1e-300)
    iou: np.ndarray = np.where(occurring > 0, right / union, np.nan)
    return iou


def counts_at(confusion: Confusion, exit_index: Int[np.ndarray, " image"]) -> Int[np.ndarray, "class class"]:
    """Return the data set's confusion counts if each image leaves at its exit.

    Raises:
        ShapeError: Another number of exits than of images.
    """
    if exit_index.shape != confusion.shape[:1]:
        raise ShapeError(
            f"exit_index of shape {exit_index.shape} does not fit: confusion counts are of {len(confusion)} images. "
            "Give one exit per image."
        )
    total: np.ndarray = np.sum([confusion[exit_index == k, k].sum(axis=0) for k in range(confusion.shape[1])], axis=0)
    return total


@dataclass(frozen=True, kw_only=True)
class MapReport:
    """The quality of the maps of a data set whose images leave at different exits.

    Attributes:
        miou: Mean IoU over the data set: counts are summed over images, each at its exit, before they are divided.
        pixel_accuracy: Share of all counted pixels that are right.
        class_iou: IoU of every class over the data set; None for a class that does not occur.
        static_miou: Mean IoU of answering everything at each exit.
        static_pixel_accuracy: Share of right pixels when answering everything at each exit.
    """

    miou: float
    pixel_accuracy: float
    class_iou: tuple[float | None, ...]
    static_miou: tuple[float, ...]
    static_pixel_accuracy: tuple[float, ...]

    @classmethod
    def of(cls, confusion: Confusion, exit_index: Int[np.ndarray, " image"]) -> MapReport:
        """Return the quality if each image leaves at its exit."""
        total, static = counts_at(confusion, exit_index), confusion.sum(axis=0)
        return cls(
            miou=float(mean_iou(total)),
            pixel_accuracy=float(pixel_accuracy(total)),
            class_iou=tuple(None if math.isnan(value) else value for value in class_iou(marginals(total)).tolist()),
            static_miou=tuple(mean_iou(static).tolist()),
            static_pixel_accuracy=tuple(pixel_accuracy(static).tolist()),
        )

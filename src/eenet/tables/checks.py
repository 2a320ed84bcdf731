"""What an exit table refuses, naming key and row."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

from eenet.errors import ShapeError, TableError
from eenet.tables.arrays import CHUNK

_PROBS_TOLERANCE = 1e-3


def check_shapes(
    logits: np.ndarray | None,
    features: np.ndarray | None,
    names: Sequence[str],
    others: tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None],
) -> None:
    """Refuse arrays whose shapes disagree, and tables too small to choose by.

    Args:
        logits: ``[sample, exit, class]``.
        features: ``[sample, exit, column]``, in place of logits.
        names: Of the columns of features, or none.
        others: Labels, utility and cost.
    """
    if (logits is None) == (features is None):
        raise TableError("logits and features are both given, or neither: exits say one of them. Pass one.")
    key, outputs, least = ("logits", logits, 2) if features is None else ("features", features, 1)
    assert outputs is not None
    if outputs.ndim != 3:
        column = "class" if key == "logits" else "column"
        raise ShapeError(f"{key} of shape {outputs.shape} do not fit: [sample, exit, {column}] is needed. Reshape it.")
    n, exits, columns = outputs.shape
    if n == 0:
        raise TableError(f"{key} of shape {outputs.shape} hold no samples: at least 1 is needed. Record some.")
    if exits < 2:
        raise TableError(
            f"{key} of shape {outputs.shape} have {exits} exit: a choice needs at least 2. Attach an early exit."
        )
    if columns < least:
        raise TableError(f"{key} of shape {outputs.shape} have {columns} columns: more are needed.")
    for (other, shape), value in zip(
        (("labels", (n,)), ("utility", (n, exits)), ("cost", (n, exits))), others, strict=True
    ):
        if value is not None and value.shape != shape:
            raise ShapeError(
                f"{other} of shape {value.shape} does not fit: {key} have {n} samples and {exits} exits, so {shape} is "
                "needed."
            )
    if names and (key == "logits" or len(names) != columns or len(set(names)) != len(names)):
        raise ShapeError(f"feature_names of {len(names)} names do not fit: every column of features has its own.")


def checked_labels(labels: np.ndarray, num_classes: int | None) -> Int64[np.ndarray, " sample"]:
    """Return labels as int64, refusing what is no class; None: of samples without classes."""
    if labels.dtype.kind not in "iu":
        raise TableError(f"labels of type {labels.dtype} cannot be used: class numbers are integers. Convert them.")
    if num_classes is not None:
        bad = (labels < 0) | (labels >= num_classes)
        if bad.any():
            row = int(bad.argmax())
            raise TableError(
                f"labels of row {row}, {int(labels[row])}, is out of range: there are {num_classes} classes, 0 to "
                f"{num_classes - 1}. Correct it or drop the row."
            )
    return labels.astype(np.int64, copy=False)


def notice_probabilities(logits: np.ndarray) -> None:
    """Warn where logits are plainly probabilities: a softmax of them makes every exit unsure of everything."""
    part = np.asarray(logits[:1000], dtype=np.float64)
    if len(part) > 1 and (part >= 0).all() and np.abs(part.sum(axis=2) - 1).max() < 1e-4:
        warnings.warn(
            "logits look like probabilities: every row is positive and sums to 1. Pass them as 'probs', or to "
            "ExitTable.from_probs.",
            stacklevel=4,
        )


def check_finite(key: str, values: np.ndarray | None) -> None:
    """Refuse what is no finite float32; a logit may be minus infinity, beside finite ones."""
    if values is None:
        return
    if values.dtype.kind != "f":
        raise TableError(
            f"{key} of type {values.dtype} cannot be used: floating point numbers are needed. Convert them to float32."
        )
    step = max(1, 4 * CHUNK // max(1, values[0].size))
    for start in range(0, len(values), step):
        part = values[start : start + step]
        finite = np.isfinite(part)
        if part.dtype.itemsize > 4:
            finite &= np.abs(part) <= np.finfo(np.float32).max
        if key == "logits" and not finite.all():  # an impossible class, beside possible ones
            finite |= np.isneginf(part) & np.isfinite(part).any(axis=2, keepdims=True)
        if not finite.all():
            row = start + int((~finite).reshape(len(part), -1).any(axis=1).argmax())
            raise TableError(
                f"{key} of row {row} holds NaN or infinity: every value must be a finite float32. Drop or repair it."
            )


def checked_utility(utility: np.ndarray) -> Float64[np.ndarray, "sample exit"]:
    """Return a utility as float64, refusing what lies outside [0, 1]."""
    bad = ((utility < 0) | (utility > 1)).any(axis=1)
    if bad.any():
        raise TableError(f"utility of row {int(bad.argmax())} is out of range: it must lie in [0, 1]. Rescale it.")
    return utility.astype(np.float64, copy=False)


def checked_cost(cost: np.ndarray) -> Float64[np.ndarray, "sample exit"]:
    """Return costs per sample as float64, refusing what is not positive and rising."""
    bad = (np.diff(cost, axis=1, prepend=0) <= 0).any(axis=1)
    if bad.any():
        row = int(bad.argmax())
        raise TableError(
            f"cost of row {row} is not positive and rising: {cost[row].tolist()}. Give the cumulative cost of leaving "
            "at each exit."
        )
    return cost.astype(np.float64, copy=False)


def logits_of(probs: np.ndarray) -> Float32[np.ndarray, "sample exit class"]:
    """Return the logarithms of probabilities, refusing what does not sum to 1; zeros are clamped."""
    if probs.ndim != 3:
        raise ShapeError(f"probs of shape {probs.shape} do not fit: [sample, exit, class] is needed. Reshape them.")
    check_finite("probs", probs)
    logits = np.empty(probs.shape, dtype=np.float32)
    for start in range(0, len(probs), 4096):
        part = probs[start : start + 4096].astype(np.float64)
        bad = (part < 0).any(axis=2) | (np.abs(part.sum(axis=2) - 1) > _PROBS_TOLERANCE)
        if bad.any():
            row, k = (int(i) for i in np.argwhere(bad)[0])
            raise TableError(
                f"probs of row {start + row}, exit {k}, sum to {float(part[row, k].sum()):g}: probabilities are not "
                "negative and sum to 1 within 0.001. Normalise them, or pass the raw outputs as 'logits'."
            )
        logits[start : start + 4096] = np.log(np.maximum(part, np.finfo(np.float32).tiny))
    return logits

"""What answering early is worth where answers are numbers."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64

from eenet.errors import ShapeError, TableError
from eenet.tables.checks import array_of, number


def regression_utility(
    predictions: Float[np.ndarray, "sample exit *output"], targets: Float[np.ndarray, "*target"], scale: float
) -> Float64[np.ndarray, "sample exit"]:
    """Return the utility of every exit's prediction: its Gaussian likelihood, relative to that of a perfect one.

    ``u = exp(-e^2 / (2 scale^2))`` with the error ``e = prediction - target``; of several outputs the mean of ``e^2``.
    An error of 0 is worth 1, one of ``scale`` 0.61, one of three times that 0.01. So policies look for samples whose
    prediction would still change by more than ``scale``, and large errors do not outweigh everything.

    Args:
        predictions: Of every exit.
        targets: The true numbers; a last axis of one output may be missing.
        scale: The error that is tolerable, in the unit of the targets, the same for all tables of a task. Its maximum
            likelihood estimate is the root mean squared error of the last exit on the calibration set.

    Raises:
        ShapeError: Predictions and targets do not fit together.
        TableError: One is no array of finite real numbers.
        InputError: The scale is not positive.

    Example:
        >>> regression_utility(np.array([[[1.0], [2.0]]]), np.array([2.0]), scale=1.0).round(2)
        array([[0.61, 1.  ]])

    Source:
        EENet (WACV 2024), section 3.2, on tasks that are no classification.
    """
    scale = number(scale, "scale", above=0)
    found, wanted = _real("predictions", predictions), _real("targets", targets)
    if found.ndim == wanted.ndim + 2 and found.shape[-1] == 1:
        wanted = wanted[..., None]
    if found.ndim < 2 or 0 in found.shape or found.shape[:1] + found.shape[2:] != wanted.shape:
        raise ShapeError(
            f"targets of shape {wanted.shape} do not fit predictions of shape {found.shape}: these are [sample, exit, "
            "...], targets [sample, ...], none of them empty. Pass the target of every prediction."
        )
    for name, values in (("predictions", found), ("targets", wanted)):
        if not np.isfinite(values).all():
            row = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(axis=1))[0])
            raise TableError(f"{name} of row {row} are no finite numbers: nothing can be learnt from them. Remove it.")
    with np.errstate(over="ignore"):  # an error too large for numbers is worth 0 all the same
        squares = np.square((found - wanted[:, None]) / scale)
        return np.asarray(np.exp(squares.reshape(*found.shape[:2], -1).mean(axis=2) / -2))


def _real(name: str, value: object) -> Float64[np.ndarray, "*any"]:
    """Return an array of real numbers in double precision."""
    array = array_of(name, value)
    if array.dtype.kind not in "fiub":
        raise TableError(
            f"{name} of type {array.dtype} cannot be used: errors are those of real numbers. Convert them."
        )
    return array.astype(np.float64)

"""Transforms of log-probabilities before policies see them. One object serves recorded outputs and running models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np
from jaxtyping import Float, Float32, Float64

from eenet.errors import InputError
from eenet.policies.scorers import Part, require_finite
from eenet.tables.arrays import FLOOR, history, row_max

IMPOSSIBLE = np.float32(-12.0)
"""Log-probability below which matrices of a `MatrixCombination` see no difference: less likely classes say no more."""


class Transform(Part, ABC):
    """Replaces an exit's log-probabilities by better ones: calibrated, or combined with those of earlier exits.

    A transform must treat samples independently, and may look at earlier exits but not at later ones. Policies fitted
    on transformed outputs see, and answer with, what it returns. `ExitTable.transformed` applies it to recorded
    outputs, `AdaptiveModel` to a running model's, exit by exit.
    """

    @abstractmethod
    def __call__(self, seen: Float32[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, "sample class"]:
        """Return the log-probabilities that stand for the newest exit's."""

    def history(self, seen: Float32[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, "sample seen class"]:
        """Return the log-probabilities that stand for those of every exit seen."""
        return history(self, seen)


@final
class Ensemble(Transform):
    """Log-probabilities of the exits seen so far, weighted per exit, plus a bias per class, normalised.

    Args:
        weight: ``[exit, exit]``: row ``k`` weighs exits ``0..k``; what stands right of the diagonal is not used.
        bias: ``[exit, class]``.

    Raises:
        InputError: Weights and biases are not as many, or are no finite numbers.
    """

    parameters = ("weight", "bias")

    def __init__(self, *, weight: Float[np.ndarray, "exit exit"], bias: Float[np.ndarray, "exit class"]) -> None:
        if weight.ndim != 2 or bias.ndim != 2 or weight.shape != (len(bias), len(bias)):
            raise InputError(
                f"weight of shape {weight.shape} and bias of shape {bias.shape} do not fit: one row per exit is needed."
                " Fit the policy again."
            )
        require_finite(weight, bias)
        self.num_exits, self.num_columns = bias.shape
        self.weight, self.bias = np.tril(weight).astype(np.float64), bias.astype(np.float64)

    def __call__(self, seen: Float32[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, "sample class"]:
        k = seen.shape[1] - 1
        if k >= self.num_exits:  # not fitted: nobody leaves there
            return seen[:, -1]
        # double: rounding a sum to float32 at the end makes it independent of its batch
        together = np.einsum("nkc,k->nc", seen.astype(np.float64, order="C"), self.weight[k, : k + 1])
        together += self.bias[k]
        return _normalised(together)


@final
class MatrixCombination(Transform):
    """Answers of an `Ensemble`, plus a linear map of all log-probabilities of the exits seen so far, normalised.

    One weight per exit cannot say that an exit is good at some classes and confuses others; a matrix per pair of exits
    can: for ``C`` classes exit ``k`` costs ``(k + 1) C^2`` multiply-adds per sample. Log-probabilities below
    `IMPOSSIBLE` count as that.

    Args:
        weight: As of an `Ensemble`.
        bias: ``[exit, class]``, as of an `Ensemble`.
        matrix: ``[exit, exit, class, class]``: what the log-probability of a class (third axis) at an exit (second
            axis) adds to the answer's classes (last axis) at exit ``k`` (first axis); later exits are not used. Where
            all of an exit's matrices are 0, its answers are those of the `Ensemble`, to the bit.

    Raises:
        InputError: Weights, biases and matrices are not as many, or are no finite numbers.
    """

    parameters = ("weight", "bias", "matrix")

    def __init__(
        self,
        *,
        weight: Float[np.ndarray, "exit exit"],
        bias: Float[np.ndarray, "exit class"],
        matrix: Float[np.ndarray, "exit exit class class"],
    ) -> None:
        self.ensemble = Ensemble(weight=weight, bias=bias)
        exits, classes = self.num_exits, self.num_columns = bias.shape
        if matrix.shape != (exits, exits, classes, classes):
            raise InputError(
                f"matrix of shape {matrix.shape} does not fit: {exits} exits and {classes} classes need "
                f"{(exits, exits, classes, classes)}. Fit the policy again."
            )
        require_finite(matrix)
        self.weight, self.bias = self.ensemble.weight, self.ensemble.bias
        known = np.tri(exits, dtype=np.bool_)[:, :, None, None]
        self.matrix = np.where(known, matrix, 0.0).astype(np.float64)
        # the classes answered first: sums run along rows that are in one piece
        flat = [self.matrix[k, : k + 1].reshape(-1, classes).T for k in range(exits)]
        self._rows = [np.ascontiguousarray(rows) if rows.any() else None for rows in flat]

    def __call__(self, seen: Float32[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, "sample class"]:
        k, alone = seen.shape[1] - 1, self.ensemble(seen)
        rows = self._rows[k] if k < self.num_exits else None
        if rows is None:
            return alone
        possible = np.maximum(seen, IMPOSSIBLE).astype(np.float64, order="C").reshape(len(seen), -1)
        together = np.einsum("nd,cd->nc", possible, rows)
        together += alone
        return _normalised(together)


def _normalised(together: Float64[np.ndarray, "sample class"]) -> Float32[np.ndarray, "sample class"]:
    """Return logits, which are overwritten, as log-probabilities."""
    together -= row_max(together)
    together -= np.log(np.add.reduce(np.exp(together), axis=1, keepdims=True))
    return np.asarray(np.maximum(together, FLOOR), dtype=np.float32)

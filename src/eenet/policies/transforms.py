"""Transforms: what an exit says, seen in another light. One object serves recorded outputs and running models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np
from jaxtyping import Float, Float32

from eenet.errors import InputError
from eenet.policies.scorers import Part
from eenet.tables.arrays import FLOOR


class Transform(Part, ABC):
    """Replaces what an exit says by something better: calibrated, or combined with what earlier exits said.

    A transform must treat samples independently, and may look at earlier exits but not at later ones. Policies fitted
    behind one see, and answer with, what it returns. `ExitTable.transformed` applies it to recorded outputs,
    `AdaptiveModel` to a running model's, exit by exit.
    """

    @abstractmethod
    def __call__(self, seen: Float32[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, "sample class"]:
        """Return the log-probabilities that stand for the newest exit's."""

    def history(self, seen: Float32[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, "sample seen class"]:
        """Return the log-probabilities that stand for those of every exit seen."""
        return np.stack([self(seen[:, : k + 1]) for k in range(seen.shape[1])], axis=1)


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
        if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
            raise InputError("weights hold what is no finite number: exits cannot be combined. Fit the policy again.")
        self.num_exits, self.num_columns = bias.shape
        self.weight, self.bias = np.tril(weight).astype(np.float64), bias.astype(np.float64)

    def __call__(self, seen: Float32[np.ndarray, "sample seen class"]) -> Float32[np.ndarray, "sample class"]:
        """Return the log-probabilities of the exits seen so far together."""
        k = seen.shape[1] - 1
        # double: a sum rounded once to float32 does not depend on the batch it was computed in
        together = np.einsum("nkc,k->nc", seen.astype(np.float64, order="C"), self.weight[k, : k + 1])
        together += self.bias[k]
        together -= np.maximum.reduce(together, axis=1, keepdims=True)
        together -= np.log(np.add.reduce(np.exp(together), axis=1, keepdims=True))
        return np.maximum(together, FLOOR).astype(np.float32)

    def widened(self, num_exits: int) -> Ensemble:
        """Return an ensemble in which further exits speak for themselves."""
        known, classes = self.bias.shape
        weight, bias = np.eye(num_exits), np.zeros((num_exits, classes))
        weight[:known, :known], bias[:known] = self.weight, self.bias
        return Ensemble(weight=weight, bias=bias)

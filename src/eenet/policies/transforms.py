"""Transforms of log-probabilities before policies see them. One object serves recorded outputs and running models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np
from jaxtyping import Float, Float32

from eenet.errors import InputError
from eenet.policies.scorers import Part, require_finite
from eenet.tables.arrays import FLOOR, history


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
        together -= np.maximum.reduce(together, axis=1, keepdims=True)
        together -= np.log(np.add.reduce(np.exp(together), axis=1, keepdims=True))
        return np.asarray(np.maximum(together, FLOOR), dtype=np.float32)

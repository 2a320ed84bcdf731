"""Transforms: what an exit says, seen in another light. One object serves recorded outputs and running models."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.alone import Row
from eenet.core.views import Viewed
from eenet.errors import InputError

__all__ = ["Transform"]


class Transform(Viewed, ABC):
    """Replaces what an exit says by something better: calibrated, or combined with what earlier exits said.

    A transform must treat samples independently, and may look at earlier exits but not at later ones. Policies fitted
    behind one see, and answer with, what it returns. `ExitTable.transformed` applies it to recorded outputs,
    `AdaptiveModel` to a running model's, exit by exit.

    Attributes:
        single: Whether `one`, in Python's numbers, and `few`, in numpy, are there. For few samples both take a fraction
            of torch's time.
    """

    single: bool = False

    @abstractmethod
    def forward(self, seen: Float[Tensor, "sample seen class"]) -> Float[Tensor, "sample class"]:
        """Return the log-probabilities that stand for the newest exit's.

        Args:
            seen: float32 log-probabilities of the exits evaluated so far, as the model gave them.
        """

    def one(self, seen: list[Row]) -> Row:
        """Return the same for a single sample of few classes; only where `single` says so."""
        raise InputError(f"transform {type(self).__name__} takes batches only. Call it instead.")

    def few(self, seen: Float[np.ndarray, "sample seen class"]) -> Float[np.ndarray, "sample class"]:
        """Return the same for a small batch; only where `single` says so."""
        raise InputError(f"transform {type(self).__name__} works in torch only. Call it instead.")

    def history(self, seen: Float[Tensor, "sample seen class"]) -> Float[Tensor, "sample seen class"]:
        """Return the log-probabilities that stand for those of every exit seen."""
        return torch.stack([self(seen[:, : k + 1]) for k in range(seen.shape[1])], dim=1)

    def widened(self, num_exits: int) -> Transform:
        """Return a transform that may be asked at more exits than it was fitted for.

        Transforms that know nothing of the number of exits serve as they are.
        """
        return self

    def settings(self) -> dict[str, object]:
        """Return the keyword arguments (JSON values) that rebuild this transform; its tensors are stored beside."""
        return {}

"""A module whose buffers numpy and Python can read without asking torch each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from torch import Tensor, nn

__all__ = ["FEW", "FEW_CLASSES", "Viewed"]

FEW = 512
"""Samples up to which numpy's calls, each a fraction of torch's, outweigh its slower loops."""

FEW_CLASSES = 32
"""Classes up to which a single sample is soonest decided by Python's own numbers: between the stages of a model every
library call finds its code driven out of the processor's caches."""

T = TypeVar("T")


class Viewed(nn.Module):
    """Base of modules that decide about few samples outside of torch: to ask a tensor for its values takes long."""

    def __init__(self) -> None:
        super().__init__()
        self._views: dict[tuple[str, Any], tuple[Tensor, int, Any]] = {}

    def view(self, name: str) -> np.ndarray:
        """Return a buffer as an array that shares its memory."""
        return self.kept(name, Tensor.numpy)

    def listed(self, name: str) -> list[Any]:
        """Return a buffer as lists of Python's numbers."""
        return self.kept(name, Tensor.tolist)

    def kept(self, name: str, make: Callable[[Tensor], T]) -> T:
        """Return what a function makes of a buffer, made anew where the buffer was replaced or written to."""
        found, buffer = self._views.get((name, make)), self._buffers[name]
        assert buffer is not None, name
        version = 0 if buffer.is_inference() else buffer._version
        if found is None or found[0] is not buffer or found[1] != version:
            found = self._views[name, make] = (buffer, version, make(buffer))
        return cast(T, found[2])

    def __getstate__(self) -> dict[str, Any]:
        """Leave what was made out of copies: arrays would not share memory with the copied buffers."""
        return {**self.__dict__, "_views": {}}

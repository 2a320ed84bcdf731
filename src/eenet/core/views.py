"""A module whose buffers numpy can read without asking torch each time."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["FEW", "Viewed"]

FEW = 512
"""Samples up to which numpy's calls, each a fraction of torch's, outweigh its slower loops."""


class Viewed(nn.Module):
    """Base of modules that decide about single samples in numpy: to ask a tensor for its array takes microseconds."""

    def __init__(self) -> None:
        super().__init__()
        self._views: dict[str, tuple[Tensor, np.ndarray]] = {}

    def view(self, name: str) -> np.ndarray:
        """Return a buffer as an array that shares its memory, made anew where the buffer was replaced."""
        kept, buffer = self._views.get(name), self._buffers[name]
        if kept is None or kept[0] is not buffer:
            assert buffer is not None, name
            kept = self._views[name] = (buffer, buffer.numpy())
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the arrays out of copies: theirs would not share memory with the copied buffers."""
        return {**self.__dict__, "_views": {}}

"""A single sample in Python's own numbers: what torch does for batches, without waking a library for ten classes.

Everything is worked out in double and rounded to float32 where torch rounds, so that a sample is judged alike alone and
in a batch, but for a double that falls on the edge between two float32 numbers.
"""

from __future__ import annotations

import math
from array import array

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Row", "least_doubles", "normalised", "rounded", "tensor_of"]

Row = list[float]
"""One number per class."""


def normalised(values: Row) -> Row:
    """Return log-probabilities as float32 numbers."""
    most = max(values)
    shifted = [value - most for value in values]
    total = math.log(sum(map(math.exp, shifted)))
    return rounded([value - total for value in shifted])


def rounded(values: Row) -> Row:
    """Return the float32 numbers next to some numbers."""
    return array("f", values).tolist()


def tensor_of(row: Row) -> Float[Tensor, "1 class"]:
    """Return a single sample as a batch."""
    return torch.frombuffer(array("f", row), dtype=torch.float32).unsqueeze(0)


def least_doubles(thresholds: Tensor) -> Row:
    """Return, per float32 threshold, the least double that is rounded up to it: scores need no rounding then."""
    return [_least_rounding_to(threshold) for threshold in thresholds.tolist()]


def _least_rounding_to(threshold: float) -> float:
    if not math.isfinite(threshold):
        return threshold
    middle = (threshold + float(np.nextafter(np.float32(threshold), np.float32(-math.inf)))) / 2
    return middle if float(np.float32(middle)) >= threshold else math.nextafter(middle, math.inf)

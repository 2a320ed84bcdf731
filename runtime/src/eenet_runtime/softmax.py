"""Log-probabilities from logits, as torch works them out in float32, but for a rounding."""

from __future__ import annotations

import math

import numpy as np

from eenet_runtime.confidence import DOUBLE, SINGLE, Array, Floats

__all__ = ["log_softmax", "log_softmax_one"]


def log_softmax(logits: Array) -> Floats:
    """Return log-probabilities ``[..., class]``; the sum is worked out in double and its logarithm rounded."""
    shifted = logits.astype(SINGLE)  # a copy, always
    with np.errstate(all="ignore"):  # infinite logits are answered as torch answers them, and in silence
        shifted -= shifted.max(axis=-1, keepdims=True)
        shifted -= np.log(np.exp(shifted.astype(DOUBLE)).sum(axis=-1, keepdims=True)).astype(SINGLE)
    return shifted


def log_softmax_one(logits: Array) -> Floats:
    """Return the same for one sample ``[class]``."""
    shifted: Floats = logits.astype(SINGLE)
    largest = np.maximum.reduce(shifted)
    if not -math.inf < largest < math.inf:  # rare
        return log_softmax(logits)
    shifted -= largest
    shifted -= SINGLE.type(math.log(np.add.reduce(np.exp(shifted.astype(DOUBLE)))))
    return shifted

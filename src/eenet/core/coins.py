"""Coins that mixed policies toss: one per sample, the same wherever and whenever the sample comes by."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["coin", "tossed"]

_STEP, _FIRST, _SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def coin(sample_ids: Int[Tensor, " sample"], seed: int) -> Float[Tensor, " sample"]:
    """Return a number in [0, 1) for each sample, a hash of seed and sample id.

    Source:
        The finaliser of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), in wrapping 64-bit arithmetic.
    """
    if sample_ids.is_cpu:
        return torch.from_numpy(tossed(sample_ids.long().numpy().view(np.uint64), seed))
    x = (sample_ids.long() + 1) * -7046029254386353131 + int(seed) * 2862933555777941757 % (1 << 63)
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    x = x ^ _shift(x, 31)
    return _shift(x, 11).double() * 2.0**-53


def tossed(ids: np.ndarray, seed: int) -> np.ndarray:
    """Return the same for unsigned numbers, a tenth of the calls' price for a batch."""
    x = (ids + np.uint64(1)) * _STEP + np.uint64(int(seed) * 2862933555777941757 % (1 << 63))
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return (((x ^ (x >> np.uint64(31))) >> np.uint64(11)).astype(np.float64)) * 2.0**-53


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros (torch fills with the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)

"""Confidence bounds of a mean by betting against it: tight where the values vary little.

Whoever bets on ``X_t > m`` at fair odds, ``lambda_t`` per unit before seeing ``X_t``, owns the capital
``prod_i (1 + lambda_i (X_i - m))`` after ``t`` rounds. If the true mean is ``m`` or less, that is a supermartingale
which starts at 1, so it ever reaches ``1 / delta`` with probability ``delta`` at most (Ville's inequality). Means at
which the capital got there are refuted. They form an interval, for the capital falls as ``m`` grows.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.errors import InputError, ShapeError

__all__ = ["betting_bound", "mean_is_below"]

_STAKE = 0.9  # the largest share of the capital that one sample can take
_STEPS = 34  # bisections: to 6e-11 of a range of 1


def betting_bound(
    values: Float[Tensor, " sample"], delta: float, *, side: Literal["lower", "upper"] = "upper", seed: int = 0
) -> float:
    """Return a one-sided confidence bound of the mean of independent, identically distributed values in [0, 1].

    Guarantee: with probability ``1 - delta`` over the draw of the values, the true mean is at most (``"upper"``) or at
    least (``"lower"``) what comes back; for every number of samples and every distribution on [0, 1].

    Args:
        values: In [0, 1].
        delta: Chance that the bound is wrong, in (0, 1).
        side: ``"upper"`` or ``"lower"``.
        seed: Of the order in which samples are bet on.

    Raises:
        InputError: ``delta`` is no chance, there are no values, or one is outside [0, 1].

    Example:
        >>> betting_bound(torch.zeros(1000, dtype=torch.float64), delta=0.1) < 0.003
        True

    Source:
        Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, JRSS-B 2024, arXiv 2010.09686:
        predictable plug-in bets, here one-sided.
    """
    if side not in ("lower", "upper"):
        raise InputError(f"side {side!r} is unknown: a bound is 'lower' or 'upper'. Pass one of them.")
    drawn = _shuffled(values, delta, seed)
    bettor = _Bettor(drawn if side == "lower" else 1 - drawn, delta)
    refuted, possible = 0.0, 1.0
    for _ in range(_STEPS):
        middle = (refuted + possible) / 2
        if bettor.refutes(middle):
            refuted = middle
        else:
            possible = middle
    return refuted if side == "lower" else 1 - refuted


def mean_is_below(values: Float[Tensor, " sample"], limit: float, delta: float, *, seed: int = 0) -> bool:
    """Tell whether the upper `betting_bound` is at most a limit, in one pass instead of a search.

    Guarantee: if the true mean is above the limit, the answer is True with probability ``delta`` at most.

    Args:
        values: In [0, 1].
        limit: To stay below. From 1 upwards every mean does.
        delta: Chance of a wrong True, in (0, 1).
        seed: Of the order in which samples are bet on.

    Raises:
        InputError: ``delta`` is no chance, there are no values, or one is outside [0, 1].
    """
    drawn = _shuffled(values, delta, seed)
    if limit >= 1 or limit < 0:
        return limit >= 1
    return _Bettor(1 - drawn, delta).refutes(1 - limit)


class _Bettor:
    """Bets that the mean of values is larger than one says."""

    def __init__(self, values: Float[Tensor, " sample"], delta: float) -> None:
        self.values, self.rich = values, -math.log(delta)
        n = len(values)
        rounds = torch.arange(1, n + 1, dtype=torch.float64)
        mean = (0.5 + values.cumsum(0)) / (1 + rounds)
        variance = (0.25 + (values - mean).square().cumsum(0)) / (1 + rounds)
        known = torch.cat([variance.new_full((1,), 0.25), variance[:-1]])  # before each round
        self.bets = (2 * self.rich / (n * known)).sqrt()

    def refutes(self, mean: float) -> bool:
        """Tell whether betting against a mean in (0, 1] made rich at any time."""
        bets = self.bets.clamp_max(_STAKE / mean)
        capital = torch.log1p(bets * (self.values - mean)).cumsum(0)
        return float(capital.max()) >= self.rich


def _shuffled(values: Float[Tensor, " sample"], delta: float, seed: int) -> Float[Tensor, " sample"]:
    """Check values and level, and return the values as float64 in the order they are bet on."""
    if not 0 < delta < 1:
        raise InputError(f"delta {delta:g} is no chance of being wrong: it must lie in (0, 1). Pass for example 0.1.")
    if len(values) == 0:
        raise ShapeError("values of 0 samples bound nothing: at least 1 is needed. Give more.")
    drawn = values.double()
    low, high = float(drawn.min()), float(drawn.max())
    if not (low >= 0 and high <= 1):
        raise InputError(f"values from {low:g} to {high:g} are out of range: all must lie in [0, 1]. Rescale them.")
    return drawn[torch.randperm(len(drawn), generator=torch.Generator().manual_seed(seed))]

"""Confidence bounds of a mean by betting against it: tight where the values vary little.

Whoever bets on ``X_t > m`` at fair odds, ``lambda_t`` per unit before seeing ``X_t``, owns the capital
``prod_i (1 + lambda_i (X_i - m))`` after ``t`` rounds. If the true mean is ``m`` or less, that is a supermartingale
which starts at 1, so it ever reaches ``1 / delta`` with probability ``delta`` at most (Ville's inequality). Means at
which the capital got there are refuted. They form an interval, for the capital falls as ``m`` grows.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from eenet.errors import InputError, ShapeError
from eenet.tables.checks import array_of, number

_STAKE = 0.9  # the largest share of the capital that one sample can take
_STEPS = 34  # bisections: to 6e-11 of a range of 1


def betting_bound(values: Float[np.ndarray, " sample"], delta: float, *, seed: int = 0) -> float:
    """Return an upper confidence bound of the mean of independent, identically distributed values in [0, 1].

    Guarantee: with probability ``1 - delta`` over the sample, the true mean is at most the number returned; for every
    number of values and every distribution on [0, 1]. The seed is that of the order in which samples are bet on. A
    lower bound of the mean is one minus this bound of one minus the values.

    Raises:
        InputError: ``delta`` is no chance, there are no values, or one is outside [0, 1].

    Example:
        >>> betting_bound(np.zeros(1000), delta=0.1) < 0.003
        True

    Source:
        Waudby-Smith & Ramdas, Estimating means of bounded random variables by betting, JRSS-B 2024, arXiv 2010.09686:
        predictable plug-in bets, here one-sided.
    """
    bettor = _Bettor(values, delta, seed)
    refuted, possible = 0.0, 1.0  # means of one minus the values
    for _ in range(_STEPS):
        middle = (refuted + possible) / 2
        refuted, possible = (middle, possible) if bettor.refutes(middle) else (refuted, middle)
    return 1 - refuted


def mean_is_below(values: Float[np.ndarray, " sample"], limit: float, delta: float, *, seed: int = 0) -> bool:
    """Return whether `betting_bound` is at most a limit, in one pass instead of a search.

    Guarantee: if the true mean is above the limit, the answer is True with probability ``delta`` at most. From a limit
    of 1 upwards every mean is below. Other arguments and errors are those of `betting_bound`.
    """
    bettor = _Bettor(values, delta, seed)
    return limit >= 1 or (limit >= 0 and bettor.refutes(1 - limit))


class _Bettor:
    """Bets that the mean of one minus the values, in random order, is larger than somebody claims."""

    def __init__(self, values: Float[np.ndarray, " sample"], delta: float, seed: int) -> None:
        check_level(delta)
        number(seed, "seed", 0, whole=True)
        values = array_of("values", values)
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            raise ShapeError(
                f"values of shape {values.shape} and type {values.dtype} do not fit: one number per sample."
            )
        n = len(values)
        if n == 0:
            raise ShapeError("values of 0 samples bound nothing: at least 1 is needed. Give more.")
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):
            raise InputError(f"values from {low:g} to {high:g} are out of range: all must lie in [0, 1]. Rescale them.")
        self.values = 1 - np.random.default_rng(seed).permutation(values.astype(np.float64))
        self.goal, rounds = -math.log(delta), np.arange(1, n + 1)
        mean = (0.5 + self.values.cumsum()) / (1 + rounds)
        variance = (0.25 + np.square(self.values - mean).cumsum()) / (1 + rounds)
        known = np.append(0.25, variance[:-1])  # before each round
        self.bets = np.sqrt(2 * self.goal / (n * known))

    def refutes(self, mean: float) -> bool:
        """Return whether betting against a mean in (0, 1] reached a capital of ``1 / delta`` at any time."""
        capital = np.log1p(np.minimum(self.bets, _STAKE / mean) * (self.values - mean)).cumsum()
        return bool(capital.max() >= self.goal)


def check_level(delta: float) -> None:
    """Refuse a level outside (0, 1), with an `InputError`."""
    number(delta, "delta", above=0, below=1)

"""The statistics of a fair comparison: curves, areas under them and intervals for their differences.

Everything here is arithmetic on arrays: no tables, no policies, no randomness but the seeded bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float

from eenet.errors import InputError

_CHUNK_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Utility as a function of realised cost: straight lines between points, flat outside them.

    Attributes:
        costs: Mean cost per sample of every point, strictly increasing.
        utilities: Mean utility of every point, a fraction.
    """

    costs: Float[np.ndarray, " point"]
    utilities: Float[np.ndarray, " point"]

    def at(self, cost: float) -> float:
        """Return the utility read off the curve at one mean cost per sample."""
        return float(np.interp(cost, self.costs, self.utilities))

    def area(self, budgets: Sequence[float]) -> float:
        """Return the mean utility of the curve over some budgets (the contract takes the ten standard ones)."""
        return float(np.interp(np.asarray(budgets, dtype=np.float64), self.costs, self.utilities).mean())


def curve(
    costs: Float[np.ndarray, " point"], utilities: Float[np.ndarray, " point"], *, anchor: tuple[float, float]
) -> Curve:
    """Return the curve through an anchor, such as exit 0 for all samples, and some realised points in any order.

    Points of equal cost are replaced by their mean: taking the best of them would be a choice made on the test data.
    """
    unique, group = np.unique(np.append(anchor[0], costs), return_inverse=True)
    sums = np.bincount(group, weights=np.append(anchor[1], utilities), minlength=len(unique))
    return Curve(costs=unique, utilities=sums / np.bincount(group, minlength=len(unique)))


Points: TypeAlias = tuple[Float[np.ndarray, "resample point"], Float[np.ndarray, "resample point"]]
Resampled: TypeAlias = Callable[[Float[np.ndarray, "resample sample"]], Points]
"""From the weights of resamples (rows that sum to 1) to the costs and utilities of a curve's points on each of them."""


@dataclass(frozen=True, kw_only=True)
class SampledCurve:
    """Cost and utility of every sample at every point of a curve: on resampled data its points are means of these."""

    costs: Float[np.ndarray, "point sample"]
    utilities: Float[np.ndarray, "point sample"]

    def __call__(self, weights: Float[np.ndarray, "resample sample"]) -> Points:
        """Return the points on resamples: means with the same weights."""
        means = weights @ np.concatenate([self.costs, self.utilities], dtype=np.float64).T
        return means[:, : len(self.costs)], means[:, len(self.costs) :]

    def mean(self, anchor: tuple[float, float] | None = None) -> Curve:
        """Return the curve on the samples as they are; without an anchor it begins with the first point."""
        costs, utilities = self.costs.mean(axis=1), self.utilities.mean(axis=1)
        return curve(costs, utilities, anchor=anchor or (float(costs[0]), float(utilities[0])))


def bootstrap(
    curves: Mapping[str, Resampled],
    *,
    anchor: Resampled,
    num_samples: int,
    budgets: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "resample budget"]]:
    """Return what every curve reads at some budgets on the same bootstrap resamples (that is what makes it paired).

    Each resample draws as many samples as there are, with replacement; costs, utilities and the anchor are averaged
    with the same weights. The policies stay as fitted, so the spread is that of the test data alone. Memory is
    bounded: the weights are made in chunks of 64 MB. The mean over the budgets of the contract is the curve's area.

    Args:
        curves: By name; a `SampledCurve`, or what gives the points of another utility on resamples.
        anchor: The same for the one point they all begin with.
        num_samples: How many samples there are.
        budgets: Where the curves are read, in cost per sample.
        resamples: How many resamples.
        seed: Of the resampling.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in curves}
    where = np.asarray(budgets, dtype=np.float64)
    for weights in _weights(num_samples, resamples, seed):
        begin = anchor(weights)
        for name, resampled in curves.items():
            costs, utilities = (np.concatenate(parts, axis=1) for parts in zip(begin, resampled(weights), strict=True))
            order = costs.argsort(axis=1, kind="stable")
            points = zip(*(np.take_along_axis(each, order, axis=1) for each in (costs, utilities)), strict=True)
            found[name] += [np.interp(where, *one) for one in points]
    return {name: np.array(rows) for name, rows in found.items()}


def _weights(num_samples: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "resample sample"]]:
    """Yield chunks of bootstrap weights; every row sums to 1."""
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK_BYTES // (8 * num_samples))
    for start in range(0, resamples, step):
        rows = (generator.integers(num_samples, size=num_samples) for _ in range(min(step, resamples - start)))
        yield np.stack([np.bincount(one, minlength=num_samples) / num_samples for one in rows])


def bootstrap_interval(differences: Float[np.ndarray, " resample"], *, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of a difference from what it is on each of many paired resamples."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(differences, [tail, 1.0 - tail])
    return float(low), float(high)


def nadeau_bengio(
    differences: Float[np.ndarray, " split"], *, num_fit: int, num_test: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the corrected resampled t interval of a mean difference over random splits.

    Random splits overlap, so their differences are dependent and the plain t interval is far too narrow. The
    correction replaces the variance of the mean ``s^2 / S`` by ``s^2 (1 / S + num_test / num_fit)``.

    Args:
        differences: One difference per split, at least 2.
        num_fit: Samples the policies were fitted on in each split.
        num_test: Samples they were judged on.
        level: Of the interval.

    Raises:
        InputError: With fewer than 2 splits there is no spread to work with.

    Source:
        Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003.
    """
    from scipy.special import stdtrit  # needed here only

    splits = len(differences)
    if splits < 2:
        raise InputError(
            f"splits {splits} is too few for an interval: the spread over splits needs 2. Pass splits >= 2."
        )
    mean = float(differences.mean())
    variance = float(differences.var(ddof=1)) * (1.0 / splits + num_test / num_fit)
    half = float(stdtrit(splits - 1, 0.5 + level / 2.0)) * math.sqrt(variance)
    return mean - half, mean + half

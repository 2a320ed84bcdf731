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

__all__ = [
    "Curve",
    "Redraw",
    "SampledCurve",
    "bootstrap_areas",
    "bootstrap_interval",
    "curve",
    "nadeau_bengio",
    "redrawn_areas",
]

_CHUNK_BYTES = 8 * 2**20


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
    costs: Float[np.ndarray, " point"],
    utilities: Float[np.ndarray, " point"],
    *,
    anchor: tuple[float, float],
) -> Curve:
    """Return the curve through an anchor and some realised points.

    Points are sorted by cost. Points of equal cost are replaced by their mean: taking the best of them would be a
    choice made on the test data.

    Args:
        costs: Realised mean cost per sample of every point, in any order.
        utilities: Realised mean utility of every point.
        anchor: Cost and utility of answering everything at exit 0.

    Returns:
        A curve with strictly increasing costs.
    """
    all_costs = np.concatenate(([anchor[0]], costs)).astype(np.float64)
    all_utilities = np.concatenate(([anchor[1]], utilities)).astype(np.float64)
    unique, group = np.unique(all_costs, return_inverse=True)
    counts = np.bincount(group, minlength=len(unique))
    sums = np.bincount(group, weights=all_utilities, minlength=len(unique))
    return Curve(costs=unique, utilities=sums / counts)


Points: TypeAlias = tuple[Float[np.ndarray, "resample point"], Float[np.ndarray, "resample point"]]
Redraw: TypeAlias = Callable[[Float[np.ndarray, "resample sample"]], Points]
"""From the weights of resamples (rows that sum to 1) to the costs and utilities of a curve's points on each of them."""


@dataclass(frozen=True, kw_only=True)
class SampledCurve:
    """What a curve is made of, sample by sample, so that it can be drawn again on resampled data.

    Attributes:
        costs: Cost of every sample at every point.
        utilities: Utility of every sample at every point.
    """

    costs: Float[np.ndarray, "point sample"]
    utilities: Float[np.ndarray, "point sample"]

    def redrawn(self, weights: Float[np.ndarray, "resample sample"]) -> Points:
        """Return the points on resamples: means with the same weights."""
        return weights @ self.costs.T.astype(np.float64), weights @ self.utilities.T.astype(np.float64)


def bootstrap_areas(
    curves: Mapping[str, SampledCurve],
    *,
    anchor_cost: float,
    anchor_utility: Float[np.ndarray, " sample"],
    budgets: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Return every curve's area on the same bootstrap resamples of the samples (that is what makes it paired).

    Costs, utilities and the anchor are averaged with the same weights; see `redrawn_areas`.

    Args:
        curves: The curves by name, all over the same samples.
        anchor_cost: Cost of leaving at exit 0.
        anchor_utility: Utility of every sample at exit 0.
        budgets: Where the curves are read, in cost per sample.
        resamples: How many times the data are redrawn.
        seed: Of the resampling.

    Returns:
        Areas by name, one per resample.
    """
    anchors = anchor_utility.astype(np.float64)
    return redrawn_areas(
        {name: samples.redrawn for name, samples in curves.items()},
        anchor=lambda weights: (np.full((len(weights), 1), anchor_cost), (weights @ anchors)[:, None]),
        num_samples=len(anchor_utility),
        budgets=budgets,
        resamples=resamples,
        seed=seed,
    )


def redrawn_areas(
    curves: Mapping[str, Redraw],
    *,
    anchor: Redraw,
    num_samples: int,
    budgets: Sequence[float],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, " resample"]]:
    """Return every curve's area on the same bootstrap resamples, whatever its utility makes of the samples drawn.

    Each resample draws as many samples as there are, with replacement. The policies stay as fitted, so the spread is
    that of the test data alone. Memory is bounded: the weights are made in chunks of 8 MB.

    Args:
        curves: By name, what gives a curve's points on resamples.
        anchor: The same for the one point they all begin with.
        num_samples: How many samples there are.
        budgets: Where the curves are read, in cost per sample.
        resamples: How many times the data are redrawn.
        seed: Of the resampling.

    Returns:
        Areas by name, one per resample.
    """
    areas: dict[str, list[np.ndarray]] = {name: [] for name in curves}
    where = np.asarray(budgets, dtype=np.float64)
    for weights in _weights(num_samples, resamples, seed):
        begin = anchor(weights)
        for name, redraw in curves.items():
            costs, utilities = (np.concatenate(parts, axis=1) for parts in zip(begin, redraw(weights), strict=True))
            areas[name].append(_read(costs, utilities, where).mean(axis=1))
    return {name: np.concatenate(parts) for name, parts in areas.items()}


def _read(
    costs: Float[np.ndarray, "resample point"],
    utilities: Float[np.ndarray, "resample point"],
    budgets: Float[np.ndarray, " budget"],
) -> Float[np.ndarray, "resample budget"]:
    """Read many curves at once; of points at one cost, which hardly occur among resamples, the last counts."""
    order = costs.argsort(axis=1, kind="stable")
    costs, utilities = np.take_along_axis(costs, order, axis=1), np.take_along_axis(utilities, order, axis=1)
    left = ((costs[:, :, None] <= budgets).sum(axis=1) - 1).clip(0, costs.shape[1] - 2)
    (c0, c1), (u0, u1) = (
        (np.take_along_axis(points, left, axis=1), np.take_along_axis(points, left + 1, axis=1))
        for points in (costs, utilities)
    )
    share = np.divide(budgets - c0, c1 - c0, out=np.ones_like(c0), where=c1 > c0).clip(0.0, 1.0)
    values: np.ndarray = u0 + share * (u1 - u0)
    return values


def _weights(num_samples: int, resamples: int, seed: int) -> Iterator[Float[np.ndarray, "resample sample"]]:
    """Yield chunks of bootstrap weights; every row sums to 1."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_BYTES // (8 * num_samples))
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        counts = np.empty((size, num_samples))
        for row in range(size):
            drawn = generator.integers(num_samples, size=num_samples)
            counts[row] = np.bincount(drawn, minlength=num_samples)
        counts /= num_samples
        yield counts


def bootstrap_interval(
    first: Float[np.ndarray, " resample"], second: Float[np.ndarray, " resample"], *, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of the difference ``first - second`` over paired resamples."""
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(first - second, [tail, 1.0 - tail])
    return float(low), float(high)


def nadeau_bengio(
    differences: Float[np.ndarray, " split"], *, num_fit: int, num_test: int, level: float = 0.95
) -> tuple[float, float]:
    """Return the corrected resampled t interval of a mean difference over redrawn splits.

    Redrawn splits overlap, so their differences are dependent and the plain t interval is far too narrow. The
    correction replaces the variance of the mean ``s^2 / S`` by ``s^2 (1 / S + num_test / num_fit)``.

    Args:
        differences: One difference per split, at least 2.
        num_fit: Samples the policies were fitted on in each split.
        num_test: Samples they were judged on.
        level: Of the interval.

    Returns:
        The two ends of the interval.

    Raises:
        InputError: With fewer than 2 splits there is no spread to work with.

    Source:
        Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003.
    """
    from scipy.stats import t as student  # heavy, and needed here only

    splits = len(differences)
    if splits < 2:
        raise InputError(
            f"splits {splits} is too few for an interval: the spread over splits needs 2. Pass splits >= 2."
        )
    mean = float(differences.mean())
    variance = float(differences.var(ddof=1)) * (1.0 / splits + num_test / num_fit)
    half = float(student.ppf(0.5 + level / 2.0, splits - 1)) * math.sqrt(variance)
    return mean - half, mean + half

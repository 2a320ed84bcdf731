"""The statistics of a fair comparison: curves, areas under them and intervals for their differences, on arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Int

from eenet.errors import InputError

_CHUNK_BYTES = 8 * 2**20

Measure: TypeAlias = Callable[[np.ndarray], np.ndarray]
Points: TypeAlias = tuple[Float[np.ndarray, "resample point"], Float[np.ndarray, "resample point"]]


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


@dataclass(frozen=True, kw_only=True)
class SampledCurve:
    """Cost and utility of every sample at every point of a curve: its points on resampled data are their means.

    Attributes:
        costs: Of every sample.
        utilities: Of every sample; or any numbers from whose means the measure makes a utility.
        measure: From means to the utilities of a curve; default: they are the utilities.
    """

    costs: Float[np.ndarray, "point sample"]
    utilities: Float[np.ndarray, "point sample ..."]
    measure: Measure | None = None

    def resampled(self, weights: Float[np.ndarray, "resample sample"]) -> Points:
        """Return costs and utilities on resamples: means with these weights, each row of which sums to 1."""
        means = np.tensordot(weights, self.utilities, axes=(1, 1))
        return weights @ self.costs.T, self._measured(means)

    def _measured(self, means: np.ndarray) -> np.ndarray:
        return means if self.measure is None else self.measure(means)

    def mean(self, anchor: tuple[float, float] | None = None) -> Curve:
        """Return the curve on the samples as they are; without an anchor it begins with the first point."""
        costs, utilities = self.costs.mean(axis=1), self._measured(self.utilities.mean(axis=1))
        return curve(costs, utilities, anchor=anchor or (float(costs[0]), float(utilities[0])))


def bootstrap(
    curves: Mapping[str, SampledCurve],
    *,
    anchor: SampledCurve,
    budgets: Sequence[float],
    groups: Int[np.ndarray, " sample"] | None = None,
    resamples: int = 4000,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "resample budget"]]:
    """Return the utility of every curve at some budgets, all on the same bootstrap resamples (a paired bootstrap).

    Each resample has as many samples as there are, with replacement; costs, utilities and the anchor are averaged with
    the same weights. All curves begin with the one point of the anchor. The policies stay as fitted, so the spread is
    that of the test data alone. Where samples belong together in ``groups`` (`ExitTable.group_index`), whole groups are
    drawn, as many as there are. Memory is bounded: the weights are made in chunks of 8 MB.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in curves}
    where = np.asarray(budgets, dtype=np.float64)
    index = np.arange(anchor.costs.shape[1]) if groups is None else groups
    for weights in _weights(index, resamples, seed):
        begin = anchor.resampled(weights)
        for name, sampled in curves.items():
            points = zip(begin, sampled.resampled(weights), strict=True)
            costs, utilities = (np.concatenate(parts, axis=1) for parts in points)
            order = costs.argsort(axis=1, kind="stable")
            ordered = (np.take_along_axis(each, order, axis=1) for each in (costs, utilities))
            found[name].append(_read(where, *ordered))
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _read(
    where: Float[np.ndarray, " budget"],
    costs: Float[np.ndarray, "resample point"],
    utilities: Float[np.ndarray, "resample point"],
) -> Float[np.ndarray, "resample budget"]:
    """Return what `np.interp` reads off each row's curve, of rising costs, for all rows at once."""
    place = (costs[:, None, :] <= where[:, None]).sum(axis=2) - 1
    last = costs.shape[1] - 1
    left, right = (
        [np.take_along_axis(each, index.clip(0, last), axis=1) for each in (costs, utilities)]
        for index in (place, place + 1)
    )
    run = right[0] - left[0]  # 0 outside the curve, which is flat there
    share = np.divide(where - left[0], run, out=np.zeros_like(run), where=run > 0)
    return np.asarray(left[1] + share * (right[1] - left[1]))


def _weights(
    groups: Int[np.ndarray, " sample"], resamples: int, seed: int
) -> Iterator[Float[np.ndarray, "resample sample"]]:
    """Yield chunks of bootstrap weights; every row sums to 1, and samples of one group have one weight."""
    generator, count = np.random.default_rng(seed), int(groups.max()) + 1
    step = max(1, _CHUNK_BYTES // (8 * len(groups)))
    for start in range(0, resamples, step):
        drawn = (generator.integers(count, size=count) for _ in range(min(step, resamples - start)))
        times = np.stack([np.bincount(one, minlength=count)[groups] for one in drawn])
        yield times / times.sum(axis=1, keepdims=True)


def bootstrap_interval(differences: Float[np.ndarray, " resample"]) -> tuple[float, float]:
    """Return the 95 % percentile interval of a difference, from its values on many paired resamples."""
    low, high = np.quantile(differences, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_p(differences: Float[np.ndarray, " resample"], difference: float) -> float:
    """Return the two-sided p-value of a difference, from its values on many paired resamples.

    It is twice the share of resamples on the other side of 0, one more counted than there were, so that it is never 0:
    with ``R`` resamples at least ``2 / (R + 1)``.
    """
    if difference == 0:
        return 1.0
    other = int((differences * np.sign(difference) <= 0).sum())
    return min(1.0, 2 * (1 + other) / (1 + len(differences)))


def nadeau_bengio(differences: Float[np.ndarray, " split"], *, num_fit: int, num_test: int) -> tuple[float, float]:
    """Return the corrected resampled t interval (95 %) of a mean difference over random splits.

    Random splits overlap, so their differences are dependent and the plain t interval is far too narrow. The
    correction replaces the variance of the mean ``s^2 / S`` by ``s^2 (1 / S + num_test / num_fit)``, if policies are
    fitted on ``num_fit`` samples of each split and judged on ``num_test``.

    Raises:
        InputError: Fewer than 2 splits.

    Source:
        Nadeau and Bengio, Inference for the Generalization Error, Machine Learning 52, 2003.
    """
    from scipy.special import stdtrit  # needed here only

    mean, error = _corrected(differences, num_fit=num_fit, num_test=num_test)
    half = float(stdtrit(len(differences) - 1, 0.975)) * error
    return mean - half, mean + half


def nadeau_bengio_p(differences: Float[np.ndarray, " split"], *, num_fit: int, num_test: int) -> float:
    """Return the two-sided p-value that belongs to `nadeau_bengio`, whose arguments and errors it has."""
    from scipy.special import stdtr  # needed here only

    mean, error = _corrected(differences, num_fit=num_fit, num_test=num_test)
    if mean == 0 or error == 0:
        return float(mean == 0)
    return 2 * float(stdtr(len(differences) - 1, -abs(mean) / error))


def _corrected(differences: Float[np.ndarray, " split"], *, num_fit: int, num_test: int) -> tuple[float, float]:
    """Return the mean over splits and its corrected standard error."""
    splits = len(differences)
    if splits < 2:
        raise InputError(
            f"splits {splits} is not enough for an interval: the spread over splits needs 2. Pass splits >= 2."
        )
    variance = float(differences.var(ddof=1)) * (1.0 / splits + num_test / num_fit)
    return float(differences.mean()), math.sqrt(variance)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values of a family of tests, corrected for their number: what is below 0.05 holds for all at once.

    The chance that any of them is wrongly below 0.05 is at most 5 %, however they depend on each other.

    Source:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6, 1979.
    """
    order, adjusted, largest = sorted(range(len(p_values)), key=p_values.__getitem__), [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted

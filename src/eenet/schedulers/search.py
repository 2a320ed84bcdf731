"""Turning scores into thresholds: by exit shares, or searched jointly for the most utility within the budget.

Everything here works on plain arrays: scores ``[sample, exit]`` (the last column unused: all leave there), utility
``[sample, exit]``, and cumulative costs, ``[exit]`` or ``[sample, exit]`` where they differ from sample to sample. Many
threshold vectors are handled at once, as rows of a matrix.

A threshold never equals a score seen in fitting, which would flip under rounding: it lies midway between two
neighbouring distinct scores (only adjacent floats have nothing in between).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int

from eenet.schedulers.base import blocks, multipliers

PerExit: TypeAlias = Float[np.ndarray, "sample exit"]
Costs: TypeAlias = Float[np.ndarray, " exit"] | Float[np.ndarray, "sample exit"]
Thresholds: TypeAlias = Float32[np.ndarray, "candidate exit"]

_LEAST = np.finfo(np.float32).min
MULTIPLIERS = 40
"""Lagrange multipliers of cost, evenly spaced in their logarithm."""
_SWEEPS = 8  # rounds of coordinate ascent over all exits
_ROUNDS = 3  # ascents, each from the best of the pool so far
_BLOCK = 200_000  # entries of a [candidate, sample] matrix worked on at a time: they stay in the processor's cache


def between(upper: Float[np.ndarray, "*any"], lower: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Return a threshold that ``upper`` reaches and the smaller ``lower`` does not: the midpoint."""
    middle = np.maximum(lower, _LEAST) / 2 + upper / 2
    return np.where(middle > lower, middle, upper)  # adjacent floats have no midpoint


def around_zero(scores: PerExit) -> Float32[np.ndarray, " exit"]:
    """Return thresholds that scores reach where they are not negative: midway between their neighbours of 0.

    Where all samples leave or all stay there is no midpoint, and the threshold is 0, or less where a score is 0.
    """
    upper = np.where(scores >= 0, scores, np.inf).min(axis=0)
    lower = np.where(scores < 0, scores, -np.inf).max(axis=0)
    thresholds = np.where(upper > 0, 0.0, -np.inf)
    inner = np.isfinite(upper) & np.isfinite(lower)
    thresholds[inner] = between(upper[inner], lower[inner])
    thresholds[-1] = -np.inf
    return thresholds.astype(np.float32)


class Cuts:
    """The thresholds at which one exit's samples can be divided, from nobody leaving to everybody leaving.

    Equal scores form a group that is never divided.

    Attributes:
        order: Samples in falling order of their scores.
        groups: For each place in that order, the number of its group of equal scores.
        ends: For each group, the place of its last sample.
        thresholds: By number of groups that leave: ``inf`` for none, ``-inf`` for all.
    """

    def __init__(self, scores: Float[np.ndarray, " sample"]) -> None:
        self.order: Int[np.ndarray, " sample"] = np.argsort(-scores, kind="stable")
        ordered = scores[self.order]
        last_of_group = np.append(ordered[:-1] > ordered[1:], np.True_)
        self.ends: Int[np.ndarray, " group"] = np.flatnonzero(last_of_group)
        self.groups: Int[np.ndarray, " sample"] = np.cumsum(last_of_group) - last_of_group
        distinct = ordered[self.ends]
        inner = between(distinct[:-1], distinct[1:])
        self.thresholds: Float32[np.ndarray, " cut"] = np.concatenate(
            [[math.inf], inner, [-math.inf]], dtype=np.float32
        )

    def best(self, gain: Float[np.ndarray, "candidate sample"]) -> Float32[np.ndarray, " candidate"]:
        """Return the threshold at which the samples that leave gain most in sum, ``inf`` where no choice gains."""
        total = gain[:, self.order].cumsum(axis=1)
        if len(self.ends) < total.shape[1]:
            total = total[:, self.ends]
        best = total.argmax(axis=1)
        gains = total[np.arange(len(total)), best] > 0
        return self.thresholds[np.where(gains, best + 1, 0)]


def geometric_shares(
    targets: Float[np.ndarray, " target"],
    costs: Float[np.ndarray, " exit"],
    base: Float[np.ndarray, " exit"] | None = None,
    steps: Float[np.ndarray, " exit"] | None = None,
) -> Float64[np.ndarray, "target exit"]:
    """Return exit shares ``P_k`` proportional to ``base_k rho^steps_k`` whose mean cost is each target.

    Shares ``base`` are equal and ``steps`` the numbers of the exits by default, which gives a geometric progression.
    With the costs themselves as steps, the shares are those nearest to ``base`` (least Kullback-Leibler divergence)
    that cost the target.

    Source:
        MSDNet (Huang et al., ICLR 2018), budgeted batch classification.
    """
    exponents = np.arange(len(costs), dtype=np.float64) if steps is None else steps.astype(np.float64)
    tilt = np.zeros(len(costs)) if base is None else np.log(np.maximum(base, 1e-12, dtype=np.float64))

    def shares(log_ratio: np.ndarray) -> np.ndarray:
        weights: np.ndarray = tilt + log_ratio[:, None] * exponents
        weights = np.exp(weights - weights.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        return weights

    high = np.full(len(targets), 60.0 / np.diff(exponents).min())
    low = -high
    for _ in range(80):  # bisection on log rho; the mean cost grows with rho
        middle = (low + high) / 2
        cheap = shares(middle) @ costs < targets
        low, high = np.where(cheap, middle, low), np.where(cheap, high, middle)
    return shares(low)


def thresholds_for_shares(scores: PerExit, shares: Float[np.ndarray, "candidate exit"]) -> Thresholds:
    """Return thresholds that let the given shares of all samples leave, exit by exit.

    At each exit, of the samples still inside, the ``round(P_k N)`` with the largest score leave; fewer where the last
    of them and the next have equal scores.

    Source:
        EENet (WACV 2024), algorithm 1; method of MSDNet.
    """
    n, exits = scores.shape
    thresholds = np.full((len(shares), exits), -math.inf, dtype=np.float32)
    leaving = np.floor(shares * n + 0.5).astype(np.int64)
    cuts = [Cuts(scores[:, k]) for k in range(exits - 1)]
    for rows in _blocks(len(shares), n):
        inside = np.ones((len(shares[rows]), n), dtype=np.bool_)
        for k, cut in enumerate(cuts):
            thresholds[rows, k] = _cut(cut, inside, leaving[rows, k])
            inside &= scores[:, k] < thresholds[rows, k, None]
    return thresholds


def _cut(
    cuts: Cuts, inside: Bool[np.ndarray, "candidate sample"], leaving: Int[np.ndarray, " candidate"]
) -> Float32[np.ndarray, " candidate"]:
    """Return the thresholds at which so many of the samples inside leave, or fewer where scores are equal."""
    counts = inside[:, cuts.order].cumsum(axis=1, dtype=np.int32)  # of those inside, in falling order of score
    index = np.zeros(len(leaving), dtype=np.int64)
    for i in np.flatnonzero(leaving):
        last, following = np.searchsorted(counts[i], (leaving[i], leaving[i] + 1))
        if following == len(cuts.order):  # all who are inside leave
            index[i] = -1
        else:
            index[i] = cuts.groups[last] + (cuts.groups[last] != cuts.groups[following])
    return cuts.thresholds[index]


def outcomes(
    scores: PerExit, utility: PerExit, costs: Costs, thresholds: Float[np.ndarray, "candidate exit"]
) -> tuple[Float64[np.ndarray, " candidate"], Float64[np.ndarray, " candidate"]]:
    """Return mean cost and mean utility of each threshold vector on these samples."""
    n, exits = scores.shape
    cost, gain = np.zeros((2, len(thresholds)))
    for rows in _blocks(len(thresholds), n):
        inside = np.ones((len(thresholds[rows]), n), dtype=np.bool_)
        for k in range(exits):
            here = inside & (scores[:, k] >= thresholds[rows, k, None]) if k < exits - 1 else inside
            leaving = here.astype(np.float64)
            gain[rows] += leaving @ utility[:, k] / n
            if costs.ndim == 1:  # counted: equal shares have equal costs, to the bit, here and in `Replayer.expected`
                cost[rows] += np.count_nonzero(here, axis=1) / n * costs[k]
            else:
                cost[rows] += leaving @ costs[:, k] / n
            inside &= ~here
    return cost, gain


def frontier(cost: Float[np.ndarray, " candidate"], utility: Float[np.ndarray, " candidate"]) -> list[int]:
    """Return the candidates on the upper concave envelope, from the cheapest to the most useful.

    Mixing two neighbours reaches every point between them, so nothing outside the list is of use.
    """
    points: list[tuple[float, float]] = list(zip(cost.tolist(), utility.tolist(), strict=True))

    def slope(i: int, j: int) -> float:
        return (points[j][1] - points[i][1]) / (points[j][0] - points[i][0])

    hull: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if hull and points[i][1] <= points[hull[-1]][1]:
            continue
        while len(hull) >= 2 and slope(hull[-2], hull[-1]) <= (1 + 1e-9) * slope(hull[-2], i):  # points on a line go
            hull.pop()
        hull.append(i)
    return hull


def search(
    scores: PerExit, utility: PerExit, costs: Costs, seed: int, num_multipliers: int = MULTIPLIERS
) -> Thresholds:
    """Return threshold vectors that trade utility for cost well, for every Lagrange multiplier of cost.

    For a multiplier ``lambda`` the objective ``mean u - lambda c`` is raised one threshold at a time: given the others,
    the best prefix of the samples in score order is exact, by one cumulative sum. Coordinate ascent sticks in local
    optima, so every multiplier starts from the best of a pool, which holds geometric and random proportions and what
    all multipliers found so far. The seed is that of the random proportions.
    """
    mean_costs = costs if costs.ndim == 1 else costs.mean(axis=0)
    pool = _starts(scores, mean_costs, seed)
    cost, gain = outcomes(scores, utility, costs, pool)
    lambdas = multipliers(max(float(np.ptp(gain)), 1e-6), mean_costs, 100.0, num_multipliers)
    ascent = _Ascent(scores, utility, costs)
    for round_ in range(_ROUNDS):
        value = gain - lambdas[:, None] * cost
        best = np.argsort(-value, axis=1, kind="stable")[:, : 2 if round_ == 0 else 1]  # two starts at first
        found = np.concatenate([ascent.climb(pool[start], lambdas) for start in best.T])
        fresh = np.unique(found, axis=0)
        fresh_cost, fresh_gain = outcomes(scores, utility, costs, fresh)
        pool = np.concatenate([pool, fresh])
        cost, gain = np.append(cost, fresh_cost), np.append(gain, fresh_gain)
    return pool


def _starts(scores: np.ndarray, costs: np.ndarray, seed: int) -> Thresholds:
    """Return thresholds for geometric and random proportions, and every static exit."""
    exits = scores.shape[1]
    geometric = geometric_shares(np.linspace(costs[0], costs[-1], 41), costs)
    random = np.random.default_rng(seed).exponential(size=(60, exits)) ** 2  # uneven: some exits nearly closed
    shares = np.concatenate([geometric, random / random.sum(axis=1, keepdims=True)])
    static = np.where(np.eye(exits, dtype=np.bool_), -math.inf, math.inf)
    static[:, -1] = -math.inf
    return np.concatenate([static.astype(np.float32), thresholds_for_shares(scores, shares)])


def _blocks(candidates: int, samples: int) -> Iterator[slice]:
    """Yield slices of candidates such that a matrix of a slice times all samples takes bounded memory."""
    return blocks(0, candidates, max(1, _BLOCK // samples))


class _Ascent:
    """Coordinate ascent on thresholds, many candidates at a time; sorts once."""

    def __init__(self, scores: np.ndarray, utility: np.ndarray, costs: np.ndarray) -> None:
        self.scores = np.ascontiguousarray(scores.T)
        self.utility = np.ascontiguousarray(utility.T, dtype=np.float32)
        self.costs = np.ascontiguousarray(costs[:, None] if costs.ndim == 1 else costs.T)  # [exit, sample or 1]
        self.cuts = [Cuts(column) for column in self.scores[:-1]]

    def climb(self, thresholds: Thresholds, lambdas: Float64[np.ndarray, " candidate"]) -> Thresholds:
        """Return thresholds at a local optimum for each pair of start and multiplier."""
        each = _blocks(len(thresholds), self.scores.shape[1])
        return np.concatenate([self._climb(thresholds[rows].copy(), lambdas[rows]) for rows in each])

    def _climb(self, thresholds: np.ndarray, lambdas: np.ndarray) -> np.ndarray:
        value = [
            utility - (lambdas[:, None] * cost).astype(np.float32)
            for utility, cost in zip(self.utility, self.costs, strict=True)
        ]  # of leaving at each exit, [candidate, sample]
        reach = [self.scores[k] >= thresholds[:, k, None] for k in range(len(value) - 1)]
        for _ in range(_SWEEPS):
            before = thresholds.copy()
            later = [value[-1]]  # of going on beyond each exit, under the later thresholds, last exit first
            for k in range(len(value) - 2, 0, -1):
                later.append(np.where(reach[k], value[k], later[-1]))
            inside: np.ndarray | None = None
            for k, going_on in enumerate(reversed(later)):
                gain = value[k] - going_on
                if inside is not None:
                    gain *= inside
                thresholds[:, k] = self.cuts[k].best(gain)
                reach[k] = self.scores[k] >= thresholds[:, k, None]
                inside = ~reach[k] if inside is None else inside & ~reach[k]
            if np.array_equal(before, thresholds):
                break
        return thresholds

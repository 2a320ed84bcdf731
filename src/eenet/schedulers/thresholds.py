"""Turning scores into thresholds: by proportions, or jointly.

Everything here works on plain tensors: scores ``[sample, exit]`` (the last column unused: all leave there), utility
``[sample, exit]`` and cumulative costs ``[exit]``. Many threshold vectors are handled at once, as rows of a matrix.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["between", "frontier", "geometric_shares", "outcomes", "thresholds_for_shares"]


def between(upper: Float[Tensor, "*any"], lower: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Return a threshold that ``upper`` reaches and ``lower`` does not: the midpoint.

    A threshold equal to a sample's own score flips under rounding. Where the two are equal, neither reaches it.
    """
    middle = lower + (upper - lower) / 2
    middle = torch.where(middle > lower, middle, upper)  # neighbouring floats have no midpoint
    above = torch.nextafter(upper, torch.full_like(upper, math.inf))
    return torch.where(upper > lower, middle, above)


def geometric_shares(
    targets: Float[Tensor, " target"],
    costs: Float[Tensor, " exit"],
    base: Float[Tensor, " exit"] | None = None,
    steps: Float[Tensor, " exit"] | None = None,
) -> Float[Tensor, "target exit"]:
    """Return exit shares ``P_k`` proportional to ``base_k rho^k`` whose mean cost is each target.

    Args:
        targets: Mean costs in ``[c_0, c_{K-1}]``.
        costs: Cumulative costs.
        base: Positive shares to tilt; default: equal ones, which gives a geometric progression.
        steps: Increasing exponents of ``rho``; default: the numbers of the exits. With the costs themselves the shares
            are those nearest to ``base`` (least Kullback-Leibler divergence) that cost the target.

    Source:
        MSDNet (Huang et al., ICLR 2018), budgeted batch classification.
    """
    steps = torch.arange(len(costs), dtype=torch.float64) if steps is None else steps.double()
    tilt = torch.zeros(len(costs), dtype=torch.float64) if base is None else base.double().clamp_min(1e-12).log()
    reach = 60.0 / float(steps.diff().min())
    low, high = torch.full_like(targets, -reach), torch.full_like(targets, reach)
    for _ in range(80):  # bisection on log rho; the mean cost grows with rho
        middle = (low + high) / 2
        mean = torch.softmax(tilt + middle[:, None] * steps, dim=1) @ costs
        low, high = torch.where(mean < targets, middle, low), torch.where(mean < targets, high, middle)
    return torch.softmax(tilt + low[:, None] * steps, dim=1)


def thresholds_for_shares(
    scores: Float[Tensor, "sample exit"], shares: Float[Tensor, "candidate exit"]
) -> Float[Tensor, "candidate exit"]:
    """Return thresholds that let the given shares of all samples leave, exit by exit.

    At each exit, of the samples still inside, the ``floor(P_k N)`` with the largest score leave. Ties stay inside.

    Source:
        EENet (arXiv 2301.07099), algorithm for the exit thresholds; method of MSDNet.
    """
    n, exits = scores.shape
    candidates = len(shares)
    thresholds = torch.full((candidates, exits), -math.inf)
    inside = torch.ones(candidates, n, dtype=torch.bool)
    leaving = torch.floor(shares * n + 1e-9).int()
    for k in range(exits - 1):
        order = scores[:, k].argsort(descending=True)
        ordered = scores[order, k]
        rank = inside[:, order].cumsum(dim=1, dtype=torch.int32)
        thresholds[:, k] = _cut(ordered, rank, leaving[:, k].contiguous())
        inside &= scores[:, k] < thresholds[:, k, None]
    return thresholds


def _cut(
    ordered: Float[Tensor, " sample"], rank: Int[Tensor, "candidate sample"], leaving: Int[Tensor, " candidate"]
) -> Tensor:
    """Return the threshold below the ``leaving``-th sample inside; ``rank`` counts samples inside in score order."""
    last = torch.searchsorted(rank, leaving[:, None]).squeeze(1)
    following = torch.searchsorted(rank, leaving[:, None] + 1).squeeze(1)
    n = len(ordered)
    threshold = between(ordered[last.clamp_max(n - 1)], ordered[following.clamp_max(n - 1)])
    threshold = torch.where(following >= n, -math.inf, threshold)  # all who are inside leave
    return torch.where(leaving == 0, math.inf, threshold)


def outcomes(
    scores: Float[Tensor, "sample exit"],
    utility: Float[Tensor, "sample exit"],
    costs: Float[Tensor, " exit"],
    thresholds: Float[Tensor, "candidate exit"],
) -> tuple[Float[Tensor, " candidate"], Float[Tensor, " candidate"]]:
    """Return mean cost and mean utility of each threshold vector on these samples."""
    n, exits = scores.shape
    inside = torch.ones(len(thresholds), n, dtype=torch.bool)
    cost = torch.zeros(len(thresholds), dtype=torch.float64)
    gain = torch.zeros(len(thresholds), dtype=torch.float64)
    for k in range(exits):
        here = inside & (scores[:, k] >= thresholds[:, k, None]) if k < exits - 1 else inside
        cost += here.sum(dim=1).double() / n * costs[k]
        gain += here.to(utility.dtype) @ utility[:, k] / n
        inside = inside & ~here
    return cost, gain


def frontier(cost: Float[Tensor, " candidate"], utility: Float[Tensor, " candidate"]) -> list[int]:
    """Return the candidates on the upper concave envelope, from the cheapest to the most useful.

    Mixing two neighbours reaches every point between them, so nothing outside the list is worth using.
    """
    order = sorted(range(len(cost)), key=lambda i: (float(cost[i]), -float(utility[i])))
    hull: list[int] = []
    for i in order:
        if hull and utility[i] <= utility[hull[-1]]:
            continue
        while len(hull) >= 2 and _slope(cost, utility, hull[-2], hull[-1]) <= _slope(cost, utility, hull[-2], i):
            hull.pop()
        hull.append(i)
    return hull


def _slope(cost: Tensor, utility: Tensor, i: int, j: int) -> float:
    return float((utility[j] - utility[i]) / (cost[j] - cost[i]))

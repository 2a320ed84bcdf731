"""Thresholds by hand, against slow twins, and their properties."""

import itertools
import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.core.trace import first_exit
from eenet.schedulers.joint import search
from eenet.schedulers.thresholds import between, frontier, geometric_shares, outcomes, thresholds_for_shares

INF = math.inf


def test_between_by_hand():
    upper, lower = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1.0, 1.0, -INF])
    threshold = between(upper, lower)
    assert threshold[0] == 2.0
    assert 1.0 < threshold[1] < 1.0 + 1e-6  # a tie: neither reaches it
    assert lower[0] < threshold[0] <= upper[0]


@given(st.floats(-1e6, 1e6, width=32))
def test_between_separates_neighbouring_floats(value):
    lower = torch.tensor([value], dtype=torch.float32)
    upper = torch.nextafter(lower, torch.tensor([INF]))
    threshold = between(upper, lower)
    assert lower < threshold <= upper


def test_thresholds_for_shares_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.3, 0.9, 0.0], [0.1, 0.3, 0.0]])
    thresholds = thresholds_for_shares(scores, torch.tensor([[0.25, 0.5, 0.25]]))
    # one leaves at exit 0 (0.9); of the rest 0.9 and 0.3 leave at exit 1, 0.2 stays
    assert torch.allclose(thresholds, torch.tensor([[0.85, 0.25, -INF]]))
    assert first_exit(scores, thresholds[0]).tolist() == [0, 2, 1, 1]


def slow_thresholds(scores, shares):
    """One sample at a time, no sorting of many at once."""
    inside, thresholds = list(range(len(scores))), []
    for k in range(scores.shape[1] - 1):
        leaving = math.floor(float(shares[k]) * len(scores) + 1e-9)
        order = sorted(inside, key=lambda n: -float(scores[n, k]))
        if leaving == 0:
            thresholds.append(INF)
        elif leaving >= len(order):
            thresholds.append(-INF)
        else:
            upper, lower = scores[order[leaving - 1], k], scores[order[leaving], k]
            thresholds.append(float(between(upper[None], lower[None])))
        inside = [n for n in inside if not float(scores[n, k]) >= thresholds[-1]]
    return [*thresholds, -INF]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.booleans())
def test_thresholds_for_shares_equal_the_slow_twin(seed, n, ties):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(n, 4, generator=generator)
    if ties:
        scores = (scores * 3).round()
    shares = torch.softmax(torch.randn(5, 4, generator=generator), dim=1)
    fast = thresholds_for_shares(scores, shares)
    for row, share in zip(fast, shares, strict=True):
        assert row.tolist() == slow_thresholds(scores, share)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8), st.floats(0.01, 0.99))
def test_geometric_shares_meet_their_cost(steps, fraction):
    costs = torch.tensor(steps, dtype=torch.float64).cumsum(0)
    target = costs[0] + fraction * (costs[-1] - costs[0])
    shares = geometric_shares(target[None], costs)[0]
    assert abs(float(shares.sum()) - 1) < 1e-9
    assert abs(float(shares @ costs) - float(target)) < 1e-6 * float(target)
    ratios = shares[1:] / shares[:-1]
    assert torch.allclose(ratios, ratios[:1].expand_as(ratios), rtol=1e-6)


def test_geometric_shares_closed_form():
    # two exits of cost 1 and 2: the share going on is the budget minus 1
    assert torch.allclose(
        geometric_shares(torch.tensor([1.3], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64)),
        torch.tensor([[0.7, 0.3]], dtype=torch.float64),
    )


def test_outcomes_by_hand():
    scores = torch.tensor([[0.9, 0.0], [0.2, 0.0]])
    utility = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    cost, gain = outcomes(
        scores,
        utility,
        torch.tensor([1.0, 3.0], dtype=torch.float64),
        torch.tensor([[0.5, -INF], [-INF, -INF], [INF, -INF]]),
    )
    assert cost.tolist() == [2.0, 1.0, 3.0]
    assert gain.tolist() == [1.0, 0.5, 1.0]


def test_frontier_by_hand():
    cost, utility = torch.tensor([1.0, 2.0, 3.0, 2.5, 4.0]), torch.tensor([0.1, 0.5, 0.6, 0.4, 0.6])
    assert frontier(cost, utility) == [0, 1, 2]


def brute_force(scores, utility, costs, budget):
    """The best utility of any two-policy mix over all threshold vectors."""
    cuts = [[INF, *scores[:, k].unique().tolist()] for k in range(scores.shape[1] - 1)]
    grid = torch.tensor([[*cut, -INF] for cut in itertools.product(*cuts)])
    cost, gain = outcomes(scores, utility, costs, grid)
    return _best_mix(cost, gain, budget)


def _best_mix(cost, gain, budget):
    hull = frontier(cost, gain)
    below = [i for i in hull if cost[i] <= budget][-1]
    above = [i for i in hull if cost[i] > budget][:1]
    if not above:
        return float(gain[below])
    weight = (budget - cost[below]) / (cost[above[0]] - cost[below])
    return float((1 - weight) * gain[below] + weight * gain[above[0]])


def test_joint_search_finds_nearly_all_that_brute_force_finds():
    costs = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    found, possible = [], []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(30, 3, generator=generator)
        chance = torch.stack([scores[:, 0] * 0.8, 0.3 + scores[:, 1] * 0.6, torch.full((30,), 0.9)], dim=1)
        utility = (torch.rand(30, 3, generator=generator) < chance).double()
        pool = search(scores, utility, costs, seed=0)
        cost, gain = outcomes(scores, utility, costs, pool)
        for budget in (1.3, 2.0, 2.7):
            found.append(_best_mix(cost, gain, budget))
            possible.append(brute_force(scores, utility, costs, budget))
            assert found[-1] <= possible[-1] + 1e-9
    assert sum(found) >= 0.995 * sum(possible)

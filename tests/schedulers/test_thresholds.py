"""Thresholds by hand, against slow twins, and their properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.policies import Replayer
from eenet.schedulers import GeometricScheduler, JointScheduler, PatienceScheduler, PceeScheduler, StoppingScheduler
from eenet.schedulers.search import (
    Cuts,
    around_zero,
    between,
    frontier,
    geometric_shares,
    outcomes,
    search,
    thresholds_for_shares,
)
from eenet.tables.costs import CostTable, standard_budgets
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table

INF = math.inf


def single(*values):
    return np.array(values, dtype=np.float32)


def exits_of(scores, thresholds):
    """Where each sample leaves."""
    return (np.column_stack([scores[:, :-1] >= thresholds[:-1], np.ones(len(scores), dtype=bool)])).argmax(axis=1)


def test_between_by_hand():
    threshold = between(single(3.0, 2.0), single(1.0, -INF))
    assert threshold[0] == 2.0
    assert np.isfinite(threshold[1]) and threshold[1] < 2.0


@given(st.floats(-1e6, 1e6, width=32))
def test_between_separates_neighbouring_floats(value):
    lower = single(value)
    upper = np.nextafter(lower, np.float32(INF))
    threshold = between(upper, lower)
    assert lower < threshold <= upper


def test_thresholds_around_zero_by_hand():
    scores = np.array(
        [[3.0, 0.0, -1.0, 0.0, 1.0, 9.0], [-1.0, 4.0, -2.0, 0.0, 2.0, 9.0], [1.0, -2.0, -3.0, 0.0, 3.0, 9.0]]
    )
    # between 1 and -1, between 0 and -2; nobody leaves; a score of 0 with nothing below; all leave; the last exit
    assert around_zero(scores).tolist() == [0.0, -1.0, 0.0, -INF, 0.0, -INF]


def test_cuts_by_hand():
    cuts = Cuts(single(1.0, 5.0, 3.0, 5.0))
    assert cuts.order.tolist() == [1, 3, 2, 0]
    assert cuts.groups.tolist() == [0, 0, 1, 2]
    assert cuts.ends.tolist() == [1, 2, 3]
    assert cuts.thresholds.tolist() == [INF, 4.0, 2.0, -INF]
    # gains of rows 0 to 3: equal scores leave together; nothing gained, nobody leaves
    gain = single(1.0, -2.0, 2.0, 1.0), single(-1.0, 2.0, 2.0, -9.0), single(9.0, 0.0, 0.0, 0.0)
    assert cuts.best(np.stack(gain)).tolist() == [-INF, INF, -INF]
    assert cuts.best(single(-1.0, 2.0, -5.0, 1.0)[None]).tolist() == [4.0]


def test_thresholds_for_shares_by_hand():
    scores = np.array([[0.9, 0.1, 0.0], [0.8, 0.2, 0.0], [0.3, 0.9, 0.0], [0.1, 0.3, 0.0]], dtype=np.float32)
    thresholds = thresholds_for_shares(scores, np.array([[0.25, 0.5, 0.25]]))
    # one leaves at exit 0 (0.9); of the rest 0.9 and 0.3 leave at exit 1, 0.2 stays
    assert thresholds[0].tolist() == pytest.approx([0.85, 0.25, -INF])
    assert exits_of(scores, thresholds[0]).tolist() == [0, 2, 1, 1]


def test_equal_scores_stay_and_the_threshold_lies_midway_to_the_next_larger_one():
    scores = single(9.0, 4.0, 4.0, 4.0, 1.0)[:, None].repeat(2, axis=1)
    # two shall leave, but the second has the score of the third: only the first does
    assert thresholds_for_shares(scores, np.array([[0.4, 0.6]])).tolist() == [[6.5, -INF]]
    # with nothing larger, nobody leaves
    assert thresholds_for_shares(scores[1:], np.array([[0.25, 0.75]])).tolist() == [[INF, -INF]]


def slow_thresholds(scores, shares):
    """One sample at a time, no sorting of many at once."""
    inside, thresholds = list(range(len(scores))), []
    for k in range(scores.shape[1] - 1):
        leaving = math.floor(float(shares[k]) * len(scores) + 0.5)
        order = sorted(inside, key=lambda n: -float(scores[n, k]))
        levels = sorted(set(scores[:, k].tolist()))
        if leaving == 0:
            thresholds.append(INF)
        elif leaving >= len(order):
            thresholds.append(-INF)
        else:
            upper, lower = float(scores[order[leaving - 1], k]), float(scores[order[leaving], k])
            if upper == lower:  # the next larger score is the last that leaves
                upper = min((level for level in levels if level > lower), default=INF)
            below = max(level for level in levels if level < upper)
            thresholds.append(INF if upper == INF else float(between(single(upper), single(below))[0]))
        inside = [n for n in inside if not float(scores[n, k]) >= thresholds[-1]]
    return [*thresholds, -INF]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.booleans())
def test_thresholds_for_shares_equal_the_slow_twin(seed, n, ties):
    rng = np.random.default_rng(seed)
    scores = rng.random((n, 4)).astype(np.float32)
    if ties:
        scores = (scores * 3).round()
    shares = rng.dirichlet(np.ones(4), size=5)
    fast = thresholds_for_shares(scores, shares)
    for row, share in zip(fast, shares, strict=True):
        assert row.tolist() == slow_thresholds(scores, share)
        exits = exits_of(scores, row)
        for k in range(3):  # never more leave than asked for, to the nearest sample
            allowed = [math.floor(one * n + 0.5) for one in share[: k + 1]]
            assert (exits <= k).sum() <= sum(allowed)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=8), st.floats(0.01, 0.99))
def test_geometric_shares_meet_their_cost(steps, fraction):
    costs = np.cumsum(steps)
    target = costs[0] + fraction * (costs[-1] - costs[0])
    shares = geometric_shares(target[None], costs)[0]
    assert abs(shares.sum() - 1) < 1e-9
    assert abs(shares @ costs - target) < 1e-6 * target
    ratios = shares[1:] / shares[:-1]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-6)


def test_geometric_shares_closed_form():
    # two exits of cost 1 and 2: the share going on is the budget minus 1
    shares = geometric_shares(np.array([1.3]), np.array([1.0, 2.0]))
    np.testing.assert_allclose(shares, [[0.7, 0.3]], rtol=1e-9)


def test_outcomes_by_hand():
    scores = np.array([[0.9, 0.0], [0.2, 0.0]], dtype=np.float32)
    utility = np.array([[1.0, 1.0], [0.0, 1.0]])
    thresholds = np.array([[0.5, -INF], [-INF, -INF], [INF, -INF]])
    cost, gain = outcomes(scores, utility, np.array([1.0, 3.0]), thresholds)
    assert cost.tolist() == [2.0, 1.0, 3.0]
    assert gain.tolist() == [1.0, 0.5, 1.0]
    cost, gain = outcomes(scores, utility, np.array([[1.0, 3.0], [2.0, 7.0]]), thresholds)
    assert cost.tolist() == [4.0, 1.5, 5.0]
    assert gain.tolist() == [1.0, 0.5, 1.0]


def test_frontier_by_hand():
    cost, utility = np.array([1.0, 2.0, 3.0, 2.5, 4.0]), np.array([0.1, 0.5, 0.6, 0.4, 0.6])
    assert frontier(cost, utility) == [0, 1, 2]


def brute_force(scores, utility, costs, budget):
    """The best utility of any two-policy mix over all threshold vectors."""
    cuts = [[INF, *np.unique(scores[:, k]).tolist()] for k in range(scores.shape[1] - 1)]
    grid = np.array([[*cut, -INF] for cut in itertools.product(*cuts)], dtype=np.float32)
    return best_mix(*outcomes(scores, utility, costs, grid), budget)


def best_mix(cost, gain, budget):
    hull = frontier(cost, gain)
    return float(np.interp(budget, cost[hull], gain[hull]))


@pytest.mark.parametrize("by_sample", [False, True])
def test_joint_search_finds_nearly_all_that_brute_force_finds(by_sample):
    found, possible = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        costs = np.array([1.0, 2.0, 4.0]) * (rng.uniform(0.5, 1.5, (30, 1)) if by_sample else 1.0)
        scores = rng.random((30, 3)).astype(np.float32)
        chance = np.column_stack([scores[:, 0] * 0.8, 0.3 + scores[:, 1] * 0.6, np.full(30, 0.9)])
        utility = (rng.random((30, 3)) < chance).astype(np.float64)
        cost, gain = outcomes(scores, utility, costs, search(scores, utility, costs, seed=0))
        for budget in (1.6, 2.0, 2.7):
            found.append(best_mix(cost, gain, budget))
            possible.append(brute_force(scores, utility, costs, budget))
            assert found[-1] <= possible[-1] + 1e-9
    assert sum(found) >= 0.995 * sum(possible)


def coarse_table(seed, samples=300):
    """A table whose outputs are duplicated and rounded, so that most scores are equal to others."""
    table = synthetic_table(samples, seed=seed)
    return ExitTable(logits=(table.logits * 2).round() / 2, labels=table.labels, costs=table.costs)


def without_ensemble():
    return StoppingScheduler(ensemble=False)


@pytest.mark.parametrize(
    "make", [GeometricScheduler, JointScheduler, PceeScheduler, PatienceScheduler, without_ensemble]
)
@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_equals_a_score_seen_and_the_budget_is_kept(make, seed):
    table = coarse_table(seed)
    dial, replayer = make().sweep(table), Replayer(table)
    for policy in dial.policies:
        for scores, threshold in zip(replayer.scores(policy.scorer).T[:-1], policy.thresholds, strict=False):
            if threshold in scores:  # only where the next smaller score is the adjacent float
                assert np.nextafter(threshold, np.float32(-INF)) in scores
    for budget in standard_budgets(table.costs):
        assert replayer.expected(dial.at(budget))[0] <= budget


@pytest.mark.parametrize(
    "make", [GeometricScheduler, JointScheduler, PceeScheduler, PatienceScheduler, without_ensemble]
)
def test_rounding_elsewhere_sends_duplicates_together(make):
    base = synthetic_table(75)
    logits = base.logits.repeat(4, axis=0)
    table = ExitTable(logits=logits, labels=base.labels.repeat(4), costs=base.costs)
    rounding = 1 + 1e-7 * np.random.default_rng(0).normal(size=logits.shape)  # as of another engine
    other = ExitTable(logits=logits * rounding, labels=table.labels, costs=base.costs)
    here, there = Replayer(table), Replayer(other)
    for policy in make().sweep(table).policies:
        assert np.array_equal(here.exit_index(policy), there.exit_index(policy))


@pytest.mark.parametrize("make", [GeometricScheduler, JointScheduler, PceeScheduler, PatienceScheduler])
def test_costs_per_sample_are_kept_in_the_mean(make):
    plain = synthetic_table(400)
    scale = np.random.default_rng(0).uniform(0.5, 1.5, (400, 1))
    table = ExitTable(
        logits=plain.logits, labels=plain.labels, cost=scale * np.array(plain.costs.cumulative), costs=plain.costs
    )
    dial, replayer = make().sweep(table), Replayer(table)
    for budget in standard_budgets(table.costs):
        cost, utility = replayer.expected(dial.at(budget))
        assert cost <= budget * (1 + 1e-12)
        assert utility == pytest.approx(np.interp(budget, dial.fit_costs, dial.fit_utilities), abs=1e-6)
    assert dial.fit_costs[0] == pytest.approx(table.costs.low)
    if make is GeometricScheduler:  # hard samples that cost more make the realised cost differ from the planned one
        assert dial.fit_costs[-1] == pytest.approx(table.costs.high)


def test_costs_per_sample_by_hand():
    # exit 0 is right on the first two of three samples; going on costs the third 1 and the others 5
    logits = np.array([[[4.0, 0], [9.0, 0]], [[3.0, 0], [9.0, 0]], [[0.0, 1.0], [9.0, 0]]])
    cost = np.array([[1.0, 6], [1.0, 6], [1.0, 2]])
    table = ExitTable(logits=logits, labels=[0, 0, 0], cost=cost, costs=CostTable((1.0, 2.0), "ms"))
    policy = JointScheduler().fit(table, budget=4 / 3)
    assert Replayer(table).exit_index(policy).tolist() == [0, 0, 1]
    assert Replayer(table).expected(policy) == (pytest.approx(4 / 3), 1.0)

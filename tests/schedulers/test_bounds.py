"""The bounds: by hand, against all assignments of exits, and against every policy."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.policies import Replayer
from eenet.schedulers import GeometricScheduler, JointScheduler, oracle, static_mix
from eenet.tables.costs import CostTable, standard_budgets
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table

COSTS = CostTable((1.0, 2.0, 4.0), "ms")


def table_of(utility, cost=None):
    utility = np.array(utility, dtype=np.float64)
    return ExitTable(logits=np.zeros((*utility.shape, 2)), utility=utility, costs=COSTS, cost=cost)


def test_oracle_by_hand():
    # rows: right from the start; right at exit 1 only; right at exit 2 only; never right
    table = table_of([[1.0, 1, 1], [0.0, 1, 0], [0.0, 0, 1], [0.0, 0, 0]])
    assert oracle(table, COSTS, 1.0).utility == 0.25
    assert oracle(table, COSTS, 1.25).utility == 0.5  # one step of cost 1
    assert oracle(table, COSTS, 2.0).utility == 0.75  # and one of cost 3
    assert oracle(table, COSTS, 1.625).utility == pytest.approx(0.625)  # half of that step
    best = oracle(table, COSTS, 100)
    assert (best.utility, best.cost) == (0.75, 2.0)
    assert best.distribution == (0.5, 0.25, 0.25)


def test_bounds_of_costs_per_sample_by_hand():
    # both samples gain 1 by going on to exit 1, for 1 and for 3; exit 2 gains nothing more
    table = table_of([[0.0, 1, 1], [0.0, 1, 1]], [[1.0, 2, 9], [1.0, 4, 9]])
    assert table.costs.cumulative == (1.0, 3.0, 9.0)
    best = oracle(table, table.costs, 1.5)  # the cheaper of the two goes on
    assert (best.utility, best.cost, best.distribution) == (0.5, 1.5, (0.5, 0.5, 0.0))
    assert oracle(table, table.costs, 2.25).utility == pytest.approx(0.75)  # and half of the other
    assert oracle(table, table.costs, 9.0).cost == 3.0
    mix = static_mix(table, table, table.costs, 2.0)
    assert (mix.utility, mix.cost, mix.distribution) == (0.5, 2.0, (0.5, 0.5, 0.0))
    expensive = table_of([[0.0, 1, 1]], [[2.0, 5, 9]])
    assert static_mix(table, expensive, table.costs, 2.0).cost == 3.5  # judged at what the test set really costs


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.booleans())
def test_oracle_is_the_best_assignment(seed, by_sample):
    rng = np.random.default_rng(seed)
    utility = rng.random((4, 3)).round(1)
    cost = rng.uniform(0.5, 2, (4, 3)).cumsum(axis=1) if by_sample else None
    table = table_of(utility, cost)
    costs = table.leaving_costs
    for fraction in (0.0, 0.2, 0.5, 0.7, 1.0):
        budget = table.costs.low + fraction * (table.costs.high - table.costs.low)
        best = max(
            utility[np.arange(4), exits].mean()
            for exits in itertools.product(range(3), repeat=4)
            if costs[np.arange(4), exits].mean() <= budget + 1e-12
        )
        bound = oracle(table, table.costs, budget)
        assert bound.utility >= best - 1e-9
        assert bound.cost <= budget
        assert bound.utility <= best + 0.25 + 1e-9  # at most one sample is split
        assert abs(sum(bound.distribution) - 1) < 1e-9


def test_no_policy_beats_the_oracle():
    val, test = synthetic_table(500), synthetic_table(500, seed=1)
    for scheduler in (GeometricScheduler(), JointScheduler()):
        dial = scheduler.sweep(val)
        for budget in standard_budgets(val.costs):
            cost, utility = Replayer(test).expected(dial.at(budget))
            assert utility <= oracle(test, test.costs, cost).utility + 1e-9


def test_static_mix_by_hand():
    val = table_of([[0.0, 1, 1], [0.0, 0, 1]])
    # exits are worth 0, 0.5 and 1 at costs 1, 2 and 4: all three lie on the concave frontier
    point = static_mix(val, val, COSTS, 3.0)
    assert point.utility == pytest.approx(0.75)
    assert point.distribution == pytest.approx((0.0, 0.5, 0.5))
    assert point.cost == pytest.approx(3.0)
    assert static_mix(val, val, COSTS, 1.0).distribution == (1.0, 0.0, 0.0)
    assert static_mix(val, val, COSTS, 9.0).utility == 1.0


def test_static_mix_skips_an_exit_that_does_not_pay():
    val = table_of([[0.5, 0.5, 1.0], [0.5, 0.4, 1.0]])
    assert static_mix(val, val, COSTS, 2.5).distribution == pytest.approx((0.5, 0.0, 0.5))

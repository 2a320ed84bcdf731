"""The bounds: by hand, against a linear program's twin, and against every policy."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.core.costs import CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.schedulers import GeometricScheduler, JointScheduler, oracle, static_mix
from eenet.testing import synthetic_table

COSTS = CostTable((1.0, 2.0, 4.0), "ms")


def table_of(utility):
    utility = torch.tensor(utility)
    return ExitTable(logits=torch.zeros(*utility.shape, 2), utility=utility, costs=COSTS)


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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000))
def test_oracle_is_the_best_assignment(seed):
    generator = torch.Generator().manual_seed(seed)
    utility = torch.rand(4, 3, generator=generator).round(decimals=1)
    table = table_of(utility.tolist())
    for budget in (1.0, 1.5, 2.25, 3.0, 4.0):
        best = max(
            sum(float(utility[n, k]) for n, k in enumerate(exits)) / 4
            for exits in itertools.product(range(3), repeat=4)
            if sum(COSTS.cumulative[k] for k in exits) / 4 <= budget
        )
        bound = oracle(table, COSTS, budget)
        assert bound.utility >= best - 1e-6
        assert bound.cost <= budget
        assert bound.utility <= best + 0.25 + 1e-6  # at most one sample is split
        assert abs(sum(bound.distribution) - 1) < 1e-9


def test_no_policy_beats_the_oracle():
    val, test = synthetic_table(500), synthetic_table(500, seed=1)
    for scheduler in (GeometricScheduler(), JointScheduler()):
        dial = scheduler.sweep(val)
        for budget in standard_budgets(val.costs):
            cost, utility = Replayer(test).expected(dial.at(budget), test.costs)
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

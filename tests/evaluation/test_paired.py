from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.errors import BudgetError, InputError, TableError
from eenet.evaluation import at_equal_cost, group_counts, paired, shares_by_budget
from eenet.policies import ColumnScorer, Dial, ScorePolicy, exit_distribution, replay
from eenet.schedulers import (
    EENetScheduler,
    GeometricScheduler,
    JointScheduler,
    StoppingScheduler,
    TransformedScheduler,
    fit_ensemble,
)
from eenet.tables import CostTable, ExitTable
from eenet.testing import classwise_table, synthetic_table

COSTS = CostTable((1.0, 2.0, 4.0), "ms")


def by_hand():
    """Six samples, one of each group; column 0 lets them leave by the first policy, column 1 by the second."""
    #          A          B          C          D          E          other: the second leaves earlier and is wrong
    first = [[1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]]
    second = [[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0], [1, 0, 0]]
    right = [[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0], [1, 0, 1], [0, 1, 1]]
    table = ExitTable(features=np.stack([first, second], axis=2).astype(float), utility=right, costs=COSTS)
    return table, *(ScorePolicy(ColumnScorer(column, 2), [0.5, 0.5, -np.inf]) for column in (0, 1))


def test_groups_by_hand():
    table, first, second = by_hand()
    found = paired(table, first, second)
    assert found.exit_index.tolist() == [[0, 1, 0, 2, 1, 1], [0, 0, 2, 1, 1, 0]]
    assert found.right.tolist() == [[True, True, False, False, False, True], [True, True, True, False, False, False]]
    assert found.group.tolist() == ["A", "B", "C", "D", "E", "other"]
    assert group_counts(table, first, second) == dict.fromkeys(["A", "B", "C", "D", "E", "other"], 1)
    assert found.costs == pytest.approx(((1 + 2 + 1 + 4 + 2 + 2) / 6, (1 + 1 + 4 + 2 + 2 + 1) / 6))
    assert not found.equal_cost
    assert found.right_and_left(3).tolist() == [[[1, 2], [2, 3], [0, 1]], [[2, 3], [0, 2], [1, 1]]]


def test_groups_by_a_slow_twin():
    table = synthetic_table(300, seed=3)
    first, second = (s.fit(table, budget="60%") for s in (GeometricScheduler(), StoppingScheduler()))
    one, two = replay(first, table), replay(second, table)
    counts = dict.fromkeys(["A", "B", "C", "D", "E", "other"], 0)
    for i in range(300):
        a, b = (trace.log_probs[i].argmax() == table.labels[i] for trace in (one, two))
        j, k = one.exit_index[i], two.exit_index[i]
        name = {(True, True): "A" if j == k else "B" if k < j else "", (False, True): "C" if k > j else ""}.get((a, b))
        name = name or ({True: "E", False: "D" if k < j else ""}[j == k] if not a and not b else "")
        counts[name or "other"] += 1
    assert group_counts(table, first, second) == counts


def test_answers_of_combined_exits_are_what_counts_as_right():
    table = synthetic_table(300, seed=3)
    ensemble = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_ensemble)
    policy = ensemble.fit(table, budget="60%")
    right = replay(policy, table).log_probs.argmax(axis=1) == table.labels
    found = paired(table, policy, policy)
    assert found.right.tolist() == [right.tolist()] * 2
    assert set(found.group) == {"A", "E"}


def test_answers_that_are_partly_right_are_refused():
    table, first, second = by_hand()
    soft = ExitTable(features=table.features, utility=table.utility / 2, costs=COSTS)
    with pytest.raises(TableError, match="between 0 and 1"):
        paired(soft, first, second)


# equal cost

DIALS = {
    "max_prob": GeometricScheduler(),
    "joint": JointScheduler(),
    "stopping": StoppingScheduler(),
    "eenet": EENetScheduler(epochs=3),
    "assigned": EENetScheduler(thresholds="assigned", epochs=3),
    "ensemble": TransformedScheduler(scheduler=StoppingScheduler(), fit_transform=fit_ensemble),
}


@pytest.fixture(scope="module")
def dials():
    table = classwise_table(500, seed=1)
    return {name: scheduler.sweep(table, budgets=["40%", "70%"]) for name, scheduler in DIALS.items()}


@pytest.mark.parametrize("second", list(DIALS)[1:])
@settings(max_examples=3, deadline=None)
@given(cost=st.floats(1.2, 2.4), seed=st.integers(0, 3))
def test_costs_are_equal_on_the_table_itself(dials, second, cost, seed):
    table = classwise_table(600, seed=10 + seed)
    policies = at_equal_cost(dials["max_prob"], dials[second], table, cost)
    costs = [replay(policy, table).mean_cost for policy in policies]
    assert costs[0] == pytest.approx(costs[1], rel=1.001e-3)
    assert costs[0] == pytest.approx(cost, rel=0.02)
    assert paired(table, *policies).equal_cost


def test_costs_of_the_budget_alone_would_not_be_equal(dials):
    table = classwise_table(600, seed=10)
    assert not paired(table, dials["max_prob"].at(2.0), dials["stopping"].at(2.0)).equal_cost


def test_a_cost_that_a_dial_does_not_reach_is_refused(dials):
    table, dial = classwise_table(600, seed=10), dials["joint"]
    most = replay(dial.policies[-1], table).mean_cost
    assert most < 3.9
    with pytest.raises(BudgetError, match=f"cost 3.9 ms .* the first dial realises 1 to {most:g} ms"):
        at_equal_cost(dial, dial, table, 3.9)


def test_a_table_too_small_for_equal_costs_is_refused():
    costs = CostTable((1.0, 2.0, 4.1), "ms")
    table = replace(by_hand()[0], costs=costs)
    never = [np.inf] * 2 + [-np.inf]
    static = [ScorePolicy(ColumnScorer(0, 2), [*never[2 - k : 2], *[-np.inf] * (3 - k)]) for k in range(3)]
    middle = Dial((static[1],), (2.0,), (0.0,), costs)
    ends = Dial((static[0], static[2]), (1.0, 4.1), (0.0, 0.0), costs)  # 1, 1.517, 2.033, ... on six samples
    with pytest.raises(TableError, match=r"6 samples is too small .* 1\.67%"):
        at_equal_cost(middle, ends, table, 2.0)
    one, other = at_equal_cost(middle, middle, table, 2.0)
    assert one is other


# shares by budget


def test_shares_by_budget_are_those_of_the_dial_between_its_policies_too():
    table = synthetic_table(400, seed=5)
    dial = JointScheduler().sweep(table)
    budgets, shares = shares_by_budget(dial, table)
    assert (budgets[0], budgets[-1]) == (1.0, 4.0)
    assert np.allclose(shares.sum(axis=1), 1)
    for budget in (1.3, 2.2, 3.1):
        expected = sum(
            weight * exit_distribution(replay(part, table).exit_index, 4)
            for weight, part in dial.at(budget).components()
        )
        read = [np.interp(budget, budgets, shares[:, k]) for k in range(4)]
        assert read == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_a_policy_is_no_dial(dials):
    table, dial = classwise_table(60, seed=10), dials["joint"]
    for call in (
        lambda: at_equal_cost(dial.at(2.0), dial, table, 2.0),
        lambda: at_equal_cost(dial, None, table, 2.0),
        lambda: shares_by_budget(dial.at(2.0), table),
    ):
        with pytest.raises(InputError, match="a Dial is needed"):
            call()

"""A deadline per sample on top of the mean budget."""

import math

import numpy as np
import pytest

from eenet.errors import BudgetError, InputError, TableError
from eenet.policies import Dial, Policy, Replayer, ScorePolicy, Scorer, load_policy, replay, save_policy
from eenet.schedulers import (
    DeadlineScheduler,
    EENetScheduler,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    PceeScheduler,
    Scheduler,
    StoppingScheduler,
    TransformedScheduler,
    VoteScheduler,
    fit_geometric_ensemble,
)
from eenet.schedulers.thresholds import geometric_dial
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import check_policy, synthetic_table

INNER = {
    "max_prob": GeometricScheduler(),
    "vote": VoteScheduler(),
    "patience": PatienceScheduler(),
    "joint": JointScheduler(),
    "pcee": PceeScheduler(),
    "stopping": StoppingScheduler(),
    "ztw": TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_geometric_ensemble),
    "eenet": EENetScheduler(epochs=5),
    "assigned": EENetScheduler(epochs=5, thresholds="assigned"),
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize(("deadline", "last"), [(3.0, 2), ("2.5ms", 1), ("50%", 1), (9.0, 3)])
def test_no_sample_exceeds_the_deadline_and_the_mean_stays_within_the_budget(name, deadline, last):
    table, fresh = synthetic_table(400), synthetic_table(1000, seed=1)
    scheduler = DeadlineScheduler(scheduler=INNER[name], deadline=deadline)
    dial = scheduler.sweep(table, budgets=[1.3, 1.7])
    for budget in (1.0, 1.3, 1.7, 2.5, 4.0, 9.0):
        policy = dial.at(budget)
        assert policy.num_exits == 4
        assert Replayer(table).expected(policy)[0] <= budget
        assert replay(policy, fresh).cost.max() <= table.costs.cumulative[last]
    assert policy.num_exits == 4
    check_policy(dial.at(1.7), fresh)


@pytest.mark.parametrize("name", INNER)
def test_a_deadline_beyond_the_last_exit_changes_nothing(name):
    table = synthetic_table(300)
    bound = DeadlineScheduler(scheduler=INNER[name], deadline="150%")
    for budget in (1.5, 2.5):
        plain, limited = INNER[name].fit(table, budget=budget), bound.fit(table, budget=budget)
        assert np.array_equal(Replayer(table).exit_index(plain), Replayer(table).exit_index(limited))


def test_by_hand_three_samples():
    # exits cost 1, 2, 4; the deadline of 3 closes the last. With a budget of 5/3, two of three samples may go on to
    # exit 1: the two least sure ones
    logits = [[[4.0, 0.0]] * 3, [[1.0, 0.0]] * 3, [[2.0, 0.0]] * 3]
    table = ExitTable(logits=logits, labels=[0, 0, 0], costs=CostTable((1.0, 2.0, 4.0), "ms"))
    policy = DeadlineScheduler(scheduler=GeometricScheduler(), deadline=3.0).fit(table, budget=5 / 3)
    assert Replayer(table).expected(policy)[0] == pytest.approx(5 / 3)
    _, policy = max(policy.components(), key=lambda part: part[0])
    assert Replayer(table).exit_index(policy).tolist() == [0, 1, 1]
    assert policy.thresholds[1:].tolist() == [-math.inf, -math.inf]


def test_with_one_exit_open_everybody_leaves_there():
    table = synthetic_table(200)
    for deadline in (1.0, 1.9, "25%"):
        policy = DeadlineScheduler(scheduler=JointScheduler(), deadline=deadline).fit(table, budget=3.0)
        assert isinstance(policy, ScorePolicy) and policy.thresholds.tolist() == [-math.inf] * 4
        assert replay(policy, synthetic_table(500, seed=2)).cost.max() == 1.0


def test_percentages_keep_referring_to_the_original():
    table = synthetic_table(500)
    for reference, budget in ((None, 2.0), (3.6, 1.8)):
        costs = CostTable(table.costs.cumulative, "ms", reference)
        scheduler = DeadlineScheduler(scheduler=GeometricScheduler(), deadline="80%")
        assert scheduler.open_exits(costs) == (3 if reference is None else 2)
        dial = scheduler.sweep(table, costs, ["50%"])
        assert dial.costs == costs
        for policy in (dial.at("50%"), scheduler.fit(table, costs, budget="50%")):
            assert Replayer(table.with_costs(costs)).expected(policy)[0] == pytest.approx(budget, rel=1e-3)


@pytest.mark.parametrize("deadline", [1.0, 2.0])
def test_features_and_given_utilities_are_cut_too(deadline):
    worth = np.random.default_rng(0).random((300, 4))
    table = ExitTable(
        features=worth[:, :, None] * 1000, feature_names=("sure",), utility=worth, costs=synthetic_table(5).costs
    )
    scheduler = DeadlineScheduler(scheduler=JointScheduler(confidence="sure"), deadline=deadline)
    policy = scheduler.fit(table, budget=1.5)
    assert Replayer(table).exit_index(policy).max() == deadline - 1


def test_costs_that_differ_from_sample_to_sample_are_refused():
    plain = synthetic_table(20)
    cost = np.linspace(1, 2, 20)[:, None] * np.array(plain.costs.cumulative)
    table = ExitTable(logits=plain.logits, labels=plain.labels, cost=cost)
    with pytest.raises(TableError, match=r"deadline 9\.0"):
        DeadlineScheduler(scheduler=GeometricScheduler(), deadline=9.0).fit(table, budget="60%")


@pytest.mark.parametrize("name", INNER)
def test_scores_stay_where_there_is_a_choice_and_the_policy_can_be_saved(name, tmp_path):
    table, fresh = synthetic_table(300), synthetic_table(500, seed=3)
    within = ExitTable(logits=table.logits[:, :3], labels=table.labels, costs=CostTable((1.0, 2.0, 3.0), "ms"))
    alone = INNER[name].sweep(within, budgets=[1.8])
    limited = DeadlineScheduler(scheduler=INNER[name], deadline=3.0).sweep(table, budgets=[1.8])
    assert (limited.fit_costs, limited.fit_utilities) == (alone.fit_costs, alone.fit_utilities)
    narrow = ExitTable(logits=fresh.logits[:, :3], labels=fresh.labels)
    middle = len(alone.policies) // 2
    expected = Replayer(narrow).exit_index(alone.policies[middle])
    assert np.array_equal(Replayer(fresh).exit_index(limited.policies[middle]), expected)
    save_policy(limited.policies[middle], tmp_path / "policy")
    assert np.array_equal(Replayer(fresh).exit_index(load_policy(tmp_path / "policy").policy), expected)


def test_policies_go_on_sharing_their_scorer():
    dial = DeadlineScheduler(scheduler=EENetScheduler(epochs=2, thresholds="joint"), deadline=3.0).sweep(
        synthetic_table(200)
    )
    assert len({policy.scorer for policy in dial.policies}) == 1


class Ranks(Scorer):
    """Knows a number of exits, and fails at others."""

    def __init__(self, weights):
        self.weights, self.num_exits = weights, len(weights)

    def __call__(self, seen):
        return seen[:, -1].max(axis=1) * np.float32(self.weights[seen.shape[1] - 1])


class Own(Scheduler):
    def dial(self, table, budgets):
        return geometric_dial(Ranks([2.0, 1.0]), table, self.seed)


def test_a_scorer_of_your_own_is_not_asked_at_closed_exits():
    table = synthetic_table(300)
    policy = DeadlineScheduler(scheduler=Own(), deadline=2.0).fit(table, budget=1.5)
    assert Replayer(table).expected(policy)[0] == pytest.approx(1.5)
    check_policy(policy, table)
    assert {part.num_open for _, part in policy.components()} <= {1, 2}


@pytest.mark.parametrize(
    ("deadline", "words"),
    [
        (0.5, r"deadline 0\.5 ms per sample is out of reach: leaving at exit 0 costs 1 ms"),
        ("10%", r"deadline 10% of the last exit = 0\.4 ms per sample is out of reach"),
        ("soon", "deadline 'soon' is no cost per sample"),
        ("3 MFLOPs", "deadline '3 MFLOPs' has a unit that does not fit"),
    ],
)
def test_a_deadline_that_cannot_be_kept_is_refused(deadline, words):
    table = synthetic_table(50)
    scheduler = DeadlineScheduler(scheduler=GeometricScheduler(), deadline=deadline)
    for call in (lambda: scheduler.sweep(table), lambda: scheduler.fit(table, budget=2.0)):
        with pytest.raises(BudgetError, match=words):
            call()


def test_a_deadline_read_for_other_costs_is_checked_again():
    costs = synthetic_table(5).costs
    early = CostTable((0.1, 0.2, 0.3, 0.4), "ms").budget(0.2)
    with pytest.raises(BudgetError, match="deadline"):
        DeadlineScheduler(scheduler=GeometricScheduler(), deadline=early).limit(costs)
    assert DeadlineScheduler(scheduler=GeometricScheduler(), deadline=costs.budget("50%")).open_exits(costs) == 2


class Always(Policy):
    num_exits = 2

    def leaves(self, seen, sample_ids):
        return np.ones(len(seen), dtype=bool)

    def answers(self, seen, sample_ids):
        return seen[:, -1]


class Strange(Scheduler):
    def dial(self, table, budgets):
        return Dial((Always(),), (1.0,), (0.5,), table.costs)


def test_a_policy_whose_exits_cannot_be_closed_is_refused():
    with pytest.raises(InputError, match="policy of class Always"):
        DeadlineScheduler(scheduler=Strange(), deadline=2.0).fit(synthetic_table(20), budget=1.5)

"""Spending no more than pays."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from tests.evaluation.tables import dense_table, planted, worse_at_the_end

from eenet.errors import TableError
from eenet.policies import load_policy, save_policy
from eenet.policies.replay import Replayer
from eenet.schedulers import GeometricScheduler, JointScheduler, Scheduler, StoppingScheduler, TransformedScheduler
from eenet.schedulers.base import folds_of
from eenet.schedulers.ensemble import fit_ensemble
from eenet.schedulers.paying import most_that_pays
from eenet.tables.costs import standard_budgets


@dataclass(frozen=True, kw_only=True)
class Counting(Scheduler):
    """Fits as another scheduler does, and keeps what it saw."""

    inner: Scheduler
    seen: list

    def dial(self, table, budgets):
        self.seen.append(table)
        return self.inner.dial(table, budgets)


def test_slow_twin():
    table, scheduler = worse_at_the_end(200, 3), GeometricScheduler(seed=2)
    budgets, fold = standard_budgets(table.costs), folds_of(np.arange(200), 5, 2)
    earned = dict.fromkeys(budgets, 0.0)
    for f in range(5):
        dial = scheduler.sweep(table.select(fold != f))
        judge = Replayer(table.select(fold == f))
        for budget in budgets:
            for share, part in dial.at(budget).components():
                earned[budget] += share * judge.utility(part).sum()
    best = max(earned.values())
    peak = next(budget for budget in budgets if earned[budget] >= best - 1e-9)
    assert most_that_pays(scheduler, table) == peak
    assert peak < budgets[-1]


def test_no_sample_judges_a_policy_that_was_fitted_on_it():
    table = planted(60, 1)
    counting = Counting(inner=GeometricScheduler(), seen=[])
    most_that_pays(counting, table)
    assert [one.num_samples for one in counting.seen] == [48] * 5
    left_out = [set(map(bytes, table.logits)) - set(map(bytes, one.logits)) for one in counting.seen]
    assert len(set.union(*left_out)) == sum(map(len, left_out)) == 60


def test_where_every_exit_brings_something_nothing_is_capped_nor_on_few_samples():
    table = planted(600, 1)
    assert most_that_pays(GeometricScheduler(), table) == math.inf
    assert most_that_pays(GeometricScheduler(), worse_at_the_end(49, 1)) == math.inf
    with pytest.raises(TableError, match="costs"):
        most_that_pays(GeometricScheduler(), replace(table, costs=None))


def test_exits_that_say_the_same_are_worth_the_smallest_budget():
    table = planted(200, 1)
    same = replace(table, logits=np.repeat(table.logits[:, :1], 3, axis=1), utility=None)
    assert most_that_pays(GeometricScheduler(), same) == standard_budgets(table.costs)[0]


def test_costs_per_sample_and_features_are_taken():
    table = worse_at_the_end(200, 1)
    steps = np.random.default_rng(0).uniform(0.5, 1.5, (200, 4)).cumsum(axis=1)
    assert 0 < most_that_pays(GeometricScheduler(), replace(table, cost=steps)) < math.inf
    assert most_that_pays(GeometricScheduler(), dense_table(200)) > 0


@pytest.mark.parametrize(
    "scheduler",
    [
        GeometricScheduler(),
        JointScheduler(),
        pytest.param(StoppingScheduler(), marks=pytest.mark.slow),
        TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_ensemble),
    ],
)
def test_a_capped_dial_is_the_same_below_and_constant_above(scheduler, tmp_path):
    table = worse_at_the_end(300, 5)
    dial, judge = scheduler.sweep(table), Replayer(table)
    for most in (1.0, 1.37, 2.0, 2.9, 4.0, 9.0):
        capped = dial.capped(most)
        for budget in (1.0, 1.2, 1.9, 2.5, 3.3, 4.0, 7.0):
            wanted, found = (judge.expected(one) for one in (dial.at(min(budget, most)), capped.at(budget)))
            assert found == pytest.approx(wanted, abs=1e-6)
            assert found[0] <= min(budget, most)
        assert capped.fit_costs[-1] <= most
        assert judge.expected(capped.policies[-1]) == pytest.approx((capped.fit_costs[-1], capped.fit_utilities[-1]))
    capped = dial.capped(1.37)
    save_policy(capped.at(9.0), tmp_path / "policy", dial=capped)
    again = load_policy(tmp_path / "policy")
    for policy in (again.policy, again.dial.at(9.0)):
        assert np.array_equal(judge.exit_index(policy), judge.exit_index(capped.at(9.0)))

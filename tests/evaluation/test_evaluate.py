import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.tables import NEVER, by_hand, planted, walk

from eenet.errors import BudgetError, InputError, ShapeError, TableError
from eenet.evaluation import evaluate
from eenet.policies.policy import ScorePolicy
from eenet.policies.scorers import ConfidenceScorer
from eenet.schedulers import GeometricScheduler
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable


def policy(*thresholds):
    return ScorePolicy(ConfidenceScorer("max_prob"), np.array([*thresholds, -NEVER]))


def test_by_hand():
    report = evaluate(policy(1.5), by_hand(), budget="62.5%")  # samples 0, 1, 2 leave at once
    assert report.num_samples == 4
    assert report.budget == 1.25
    assert report.cost == report.expected_cost == 1.25
    assert report.utility == report.expected_utility == 0.75
    assert report.exit_distribution == (0.75, 0.25)
    assert report.exit_utility == pytest.approx((2 / 3, 1.0))
    assert report.static_utility == (0.5, 1.0)
    assert (report.full_cost, report.full_utility) == (2.0, 1.0)


def test_the_report_is_json_and_an_exit_nobody_takes_has_no_utility():
    value = json.loads(json.dumps(evaluate(policy(9.0), by_hand(reference=1.8)).to_dict(), allow_nan=False))
    assert (value["exit_distribution"], value["exit_utility"]) == ([0.0, 1.0], [None, 1.0])
    assert (value["budget"], value["full_cost"]) == (None, 1.8)  # that of the original model


def test_slow_twin():
    val, test = planted(80, 1), planted(60, 2)
    fitted = GeometricScheduler(seed=3).fit(val, budget=2.0)
    report = evaluate(fitted, test)
    assert (report.cost, report.utility) == pytest.approx(walk(fitted, test))


@given(seed=st.integers(0, 100), first=st.floats(-3, 3), second=st.floats(-3, 3))
def test_shares_sum_to_one_and_the_order_of_samples_does_not_matter(seed, first, second):
    table = planted(30, seed)
    order = np.random.default_rng(seed).permutation(30)
    report, shuffled = (evaluate(policy(first, second), rows) for rows in (table, table.select(order)))
    assert sum(report.exit_distribution) == pytest.approx(1.0)
    assert report.exit_distribution == shuffled.exit_distribution
    assert report.utility == pytest.approx(shuffled.utility)
    weighted = sum(s * u for s, u in zip(report.exit_distribution, report.exit_utility, strict=True) if u is not None)
    assert weighted == pytest.approx(report.utility)


def test_per_sample_costs_are_those_of_every_sample():
    table = replace(by_hand(), cost=np.array([[1.0, 2.0], [2.0, 9.0], [3.0, 9.0], [4.0, 10.0]]))
    report = evaluate(policy(1.5), table, budget="50%")
    assert report.exit_costs == (2.5, 7.5) and report.budget == 3.75
    assert report.cost == report.expected_cost == (1 + 2 + 3 + 10) / 4
    assert {group.name: group.cost for group in report.by_group} == {"0": 1.5, "1": 6.5}


def test_what_is_missing_or_does_not_fit_is_refused():
    hand = by_hand()
    bare = ExitTable(logits=hand.logits)
    for error, match, thresholds, table, more in (
        (TableError, "costs", (1.5,), bare, {}),
        (TableError, "labels", (1.5,), bare, {"costs": hand.costs}),
        (ShapeError, "policy with 3 exits", (1.5, 1.5), hand, {}),
        (ShapeError, "costs of 3 exits", (1.5,), hand, {"costs": CostTable((1.0, 2.0, 3.0), "ms")}),
        (BudgetError, "out of reach", (1.5,), hand, {"budget": 0.5}),
        (ShapeError, "groups of shape", (1.5,), hand, {"groups": [1, 2, 3]}),
        (InputError, "groups of type float64", (1.5,), hand, {"groups": np.array([0.5, 1.0, 1.0, 2.0])}),
    ):
        with pytest.raises(error, match=match):
            evaluate(policy(*thresholds), table, **more)

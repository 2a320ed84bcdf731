"""A dial at every budget of a range: against the slow way, and by hand."""

import json

import numpy as np
import pytest
from tests.evaluation.tables import by_hand, dense_table, planted

from eenet.evaluation import compare, saving, separation
from eenet.evaluation.groups import groupings
from eenet.evaluation.turned import BINS, NUM_BUDGETS, Turning
from eenet.policies import Dial, MixedPolicy, ScorePolicy
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ColumnScorer
from eenet.schedulers import GeometricScheduler, JointScheduler, PatienceScheduler
from eenet.tables import CostTable, ExitTable

NEVER = float("inf")


@pytest.fixture(scope="module")
def dial():
    return JointScheduler().sweep(planted(200, 1))


@pytest.fixture(scope="module")
def turned(dial):
    table = planted(150, 2)
    return Turning(Replayer(table), groupings(table)).over(dial, [1.5, 2.9])


def test_every_position_is_what_the_policy_of_its_budget_does(dial, turned):
    table = planted(150, 2)
    replayer = Replayer(table)
    assert len(turned["positions"]) == NUM_BUDGETS + 2
    budgets = [one["budget"] for one in turned["positions"]]
    assert budgets == sorted(budgets) and {1.5, 2.9} <= set(budgets)
    for one in turned["positions"]:
        policy = dial.at(one["budget"])
        cost, utility = replayer.expected(policy)
        assert (one["cost"], one["utility"]) == pytest.approx((cost, utility))
        assert one["exit_distribution"] == pytest.approx(replayer.expected_shares(policy).tolist())
        expected = saving(policy, table).to_dict()
        for key in ("gain", "exits", "lost", "lost_error", "static_lost", "cost_share"):
            assert one["saving"][key] == pytest.approx(expected[key], abs=1e-9)
        assert one["saving"]["sentence"] == expected["sentence"]
    json.dumps(turned, allow_nan=False)


def test_the_range_ends_where_nothing_more_is_spent(dial):
    capped = dial.capped(1.8)
    budgets = [one["budget"] for one in Turning(Replayer(planted(50, 2))).over(capped)["positions"]]
    assert (budgets[0], budgets[-1]) == pytest.approx((1.0, capped.fit_costs[-1]))


def test_one_mixed_policy_by_hand():
    """Half of the coin leaves all at exit 0, right on 2 of 4; half lets samples 0 and 1, log-odds 4 and 3, leave."""
    table = by_hand()
    now, some = ScorePolicy("max_prob", [-NEVER, -NEVER]), ScorePolicy("max_prob", [2.5, -NEVER])
    dial = Dial((MixedPolicy(now, some, 0.5, 0),), (1.25,), (0.75,), table.require_costs())
    (first, *_) = Turning(Replayer(table)).over(dial)["positions"]
    assert first["cost"] == pytest.approx(0.5 * 1 + 0.5 * 1.5)
    assert first["exit_distribution"] == pytest.approx([0.75, 0.25])
    assert first["exit_utility"] == pytest.approx([2 / 3, 1.0])  # of 3 samples' worth 2 are right
    assert first["utility"] == pytest.approx(0.75)
    assert (first["score"], len(first["thresholds"])) == (0, 1)
    assert first["thresholds"][0] == pytest.approx(1 / (1 + np.exp(-2.5)))  # the chance that belongs to these log-odds


def test_histograms_have_every_sample_once_and_the_area_of_separation(turned, dial):
    table = planted(150, 2)
    right = np.asarray(table.utility) == 1
    for one in turned["positions"]:
        if "score" not in one:
            continue
        drawn = turned["scores"][one["score"]]
        assert drawn["what"]
        areas = separation(dial.at(one["budget"]), table).to_dict()["overall"]
        for k, exit_ in enumerate(drawn["exits"]):
            assert (sum(exit_["right"]), sum(exit_["wrong"])) == (right[:, k].sum(), (~right[:, k]).sum())
            assert len(exit_["right"]) == len(exit_["wrong"]) == BINS
            assert exit_["auroc"] == pytest.approx(areas[k])
        assert all(0 <= at <= 1 for at in one["thresholds"])
    assert "score" not in turned["positions"][0] or turned["positions"][0]["thresholds"]


def test_who_pays_is_the_group_whose_answers_are_lost():
    generator = np.random.default_rng(0)
    hard = np.arange(400) < 100
    right = np.stack([~hard | (generator.random(400) < 0.05), np.ones(400, dtype=bool)], axis=1)
    table = ExitTable(
        features=generator.random((400, 2, 1)), utility=right.astype(np.float64), costs=CostTable((1.0, 2.0), "ms")
    )
    at_once = ScorePolicy(ColumnScorer(0, 1), [-NEVER, -NEVER])
    dial = Dial((at_once,), (1.0,), (0.0,), table.require_costs())
    groups = groupings(table, np.where(hard, "hard", "easy"))
    (first, *_) = Turning(Replayer(table), groups).over(dial)["positions"]
    assert first["num_paying"] == 1
    (group,) = first["who_pays"]
    assert (group["by"], group["name"], group["num_samples"]) == ("group", "hard", 100)
    assert group["low"] < group["loss"] < group["high"]


def test_utility_between_0_and_1_has_no_scores():
    table = dense_table(80)
    dial = GeometricScheduler(confidence="certainty").sweep(table)
    turned = Turning(Replayer(table)).over(dial)
    assert turned["scores"] == [] and all("score" not in one for one in turned["positions"])


def test_one_sample_is_no_reason_for_infinity_in_the_json(dial):
    turned = Turning(Replayer(planted(1, 2))).over(dial)
    assert turned["positions"][0]["saving"]["lost_error"] is None
    json.dumps(turned, allow_nan=False)


def test_compare_turns_the_tested_policy_and_no_other():
    schedulers = {"max_prob": GeometricScheduler(), "patience": PatienceScheduler()}
    found = compare(planted(60, 1), planted(60, 2), schedulers, ["50%"], resamples=20)
    assert found.dial["policy"] == "max_prob"
    asked = found.rows[0].budget
    (at,) = [one for one in found.dial["positions"] if one["budget"] == asked]
    assert at["cost"] == pytest.approx(found.rows[0].test_cost)
    assert at["utility"] == pytest.approx(found.rows[0].test_utility)
    several = compare(planted(60, 1), planted(60, 2), schedulers, ["50%"], splits=2)
    assert several.dial is None and "dial" not in several.to_dict()

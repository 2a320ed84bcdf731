import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.tables import Fixed, by_hand, planted

from eenet.core.costs import CostTable, standard_budgets
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import BudgetError, InputError, TableError
from eenet.evaluation import compare
from eenet.evaluation.sides import draw_sides
from eenet.schedulers.bounds import oracle
from eenet.schedulers.heuristics import GeometricScheduler, PatienceScheduler

MAX_PROB = {"max_prob": GeometricScheduler()}
BOTH = {**MAX_PROB, "patience": PatienceScheduler()}


# by hand


def test_by_hand():
    found = compare(by_hand(), by_hand(), {"fixed": Fixed(thresholds=(1.5,))}, [1.25])  # 3 leave at once, 1 goes on
    rows = {row.policy: row for row in found.rows}
    assert list(rows) == ["fixed", "random", "oracle"]
    fixed = rows["fixed"]
    assert (fixed.val_cost, fixed.test_cost, fixed.test_utility) == (1.25, 1.25, 0.75)
    assert fixed.exit_distribution == (0.75, 0.25)
    assert rows["random"].test_utility == pytest.approx(0.625)  # a quarter of the way from exit 0 to exit 1
    assert rows["oracle"].test_utility == pytest.approx(0.75)  # one of the two wrong samples goes on
    # (1, 0.5) - (1.25, 0.75), then flat: 0.55 0.6 0.65 0.7 and six times 0.75
    assert found.area["fixed"] == pytest.approx(0.70)
    assert found.area["random"] == pytest.approx(0.5 + 0.5 * 0.395)
    assert found.area["oracle"] == pytest.approx(0.82)
    assert found.exits == ({"cost": 1.0, "utility_test": 0.5}, {"cost": 2.0, "utility_test": 1.0})
    assert found.full == {"cost": 2.0, "utility_test": 1.0}


def test_utility_at_budget_is_read_off_the_curve_not_off_the_row():
    found = compare(by_hand(), by_hand(), {"fixed": Fixed(thresholds=(1.5,))}, [1.125, 2.0])
    at = {row.budget: row for row in found.rows if row.policy == "fixed"}
    assert at[1.125].test_utility == at[2.0].test_utility == 0.75
    assert at[1.125].utility_at_budget == pytest.approx(0.625)
    assert at[2.0].utility_at_budget == pytest.approx(0.75)


def test_asked_budgets_keep_how_they_were_typed_and_percentages_mean_the_original_model():
    found = compare(by_hand(reference=1.6), by_hand(reference=1.6), MAX_PROB, ["75%", "1500us", 1.5])
    assert [(row.budget, row.budget_input) for row in found.rows if row.policy == "max_prob"] == [
        (pytest.approx(1.2), "75%"),
        (1.5, "1500us"),
        (1.5, "1.5"),
    ]
    assert found.full["cost"] == 1.6


def test_without_budgets_the_rows_are_the_standard_ones():
    found = compare(by_hand(), by_hand(), MAX_PROB)
    assert [row.budget for row in found.rows if row.policy == "random"] == list(standard_budgets(by_hand().costs))


# slow twin


def test_slow_twin():
    val, test = planted(50, 1), planted(20, 2)
    found = compare(val, test, BOTH, [1.7])
    asked = sorted({1.7, *standard_budgets(val.costs)})
    log_probs = torch.log_softmax(test.logits, dim=2)
    for name, scheduler in BOTH.items():
        dial = scheduler.sweep(val, val.costs, asked)
        points = {budget: walk(dial.at(budget), log_probs, test) for budget in asked}
        row = next(row for row in found.rows if row.policy == name)
        assert (row.test_cost, row.test_utility) == pytest.approx(points[1.7])
        anchor = (1.0, float((log_probs[:, 0].argmax(dim=1) == test.labels).double().mean()))
        joined = sorted([anchor, *points.values()])
        assert row.utility_at_budget == pytest.approx(read(joined, 1.7))
        area = sum(read(joined, budget) for budget in standard_budgets(val.costs)) / 10
        assert found.area[name] == pytest.approx(area)


def walk(policy, log_probs, table):
    """Return realised mean cost and utility, sample by sample and exit by exit."""
    cost = right = 0.0
    for n in range(table.num_samples):
        for k in range(table.num_exits):
            if bool(policy.leaves(log_probs[n : n + 1, : k + 1], torch.tensor([n]))):
                cost += table.costs.cumulative[k]
                right += float(int(log_probs[n, k].argmax()) == int(table.labels[n]))
                break
    return cost / table.num_samples, right / table.num_samples


def read(points, cost):
    """Read a piecewise linear curve; of points at one cost the mean counts."""
    unique = {}
    for at, utility in points:
        unique.setdefault(at, []).append(utility)
    joined = [(at, sum(utilities) / len(utilities)) for at, utilities in sorted(unique.items())]
    for (left, low), (right, high) in itertools.pairwise(joined):
        if left <= cost <= right:
            return low + (high - low) * (cost - left) / (right - left)
    return joined[-1][1]


# property


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_oracle_bounds_every_policy_and_the_budget_holds_on_val(seed):
    val, test = planted(40, seed), planted(40, seed + 1)
    found = compare(val, test, BOTH, resamples=2)
    for row in found.rows:
        assert sum(row.exit_distribution) == pytest.approx(1.0)
        assert row.val_cost <= row.budget + 1e-9
        if row.policy not in ("random", "oracle"):
            assert row.test_utility <= oracle(test, test.costs, row.test_cost).utility + 1e-9
            assert row.utility_at_budget <= oracle(test, test.costs, row.budget).utility + 1e-9
    assert max(found.area.values()) == found.area["oracle"]


# pairs


def test_pairs_are_all_policies_against_each_other_and_against_random():
    found = compare(planted(100, 1), planted(100, 2), BOTH, ["60%"], resamples=200)
    assert [(pair.a, pair.b) for pair in found.pairs] == [
        ("max_prob", "patience"),
        ("max_prob", "random"),
        ("patience", "random"),
    ]
    for pair in found.pairs:
        assert pair.difference == pytest.approx(100 * (found.area[pair.a] - found.area[pair.b]))
        assert pair.low <= pair.difference <= pair.high
        assert pair.significant == (pair.low > 0 or pair.high < 0)
        assert pair.method == "paired bootstrap"


def test_the_same_scheduler_under_two_names_is_never_told_apart():
    twins = {"a": GeometricScheduler(), "b": GeometricScheduler()}
    for splits in (1, 3):
        pair = compare(planted(60, 1), planted(60, 2), twins, splits=splits, resamples=50).pairs[0]
        assert (pair.difference, pair.low, pair.high, pair.significant) == (0.0, 0.0, 0.0, False)


def test_pairs_are_in_points_while_areas_are_fractions():
    found = compare(by_hand(), by_hand(), {"fixed": Fixed(thresholds=(1.5,))}, [1.25])
    (pair,) = found.pairs
    assert (pair.a, pair.b) == ("fixed", "random")
    assert pair.difference == pytest.approx(100 * (0.70 - (0.5 + 0.5 * 0.395)))  # areas as by hand above


def test_pairs_over_splits_carry_the_corrected_interval_of_paired_differences():
    val, test = planted(50, 1), planted(30, 2)
    (pair, *_) = compare(val, test, BOTH, ["60%"], splits=4, seed=4).pairs
    singles = [compare(*sides, BOTH, ["60%"], resamples=2) for sides in draw_sides(val, test, 4, 4)]
    drawn = [100 * (single.area["max_prob"] - single.area["patience"]) for single in singles]
    mean = sum(drawn) / 4
    variance = sum((one - mean) ** 2 for one in drawn) / 3
    half = 3.182446 * (variance * (1 / 4 + 30 / 50)) ** 0.5  # t with 3 degrees of freedom; judged on 30, fitted on 50
    assert (pair.a, pair.b) == ("max_prob", "patience")
    assert (pair.difference, pair.low, pair.high) == pytest.approx((mean, mean - half, mean + half), rel=1e-5)
    assert pair.significant == (not mean - half <= 0 <= mean + half)


# splits


def test_splits_are_means_with_sd_over_redrawn_sides():
    val, test = planted(50, 1), planted(30, 2)
    found = compare(val, test, MAX_PROB, ["60%"], splits=3, seed=4)
    singles = [compare(*sides, MAX_PROB, ["60%"], resamples=2) for sides in draw_sides(val, test, 3, 4)]
    row = found.rows[0]
    utilities = [single.rows[0].utility_at_budget for single in singles]
    assert row.utility_at_budget == pytest.approx(np.mean(utilities))
    assert row.sd["utility_at_budget"] == pytest.approx(np.std(utilities, ddof=1))
    assert found.area["max_prob"] == pytest.approx(np.mean([single.area["max_prob"] for single in singles]))
    assert set(row.sd) == {
        "val_cost",
        "test_cost",
        "test_utility",
        "utility_at_budget",
        "exit_distribution",
        "fit_seconds",
    }
    assert (found.n_val, found.n_test, found.splits) == (50, 30, 3)
    assert found.pairs[0].method == "corrected resampled t (Nadeau-Bengio)"


def test_every_split_uses_every_sample_once_and_the_seed_draws_it():
    val, test = planted(20, 1), planted(10, 2)
    drawn = [torch.cat([side.logits for side in sides]) for sides in draw_sides(val, test, 2, 0)]
    pool = torch.cat([val.logits, test.logits])
    for logits in drawn:
        assert torch.equal(logits.flatten(1).sum(1).sort().values, pool.flatten(1).sum(1).sort().values)
    assert not torch.equal(drawn[0], drawn[1])
    again = next(iter(draw_sides(val, test, 2, 0)))
    assert torch.equal(torch.cat([side.logits for side in again]), drawn[0])


# contract


@pytest.mark.parametrize("splits", [1, 2])
def test_the_json_has_the_keys_and_types_of_the_contract(splits):
    found = compare(planted(40, 1), planted(40, 2), BOTH, ["60%"], splits=splits, resamples=10)
    value = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert value["unit"] == "MFLOPs"
    assert value["reference"] == pytest.approx(2.8)
    assert (value["n_val"], value["n_test"], value["splits"]) == (40, 40, splits)
    assert set(value["area"]) == {"max_prob", "patience", "random", "oracle"}
    for exit_ in value["exits"]:
        assert set(exit_) >= {"cost", "utility_test"}
    for row in value["rows"]:
        assert {key: type(row[key]) for key in row if key != "sd"} == {
            "policy": str,
            "budget": float,
            "budget_input": str,
            "val_cost": float,
            "test_cost": float,
            "test_utility": float,
            "utility_at_budget": float,
            "exit_distribution": list,
            "fit_seconds": float,
        }
        assert ("sd" in row) == (splits > 1)
        assert 0 <= row["test_utility"] <= 1
    assert set(value["pairs"][0]) == {"a", "b", "difference", "low", "high", "significant", "method"}


def test_the_table_has_the_same_headings_in_every_row():
    shown = compare(planted(40, 1), planted(40, 2), MAX_PROB, ["60%"], splits=2).table()
    assert len(shown) == 3
    assert len({tuple(row) for row in shown}) == 1
    assert all("±" in row["area [%]"] for row in shown)


def test_progress_counts_every_policy_and_the_bounds():
    told = []
    compare(by_hand(), by_hand(), MAX_PROB, splits=2, progress=lambda *step: told.append(step))
    assert [step[1:] for step in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1][0] == "bounds (split 2)"


def test_costs_given_replace_those_of_the_tables():
    other = CostTable((10.0, 30.0), "ms")
    found = compare(by_hand(), by_hand(), MAX_PROB, [20.0], costs=other)
    assert [exit_["cost"] for exit_ in found.exits] == [10.0, 30.0]


# notes


def test_notes_name_leaks_overspending_and_budgets_beyond_the_last_exit():
    found = compare(by_hand(), by_hand(), {"dear": Fixed(thresholds=(9.0,))}, [5.0])
    notes = " ".join(found.notes)
    assert "start with the same samples" in notes
    assert "dear costs 2 ms on VAL where 1.05 was asked" in notes
    assert "Budget 5 is above the last exit" in notes


# refused


def test_sides_that_disagree_are_refused_naming_what_differs():
    base = planted(20, 1)
    cases = [
        ("exits: 3 and 2", planted(20, 2, exits=2)),
        ("classes: 4 and 5", planted(20, 2, classes=5)),
        ("cost_unit: MFLOPs and ms", replace(base, costs=CostTable((1.0, 2.0, 3.0), "ms", 2.8))),
        ("costs of exit 1: 2 and 2.5", replace(base, costs=CostTable((1.0, 2.5, 3.0), "MFLOPs", 2.8))),
        ("cost_reference: 2.8 and 2.9", replace(base, costs=CostTable((1.0, 2.0, 3.0), "MFLOPs", 2.9))),
        ("cost_reference: 2.8 and none", replace(base, costs=CostTable((1.0, 2.0, 3.0), "MFLOPs"))),
        ("features: none and 6", replace(base, features=torch.zeros(20, 3, 6))),
    ]
    for message, other in cases:
        with pytest.raises(TableError, match=message):
            compare(base, other, MAX_PROB)


def test_what_cannot_be_compared_is_refused():
    hand = by_hand()
    bare = ExitTable(logits=hand.logits, costs=hand.costs)
    free = ExitTable(logits=hand.logits, labels=hand.labels)
    with pytest.raises(TableError, match="labels"):
        compare(hand, bare, MAX_PROB)
    with pytest.raises(TableError, match="costs"):
        compare(free, free, MAX_PROB)
    with pytest.raises(TableError, match="costs of 3 exits"):
        compare(hand, hand, MAX_PROB, costs=CostTable((1.0, 2.0, 3.0), "ms"))
    with pytest.raises(BudgetError, match="out of reach"):
        compare(hand, hand, MAX_PROB, [0.5])
    with pytest.raises(InputError, match="splits 0"):
        compare(hand, hand, MAX_PROB, splits=0)
    with pytest.raises(InputError, match="oracle"):
        compare(hand, hand, {"oracle": GeometricScheduler()})


def test_costs_of_one_side_serve_both():
    hand = by_hand()
    free = ExitTable(logits=hand.logits, labels=hand.labels)
    assert compare(free, hand, MAX_PROB).unit == compare(hand, free, MAX_PROB).unit == "ms"


def test_nothing_is_replayed_twice_for_one_scorer():
    # all budgets of a score policy share one scorer: the scores are computed once per side
    calls = []
    original = Replayer.scores

    def counting(self, source):
        calls.append((id(self), id(source)))
        return original(self, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replayer, "scores", counting)
        compare(planted(30, 1), planted(30, 2), MAX_PROB)
    assert len(set(calls)) <= 3  # fitting, val, test

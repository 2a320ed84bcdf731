import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.tables import Coins, Fixed, Tossing, by_hand, planted, read, walk, worse_at_the_end

from eenet.errors import BudgetError, InputError, ShapeError, TableError
from eenet.evaluation import compare, saving
from eenet.evaluation.compare import random_splits
from eenet.policies.replay import Replayer
from eenet.schedulers import AutoScheduler, GeometricScheduler, JointScheduler, PatienceScheduler
from eenet.schedulers.bounds import oracle
from eenet.schedulers.paying import most_that_pays, saving_note
from eenet.tables.costs import CostTable, standard_budgets
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table

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
    (pair,) = found.pairs  # in points, while areas are fractions
    assert (pair.a, pair.b, pair.difference) == ("fixed", "random", pytest.approx(100 * (0.70 - 0.5 - 0.5 * 0.395)))


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
    every = compare(by_hand(), by_hand(), MAX_PROB).rows
    assert [row.budget for row in every if row.policy == "random"] == list(standard_budgets(by_hand().costs))


def test_a_mixture_is_judged_by_the_expectation_over_its_coin():
    # exit 0 costs 1 and is right on half the samples, exit 1 costs 2 and is always right
    found = compare(by_hand(), by_hand(), {"coins": Coins(share=0.3)}, [1.5], groups=["x", "x", "x", "y"])
    row = found.rows[0]
    assert (row.val_cost, row.test_cost, row.test_utility) == pytest.approx((1.7, 1.7, 0.85))
    assert row.exit_distribution == pytest.approx((0.3, 0.7))
    by = {group.name: group for entry in found.groups for group in entry.groups}
    assert (by["0"].cost, by["0"].utility, by["1"].cost, by["1"].utility) == pytest.approx((1.7, 1.0, 1.7, 0.7))
    assert by["y"].exit_distribution == pytest.approx((0.3, 0.7))
    assert by["y"].loss == pytest.approx(30.0)


def test_no_seed_of_the_coin_makes_a_difference():
    coins = {str(seed): Coins(share=0.4, seed=seed) for seed in range(4)}
    for splits in (1, 3):
        found = compare(planted(60, 1), planted(60, 2), coins, ["60%"], splits=splits, resamples=100)
        assert len({found.area[name] for name in coins}) == 1
        among = [pair for pair in found.pairs if pair.b != "random"]
        assert all((pair.difference, pair.low, pair.high, pair.p) == (0.0, 0.0, 0.0, 1.0) for pair in among)


def test_a_mixture_is_one_of_two_static_exits_as_random_is():
    # with the share that random takes, a mixed policy of the same two exits is resampled as random is
    val, test = planted(200, 1, exits=2), planted(200, 2, exits=2)
    found = compare(val, test, {"coins": Coins(share=0.0)}, [2.0], resamples=100)
    assert found.rows[0].test_utility == pytest.approx(found.exits[-1]["utility_test"])
    half = compare(val, test, {"coins": Coins(share=0.5)}, [1.5], resamples=100)
    coins, random, _ = half.rows
    assert (coins.test_cost, coins.test_utility) == pytest.approx((random.test_cost, random.test_utility))


# slow twin


def test_slow_twin():
    val, test = planted(50, 1), planted(20, 2)
    found = compare(val, test, BOTH, [1.7])
    asked = sorted({1.7, *standard_budgets(val.costs)})
    for name, scheduler in BOTH.items():
        dial = scheduler.sweep(val, val.costs, asked)
        points = {budget: walk(dial.at(budget), test) for budget in asked}
        row = next(row for row in found.rows if row.policy == name)
        assert (row.test_cost, row.test_utility) == pytest.approx(points[1.7])
        anchor = (1.0, float(test.utility[:, 0].mean()))
        joined = sorted([anchor, *points.values()])
        assert row.utility_at_budget == pytest.approx(read(joined, 1.7))
        area = sum(read(joined, budget) for budget in standard_budgets(val.costs)) / 10
        assert found.area[name] == pytest.approx(area)


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
        assert pair.method == "paired bootstrap"


def test_the_same_scheduler_under_two_names_differs_by_nothing():
    twins = {"a": GeometricScheduler(), "b": GeometricScheduler()}
    for splits in (1, 3):
        pair = compare(planted(60, 1), planted(60, 2), twins, splits=splits, resamples=50).pairs[0]
        assert (pair.difference, pair.low, pair.high, pair.significant) == (0.0, 0.0, 0.0, False)
        assert (pair.p, pair.p_holm) == (1.0, 1.0)


@pytest.mark.parametrize("splits", [1, 4])
def test_only_pairs_of_the_family_are_tested_and_they_are_corrected_for_their_number(splits):
    tables = planted(300, 1), planted(300, 2)
    policies = {
        "patience": PatienceScheduler(),
        "max_prob": GeometricScheduler(),
        "never": Fixed(thresholds=(9e9, 9e9)),
    }
    renamed = {"max_prob": policies["max_prob"], "auto": policies["patience"], "never": policies["never"]}
    for schedulers, first in ((policies, "patience"), (renamed, "auto")):
        found = compare(*tables, schedulers, ["60%"], splits=splits)
        others = [name for name in schedulers if name != first]
        assert (found.family.policy, found.family.against) == (first, tuple(others))
        assert found.to_dict()["family"] == {"policy": first, "against": tuple(others)}
        tested = [pair for pair in found.pairs if {pair.a, pair.b} in [{first, other} for other in others]]
        small, large = sorted(pair.p for pair in tested)
        assert sorted(pair.p_holm for pair in tested) == [2 * small, max(2 * small, large)]
        for pair in found.pairs:
            assert pair.significant == (pair in tested and pair.p_holm < 0.05)
            assert (pair.p_holm is None) == (pair not in tested)
        assert any(pair.significant for pair in tested)
        apart = [pair for pair in found.pairs if pair not in tested and (pair.low > 0 or pair.high < 0)]
        assert apart and not any(pair.significant for pair in apart)  # against random, and among the others
        assert any(f"Tested is {first} against each other policy" in note for note in found.notes)


def test_one_policy_alone_is_no_family():
    found = compare(planted(60, 1), planted(60, 2), MAX_PROB, ["60%"], resamples=50)
    assert (found.family.policy, found.family.against) == ("max_prob", ())
    assert not any(pair.significant or pair.p_holm is not None for pair in found.pairs)
    assert not any("Tested" in note for note in found.notes)


@pytest.mark.slow
@pytest.mark.parametrize(("splits", "draws"), [(1, 300), (5, 100)])
def test_policies_that_differ_in_nothing_are_told_apart_in_one_comparison_of_twenty_at_most(splits, draws):
    wrong = 0
    for draw in range(draws):
        val, test = planted(60, 2 * draw, exits=2), planted(150, 2 * draw + 1, exits=2)
        seeds = {("auto" if i == 0 else str(i)): Tossing(seed=100 * draw + i) for i in range(7)}
        found = compare(val, test, seeds, [1.5], splits=splits, seed=draw, resamples=1000)
        wrong += any(pair.significant for pair in found.pairs)
    assert wrong / draws <= 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5


def test_pairs_over_splits_carry_the_corrected_interval_of_paired_differences():
    val, test = planted(50, 1), planted(30, 2)
    (pair, *_) = compare(val, test, BOTH, ["60%"], splits=4, seed=4).pairs
    singles = [compare(*tables, BOTH, ["60%"], resamples=2) for tables in random_splits(val, test, 4, 4)]
    differences = [100 * (single.area["max_prob"] - single.area["patience"]) for single in singles]
    mean = sum(differences) / 4
    variance = sum((one - mean) ** 2 for one in differences) / 3
    half = 3.182446 * (variance * (1 / 4 + 30 / 50)) ** 0.5  # t with 3 degrees of freedom; judged on 30, fitted on 50
    assert (pair.a, pair.b) == ("max_prob", "patience")
    assert (pair.difference, pair.low, pair.high) == pytest.approx((mean, mean - half, mean + half), rel=1e-5)
    assert (pair.p < 0.05) == (not mean - half <= 0 <= mean + half)


# splits


def test_splits_are_means_with_sd():
    val, test = planted(50, 1), planted(30, 2)
    found = compare(val, test, MAX_PROB, ["60%"], splits=3, seed=4)
    singles = [compare(*tables, MAX_PROB, ["60%"], resamples=2) for tables in random_splits(val, test, 3, 4)]
    row = found.rows[0]
    utilities = [single.rows[0].utility_at_budget for single in singles]
    assert row.utility_at_budget == pytest.approx(np.mean(utilities))
    assert row.sd["utility_at_budget"] == pytest.approx(np.std(utilities, ddof=1))
    assert found.area["max_prob"] == pytest.approx(np.mean([single.area["max_prob"] for single in singles]))
    assert set(row.sd) == set(vars(row)) - {"policy", "budget", "budget_input", "sd"}
    assert (found.n_val, found.n_test, found.splits) == (50, 30, 3)
    assert found.pairs[0].method == "corrected resampled t (Nadeau-Bengio)"


def test_every_split_uses_every_sample_once_and_depends_on_the_seed():
    val, test = planted(20, 1), planted(10, 2)
    splits = [np.concatenate([table.logits for table in tables]) for tables in random_splits(val, test, 2, 0)]
    pool = np.concatenate([val.logits, test.logits])
    for logits in splits:
        assert np.array_equal(np.sort(logits.sum(axis=(1, 2))), np.sort(pool.sum(axis=(1, 2))))
    assert not np.array_equal(splits[0], splits[1])
    again = next(iter(random_splits(val, test, 2, 0)))
    assert np.array_equal(np.concatenate([table.logits for table in again]), splits[0])


# no more than pays


def test_a_capped_comparison_stops_where_held_out_utility_peaks_and_says_so():
    val, test = worse_at_the_end(400, 1), worse_at_the_end(400, 2)
    free = compare(val, test, MAX_PROB, resamples=10)
    held = compare(val, test, MAX_PROB, resamples=10, cap=True)
    most = most_that_pays(MAX_PROB["max_prob"], val)
    assert 1.0 < most < standard_budgets(val.costs)[-1]
    for before, after in zip(free.rows, held.rows, strict=True):
        if before.policy != "max_prob" or before.budget <= most:
            same = ("val_cost", "test_cost", "test_utility", "exit_distribution")
            assert all(getattr(before, key) == pytest.approx(getattr(after, key)) for key in same)
        else:
            assert after.val_cost <= most < before.val_cost
    assert free.rows[-3].test_cost > held.rows[-3].test_cost and held.area["max_prob"] >= free.area["max_prob"]
    assert any(f"max_prob spends at most {most:.4g} MFLOPs" in note for note in held.notes)
    assert not any("at most" in note for note in free.notes)


def test_caps_are_found_anew_on_every_split():
    val, test = worse_at_the_end(300, 1), worse_at_the_end(300, 2)
    found = compare(val, test, MAX_PROB, splits=2, cap=True)
    assert any("on average, in 2 of 2 splits" in note for note in found.notes)
    caps = [most_that_pays(MAX_PROB["max_prob"], one) for one, _ in random_splits(val, test, 2, 0)]
    assert max(row.val_cost for row in found.rows if row.policy == "max_prob") <= max(caps)


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
        types = {"policy": str, "budget_input": str, "exit_distribution": list}
        types |= dict.fromkeys(("budget", "val_cost", "test_cost", "test_utility"), float)
        types |= dict.fromkeys(("utility_at_budget", "fit_seconds"), float)
        assert {key: type(row[key]) for key in row if key != "sd"} == types
        assert ("sd" in row) == (splits > 1)
        assert 0 <= row["test_utility"] <= 1
    keys = {"a", "b", "difference", "low", "high", "p", "p_holm", "significant", "method"}
    assert set(value["pairs"][0]) == keys
    assert value["family"] == {"policy": "max_prob", "against": ["patience"]}


def test_progress_counts_every_policy_and_the_bounds():
    steps = []
    compare(by_hand(), by_hand(), MAX_PROB, splits=2, progress=lambda *step: steps.append(step))
    assert [step[1:] for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[-1][0] == "bounds (split 2)"


def test_costs_given_replace_those_of_the_tables_and_those_of_one_serve_both():
    hand, other = by_hand(), CostTable((10.0, 30.0), "ms")
    found = compare(hand, hand, MAX_PROB, [20.0], costs=other)
    assert [exit_["cost"] for exit_ in found.exits] == [10.0, 30.0]
    free = replace(hand, costs=None)
    assert compare(free, hand, MAX_PROB).unit == compare(hand, free, MAX_PROB).unit == "ms"


# costs that differ from sample to sample, and tables without classes


def test_per_sample_costs_are_realised_and_budgets_refer_to_the_means_over_val():
    hand = by_hand()
    val = replace(hand, cost=np.array([[1.0, 2.0]] * 2 + [[3.0, 6.0]] * 2))  # means 2 and 4
    test = replace(hand, cost=np.array([[1.0, 5.0], [1.0, 5.0], [1.0, 5.0], [1.0, 9.0]]))
    found = compare(val, test, {"fixed": Fixed(thresholds=(1.5,), fit_cost=2.75)}, ["75%"], resamples=50)
    fixed, random, oracle_ = found.rows
    assert (fixed.budget, found.full["cost"]) == (3.0, 4.0)
    assert (fixed.val_cost, fixed.test_cost, fixed.test_utility) == (2.75, 3.0, 0.75)  # sample 3 goes on
    assert [exit_["cost"] for exit_ in found.exits] == [1.0, 6.0]
    assert (random.val_cost, random.test_cost) == (3.0, pytest.approx(3.5))  # half leave at once, half do not
    assert (oracle_.test_cost, oracle_.test_utility) == (3.0, 0.875)  # sample 2 costs 4 more, half of sample 3 costs 4
    assert any("differ from sample to sample" in note for note in found.notes)
    (entry,) = found.groups
    assert {group.name: group.cost for group in entry.groups} == {"0": 1.0, "1": 5.0}


def test_per_sample_costs_over_splits():
    val, test = planted(40, 1), planted(30, 2)
    costs = [np.cumsum(0.5 + np.random.default_rng(n).random((n, 3)), axis=1) for n in (40, 30)]
    val, test = (replace(table, cost=cost) for table, cost in zip((val, test), costs, strict=True))
    found = compare(val, test, MAX_PROB, splits=3)
    assert (found.splits, found.n_val, found.n_test) == (3, 40, 30)
    with pytest.raises(TableError, match="cost_unit: MFLOPs and ms"):
        compare(val, replace(test, costs=CostTable((1.0, 2.0, 3.0), "ms")), MAX_PROB)


def test_tables_of_features_are_compared_by_their_columns():
    classes = [planted(80, seed) for seed in (1, 2)]
    confidence = [np.sort(table.seen(), axis=2)[:, :, -1:] for table in classes]
    features = [
        ExitTable(features=column, feature_names=("sure",), utility=table.utility, costs=table.costs)
        for table, column in zip(classes, confidence, strict=True)
    ]
    by_column = compare(*features, {"sure": GeometricScheduler(confidence="sure")}, ["60%"], resamples=20)
    by_class = compare(*classes, {"sure": GeometricScheduler()}, ["60%"], resamples=20)
    assert by_column.groups == () and by_class.groups != ()
    assert by_column.area["sure"] == pytest.approx(by_class.area["sure"])  # the order is the same


# notes


def test_who_spends_no_more_than_pays_is_said_where_not_all_do():
    auto = {"auto": AutoScheduler()}
    (some,) = saving_note(auto | MAX_PROB, cap=False)
    (everyone,) = saving_note(auto | MAX_PROB, cap=True)
    assert (
        some.startswith("auto, from 1,000 samples") and "--cap" in some and everyone.startswith("No policy spends more")
    )
    assert not list(saving_note(MAX_PROB, cap=False)) and not list(saving_note(auto, cap=False))
    assert any(
        "No policy spends more" in note for note in compare(planted(60, 1), planted(60, 2), MAX_PROB, cap=True).notes
    )


def test_notes_name_leaks_overspending_and_budgets_beyond_the_last_exit():
    found = compare(by_hand(), by_hand(), {"costly": Fixed(thresholds=(9.0,))}, [5.0])
    notes = " ".join(found.notes)
    assert found.notes[0].startswith("VAL and TEST are the same data") and found.to_dict()["same_data"] is True
    other = by_hand()
    other = compare(by_hand(), other.select(np.r_[: other.num_samples, 0][1:]), MAX_PROB)
    assert not other.same_data and "the same data" not in " ".join(other.notes)
    assert "costly costs 2 ms on VAL where 1.05 was asked" in notes
    assert "Budget 5 is above the last exit" in notes
    assert "do not name their source" in notes
    named = replace(by_hand(), source="abc")
    assert not any("source" in note for note in compare(named, named, MAX_PROB).notes)


# refused


def test_tables_that_disagree_are_refused_naming_what_differs():
    base = replace(planted(20, 1), source="abc")
    cases = [
        ("exits: 3 and 2", planted(20, 2, exits=2)),
        ("classes: 4 and 5", planted(20, 2, classes=5)),
        ("cost_unit: MFLOPs and ms", replace(base, costs=CostTable((1.0, 2.0, 3.0), "ms", 2.8))),
        ("costs of exit 1: 2 and 2.5", replace(base, costs=CostTable((1.0, 2.5, 3.0), "MFLOPs", 2.8))),
        ("cost_reference: 2.8 and 2.9", replace(base, costs=CostTable((1.0, 2.0, 3.0), "MFLOPs", 2.9))),
        ("cost_reference: 2.8 and none", replace(base, costs=CostTable((1.0, 2.0, 3.0), "MFLOPs"))),
        ("source: abc and abd", replace(base, source="abd")),
        ("outputs: logits and features", ExitTable(features=base.logits, utility=base.utility, costs=base.costs)),
    ]
    for message, other in cases:
        with pytest.raises(TableError, match=message):
            compare(base, other, MAX_PROB)


def test_tables_of_two_models_are_compared_on_request():
    val, test = planted(60, 1), planted(60, 2)
    wanted = compare(val, test, MAX_PROB).rows
    first, second = replace(val, source="abc"), replace(test, source="abd")
    with pytest.raises(TableError, match=r"source: abc and abd.*check_source=False"):
        compare(first, second, MAX_PROB)
    found = compare(first, second, MAX_PROB, check_source=False)
    assert [row.test_cost for row in found.rows] == [row.test_cost for row in wanted]
    assert any("do not name their source" in note for note in found.notes)
    assert compare(first, second, MAX_PROB, splits=2, check_source=False).splits == 2


def test_what_cannot_be_compared_is_refused():
    hand = by_hand()
    free = replace(hand, costs=None)
    for error, match, val, test, schedulers, more in (
        (TableError, "labels", hand, ExitTable(logits=hand.logits, costs=hand.costs), MAX_PROB, {}),
        (TableError, "costs", free, free, MAX_PROB, {}),
        (ShapeError, "costs of 3 exits", hand, hand, MAX_PROB, {"costs": CostTable((1.0, 2.0, 3.0), "ms")}),
        (BudgetError, "out of reach", hand, hand, MAX_PROB, {"budgets": [0.5]}),
        (InputError, "splits 0", hand, hand, MAX_PROB, {"splits": 0}),
        (InputError, "oracle", hand, hand, {"oracle": GeometricScheduler()}, {}),
    ):
        with pytest.raises(error, match=match):
            compare(val, test, schedulers, **more)


def test_nothing_is_replayed_twice_for_one_scorer():
    # all budgets of a score policy share one scorer: the scores are computed once per table
    calls = []
    original = Replayer.scores

    def counting(self, source):
        calls.append((id(self), id(source)))
        return original(self, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replayer, "scores", counting)
        compare(planted(30, 1), planted(30, 2), MAX_PROB)
    assert len(set(calls)) <= 3  # fitting, val, test


# what is saved


def test_the_saving_is_that_of_the_tested_policy_at_the_smallest_budget_that_val_allows():
    val, test = planted(400, 1), planted(400, 2)
    found = compare(val, test, BOTH, ["40%", "60%", "80%", "95%"], resamples=50)
    dial = BOTH["max_prob"].sweep(val, budgets=[row.budget for row in found.rows])
    full, on_val = float(val.utility[:, -1].mean()), Replayer(val)
    kept = [budget for budget in ("40%", "60%", "80%", "95%") if on_val.expected(dial.at(budget))[1] >= full - 0.01]
    assert found.saving_at == (kept[0] if kept else "95%")
    same = saving(dial.at(found.saving_at), test)
    assert found.saving is not None and found.saving.lost == pytest.approx(same.lost, abs=0.5)
    assert found.saving.cost_share == pytest.approx(same.cost_share, abs=0.02)
    assert found.verdict == f"max_prob at {found.saving_at}: {found.saving.sentence}" == found.to_dict()["verdict"]


def test_over_several_splits_the_verdict_names_the_largest_area():
    found = compare(planted(100, 1), planted(100, 2), BOTH, ["50%"], splits=2)
    assert found.saving is None and found.to_dict()["saving"] is None
    assert max(BOTH, key=lambda name: found.area[name]) in found.verdict
    assert compare(by_hand(), by_hand(), {}, [1.5]).verdict == "No policy was compared."


def test_groups_stay_together_and_intervals_resample_them():
    val, test = synthetic_table(300, seed=1), synthetic_table(300, seed=2)
    groups = [np.arange(300) // 10, 30 + np.arange(300) // 10]
    of_val, of_test = (replace(one, group=group) for one, group in zip((val, test), groups, strict=True))
    for fitting, judging in random_splits(of_val, of_test, 3, seed=0):
        assert not np.intersect1d(fitting.group, judging.group).size
        assert len(fitting.group) + len(judging.group) == 600
    schedulers = {"joint": JointScheduler(), "max_prob": GeometricScheduler()}
    alone, together = (compare(val, one, schedulers, ["50%"], resamples=200) for one in (test, of_test))
    assert alone.area == together.area
    assert alone.pairs[0].low != together.pairs[0].low
    assert any("30 groups: intervals resample whole groups" in note for note in together.notes)
    with pytest.raises(TableError, match=r"3 groups .* needs 5"):
        compare(val, replace(test, group=np.arange(300) % 3), schedulers)

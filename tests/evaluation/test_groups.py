import json
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.tables import NEVER, Fixed, by_hand, planted

from eenet.errors import InputError, ShapeError
from eenet.evaluation import compare, evaluate
from eenet.evaluation.groups import Grouping, PolicyGroups, group_rows, group_stats, groupings
from eenet.policies.policy import ScorePolicy
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ConfidenceScorer
from eenet.schedulers import GeometricScheduler, VoteScheduler
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

MAX_PROB = {"max_prob": GeometricScheduler()}
LEAVES_AT_1_5 = ScorePolicy(ConfidenceScorer("max_prob"), np.array([1.5, -NEVER]))


def rows_of(exit_index, utility, full, groups, costs=(1.0, 2.0)):
    (known,) = groupings(table_of(utility, full, costs), groups)
    return group_rows(known.names, [stats_of(exit_index, utility, full, known, costs)])


def table_of(utility, full, costs):
    earned = np.array([utility] * (len(costs) - 1) + [full], dtype=float).T
    return ExitTable(features=earned[:, :, None], utility=earned, costs=CostTable(costs, "ms"))


def stats_of(exit_index, utility, full, groups, costs=(1.0, 2.0)):
    table = table_of(utility, full, costs)
    return group_stats(groups, table, np.eye(len(costs))[list(exit_index)], np.array(utility, dtype=float))


# by hand


def test_by_hand():
    # exit 0 is right on samples 0 and 1 (class 0); samples 0, 1 and 2 leave there, so class 1 pays for sample 2
    harmed, spared = evaluate(LEAVES_AT_1_5, by_hand()).by_group
    assert (harmed.name, spared.name) == ("1", "0")
    assert (harmed.num_samples, harmed.cost, harmed.utility, harmed.full_utility) == (2.0, 1.5, 0.5, 1.0)
    assert harmed.exit_distribution == (0.5, 0.5)
    assert harmed.loss == 50.0
    assert (spared.exit_distribution, spared.cost, spared.loss) == ((1.0, 0.0), 1.0, 0.0)
    # losses 1 and 0 with one made-up win and one made-up loss: mean 1/4, mean of squares 3/4; two groups
    half = NormalDist().inv_cdf(1 - 0.025 / 2) * ((3 / 4 - 1 / 16) / 4) ** 0.5
    assert (harmed.low, harmed.high) == pytest.approx((100 * (1 / 4 - half), min(100.0, 100 * (1 / 4 + half))))
    assert not harmed.significant and not harmed.pays_more  # two samples prove nothing


def test_many_harmed_samples_are_harm_and_few_are_not_even_with_the_larger_loss():
    # a: 400 samples, 30 lose; b: 400 samples, none; c: 3 samples, 1 loses
    groups = ["a"] * 400 + ["b"] * 400 + ["c"] * 3
    utility = [0.0] * 30 + [1.0] * 770 + [0.0, 1.0, 1.0]
    first, second, third = rows_of([0] * 803, utility, [1.0] * 803, groups)
    assert [first.name, second.name, third.name] == ["a", "b", "c"]
    assert first.loss == pytest.approx(7.5) and first.significant and first.pays_more
    assert second.loss == 0 and not second.significant
    assert third.loss == pytest.approx(100 / 3) and not third.significant and not third.pays_more
    (only,) = rows_of([0] * 100, [1.0] * 100, [0.0] * 100, [7] * 100)  # gains are significant too
    assert (only.name, only.loss, only.significant, only.pays_more) == ("7", -100.0, True, False)


def test_without_labels_there_are_only_the_groups_given():
    hand = by_hand()
    bare = ExitTable(logits=hand.logits, utility=hand.utility, costs=hand.costs)
    assert evaluate(LEAVES_AT_1_5, bare).by_group == ()
    named = evaluate(LEAVES_AT_1_5, bare, groups=["x", "y", "x", "y"]).by_group
    assert [(group.name, group.loss) for group in named] == [("x", 50.0), ("y", 0.0)]
    found = compare(bare, bare, MAX_PROB, [1.5], groups=np.array([3, 3, 1, 1]))
    assert [(entry.policy, entry.by, len(entry.groups)) for entry in found.groups] == [("max_prob", "group", 2)]
    assert compare(bare, bare, MAX_PROB, [1.5]).groups == ()


def test_a_class_nobody_has_is_left_out():
    (known,) = groupings(ExitTable(logits=np.zeros((3, 2, 4)), labels=[0, 0, 2]))
    stats = stats_of(np.zeros(3, int), np.ones(3), np.ones(3), known)
    assert [group.name for group in group_rows(known.names, [stats])] == ["0", "2"]


def test_splits_are_means_over_the_samples_of_a_group():
    # one sample of the group in split 1, three in split 2; the other group is missing in split 1
    first = Grouping(by="class", names=("a", "b"), index=np.array([0]))
    second = Grouping(by="class", names=("a", "b"), index=np.array([0, 0, 0, 1]))
    stats = [
        stats_of([1], [1.0], [1.0], first, (1.0, 3.0)),
        stats_of([0, 0, 0, 0], [0.0, 1.0, 1.0, 1.0], np.ones(4), second, (1.0, 3.0)),
    ]
    rows = {group.name: group for group in group_rows(("a", "b"), stats)}
    assert (rows["a"].num_samples, rows["a"].exit_distribution, rows["a"].cost) == (2.0, (0.75, 0.25), 1.5)
    assert (rows["a"].utility, rows["a"].loss) == (0.75, 25.0)
    assert (rows["b"].num_samples, rows["b"].exit_distribution) == (0.5, (1.0, 0.0))
    assert rows["b"].high == pytest.approx(stats[1]["high"][1])


# slow twin


def test_slow_twin_in_a_comparison():
    val, test = planted(60, 1), planted(50, 2)
    scheduler = VoteScheduler()  # answers with all exits seen: utility is not the table's
    found = compare(val, test, {"vote": scheduler}, ["60%", "80%"], resamples=2)
    assert [entry.budget_input for entry in found.groups] == ["60%", "80%"]
    sweep = sorted({row.budget for row in found.rows} | set(found.standard_budgets))
    dial = scheduler.sweep(val, val.costs, budgets=sweep)
    for entry in found.groups:
        parts = dial.at(entry.budget).components()
        replayer = Replayer(test)
        left = [(share, replayer.exit_index(part).tolist()) for share, part in parts]
        earned = [(share, replayer.utility(part).tolist()) for share, part in parts]
        assert {group.name for group in entry.groups} == {str(label) for label in set(test.labels.tolist())}
        for group in entry.groups:
            own = [n for n in range(50) if int(test.labels[n]) == int(group.name)]
            assert group.num_samples == len(own)
            for k in range(3):
                wanted = sum(share * sum(exits[n] == k for n in own) for share, exits in left) / len(own)
                assert group.exit_distribution[k] == pytest.approx(wanted)
            spent = sum(share * sum(test.costs.cumulative[exits[n]] for n in own) for share, exits in left)
            assert group.cost == pytest.approx(spent / len(own))
            full = sum(float(test.utility[n, -1]) for n in own) / len(own)
            gained = sum(share * sum(one[n] for n in own) for share, one in earned) / len(own)
            assert group.loss == pytest.approx(100 * (full - gained))


def test_groups_add_up_to_the_row_over_splits_too():
    val, test = planted(60, 1), planted(40, 2)
    for splits in (1, 3):
        found = compare(val, test, MAX_PROB, ["60%"], splits=splits, resamples=2)
        (entry,), row = found.groups, found.rows[0]
        sizes = np.array([group.num_samples for group in entry.groups])
        assert sizes.sum() == pytest.approx(40)
        assert sizes @ [group.cost for group in entry.groups] / 40 == pytest.approx(row.test_cost)
        assert sizes @ [group.utility for group in entry.groups] / 40 == pytest.approx(row.test_utility)
        full = found.exits[-1]["utility_test"]
        assert entry.loss == pytest.approx(100 * (full - row.test_utility))


# property


@settings(max_examples=40, deadline=None)
@given(
    samples=st.lists(
        st.tuples(st.integers(0, 2), st.floats(0, 1), st.floats(0, 1), st.sampled_from("abc")), min_size=1, max_size=30
    ),
    order=st.randoms(use_true_random=False),
)
def test_the_interval_holds_the_loss_and_the_order_of_samples_does_not_matter(samples, order):
    mixed = list(samples)
    order.shuffle(mixed)
    found = [rows_of(*zip(*listed, strict=True), costs=(1.0, 2.0, 3.0)) for listed in (samples, mixed)]
    for group, again in zip(*(sorted(rows, key=lambda group: group.name) for rows in found), strict=True):
        assert sum(group.exit_distribution) == pytest.approx(1.0)
        assert 1.0 <= group.cost <= 3.0 + 1e-9
        assert -100 <= group.low <= group.loss + 1e-9 and group.loss - 1e-9 <= group.high <= 100
        assert group.loss == pytest.approx(again.loss, abs=1e-9)
        assert group.exit_distribution == again.exit_distribution
    assert [group.low for group in found[0]] == sorted((group.low for group in found[0]), reverse=True)


# promise


@pytest.mark.parametrize(("size", "lose", "win"), [(6, 0.3, 0.0), (20, 0.1, 0.05), (200, 0.02, 0.01), (200, 0.2, 0.1)])
def test_all_intervals_hold_at_once_in_95_of_100_draws(size, lose, win):
    generator, draws, number = np.random.default_rng(3), 300, 8
    known = Grouping(by="group", names=tuple("abcdefgh"), index=np.repeat(np.arange(number), size))
    covered = 0
    for _ in range(draws):
        uniform = generator.random(number * size)
        utility = 0.5 - 0.5 * (uniform < lose) + 0.5 * (uniform > 1 - win)
        full = 0.5 + 0.5 * (uniform < lose) - 0.5 * (uniform > 1 - win)
        stats = stats_of(np.zeros(number * size, int), utility, full, known)
        loss = 100 * (lose - win)
        covered += bool(((stats["low"] <= loss) & (loss <= stats["high"])).all())
    assert covered / draws >= 0.95 - 3 * (0.95 * 0.05 / draws) ** 0.5


# contract


def test_the_json_lists_up_to_fifty_groups_and_of_more_the_worst_ten():
    hand = by_hand()
    two = compare(hand, hand, {"fixed": Fixed(thresholds=(1.5,))}, [1.25, "1250us"], groups=["a", "a", "b", "b"])
    value = json.loads(json.dumps(two.to_dict(), allow_nan=False))["groups"]
    assert [(entry["by"], entry["budget_input"]) for entry in value] == [("class", "1.25"), ("group", "1.25")]
    summary = {"num_groups", "loss", "largest_loss", "spread", "pays_more"}
    assert set(value[0]) == {"policy", "budget", "budget_input", "by", "groups"} | summary
    assert value[1]["groups"][0]["name"] == "b"
    assert (value[1]["loss"], value[1]["largest_loss"], value[1]["spread"]) == (25.0, 50.0, 25.0)
    many = rows_of([0] * 102, [1.0] * 102, [1.0] * 102, np.arange(102) // 2)
    entry = PolicyGroups(policy="p", budget=1.0, budget_input="1", by="group", groups=many)
    assert entry.to_dict()["num_groups"] == 51 and len(entry.to_dict()["groups"]) == 10
    assert (
        json.loads(json.dumps(evaluate(LEAVES_AT_1_5, hand).to_dict()))["by_group"][0]["exit_distribution"] == [0.5] * 2
    )


# refused


def test_groups_that_cannot_be_used_are_refused():
    hand = by_hand()
    with pytest.raises(ShapeError, match="4 samples"):
        compare(hand, hand, MAX_PROB, groups=np.zeros((4, 1), int))
    with pytest.raises(InputError, match="groups with splits 2"):
        compare(hand, hand, MAX_PROB, splits=2, groups=[0, 0, 1, 1])

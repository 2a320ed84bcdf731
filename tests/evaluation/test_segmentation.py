"""Maps: quality from confusion counts, of a policy and of many at equal cost."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.tables import confusion_of, dense_table

from eenet.errors import InputError, ShapeError, TableError
from eenet.evaluation import compare, evaluate, load_confusion
from eenet.evaluation.segmentation import class_iou, counts_at, marginals, mean_iou, pixel_accuracy
from eenet.evaluation.statistics import curve
from eenet.policies.policy import ScorePolicy
from eenet.policies.replay import Replayer, replay
from eenet.policies.scorers import ColumnScorer
from eenet.report.comparison import comparison_page
from eenet.schedulers import GeometricScheduler, JointScheduler
from eenet.schedulers.bounds import static_mix

SCHEDULERS = {"max_prob": GeometricScheduler(), "joint": JointScheduler()}


def miou(confusion, exit_index):
    return float(mean_iou(counts_at(confusion, exit_index)))


def random_confusion(samples=30, exits=4, classes=5, seed=0):
    counts = np.random.default_rng(seed).integers(20, size=(samples, exits, classes, classes))
    return counts + np.arange(1, exits + 1)[:, None, None] * np.eye(classes, dtype=np.int64) * 15


def at(*thresholds):
    return ScorePolicy(ColumnScorer(0, 8), np.array([*thresholds, -math.inf]))


@pytest.fixture(scope="module")
def tables():
    val, test = dense_table(200, seed=0), dense_table(150, seed=1)
    return val, test, confusion_of(test)


@pytest.fixture(scope="module")
def comparison(tables):
    val, test, confusion = tables
    return compare(val, test, SCHEDULERS, ["2 ms", 3.0], confusion=confusion, resamples=200)


def test_one_image_by_hand():
    # 6 pixels of class 0, of which 4 are right and 2 answered 2; 4 of class 1, all right; class 2 does not occur
    counts = np.array([[4, 0, 2], [0, 4, 0], [0, 0, 0]])
    assert pixel_accuracy(counts).item() == 0.8
    assert class_iou(marginals(counts)).tolist() == pytest.approx([4 / 6, 1.0, math.nan], nan_ok=True)
    assert mean_iou(counts).item() == pytest.approx((4 / 6 + 1) / 2)
    nothing = np.zeros((2, 3, 3), dtype=np.int64)
    assert pixel_accuracy(nothing).tolist() == mean_iou(nothing).tolist() == [1.0, 1.0]


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_data_set_is_one_large_image(seed):
    confusion = random_confusion(seed=seed)
    generator = np.random.default_rng(seed)
    exit_index = generator.integers(4, size=30)
    total = confusion[np.arange(30), exit_index].sum(axis=0)
    assert np.array_equal(counts_at(confusion, exit_index), total)
    slow = [
        float(total[c, c]) / float(total[c].sum() + total[:, c].sum() - total[c, c]) for c in range(5) if total[c].any()
    ]
    assert miou(confusion, exit_index) == pytest.approx(sum(slow) / len(slow))
    order = generator.permutation(30)
    assert miou(confusion[order], exit_index[order]) == miou(confusion, exit_index)


def test_a_data_set_is_not_the_mean_of_its_images():
    confusion = np.array([[[[1, 0], [9, 0]]], [[[5, 0], [0, 5]]]]).repeat(2, axis=1)
    assert mean_iou(confusion[:, 0]).tolist() == pytest.approx([0.05, 1.0])
    assert miou(confusion, np.array([0, 1])) == pytest.approx((6 / 15 + 5 / 14) / 2)


def test_a_report_agrees_with_replay():
    table, confusion, policy = dense_table(30), random_confusion(), at(0.5, 0.8, 1.0)
    confusion[:, :, 2] = 0  # does not occur
    trace = replay(policy, table)
    report = evaluate(policy, table, confusion=confusion, budget=2.0)
    maps = report.maps
    assert report.cost == pytest.approx(trace.mean_cost)
    assert maps.miou == miou(confusion, trace.exit_index)
    assert maps.class_iou[2] is None and maps.class_iou.count(None) == 1
    assert maps.miou == pytest.approx(np.mean([value for value in maps.class_iou if value is not None]))
    assert maps.static_miou == tuple(miou(confusion, np.full(30, k)) for k in range(4))
    assert maps.static_pixel_accuracy[3] > maps.static_pixel_accuracy[0]
    total = confusion[np.arange(30), trace.exit_index].sum(axis=0)
    assert maps.pixel_accuracy == pytest.approx(float(np.trace(total) / total.sum()))
    value = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert value["cost"] == report.cost and value["miou"] == maps.miou and len(value["class_iou"]) == 5
    assert "maps" not in value and "miou" not in evaluate(policy, table).to_dict()


def leaving(policy, table):
    """The chance of every image to leave at each exit, over the policy's coin, from replay."""
    replayer, exits = Replayer(table), np.eye(table.num_exits)
    return sum(share * exits[replayer.exit_index(part)] for share, part in policy.components())


def expected_miou(confusion, shares):
    """The mean IoU of the counts expected; counts of ten billionths of a pixel are whole numbers."""
    return float(mean_iou((1e10 * np.einsum("ne,necd->cd", shares, confusion)).round().astype(np.int64)))


def realised(dial, table, confusion, budgets):
    """The curve of a dial in mean IoU, in expectation over its coin."""
    shares = [leaving(dial.at(budget), table) for budget in budgets]
    costs = [float((one @ np.arange(1, 5)).mean()) for one in shares]
    utilities = [expected_miou(confusion, one) for one in shares]
    return curve(np.array(costs), np.array(utilities), anchor=(1.0, float(mean_iou(confusion[:, 0].sum(axis=0)))))


def test_rows_agree_with_replay_and_mean_iou(tables, comparison):
    val, test, confusion = tables
    dial = GeometricScheduler().sweep(val)
    shares = leaving(dial.at(2.0), test)
    row = next(row for row in comparison.rows if (row.policy, row.budget) == ("max_prob", 2.0))
    assert len(dial.at(2.0).components()) == 2
    assert row.test_utility == pytest.approx(expected_miou(confusion, shares))
    assert row.test_cost == pytest.approx(float((shares @ np.arange(1, 5)).mean()))
    assert row.exit_distribution == pytest.approx(shares.mean(axis=0).tolist())
    joined = realised(dial, test, confusion, (*comparison.standard_budgets, 2.0, 3.0))
    assert row.utility_at_budget == pytest.approx(joined.at(2.0))
    assert comparison.area["max_prob"] == pytest.approx(joined.area(comparison.standard_budgets))
    assert [one["utility_test"] for one in comparison.exits] == pytest.approx(mean_iou(confusion.sum(axis=0)).tolist())
    assert comparison.full["utility_test"] == comparison.exits[-1]["utility_test"]
    assert {row.policy for row in comparison.rows} == {*SCHEDULERS, "random"}


def test_the_static_mix_is_judged_by_the_counts_expected_of_its_coin(tables, comparison):
    val, test, confusion = tables
    shares = np.array(static_mix(val, test, val.require_costs(), 2.0).distribution)
    expected = (shares[:, None, None] * confusion.sum(axis=0)).sum(axis=0)
    row = next(row for row in comparison.rows if (row.policy, row.budget) == ("random", 2.0))
    assert row.test_utility == pytest.approx(float(mean_iou((1e6 * expected).round().astype(np.int64))), abs=1e-6)


def test_the_bootstrap_agrees_with_a_loop_over_resampled_images(tables, comparison):
    val, test, confusion = tables
    pairs = {(pair.a, pair.b): pair for pair in comparison.pairs}
    pair, rng = pairs["max_prob", "joint"], np.random.default_rng(5)
    budgets = (*comparison.standard_budgets, 2.0, 3.0)
    dials = [scheduler.sweep(val, budgets=list(budgets)) for scheduler in SCHEDULERS.values()]
    slow = []
    for _ in range(60):
        rows = rng.integers(150, size=150)
        curves = [realised(dial, test.select(rows), confusion[rows], budgets) for dial in dials]
        areas = [one.area(comparison.standard_budgets) for one in curves]
        slow.append(100 * (areas[0] - areas[1]))
    tolerance = 0.6 * (pair.high - pair.low)
    assert (pair.low, pair.high) == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])), abs=tolerance)
    assert pair.low <= pair.difference <= pair.high
    assert pairs["max_prob", "random"].low > 0


def test_a_comparison_can_be_written_and_reported(comparison):
    value = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert "data set's mean IoU" in value["notes"][0]
    assert "oracle" not in value["area"] and value["groups"] == []
    assert "mean IoU" in comparison_page(value)


def test_what_does_not_fit_is_refused(tables, tmp_path):
    val, test, confusion = tables
    table = dense_table(30)
    with pytest.raises(ShapeError, match="the table has 30 images, 4 exits and 5 classes"):
        evaluate(at(0, 0, 0), table, confusion=random_confusion(classes=4))
    with pytest.raises(ShapeError, match="exit_index of shape"):
        counts_at(random_confusion(), np.zeros(29, dtype=np.int64))
    np.savez(tmp_path / "a.npz", confusion=np.zeros((3, 2, 4, 5)))
    with pytest.raises(TableError, match="confusion of shape"):
        load_confusion(tmp_path / "a.npz")
    with pytest.raises(TableError, match="costs are missing"):
        evaluate(at(0, 0, 0), replace(table, costs=None), confusion=random_confusion())
    with pytest.raises(ShapeError, match="confusion of shape"):
        compare(val, test, SCHEDULERS, confusion=confusion[:10])
    for named, more in (("confusion with splits 2", {"splits": 2}), ("groups with confusion", {"groups": [0] * 150})):
        with pytest.raises(InputError, match=named):
            compare(val, test, SCHEDULERS, confusion=confusion, **more)

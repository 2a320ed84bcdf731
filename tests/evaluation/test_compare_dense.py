"""Policies on maps at equal cost: the data set's mean IoU, and a bootstrap that sums counts anew."""

import json

import numpy as np
import pytest
from tests.evaluation.tables import dense_table

from eenet.errors import InputError, ShapeError
from eenet.evaluation import compare_dense, dense_curve, miou
from eenet.evaluation.segmentation import mean_iou
from eenet.policies.replay import Replayer
from eenet.report.comparison import comparison_page
from eenet.report.html import write_page
from eenet.schedulers import GeometricScheduler, JointScheduler
from eenet.schedulers.bounds import static_mix


def confusion_of(table, pixels=200, seed=0):
    """Counts that agree with the utility of every image at every exit, errors spread evenly; classes at random."""
    classes = sum(name.startswith("p") for name in table.feature_names)
    share = np.random.default_rng(seed).random((table.num_samples, 1, classes)) ** 2
    of_class = (pixels * share / share.sum(axis=2, keepdims=True)).round()
    right = (of_class * table.utility[:, :, None]).round()
    wrong = of_class - right
    counts = right[..., None] * np.eye(classes)
    for shift in range(1, classes):
        part = wrong // (classes - shift)
        wrong = wrong - part
        counts += part[..., None] * np.roll(np.eye(classes), shift, axis=1)
    return counts.astype(np.int64)


@pytest.fixture(scope="module")
def tables():
    val, test = dense_table(200, seed=0), dense_table(150, seed=1)
    return val, test, confusion_of(test)


SCHEDULERS = {
    "max_prob": GeometricScheduler(),
    "joint": JointScheduler(),
    "again": GeometricScheduler(),
}


@pytest.fixture(scope="module")
def comparison(tables):
    return compare_dense(*tables, SCHEDULERS, ["2 ms", 3.0], resamples=200)


def test_the_planted_counts_agree_with_the_utility(tables):
    _, test, confusion = tables
    share = np.trace(confusion, axis1=2, axis2=3) / confusion.sum(axis=(2, 3))
    assert np.allclose(share, test.utility, atol=0.02)


def test_rows_are_what_replay_and_mean_iou_say(tables, comparison):
    val, test, confusion = tables
    dial = GeometricScheduler().sweep(val)
    exits = Replayer(test).exit_index(dial.at(2.0))
    row = next(row for row in comparison.rows if (row.policy, row.budget) == ("max_prob", 2.0))
    assert row.test_utility == pytest.approx(miou(confusion, exits))
    assert row.test_cost == pytest.approx(float(1 + exits.mean()))
    assert row.exit_distribution == pytest.approx((np.bincount(exits, minlength=4) / 150).tolist())
    curve = dense_curve(dial, test, confusion, budgets=(*comparison.standard_budgets, 2.0, 3.0))
    assert row.utility_at_budget == pytest.approx(curve.at(2.0))
    assert comparison.area["max_prob"] == pytest.approx(curve.area(comparison.standard_budgets))
    assert [one["utility_test"] for one in comparison.exits] == pytest.approx(mean_iou(confusion.sum(axis=0)).tolist())
    assert comparison.full["utility_test"] == comparison.exits[-1]["utility_test"]
    assert {row.policy for row in comparison.rows} == {*SCHEDULERS, "random"}


def test_the_blind_mix_is_judged_by_the_counts_its_coin_is_expected_to_give(tables, comparison):
    val, test, confusion = tables
    shares = np.array(static_mix(val, test, val.require_costs(), 2.0).distribution)
    expected = (shares[:, None, None] * confusion.sum(axis=0)).sum(axis=0)
    row = next(row for row in comparison.rows if (row.policy, row.budget) == ("random", 2.0))
    assert row.test_utility == pytest.approx(float(mean_iou((1e6 * expected).round().astype(np.int64))), abs=1e-6)


def test_the_bootstrap_agrees_with_a_loop_over_redrawn_images(tables, comparison):
    val, test, confusion = tables
    pair = next(pair for pair in comparison.pairs if (pair.a, pair.b) == ("max_prob", "joint"))
    rng = np.random.default_rng(5)
    budgets = (*comparison.standard_budgets, 2.0, 3.0)
    dials = [SCHEDULERS[name].sweep(val, budgets=list(budgets)) for name in ("max_prob", "joint")]
    slow = []
    for _ in range(60):
        rows = rng.integers(150, size=150)
        areas = [
            dense_curve(dial, test.select(rows), confusion[rows], budgets=budgets).area(comparison.standard_budgets)
            for dial in dials
        ]
        slow.append(100 * (areas[0] - areas[1]))
    assert pair.low == pytest.approx(np.quantile(slow, 0.025), abs=0.6 * (pair.high - pair.low))
    assert pair.high == pytest.approx(np.quantile(slow, 0.975), abs=0.6 * (pair.high - pair.low))
    assert pair.low <= pair.difference <= pair.high
    assert pair.method == "paired bootstrap"


def test_equal_policies_differ_by_nothing_and_good_ones_beat_blind_mixing(comparison):
    pairs = {(pair.a, pair.b): pair for pair in comparison.pairs}
    same = pairs["max_prob", "again"]
    assert (same.difference, same.low, same.high, same.significant) == (0, 0, 0, False)
    assert pairs["max_prob", "random"].significant and pairs["max_prob", "random"].difference > 0


def test_it_can_be_written_and_shown(comparison, tmp_path):
    value = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert "data set's mean IoU" in value["notes"][0]
    assert "oracle" not in value["area"] and value["groups"] == []
    write_page(tmp_path / "page.html", comparison_page(value))
    assert "mean IoU" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_what_does_not_fit_is_refused(tables):
    val, test, confusion = tables
    with pytest.raises(ShapeError, match="confusion of shape"):
        compare_dense(val, test, confusion[:10], SCHEDULERS)
    with pytest.raises(InputError, match="has a bound's name"):
        compare_dense(val, test, confusion, {"oracle": GeometricScheduler()})

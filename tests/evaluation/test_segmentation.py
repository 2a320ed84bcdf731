"""Pixel accuracy and mean IoU from counts, of images and of a data set whose images leave at different exits."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.evaluation.tables import dense_table

from eenet.errors import ShapeError, TableError
from eenet.evaluation import dense_curve, evaluate_dense, load_confusion, miou
from eenet.evaluation.segmentation import class_iou, counts_at, mean_iou, pixel_accuracy
from eenet.policies.policy import ScorePolicy
from eenet.policies.replay import replay
from eenet.policies.scorers import ColumnScorer
from eenet.schedulers import GeometricScheduler
from eenet.tables.costs import CostTable


def test_one_image_by_hand():
    # 6 pixels of class 0, of which 4 are right and 2 answered 2; 4 of class 1, all right; class 2 does not occur
    counts = np.array([[4, 0, 2], [0, 4, 0], [0, 0, 0]])
    assert pixel_accuracy(counts).item() == 0.8
    assert class_iou(counts).tolist()[:2] == [4 / 6, 1.0]
    assert np.isnan(class_iou(counts)[2])
    assert mean_iou(counts).item() == pytest.approx((4 / 6 + 1) / 2)


def test_nothing_counted_is_worth_1():
    nothing = np.zeros((2, 3, 3), dtype=np.int64)
    assert pixel_accuracy(nothing).tolist() == mean_iou(nothing).tolist() == [1.0, 1.0]


def drawn_confusion(num_samples=30, exits=4, classes=5, seed=0):
    counts = np.random.default_rng(seed).integers(20, size=(num_samples, exits, classes, classes))
    rights = np.arange(1, exits + 1)[:, None, None] * np.eye(classes, dtype=np.int64) * 15
    return counts + rights


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_a_data_set_is_one_large_image(seed):
    confusion = drawn_confusion(seed=seed)
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
    images = mean_iou(confusion[:, 0])
    assert images.tolist() == pytest.approx([0.05, 1.0])
    assert miou(confusion, np.array([0, 1])) == pytest.approx((6 / 15 + 5 / 14) / 2)
    assert miou(confusion, np.array([0, 1])) != pytest.approx(float(images.mean()))


@pytest.fixture
def table():
    return dense_table(30)


def test_a_report_says_what_replay_does(table):
    confusion = drawn_confusion()
    policy = ScorePolicy(ColumnScorer(0, 8), np.array([0.5, 0.8, 1.0, -math.inf]))
    trace = replay(policy, table)
    report = evaluate_dense(policy, table, confusion, budget=2.0)
    assert report.images.cost == pytest.approx(trace.mean_cost)
    assert report.images.budget == 2.0
    assert report.miou == miou(confusion, trace.exit_index)
    assert report.miou == pytest.approx(np.mean([value for value in report.class_iou if value is not None]))
    assert report.static_miou == tuple(miou(confusion, np.full(30, k)) for k in range(4))
    assert report.static_pixel_accuracy[3] > report.static_pixel_accuracy[0]
    total = confusion[np.arange(30), trace.exit_index].sum(axis=0)
    assert report.pixel_accuracy == pytest.approx(float(np.trace(total) / total.sum()))
    value = report.to_dict()
    assert value["cost"] == report.images.cost and value["miou"] == report.miou and len(value["class_iou"]) == 5


def test_a_class_that_does_not_occur_is_none(table):
    confusion = drawn_confusion()
    confusion[:, :, 2] = 0
    policy = ScorePolicy(ColumnScorer(0, 8), np.full(4, -math.inf))
    report = evaluate_dense(policy, table, confusion)
    assert report.class_iou[2] is None and report.class_iou.count(None) == 1


def test_the_curve_begins_with_exit_0_and_passes_through_realised_points(table):
    confusion = drawn_confusion()
    dial = GeometricScheduler().sweep(table)
    found = dense_curve(dial, table, confusion, budgets=(1.5, 2.5))
    assert (found.costs[0], found.utilities[0]) == (1.0, miou(confusion, np.zeros(30, dtype=np.int64)))
    trace = replay(dial.at(2.5), table)
    assert found.at(trace.mean_cost) == pytest.approx(miou(confusion, trace.exit_index))
    assert len(dense_curve(dial, table, confusion).costs) > 5


def test_what_does_not_fit_is_refused(table, tmp_path):
    policy = ScorePolicy(ColumnScorer(0, 8), np.full(4, -math.inf))
    with pytest.raises(ShapeError, match="the table has 30 images, 4 exits and 5 classes"):
        evaluate_dense(policy, table, drawn_confusion(classes=4))
    with pytest.raises(ShapeError, match="exit_index of shape"):
        miou(drawn_confusion(), np.zeros(29, dtype=np.int64))
    np.savez(tmp_path / "a.npz", confusion=np.zeros((3, 2, 4, 5)))
    with pytest.raises(TableError, match="confusion of shape"):
        load_confusion(tmp_path / "a.npz")
    with pytest.raises(TableError, match="costs are missing"):
        evaluate_dense(policy, replace(table, costs=None), drawn_confusion())
    other = CostTable((1.0, 2.0, 3.0, 5.0), "s")
    assert evaluate_dense(policy, table, drawn_confusion(), other).images.unit == "s"

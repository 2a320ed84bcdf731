"""Transforms and the tables seen through them."""

import math

import numpy as np
import pytest

from eenet.errors import InputError, TableError
from eenet.policies import Ensemble, Transform
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table


class Mean(Transform):
    """The normalised geometric mean of all exits seen."""

    def __call__(self, seen):
        return log_softmax(seen.mean(axis=1))


class Flat(Transform):
    """Knows nothing."""

    def __call__(self, seen):
        return np.full_like(seen[:, -1], -math.log(seen.shape[2]))


def test_history_by_hand():
    # two classes: the log-odds of a geometric mean are the mean of the log-odds
    seen = log_softmax(np.array([[[2.0, 0.0], [0.0, 4.0], [3.0, 0.0]]]))
    history = Mean().history(seen)
    assert (history[0, :, 0] - history[0, :, 1]).tolist() == pytest.approx([2.0, -1.0, 1 / 3])
    np.testing.assert_allclose(np.exp(history).sum(axis=2), 1, rtol=1e-6)


def test_what_a_table_says_through_a_transform():
    logits = [[[2.0, 0.0], [0.0, 4.0], [3.0, 0.0]], [[0.0, 1.0], [0.0, 1.0], [9.0, 0.0]]]
    table = ExitTable(logits=logits, labels=[0, 1], costs=CostTable((1.0, 2.0, 3.0), "ms"), split="val")
    mean = Mean()
    seen = table.transformed(mean)
    assert table.utility.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert seen.utility.tolist() == [[1, 0, 1], [1, 1, 0]]
    assert seen.transform is mean and table.transform is None
    assert (seen.costs, seen.split, seen.logits is table.logits) == (table.costs, "val", True)
    for k in range(3):
        expected = Mean()(table.seen()[:, : k + 1])
        assert np.array_equal(seen.seen()[:, k], expected)
        assert np.array_equal(seen.seen_at(slice(None), k), expected)
        assert np.array_equal(seen.seen_at(np.array([1]), k), expected[1:])
        assert np.array_equal(table.seen_at(slice(None), k), table.seen()[:, k])


def test_the_utility_is_that_of_the_transformed_answers():
    table = synthetic_table(3000, seed=4)
    seen = table.transformed(Mean())
    right = seen.seen().argmax(axis=2) == table.labels[:, None]
    assert np.array_equal(seen.utility, right)
    assert np.array_equal(seen.utility[:, 0], table.utility[:, 0])
    assert not np.array_equal(seen.utility, table.utility)
    assert seen.utility_is_accuracy and table.utility_is_accuracy
    assert table.combinable and not seen.combinable


def test_exits_are_read_one_by_one_and_later_ones_not_at_all():
    class Watched(Transform):
        def __call__(self, seen):
            assert seen.shape[1] <= 2
            return seen[:, -1]

    table = ExitTable(logits=synthetic_table(20).logits).transformed(Watched())
    assert table.seen_at(slice(None), 1).shape == (20, 5)


def test_rows_and_tables_joined_stay_transformed():
    table = synthetic_table(30).transformed(Mean())
    part = table.select(np.array([5, 2]))
    assert part.transform is table.transform
    assert np.array_equal(part.seen(), table.seen(np.array([5, 2])))
    joined = ExitTable.concat([part, part])
    assert joined.transform is table.transform
    assert np.array_equal(joined.utility, table.utility[[5, 2, 5, 2]])


def test_utility_that_is_not_accuracy_is_unknown_after_a_transform():
    plain = synthetic_table(50)
    worth = np.random.default_rng(0).random((50, 4))
    graded = ExitTable(logits=plain.logits, labels=plain.labels, utility=worth, costs=plain.costs)
    unlabelled = ExitTable(logits=plain.logits, utility=plain.utility, costs=plain.costs)
    for table in (graded, unlabelled):
        assert not table.utility_is_accuracy
        seen = table.transformed(Flat())
        assert seen.utility is None and seen.labels is None
        with pytest.raises(TableError, match="judging needs 'labels' or 'utility'"):
            seen.require_utility("judging")


def test_two_transforms_features_and_saving_are_refused(tmp_path):
    table = synthetic_table(10).transformed(Mean())
    features = ExitTable(features=np.zeros((3, 2, 1)), utility=np.ones((3, 2)))
    for refused in (table, features):
        with pytest.raises(InputError, match="transformed already, or has no logits"):
            refused.transformed(Flat())
    with pytest.raises(InputError, match="table is transformed"):
        table.save(tmp_path / "table.npz")
    assert not list(tmp_path.iterdir())


def test_a_transform_without_arrays_has_no_settings():
    assert (Mean().settings(), Mean().arrays()) == ({}, {})
    with pytest.raises(TypeError):
        Transform()


def test_an_ensemble_by_hand():
    # log-odds 2 and 4: at exit 1 weighed by 0.5 and 1, a bias of 0.5 on the first class
    ensemble = Ensemble(weight=np.array([[1.0, 9.0], [0.5, 1.0]]), bias=np.array([[0.0, 0.0], [0.5, 0.0]]))
    seen = log_softmax(np.array([[[2.0, 0.0], [4.0, 0.0]]]))
    np.testing.assert_allclose(ensemble(seen[:, :1]), seen[:, 0], atol=1e-6)
    together = ensemble(seen)
    assert float(together[0, 0] - together[0, 1]) == pytest.approx(5.5)
    again = Ensemble(**ensemble.settings(), **ensemble.arrays())
    assert np.array_equal(again(seen), together)


def test_what_is_no_ensemble_is_refused():
    with pytest.raises(InputError, match="finite"):
        Ensemble(weight=np.full((2, 2), np.nan), bias=np.zeros((2, 4)))

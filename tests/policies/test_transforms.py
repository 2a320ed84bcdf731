"""Transforms and the tables seen through them."""

import math

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from eenet.errors import InputError, TableError
from eenet.policies import Ensemble, MatrixCombination, Transform
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


def matrices(exits, classes, seed=0):
    """A combination whose weights are small enough for every class to win somewhere."""
    rng = np.random.default_rng(seed)
    return MatrixCombination(
        weight=rng.random((exits, exits)),
        bias=rng.standard_normal((exits, classes)),
        matrix=rng.standard_normal((exits, exits, classes, classes)) / classes,
    )


def test_matrices_by_hand():
    # log-probabilities -a and 0, nearly: the second exit adds 0.25 times the first exit's second class to the first
    matrix = np.zeros((2, 2, 2, 2))
    matrix[1, 0, 1, 0] = 0.25
    matrix[0, 1] = 9.0  # a later exit does not count
    combined = MatrixCombination(weight=np.eye(2), bias=np.array([[0.0, 0.0], [1.0, 0.0]]), matrix=matrix)
    seen = log_softmax(np.array([[[30.0, 0.0], [0.0, 0.0]], [[40.0, 0.0], [0.0, 0.0]], [[4.0, 0.0], [0.0, 2.0]]]))
    history = combined.history(seen)
    odds = history[:, 1, 0] - history[:, 1, 1]
    third = 1.0 - 2.0 - 0.25 * math.log1p(math.exp(4.0))
    assert odds.tolist() == pytest.approx([1.0 - 0.25 * 12.0, 1.0 - 0.25 * 12.0, third], abs=1e-5)
    np.testing.assert_allclose(history[:, 0], seen[:, 0], atol=1e-5)  # exit 0 has no matrix
    np.testing.assert_allclose(np.exp(history).sum(axis=2), 1, rtol=1e-6)
    assert history.dtype == np.float32
    assert np.array_equal(combined(np.tile(seen, (1, 2, 1))), np.tile(seen, (1, 2, 1))[:, -1])  # of 4 exits 2 are known


def test_matrices_equal_their_slow_twin():
    combined, seen = matrices(3, 4), synthetic_table(30, num_exits=3, num_classes=4).seen()
    for k, row in ((k, row) for k in range(3) for row in seen):
        logits = [
            combined.bias[k, c]
            + sum(combined.weight[k, j] * row[j][c] for j in range(k + 1))
            + sum(combined.matrix[k, j, d, c] * max(row[j][d], -12.0) for j in range(k + 1) for d in range(4))
            for c in range(4)
        ]
        total = math.log(sum(math.exp(v) for v in logits))
        assert combined(row[None, : k + 1])[0].tolist() == pytest.approx([v - total for v in logits], abs=1e-4)


@pytest.mark.parametrize("exits, classes", [(6, 10), (2, 2), (3, 57)])
def test_matrices_answer_a_sample_alike_in_every_batch(exits, classes):
    combined = matrices(exits, classes)
    seen = synthetic_table(600, num_exits=exits, num_classes=classes).seen()
    seen[::7, :, 0] = -1000.0  # an impossible class
    other = np.asfortranarray(seen)
    for k in range(exits):
        wanted = combined(seen[:, : k + 1]).tobytes()
        for size in (1, 7, 64):
            parts = [combined(seen[i : i + size, : k + 1]) for i in range(0, 600, size)]
            assert np.concatenate(parts).tobytes() == wanted
        assert combined(other[:, : k + 1]).tobytes() == wanted


def test_without_matrices_answers_are_the_ensembles_to_the_bit():
    full = matrices(3, 4)
    alone = Ensemble(weight=full.weight, bias=full.bias)
    none = MatrixCombination(weight=full.weight, bias=full.bias, matrix=np.zeros((3, 3, 4, 4)))
    seen = synthetic_table(50, num_exits=3, num_classes=4).seen()
    assert none.history(seen).tobytes() == alone.history(seen).tobytes()
    again = MatrixCombination(**full.settings(), **full.arrays())
    assert again.history(seen).tobytes() == full.history(seen).tobytes()


def test_what_are_no_matrices_is_refused():
    plain = {"weight": np.eye(2), "bias": np.zeros((2, 3))}
    with pytest.raises((InputError, TypeCheckError), match=r"2,\s?3,\s?3,\s?3|parameter 'matrix'"):
        MatrixCombination(**plain, matrix=np.zeros((2, 3, 3, 3)))
    for wrong in (np.nan, 1e200):
        with pytest.raises(InputError, match="finite"):
            MatrixCombination(**plain, matrix=np.full((2, 2, 3, 3), wrong))

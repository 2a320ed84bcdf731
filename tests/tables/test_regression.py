"""Utility of predictions that are numbers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eenet.errors import InputError, ShapeError, TableError
from eenet.tables import regression_utility


def test_by_hand():
    predictions = np.array([[[1.0], [3.0]], [[0.0], [-1.0]]])
    found = regression_utility(predictions, np.array([3.0, 0.0]), scale=2.0)
    assert found == pytest.approx(np.array([[math.exp(-0.5), 1.0], [1.0, math.exp(-0.125)]]))
    several = regression_utility(np.array([[[1.0, 0.0], [3.0, 0.0]]]), np.array([[3.0, 0.0]]), scale=1.0)
    assert several == pytest.approx(np.array([[math.exp(-1.0), 1.0]]))  # the mean of the squares 4 and 0 is 2


def test_errors_beyond_all_numbers_are_worth_nothing():
    predictions = np.array([[0.0, 1e200, -1e308]])
    for scale in (1.0, 1e-320):
        assert regression_utility(predictions, np.array([0.0]), scale).tolist() == [[1.0, 0.0, 0.0]]


@given(st.integers(0, 1000), st.floats(0.01, 100.0))
def test_the_nearer_the_more_useful_and_units_do_not_matter(seed, unit):
    rng = np.random.default_rng(seed)
    predictions, targets = rng.normal(size=(7, 3, 2)), rng.normal(size=(7, 2))
    utility = regression_utility(predictions, targets, scale=0.5)
    errors = np.square(predictions - targets[:, None]).mean(axis=2)
    assert (utility >= 0).all() and (utility <= 1).all()
    for row, order in zip(utility, errors.argsort(axis=1), strict=True):
        assert (np.diff(row[order]) <= 0).all()
    assert regression_utility(unit * predictions, unit * targets, scale=0.5 * unit) == pytest.approx(utility)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("predictions", "targets", "scale", "error", "said"),
    [
        (np.zeros((2, 3, 1)), np.zeros(3), 1.0, ShapeError, r"targets of shape \(3, 1\) do not fit .* \(2, 3, 1\)"),
        (np.zeros((2, 3, 2)), np.zeros(2), 1.0, ShapeError, r"targets of shape \(2,\) do not fit"),
        (np.zeros((2, 3, 1)), np.array([0.0, np.nan]), 1.0, TableError, "targets of row 1 are no finite"),
        (np.full((2, 3, 1), np.inf), np.zeros(2), 1.0, TableError, "predictions of row 0"),
        (np.zeros((2, 3, 1)), np.zeros(2), 0.0, InputError, "scale"),
        (np.zeros((0, 3, 1)), np.zeros(0), 1.0, ShapeError, "empty"),
        (np.zeros((2, 3, 0)), np.zeros((2, 0)), 1.0, ShapeError, "empty"),
        (np.full((2, 3), "a"), np.zeros(2), 1.0, TableError, "predictions of type <U1"),
        (np.zeros((2, 3)), 1j * np.ones(2), 1.0, TableError, "targets of type complex128"),
        ([[1.0], [1.0, 2.0]], [1.0, 1.0], 1.0, TableError, "predictions of type list"),
    ],
)
def test_what_does_not_fit_is_refused(predictions, targets, scale, error, said):
    with pytest.raises(error, match=said):
        regression_utility(predictions, targets, scale)

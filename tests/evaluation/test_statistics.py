import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.evaluation.tables import read

from eenet.errors import InputError
from eenet.evaluation.statistics import (
    SampledCurve,
    bootstrap,
    bootstrap_interval,
    bootstrap_p,
    curve,
    holm,
    nadeau_bengio,
    nadeau_bengio_p,
)

# by hand


def test_a_curve_joins_its_points_from_the_anchor_and_is_flat_beyond_the_last():
    joined = curve(np.array([3.0, 2.0]), np.array([0.9, 0.7]), anchor=(1.0, 0.5))
    assert joined.costs.tolist() == [1.0, 2.0, 3.0]
    assert [joined.at(cost) for cost in (1.0, 1.5, 2.0, 2.5, 3.0, 9.0)] == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9, 0.9])
    assert joined.area([1.5, 2.5, 9.0]) == pytest.approx((0.6 + 0.8 + 0.9) / 3)


def test_points_of_equal_cost_are_averaged_not_picked():
    joined = curve(np.array([2.0, 2.0, 1.0]), np.array([0.6, 0.8, 0.7]), anchor=(1.0, 0.5))
    assert joined.costs.tolist() == [1.0, 2.0]
    assert joined.utilities.tolist() == pytest.approx([0.6, 0.7])


def test_nadeau_bengio_by_hand():
    # s^2 = 1e-4, times 1/3 + 1/2; t with 2 degrees of freedom is 4.302653
    low, high = nadeau_bengio(np.array([0.01, 0.02, 0.03]), num_fit=200, num_test=100)
    half = 4.302653 * (1e-4 * (1 / 3 + 1 / 2)) ** 0.5
    assert (low, high) == pytest.approx((0.02 - half, 0.02 + half), rel=1e-6)
    with pytest.raises(InputError, match="splits 1 is not enough"):
        nadeau_bengio(np.array([0.1]), num_fit=1, num_test=1)


def test_p_values_by_hand():
    # t = 0.02 / 0.0091287 = 2.1909; with 2 degrees of freedom p = 1 - t / sqrt(2 + t^2)
    t = 0.02 / (1e-4 * (1 / 3 + 1 / 2)) ** 0.5
    found = nadeau_bengio_p(np.array([0.01, 0.02, 0.03]), num_fit=200, num_test=100)
    assert found == pytest.approx(1 - t / (2 + t * t) ** 0.5)
    assert nadeau_bengio_p(np.array([-0.01, -0.02, -0.03]), num_fit=200, num_test=100) == pytest.approx(found)
    assert nadeau_bengio_p(np.zeros(3), num_fit=2, num_test=1) == 1.0
    assert nadeau_bengio_p(np.ones(3), num_fit=2, num_test=1) == 0.0
    assert bootstrap_p(np.array([0.1, 0.2, -0.1, 0.3, 0.2, 0.1, 0.1, 0.2, 0.1]), 0.1) == pytest.approx(
        0.4
    )  # 2 * 2 / 10
    assert bootstrap_p(-np.array([0.1, 0.2, 0.0, 0.3, 0.2, 0.1, 0.1, 0.2, 0.1]), -0.1) == pytest.approx(0.4)
    assert bootstrap_p(np.full(3999, 0.1), 0.1) == pytest.approx(2 / 4000)
    assert bootstrap_p(np.zeros(9), 0.0) == bootstrap_p(np.zeros(9), 0.1) == 1.0


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.03]) == [0.03] and holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_step_by_step(p_values):
    rejected, order = set(), sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        if (len(p_values) - rank) * p_values[i] >= 0.05:
            break
        rejected.add(i)
    assert {i for i, p in enumerate(holm(p_values)) if p < 0.05} == rejected


def test_the_bootstrap_equals_resampling_by_loops():
    generator = np.random.default_rng(1)
    costs, utilities = generator.uniform(1, 3, (4, 7)), generator.uniform(0, 1, (4, 7))
    anchor, budgets = generator.uniform(0, 1, 7), [1.2, 1.9, 2.5]
    found = bootstrap(
        {"a": SampledCurve(costs=costs, utilities=utilities)},
        anchor=SampledCurve(costs=np.linspace(0.5, 1.0, 7)[None], utilities=anchor[None]),
        budgets=budgets,
        resamples=5,
        seed=3,
    )["a"]
    again = np.random.default_rng(3)
    for row in found:
        rows = again.integers(7, size=7).tolist()
        points = [(sum(np.linspace(0.5, 1.0, 7)[i] for i in rows) / 7, sum(anchor[i] for i in rows) / 7)]
        for point in range(4):
            points.append((sum(costs[point, i] for i in rows) / 7, sum(utilities[point, i] for i in rows) / 7))
        assert row == pytest.approx([read(sorted(points), budget) for budget in budgets])


def test_the_bootstrap_draws_whole_groups_by_loops():
    generator = np.random.default_rng(1)
    utilities, groups = generator.uniform(0, 1, 6), np.array([0, 0, 0, 1, 1, 2])
    found = bootstrap(
        {"a": SampledCurve(costs=np.full((1, 6), 2.0), utilities=utilities[None])},
        anchor=SampledCurve(costs=np.ones((1, 6)), utilities=np.zeros((1, 6))),
        budgets=[2.0],
        groups=groups,
        resamples=20,
        seed=3,
    )["a"]
    again = np.random.default_rng(3)
    for row in found:
        rows = [i for group in again.integers(3, size=3).tolist() for i in np.flatnonzero(groups == group)]
        assert row == pytest.approx([utilities[rows].mean()])


# property

POINTS = st.lists(st.tuples(st.floats(1, 10), st.floats(0, 1)), min_size=1, max_size=8)


@given(points=POINTS, anchor=st.floats(0, 1), order=st.randoms(use_true_random=False))
def test_the_order_of_points_does_not_matter_and_the_area_stays_among_the_utilities(points, anchor, order):
    mixed = list(points)
    order.shuffle(mixed)
    budgets = [1.0, 2.0, 5.5, 12.0]
    areas = []
    for listed in (points, mixed):
        costs, utilities = (np.array(column) for column in zip(*listed, strict=True))
        areas.append(curve(costs, utilities, anchor=(1.0, anchor)).area(budgets))
    assert areas[0] == pytest.approx(areas[1], abs=1e-9)
    values = [anchor, *(utility for _, utility in points)]
    assert min(values) - 1e-12 <= areas[0] <= max(values) + 1e-12


# promise


@pytest.mark.slow
def test_the_bootstrap_interval_covers_the_true_difference_as_often_as_it_says():
    generator = np.random.default_rng(5)
    covered = 0
    for draw in range(200):
        right = generator.random((2, 300)) < np.array([[0.80], [0.75]])
        found = bootstrap(
            {
                name: SampledCurve(costs=np.full((1, 300), 2.0), utilities=right[i : i + 1].astype(float))
                for i, name in enumerate("ab")
            },
            anchor=SampledCurve(costs=np.ones((1, 300)), utilities=np.zeros((1, 300))),
            budgets=[2.0],
            resamples=500,
            seed=draw,
        )
        low, high = bootstrap_interval((found["a"] - found["b"])[:, 0])
        covered += low <= 0.05 <= high
    assert covered / 200 >= 0.95 - 3 * (0.95 * 0.05 / 200) ** 0.5

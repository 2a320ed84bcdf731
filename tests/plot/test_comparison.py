"""Pictures of comparisons and reports: every number drawn is one of the result's."""

import numpy as np
import pytest

from eenet import GeometricScheduler, compare, evaluate, plot
from eenet.errors import InputError
from eenet.report.plots import COLOURS
from eenet.schedulers import PatienceScheduler
from eenet.testing.planted import synthetic_table

SCHEDULERS = {"max_prob": GeometricScheduler(), "patience": PatienceScheduler()}


@pytest.fixture(scope="module")
def tables():
    return tuple(synthetic_table(num_samples=200, seed=seed) for seed in (0, 1))


@pytest.fixture(scope="module")
def comparison(tables):
    return compare(*tables, SCHEDULERS, ["60%", "90%"], groups=np.arange(200) % 2, resamples=50)


@pytest.fixture(scope="module")
def report(tables):
    return evaluate(GeometricScheduler().fit(tables[0], budget="70%"), tables[1], budget="70%")


def test_curves_go_through_the_realised_points(comparison):
    (axes,) = plot.utility_cost(comparison).axes
    lines = {line.get_label().split()[0]: line for line in axes.lines if not line.get_label().startswith("_")}
    assert set(SCHEDULERS) | {"random", "oracle", "static", "last"} == set(lines)
    for name, points in comparison.curves.items():
        drawn = np.interp([point["cost"] for point in points], *lines[name].get_data())
        assert drawn == pytest.approx([100 * point["utility"] for point in points])
    assert {lines[name].get_color() for name in SCHEDULERS} == set(COLOURS[:2])


def test_gains_are_differences_to_the_static_mix_at_equal_cost(comparison):
    (axes,) = plot.gain_over_static(comparison).axes
    line = next(line for line in axes.lines if line.get_label() == "max_prob")
    (costs, utilities), (base_costs, base) = (
        np.array([(point["cost"], point["utility"]) for point in comparison.curves[name]]).T
        for name in ("max_prob", "random")
    )
    at, gain = line.get_data()
    assert gain == pytest.approx(100 * (np.interp(at, costs, utilities) - np.interp(at, base_costs, base)))


def test_bars_are_exit_shares(comparison, report):
    first, second = plot.exit_shares(comparison).axes[:2]
    rows = [row for row in comparison.rows if row.budget == min(one.budget for one in comparison.rows)]
    widths = [bar.get_width() for bar in first.patches[: len(rows) * len(comparison.exits)]]
    assert sorted(widths) == pytest.approx(sorted(100 * share for row in rows for share in row.exit_distribution))
    assert "60%" in first.get_title(loc="left") and "90%" in second.get_title(loc="left")
    (axes,) = plot.exit_shares(report).axes
    widths = [bar.get_width() for bar in axes.patches[: len(report.exit_costs)]]
    assert widths == pytest.approx([100 * share for share in report.exit_distribution])


def test_dots_are_losses_of_classes_and_of_groups(comparison, report):
    for by in ("class", "group"):
        axes = plot.group_losses(comparison, by).axes[0]
        entry = next(entry for entry in comparison.groups if entry.by == by)
        drawn = axes.collections[0].get_offsets()[:, 0]
        assert drawn.tolist() == pytest.approx([group.loss for group in entry.groups])
    (axes,) = plot.group_losses(report).axes
    assert axes.collections[0].get_offsets()[:, 0].tolist() == pytest.approx([one.loss for one in report.by_group])
    assert axes.lines[0].get_xdata()[0] == pytest.approx(100 * (report.full_utility - report.utility))


def test_groups_that_are_not_known_are_refused(comparison):
    with pytest.raises(InputError, match=r"by 'colour' .* class, group"):
        plot.group_losses(comparison, "colour")


def test_names_are_no_formulas_in_any_format(tables, tmp_path):
    found = compare(*tables, {"$\\frac$": GeometricScheduler()}, ["60%"], resamples=20)
    plot.utility_cost(found).savefig(tmp_path / "curves.pdf")  # a formula would be refused
    assert (tmp_path / "curves.pdf").stat().st_size > 0

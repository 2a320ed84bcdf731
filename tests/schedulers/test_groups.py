"""Samples that belong together: no group on two sides, and budgets and promises that hold for other groups."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.errors import TableError
from eenet.policies.replay import Replayer
from eenet.schedulers import EENetScheduler, GeometricScheduler, JointScheduler, StoppingScheduler, certify
from eenet.schedulers.base import folds_of, sampled_rows, sides_of, standard_error
from eenet.tables import CostTable, ExitTable
from eenet.testing import synthetic_table

GROUPS = st.lists(st.integers(0, 9), min_size=2, max_size=60).map(np.array).filter(lambda g: len(np.unique(g)) > 1)


def streets(number: int, each: int, seed: int, columns: int = 60) -> ExitTable:
    """Return images of streets: what they look like says which street it is, and a quarter of the streets is easy."""
    generator = np.random.default_rng(seed)
    street = np.repeat(np.arange(number), each)
    look = generator.standard_normal((number, columns))[street]
    easy = generator.permutation(np.arange(number) % 4 == 0)[street]
    right = easy | (generator.random(len(street)) < 0.1)
    features = look + 0.1 * generator.standard_normal(look.shape)
    return ExitTable(
        features=np.stack([features, features], axis=1),
        utility=np.stack([right, np.ones(len(street))], axis=1).astype(float),
        feature_names=tuple(f"look {i}" for i in range(columns)),
        group=street,
        costs=CostTable((1.0, 10.0), "ms"),
    )


def grouped(samples: int, groups: int, seed: int = 0) -> ExitTable:
    return replace(synthetic_table(samples, seed=seed), group=np.arange(samples) % groups)


# --- splits -----------------------------------------------------------------------------------------------------------


def test_folds_by_hand():
    fold = folds_of(np.array([7, 7, 7, 7, 2, 2, 5, 5]), 2, seed=0)
    assert len(set(fold[:4])) == len(set(fold[4:])) == 1
    assert fold[0] != fold[4]  # the largest group alone, the two small ones together


@settings(deadline=None, max_examples=40)
@given(GROUPS, st.integers(2, 7), st.integers(0, 5))
def test_no_group_is_ever_on_two_sides(groups, folds, seed):
    fold = folds_of(groups, folds, seed)
    number = len(np.unique(groups))
    assert set(fold) == set(range(min(folds, number)))  # none is empty
    sides = [*sides_of(groups, len(groups) // 2, seed)]
    assert sorted(np.concatenate(sides)) == list(range(len(groups)))
    for f in range(fold.max() + 1):
        sides += [np.flatnonzero(fold == f)]
        assert not np.intersect1d(groups[fold == f], groups[fold != f]).size
    assert all(len(side) for side in sides)
    assert not np.intersect1d(groups[sides[0]], groups[sides[1]]).size
    part = sampled_rows(groups, max(2, len(groups) // 2), seed)
    assert not np.intersect1d(groups[part], np.delete(groups, part)).size


@pytest.mark.parametrize("count", [2, 7, 100])
def test_where_every_sample_is_its_own_group_splits_are_those_of_samples(count):
    order = np.random.default_rng(3).permutation(count)
    alone = np.arange(count)
    assert np.array_equal(folds_of(alone, 5, 3), order % min(5, count))
    first, second = sides_of(alone, count // 2, 3)
    assert np.array_equal(np.append(first, second), order)
    assert len(first) == count // 2
    assert np.array_equal(sampled_rows(alone, max(2, count // 2), 3), np.sort(order[: max(2, count // 2)]))


def test_one_group_cannot_be_split():
    for split in (lambda one: folds_of(one, 5, 0), lambda one: sides_of(one, 2, 0)):
        with pytest.raises(TableError, match=r"1 group .* at least 2"):
            split(np.zeros(4, dtype=int))


def test_the_standard_error_of_a_mean_over_groups():
    values = np.array([0.0, 0.0, 1.0, 1.0])
    assert standard_error(values, np.arange(4)) == pytest.approx(values.std(ddof=1) / 2)
    assert standard_error(values, np.array([0, 0, 1, 1])) == pytest.approx(0.5)  # as of two values, 0 and 1
    assert standard_error(values, np.zeros(4, dtype=int)) == np.inf


# --- fitting ----------------------------------------------------------------------------------------------------------


def test_a_budget_is_kept_on_other_groups_and_is_not_without_them():
    ratios = []
    for seed in range(3):
        table, new = streets(100, 12, seed), streets(1000, 4, 100 + seed)
        fits = (
            EENetScheduler(thresholds="joint").fit(one, budget="25%") for one in (replace(table, group=None), table)
        )
        ratios.append([Replayer(new).expected(policy)[0] / table.costs.budget("25%").value for policy in fits])
    alone, together = np.array(ratios).T
    assert alone.min() > 1.15
    assert 0.9 < together.mean() < 1.1


@pytest.mark.parametrize("scheduler", [GeometricScheduler(), StoppingScheduler(ensemble=False)])
def test_the_budget_holds_on_the_table_too(scheduler):
    table = grouped(200, 12)
    dial, replayer = scheduler.sweep(table), Replayer(table)
    for budget in (1.0, 1.5, 2.5, 4.0):
        assert replayer.expected(dial.at(budget))[0] <= budget * (1 + 1e-9)


def test_too_few_groups_are_refused():
    with pytest.raises(TableError, match=r"4 groups .* needs 5"):
        JointScheduler().sweep(grouped(200, 4))


# --- promises ---------------------------------------------------------------------------------------------------------


def test_a_promise_counts_groups():
    table = grouped(2000, 200)
    certificate = certify(GeometricScheduler(), table, budget="60%").certificate
    assert certificate.n_groups == 100
    assert certificate.n_fit + certificate.n_certify == 2000
    assert certificate.mean_cost <= certificate.bound <= 2.4
    assert "1000 samples in 100 groups" in certificate.statement
    assert "in a new group of samples" in certificate.statement
    alone = certify(GeometricScheduler(), replace(table, group=None), budget="60%").certificate
    assert alone.n_groups is None
    assert "group" not in alone.statement
    assert alone.mean_cost > certificate.mean_cost  # a hundred values say less than a thousand


def test_a_promise_is_about_the_mean_over_groups_by_hand():
    table = grouped(400, 40)
    group = np.where(np.arange(400) < 160, 0, table.group + 1)  # a large group, and small ones
    certificate = certify(JointScheduler(), replace(table, group=group), guarantee="accuracy", epsilon=0.5).certificate
    assert certificate.bound <= 0.5
    assert certificate.full_utility - certificate.mean_utility <= certificate.bound


def test_a_promise_needs_many_groups():
    with pytest.raises(TableError, match=r"19 groups .* needs 20"):
        certify(JointScheduler(), grouped(1000, 19), budget="60%")


@pytest.mark.slow
def test_promises_are_kept_on_other_groups():
    broken = {"with": 0, "without": 0}
    for seed in range(60):
        table, new = streets(60, 8, seed, columns=6), streets(800, 2, 1000 + seed, columns=6)
        for name, one in (("with", table), ("without", replace(table, group=None))):
            policy = certify(GeometricScheduler(confidence="look 0"), one, budget="40%", delta=0.1, seed=seed).policy
            broken[name] += Replayer(new).expected(policy)[0] > 4.0
    assert broken["with"] <= 11  # 0.1 * 60, and two standard deviations
    assert broken["without"] > 11  # samples of one street are not independent

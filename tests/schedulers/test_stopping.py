"""Optimal stopping: backward induction by hand and against a slow twin, planted optima, what it promises."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eenet.errors import TableError
from eenet.policies import (
    Replayer,
    ScorePolicy,
    StoppingScorer,
    TransformedPolicy,
    load_policy,
    replay,
    save_policy,
)
from eenet.policies.learned import StoppingState
from eenet.schedulers import JointScheduler, StoppingScheduler, fit_ensemble, static_mix
from eenet.schedulers.base import folds_of
from eenet.schedulers.stopping import _expected_utility, _lambdas, induce, suited_state
from eenet.tables import CostTable, ExitTable, standard_budgets
from eenet.testing import (
    check_policy,
    classwise_accuracies,
    classwise_optimum,
    classwise_table,
    gaussian_accuracies,
    gaussian_optimum,
    gaussian_table,
    measure_gain,
    posterior_optimum,
    posterior_table,
    synthetic_table,
    typed_optimum,
    typed_table,
)

ALONE = StoppingScheduler(ensemble=False)


def random_table(seed, num_samples=60, num_exits=3, num_classes=3, *, graded=False, by_sample=False):
    """Any table: random outputs, utility and costs without sense."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(num_samples, num_exits, num_classes))
    steps = generator.random((num_samples if by_sample else 1, num_exits)) + 0.05
    expected = generator.random((num_samples, num_exits))
    labels = generator.integers(num_classes, size=num_samples)
    cost = steps.cumsum(axis=1)
    return ExitTable(
        logits=logits,
        labels=None if graded else labels,
        utility=expected if graded else None,
        costs=None if by_sample else CostTable(tuple(cost[0].tolist()), "ms"),
        cost=cost if by_sample else None,
    )


def features_of(table, **others):
    """The same table, as if the probabilities were features."""
    given = {"costs": table.costs, "cost": table.cost} | others
    return ExitTable(features=np.exp(table.seen()), utility=table.utility, **given)


def test_the_state_suits_the_table():
    kinds = {classes: suited_state(synthetic_table(5, num_classes=classes)).kind for classes in (64, 65)}
    assert kinds == {64: "curved", 65: "summed"}
    assert suited_state(features_of(synthetic_table(5))).kind == "features"


# --- backward induction -----------------------------------------------------------------------------------------------


def slow_induce(table, expected, state, folds, ridge, seed):
    """Backward induction by loops over multipliers, exits, folds and samples."""
    n, exits, classes = table.num_samples, table.num_exits, table.num_columns
    fold = folds_of(np.arange(n), folds, seed).tolist()
    c, utility = table.leaving_costs.tolist(), table.utility
    columns = [state(table.seen()[:, k]) for k in range(exits - 1)]
    weights, biases, outcome = [], [], []
    for multiplier in _lambdas(table, expected, 80).tolist():
        leaves_at = [exits - 1] * n
        weight, bias = np.zeros((exits - 1, columns[0].shape[1])), np.zeros(exits - 1)
        for k in reversed(range(exits - 1)):
            going_on = [expected[i, leaves_at[i]] - multiplier * (c[i][leaves_at[i]] - c[i][k]) for i in range(n)]
            y = np.array([going_on[i] - expected[i, k] for i in range(n)])
            _, _, held_out = slow_fit(columns[k], y, np.ones(n), fold, classes, state, ridge)
            for _ in range(2):
                near = 1 / (1 + (held_out / (0.35 * np.sqrt(np.mean(held_out**2)) + 1e-12)) ** 2)
                counts = near / near.mean()
                weight[k], bias[k], held_out = slow_fit(columns[k], y, counts, fold, classes, state, ridge)
            leaves_at = [leaves_at[i] if held_out[i] > 0 else k for i in range(n)]
        weights.append(-weight)
        biases.append(-bias)
        outcome.append([np.mean([v[i][leaves_at[i]] for i in range(n)]) for v in (utility, expected, c)])
    return np.array(weights), np.array(biases), np.array(outcome)


def slow_fit(x, y, counts, fold, classes, state, ridge):
    """Weighted ridge regressions by stacked rows; squares have a shared weight in a column of its own."""
    n, folds = len(x), max(fold) + 1
    shared = x[:, classes : 2 * classes].sum(axis=1, keepdims=True) if state.kind == "curved" else np.zeros((n, 0))
    z = np.hstack([x, shared, np.ones((n, 1))])
    penalty = np.full(z.shape[1], 0.1 * ridge)
    penalty[: 2 * classes if state.kind == "curved" else classes] = ridge
    if state.kind == "features":
        penalty[:-1] = 100 * ridge * x.var(axis=0)
    penalty[-1] = 0
    weights, held_out = [], np.zeros(n)
    for f in range(folds):
        rest = [i for i in range(n) if fold[i] != f]
        root = np.sqrt(counts[rest])
        rows = np.vstack([root[:, None] * z[rest], np.diag(np.sqrt(penalty))])
        found = np.linalg.lstsq(rows, np.concatenate([root * y[rest], np.zeros(len(penalty))]), rcond=None)[0]
        for i in range(n):
            if fold[i] == f:
                held_out[i] = z[i] @ found
        if state.kind == "curved":
            found[classes : 2 * classes] += found[-2]
        weights.append(found)
    mean = np.mean(weights, axis=0)
    return mean[: x.shape[1]], mean[-1], held_out


@pytest.mark.parametrize(
    ("seed", "kind", "by_sample"),
    [(1, "curved", False), (2, "summed", False), (3, "curved", True), (4, "features", True)],
)
def test_backward_induction_equals_its_slow_twin(seed, kind, by_sample):
    table, state = random_table(seed, 30, 3, graded=kind != "summed", by_sample=by_sample), StoppingState(kind)
    if kind == "features":
        table = features_of(table)
    expected = _expected_utility(table, fit_ensemble(table) if kind == "summed" else None)
    found = induce(table, expected, _lambdas(table, expected, 80), state=state, folds=5, ridge=1.0, seed=seed)
    weight, bias, outcome = slow_induce(table, expected, state, 5, 1.0, seed)
    exits = table.num_exits
    assert np.allclose(found.weight[exits:], weight, atol=1e-6)
    assert np.allclose(found.bias[exits:], bias, atol=1e-6)
    assert np.allclose(found.utility[exits:], outcome[:, 0])
    assert np.allclose(found.expected[exits:], outcome[:, 1])
    assert np.allclose(found.cost[exits:], outcome[:, 2])


@pytest.mark.parametrize("by_sample", [False, True])
def test_every_fixed_exit_is_among_the_rules(by_sample):
    table = random_table(3, by_sample=by_sample)
    found = induce(
        table, table.utility, _lambdas(table, table.utility, 80), state=StoppingState(), folds=5, ridge=1.0, seed=0
    )
    assert found.cost[:3].tolist() == pytest.approx(list(table.costs.cumulative))
    assert np.allclose(found.utility[:3], table.utility.mean(axis=0))
    for k in range(3):
        scorer = StoppingScorer(weight=found.weight[k], bias=found.bias[k], num_columns=3)
        policy = ScorePolicy(scorer, np.array([0.0, 0.0, -math.inf]))
        assert set(replay(policy, table).exit_index.tolist()) == {k}


def test_the_worth_of_an_answer_is_its_chance_given_all_exits():
    table = synthetic_table(100)
    together = fit_ensemble(table)
    chances = np.exp(together(table.seen()).astype(float))
    for view in (table, table.transformed(together)):
        expected, answers = _expected_utility(view, together), view.seen().argmax(axis=2)
        for i in range(0, 100, 7):
            assert expected[i].tolist() == pytest.approx([chances[i, answers[i, k]] for k in range(4)])
    assert np.array_equal(_expected_utility(table, None), table.utility)


# --- planted optima ---------------------------------------------------------------------------------------------------


def chances(name, table):
    """What is known of the classes at each exit, exactly, given all evidence so far."""
    log_probs = table.seen().astype(float)
    if name == "posterior":  # independent evidence
        together = np.exp(log_probs.cumsum(axis=1))
        return together / together.sum(axis=2, keepdims=True)
    if name == "typed":
        return np.eye(4)[table.labels][:, None].repeat(3, axis=1)
    return np.exp(log_probs)


PLANTED = {
    "posterior": (posterior_table, posterior_optimum, (0.75, 0.95)),
    "typed": (typed_table, typed_optimum, (0.5, 0.8, 1.0)),
    "gaussian": (gaussian_table, gaussian_optimum, gaussian_accuracies()),
    "classwise": (classwise_table, classwise_optimum, classwise_accuracies()),
}


def shares(scheduler, name, num_samples, seeds, fresh=60_000):
    """The share of the possible gain reached at each budget, and at all budgets together last, a row per seed."""
    make, optimum, exact = PLANTED[name]
    test, rows = make(fresh, seed=1000), []
    if name == "typed":  # exactly the planted shares of each kind: less noise
        kind = 3 - test.utility.sum(axis=1)
        parts = [np.flatnonzero(kind == i)[: fresh * share // 12] for i, share in enumerate((5, 3, 2))]
        test = test.select(np.concatenate(parts))
    truth = chances(name, test)
    for seed in seeds:
        dial = scheduler.sweep(make(num_samples, seed=seed))
        policies = [dial.at(budget) for budget in standard_budgets(test.costs)]
        gains = [measure_gain(policy, test, optimum, chances=truth, accuracies=exact) for policy in policies]
        whole = sum(gain.reached for gain in gains) / sum(gain.possible for gain in gains)
        rows.append([*(gain.share for gain in gains), whole])
    return np.array(rows)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "typed" else [pytest.mark.slow]) for name in PLANTED]
)
def test_the_planted_optimum_is_reached(name):
    found = shares(ALONE, name, 5000, [0], 150_000)  # with 60,000 fresh samples their noise is a whole point
    assert found[:, -1].min() >= 0.97
    assert found.min() >= 0.9


@pytest.mark.slow
def test_classes_that_profit_from_other_exits_are_told_apart():
    # thresholds on a confidence, the same for all classes, cannot reach what a rule that knows the class does
    stopping, joint = (shares(scheduler, "classwise", 5000, [0])[0] for scheduler in (ALONE, JointScheduler()))
    assert (stopping - joint)[:5].min() >= 0.4
    assert stopping[-1] >= joint[-1] + 0.3


@pytest.mark.slow
@pytest.mark.parametrize("name", PLANTED)
def test_the_planted_optimum_is_reached_for_any_seed(name):
    found = shares(StoppingScheduler(), name, 5000, range(6), 300_000)
    assert found[:, -1].mean() >= 0.98, found
    assert found[:, -1].min() >= 0.965, found
    assert found.min() >= 0.8, found  # of single budgets, where little can be gained


# --- promises ---------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@example(
    seed=40, num_samples=18, num_exits=2, num_classes=4, graded=True, by_sample=False, share=0.0
)  # no held-out sample goes on
@given(
    seed=st.integers(0, 10_000),
    num_samples=st.integers(5, 120),
    num_exits=st.integers(2, 4),
    num_classes=st.integers(2, 4),
    graded=st.booleans(),
    by_sample=st.booleans(),
    share=st.floats(0, 1.2),
)
def test_any_budget_is_kept_and_more_never_hurts(seed, num_samples, num_exits, num_classes, graded, by_sample, share):
    table = random_table(seed, num_samples, num_exits, num_classes, graded=graded, by_sample=by_sample)
    costs, replayer = table.costs, Replayer(table)
    dial = StoppingScheduler().sweep(table)
    budgets = sorted([costs.low, costs.low + share * (costs.high - costs.low), *standard_budgets(costs), costs.high])
    outcome = [replayer.expected(dial.at(budget)) for budget in budgets]
    for budget, (cost, _) in zip(budgets, outcome, strict=True):
        assert cost <= budget * (1 + 1e-12 * by_sample)  # means of columns and of rows are rounded apart
    gains = [utility for _, utility in outcome]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(gains))
    assert list(dial.fit_costs) == sorted(dial.fit_costs)
    assert all(a < b for a, b in pairwise(dial.fit_utilities))
    assert dial.fit_costs[0] == pytest.approx(costs.low)
    assert replay(dial.policies[0], table).exit_index.tolist() == [0] * num_samples


def test_without_folds_of_its_own_the_order_of_samples_does_not_matter_at_all():
    # with as many folds as samples there is one way only to hold each out
    table = random_table(7, 12)
    order = np.random.default_rng(1).permutation(12)
    one, two = (StoppingScheduler(ensemble=False, folds=12).sweep(part) for part in (table, table.select(order)))
    assert one.fit_costs == pytest.approx(two.fit_costs)
    assert one.fit_utilities == pytest.approx(two.fit_utilities)


@pytest.mark.parametrize("gains_end", [1, 2])
def test_nothing_is_spent_where_later_exits_add_nothing(gains_end):
    base = synthetic_table(2000, num_exits=4, seed=3)
    logits = base.logits.copy()
    logits[:, gains_end + 1 :] = logits[:, gains_end : gains_end + 1]  # copies
    table = ExitTable(logits=logits, labels=base.labels, costs=base.costs)
    fresh = synthetic_table(2000, num_exits=4, seed=4)
    fresh_logits = fresh.logits.copy()
    fresh_logits[:, gains_end + 1 :] = fresh_logits[:, gains_end : gains_end + 1]
    dial = StoppingScheduler().sweep(table)
    assert dial.fit_costs[-1] <= base.costs.cumulative[gains_end] + 0.1
    richest = dial.at(10 * table.costs.high)
    on_fresh = ExitTable(logits=fresh_logits, labels=fresh.labels, costs=base.costs)
    cost, utility = Replayer(on_fresh).expected(richest)
    assert cost <= base.costs.cumulative[gains_end] + 0.1
    assert utility >= on_fresh.utility[:, -1].mean() - 0.01


@pytest.mark.parametrize("never", [True, False])
def test_the_ensemble_is_used_where_it_pays(never):
    table = synthetic_table(1500, seed=1)
    policy = StoppingScheduler(ensemble=not never).fit(table, budget="60%")
    parts = [part for _, part in policy.components()]
    assert all(isinstance(part, TransformedPolicy) is not never for part in parts)
    together = table.transformed(fit_ensemble(table))
    assert all(
        isinstance(part, ScorePolicy) for _, part in StoppingScheduler().fit(together, budget="60%").components()
    )


def test_an_ensemble_that_does_not_pay_is_left_out(monkeypatch):
    table = synthetic_table(300, seed=1)
    worse = ExitTable(logits=-table.logits, labels=table.labels, costs=table.costs)
    monkeypatch.setattr("eenet.schedulers.stopping.held_out_ensemble", lambda *_: (table, worse))
    parts = [part for _, part in StoppingScheduler().fit(table, budget="60%").components()]
    assert not any(isinstance(part, TransformedPolicy) for part in parts)


def test_an_ensemble_with_nothing_to_combine_does_no_harm():
    # the last exit knows all, the first nothing
    def table(seed):
        label = np.arange(1200) % 2
        logits = np.random.default_rng(seed).normal(size=(1200, 2, 2))
        logits[:, 1] = 8.0 * np.eye(2)[label]
        return ExitTable(logits=logits, labels=label, costs=CostTable((1.0, 2.0), "ms"))

    policy = StoppingScheduler().fit(table(0), budget=1.5)
    assert Replayer(table(1)).expected(policy) == pytest.approx((1.5, 0.75), abs=0.05)


# --- odd tables -------------------------------------------------------------------------------------------------------


def odd_tables():
    base = synthetic_table(60, num_exits=3, num_classes=3, seed=9)
    costs, logits, labels, utility = base.costs, base.logits, base.labels, base.utility
    one_hot = np.eye(3)[labels][:, None].repeat(3, axis=1)
    random = np.random.default_rng(2).random((60, 3))
    return {
        "utility only": ExitTable(logits=logits, utility=utility, costs=costs),
        "graded": ExitTable(logits=logits, labels=labels, utility=random, costs=costs),
        "useless": ExitTable(logits=logits, utility=np.zeros((60, 3)), costs=costs),
        "two classes, two exits": synthetic_table(50, num_exits=2, num_classes=2),
        "constant": ExitTable(logits=np.zeros((60, 3, 3)), labels=labels, costs=costs),
        "all right": ExitTable(logits=20 * one_hot, labels=labels, costs=costs),
        "all wrong": ExitTable(logits=-20 * one_hot, labels=labels, costs=costs),
        "five samples": synthetic_table(5, num_exits=3, seed=1),
        "two samples": synthetic_table(2, num_exits=3),
        "half precision": ExitTable(logits=logits.astype(np.float16), labels=labels, costs=costs),
        "sharp": ExitTable(logits=1e4 * logits, labels=labels, costs=costs),
        "more classes than samples": synthetic_table(20, num_exits=3, num_classes=50),
        "features": ExitTable(features=logits, utility=utility, costs=costs),
        "one feature, two samples": ExitTable(features=logits[:2, :, :1], utility=utility[:2], costs=costs),
        "constant features": ExitTable(features=np.full((60, 3, 2), 1e6), utility=utility, costs=costs),
        "huge and tiny features": ExitTable(features=logits * [1e30, 1.0, 1e-30], utility=utility, costs=costs),
    }


@pytest.mark.parametrize("scheduler", [StoppingScheduler(), ALONE], ids=["ensemble", "alone"])
@pytest.mark.parametrize("name", odd_tables())
def test_odd_tables_are_fitted(name, scheduler):
    table = odd_tables()[name]
    dial = scheduler.sweep(table)
    for budget in (table.costs.low, *standard_budgets(table.costs), table.costs.high):
        policy = dial.at(budget)
        assert Replayer(table).expected(policy)[0] <= budget
    if name in ("useless", "constant", "all right", "all wrong"):
        assert dial.fit_costs == (table.costs.low,)


@pytest.mark.parametrize("scheduler", [StoppingScheduler(), ALONE], ids=["ensemble", "alone"])
def test_one_sample_cannot_be_held_out(scheduler):
    with pytest.raises(TableError, match="table of 1 sample is too small"):
        scheduler.sweep(synthetic_table(1))


def test_labels_and_given_accuracy_serve_alike_without_an_ensemble():
    table, fresh = synthetic_table(500, seed=6), synthetic_table(500, seed=7)
    blind = ExitTable(logits=table.logits, utility=table.utility, costs=table.costs)
    policy, same = (StoppingScheduler().fit(blind, budget="55%"), ALONE.fit(blind, budget="55%"))
    assert np.array_equal(Replayer(fresh).exit_index(policy), Replayer(fresh).exit_index(same))
    cost, utility = Replayer(fresh).expected(policy)
    assert utility >= static_mix(table, fresh, table.costs, cost).utility + 0.01


# --- features and costs of the user's own -----------------------------------------------------------------------------


def telling_table(num_samples, seed, scale=1.0):
    """The last exit is always right; one feature of the first says whether that one is, the others say nothing."""
    generator = np.random.default_rng(seed)
    right = generator.random(num_samples) < 0.5
    features = generator.normal(size=(num_samples, 2, 3))
    features[:, 0, 1] = scale * (features[:, 0, 1] + 4.0 * right + 100.0)
    utility = np.stack([right, np.ones(num_samples)], axis=1)
    return ExitTable(features=features, utility=utility, costs=CostTable((1.0, 2.0), "ms"))


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e5])
def test_features_are_used_whatever_their_scale(scale, tmp_path):
    val, test = telling_table(1000, 0, scale), telling_table(1000, 1, scale)
    policy = StoppingScheduler().fit(val, budget=1.5)
    assert Replayer(test).expected(policy)[1] >= 0.95
    check_policy(policy, test)
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy").policy
    assert np.array_equal(Replayer(test).exit_index(again), Replayer(test).exit_index(policy))


def test_constant_features_have_no_weight():
    table = telling_table(200, 0)
    table.features[:, :, 2] = 0.1
    found = induce(
        table,
        table.utility,
        _lambdas(table, table.utility, 80),
        state=StoppingState("features"),
        folds=5,
        ridge=1.0,
        seed=0,
    )
    assert (found.weight[:, :, [2, 5]] == 0).all()


def test_a_sample_goes_on_where_that_costs_little():
    # going on gains the same everywhere and costs 1 or 5, which the class at exit 0 foretells; no input says what it
    # costs: policies see logits only
    def table(seed, num_samples=2000):
        generator = np.random.default_rng(seed)
        kind = generator.integers(2, size=num_samples)
        logits = 3.0 * np.eye(2)[kind][:, None].repeat(2, axis=1)
        right = generator.random((num_samples, 2)) < [0.5, 0.9]
        cost = np.stack([np.ones(num_samples), 2.0 + 4.0 * kind], axis=1)
        return ExitTable(logits=logits, utility=right.astype(float), cost=cost)

    val, test = table(0), table(1)
    assert val.costs.cumulative == pytest.approx((1.0, 4.0), abs=0.1)
    dial = StoppingScheduler().sweep(val)
    policy = dial.at(1.5)  # all for whom it is cheap: half of the samples go on, for 1 each
    stops, kind = Replayer(test).exit_index(policy), test.logits[:, 0].argmax(axis=1)
    assert stops[kind == 0].mean() >= 0.95
    assert stops[kind == 1].mean() <= 0.05
    assert Replayer(test).expected(policy) == pytest.approx((1.5, 0.7), abs=0.04)
    blind = StoppingScheduler().fit(
        val.with_costs(CostTable(val.costs.cumulative, val.costs.unit)), budget=1.5
    )  # a sixth of all, whoever they are
    assert Replayer(test).expected(blind)[1] == pytest.approx(0.5 + 0.4 / 6, abs=0.04)


def test_costs_that_do_not_differ_are_as_good_as_a_cost_table():
    table, fresh = synthetic_table(400), synthetic_table(300, seed=1)
    cost = np.broadcast_to(table.costs.cumulative, (400, 4))
    same = ExitTable(logits=table.logits, labels=table.labels, cost=cost, costs=table.costs)
    one, two = (StoppingScheduler().sweep(part) for part in (table, same))
    assert one.fit_costs == pytest.approx(two.fit_costs)
    assert one.fit_utilities == two.fit_utilities
    policies = (dial.at(2.2) for dial in (one, two))
    first, second = (Replayer(fresh).exit_index(policy) for policy in policies)
    assert np.array_equal(first, second)


# --- on disk ----------------------------------------------------------------------------------------------------------


def test_probabilities_of_zero_do_not_hide_what_a_later_exit_is_worth():
    """Forests give 0 to classes that no tree chose; the logarithm keeps an ensemble from using such an exit."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    guess = np.where(rng.random(600) < 0.58, labels, rng.integers(0, 3, 600))
    first = np.where(np.arange(3) == guess[:, None], 0.6, 0.2)
    votes = rng.random((600, 20)) < np.where(rng.random(600) < 0.8, 0.8, 0.0)[:, None]  # of 20 trees
    others = (labels[:, None] + rng.integers(1, 3, (600, 1))) % 3
    second = (np.where(votes, labels[:, None], others)[:, :, None] == np.arange(3)).mean(axis=1)
    table = ExitTable.from_probs(np.stack([first, second], axis=1), labels=labels)
    table = table.with_costs(CostTable((1.0, 21.0), "units", 20.0))
    early, late = table.require_utility("").mean(axis=0)
    assert late > early + 0.05
    dial = StoppingScheduler(seed=0).sweep(table)
    reached = [Replayer(table).expected(policy)[1] for policy in dial.policies]
    assert max(reached) >= late - 0.01

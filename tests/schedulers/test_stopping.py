"""Optimal stopping: backward induction by hand and against a slow twin, planted optima, what it promises."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eenet.core.combined import TransformedPolicy, unmixed
from eenet.core.costs import CostTable, standard_budgets
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, replay
from eenet.errors import BudgetError, InputError, TableError
from eenet.schedulers import JointScheduler, StoppingScheduler, fit_ensemble, load_policy, save_policy, static_mix
from eenet.schedulers.ensemble import folds_of
from eenet.schedulers.stopping import StoppingScorer, StoppingState, _worth
from eenet.schedulers.stopping_fit import _prices, induce
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


def random_table(seed, num_samples=60, num_exits=3, num_classes=3, *, graded=False):
    """Any table: outputs, worth and costs drawn without sense."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(num_samples, num_exits, num_classes, generator=generator)
    steps = torch.rand(num_exits, generator=generator, dtype=torch.float64) + 0.05
    worth = torch.rand(num_samples, num_exits, generator=generator)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    return ExitTable(
        logits=logits,
        labels=None if graded else labels,
        utility=worth if graded else None,
        costs=CostTable(tuple(steps.cumsum(0).tolist()), "ms"),
    )


def random_scorer(classes, exits):
    """A scorer of random weights, with as many columns as suit the classes."""
    generator = torch.Generator().manual_seed(classes)
    columns = StoppingState(curved=classes <= 64).own_columns(classes)
    weight = torch.randn(exits - 1, columns, generator=generator, dtype=torch.float64)
    bias = torch.randn(exits - 1, generator=generator, dtype=torch.float64)
    return StoppingScorer(exits, columns, curved=classes <= 64, weight=weight, bias=bias)


# --- the state and the scorer -----------------------------------------------------------------------------------------


def test_the_state_by_hand():
    seen = torch.tensor([[[0.5, 0.5, 0.0001], [0.7, 0.2, 0.1]]]).log()
    curved, plain = StoppingState(), StoppingState(curved=False)
    entropy = sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert curved(seen)[0].tolist() == pytest.approx([0.7, 0.2, 0.1, 0.49, 0.04, 0.01, 0.7, entropy])
    columns = plain(seen)[0].tolist()
    assert columns == pytest.approx([0.7, 0.2, 0.1, 0.54, 0.7, entropy])
    features = torch.tensor([[[9.0, 9.0], [3.0, -4.0]]])
    rich = StoppingState(curved=False, with_features=True)(seen, features)[0].tolist()
    assert rich == pytest.approx([*columns, 3.0, -4.0])
    assert (curved.own_columns(3), plain.own_columns(3)) == (8, 6)


def test_classes_have_curves_of_their_own_where_they_are_few():
    for classes, curved in ((64, True), (65, False)):
        table = synthetic_table(5, num_classes=classes)
        assert StoppingState.suiting(table, with_features=True).curved is curved
        assert not StoppingState.suiting(table, with_features=True).with_features  # the table has none


def test_impossible_classes_make_no_nan():
    seen = torch.log_softmax(torch.tensor([[[200.0, 0.0, -300.0]]]), dim=2)
    assert StoppingState()(seen)[0].tolist() == pytest.approx([1, 0, 0, 1, 0, 0, 1, 0])


@pytest.mark.parametrize(("curved", "at"), [(True, 6), (False, 4)])
def test_the_score_by_hand(curved, at):
    weight = torch.zeros(2, 8 if curved else 6, dtype=torch.float64)
    weight[0, 0], weight[1, at] = 1.0, 2.0  # exit 0 looks at the first class, exit 1 at the largest probability
    scorer = StoppingScorer(3, weight.shape[1], curved=curved, weight=weight, bias=torch.tensor([0.5, -1.0]).double())
    seen = torch.tensor([[[0.5, 0.3, 0.2], [0.7, 0.2, 0.1]], [[0.1, 0.3, 0.6], [0.2, 0.4, 0.4]]]).log()
    assert scorer(seen[:, :1]).tolist() == pytest.approx([1.0, 0.6])
    assert scorer(seen).tolist() == pytest.approx([0.4, -0.2])


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("classes", [2, 5, 70])
def test_scores_do_not_depend_on_the_batch(size, classes):
    table = synthetic_table(200, seed=1, num_classes=classes)
    scorer = random_scorer(classes, 4)
    seen = table.log_probs(slice(None))
    for k in range(3):
        parts = torch.cat([scorer(part[:, : k + 1]) for part in torch.split(seen, size)])
        assert torch.equal(parts, scorer(seen[:, : k + 1]))


@pytest.mark.parametrize("classes", [5, 70])
def test_a_widened_scorer_says_the_same_where_both_are_known(classes):
    scorer = random_scorer(classes, 3)
    wide, seen = scorer.widened(5), synthetic_table(30, num_exits=5, num_classes=classes).log_probs(slice(None))
    for k in range(2):
        assert torch.equal(wide(seen[:, : k + 1]), scorer(seen[:, : k + 1]))
    assert wide(seen[:, :4]).tolist() == [0.0] * 30
    assert wide.settings() == scorer.settings() | {"num_exits": 5}
    again = StoppingScorer(**scorer.settings())
    again.load_state_dict(scorer.state_dict())
    assert torch.equal(again(seen[:, :2]), scorer(seen[:, :2]))


# --- backward induction -----------------------------------------------------------------------------------------------


def slow_induce(table, costs, worth, state, folds, ridge, seed):
    """Backward induction by loops over prices, exits, folds and samples."""
    n, exits, classes = table.num_samples, table.num_exits, table.num_classes
    fold = folds_of(n, min(folds, n), seed).tolist()
    worth, c, utility = worth.numpy(), costs.cumulative, table.utility.double().numpy()
    columns = [state.of(table.log_probs_at(slice(None), k), None).numpy() for k in range(exits - 1)]
    weights, biases, outcome = [], [], []
    for price in _prices(torch.from_numpy(worth), costs).tolist():
        leaves_at = [exits - 1] * n
        weight, bias = np.zeros((exits - 1, columns[0].shape[1])), np.zeros(exits - 1)
        for k in reversed(range(exits - 1)):
            going_on = [worth[i, leaves_at[i]] - price * (c[leaves_at[i]] - c[k]) for i in range(n)]
            y = np.array([going_on[i] - worth[i, k] for i in range(n)])
            _, _, held_out = slow_fit(columns[k], y, np.ones(n), fold, classes, state.curved, ridge)
            for _ in range(2):
                near = 1 / (1 + (held_out / (0.35 * np.sqrt(np.mean(held_out**2)) + 1e-12)) ** 2)
                counts = near / near.mean()
                weight[k], bias[k], held_out = slow_fit(columns[k], y, counts, fold, classes, state.curved, ridge)
            leaves_at = [leaves_at[i] if held_out[i] > 0 else k for i in range(n)]
        weights.append(-weight)
        biases.append(-bias)
        outcome.append([np.mean([v[i, leaves_at[i]] for i in range(n)]) for v in (utility, worth)])
        outcome[-1].append(np.mean([c[leaves_at[i]] for i in range(n)]))
    return np.array(weights), np.array(biases), np.array(outcome)


def slow_fit(x, y, counts, fold, classes, curved, ridge):
    """Weighted ridge regressions by stacked rows; squares have a shared weight in a column of its own."""
    n, folds = len(x), max(fold) + 1
    shared = x[:, classes : 2 * classes].sum(axis=1, keepdims=True) if curved else np.zeros((n, 0))
    z = np.hstack([x, shared, np.ones((n, 1))])
    penalty = np.full(z.shape[1], 0.1 * ridge)
    penalty[: 2 * classes if curved else classes] = ridge
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
        if curved:
            found[classes : 2 * classes] += found[-2]
        weights.append(found)
    mean = np.mean(weights, axis=0)
    return mean[: x.shape[1]], mean[-1], held_out


@pytest.mark.parametrize(("seed", "graded"), [(1, True), (2, False)])
def test_backward_induction_equals_its_slow_twin(seed, graded):
    table, state = random_table(seed, 30, 3, graded=graded), StoppingState(curved=graded)
    worth = _worth(table, None if graded else fit_ensemble(table))
    found = induce(table, table.costs, worth, state=state, folds=5, ridge=1.0, feature_ridge=1000.0, seed=seed)
    weight, bias, outcome = slow_induce(table, table.costs, worth, state, 5, 1.0, seed)
    exits = table.num_exits
    assert np.allclose(found.weight[exits:], weight, atol=1e-7)
    assert np.allclose(found.bias[exits:], bias, atol=1e-7)
    assert np.allclose(found.utility[exits:], outcome[:, 0])
    assert np.allclose(found.worth[exits:], outcome[:, 1])
    assert np.allclose(found.cost[exits:], outcome[:, 2])


def test_every_fixed_exit_is_among_the_rules():
    table = random_table(3)
    found = induce(
        table,
        table.costs,
        table.require_utility("x"),
        state=StoppingState(),
        folds=5,
        ridge=1.0,
        feature_ridge=1.0,
        seed=0,
    )
    assert found.cost[:3].tolist() == pytest.approx(list(table.costs.cumulative))
    assert torch.allclose(found.utility[:3], table.utility.double().mean(dim=0))
    for k in range(3):
        scorer = StoppingScorer(3, 8, weight=found.weight[k], bias=found.bias[k])
        policy = ScorePolicy(scorer, torch.tensor([0.0, 0.0, -math.inf]))
        assert replay(policy, table).exit_index.unique().tolist() == [k]


def test_the_worth_of_an_answer_is_its_chance_given_all_exits():
    table = synthetic_table(100)
    together = fit_ensemble(table)
    seen = table.log_probs(slice(None))
    chances = together(seen).double().exp()
    for view in (table, table.transformed(together)):
        worth = _worth(view, together)
        answers = view.log_probs(slice(None)).argmax(dim=2)
        for i in range(0, 100, 7):
            assert worth[i].tolist() == pytest.approx([float(chances[i, answers[i, k]]) for k in range(4)])
    assert torch.equal(_worth(table, None), table.utility.double())


def test_features_are_penalised_by_their_variance():
    # scaling a feature changes nothing: the penalty is stated as if each had variance 1
    table = synthetic_table(300, seed=2)
    features = torch.randn(300, 4, 2, generator=torch.Generator().manual_seed(0))
    state, found = StoppingState(with_features=True), []
    for scale in (1.0, 100.0):
        rich = ExitTable(logits=table.logits, labels=table.labels, features=scale * features, costs=table.costs)
        worth = rich.require_utility("x")
        found.append(induce(rich, table.costs, worth, state=state, folds=5, ridge=1.0, feature_ridge=50.0, seed=0))
    assert torch.allclose(found[0].weight[:, :, -2:], 100 * found[1].weight[:, :, -2:], atol=1e-5)
    assert torch.allclose(found[0].bias, found[1].bias, atol=1e-5)
    assert float(found[0].weight[:, :, -2:].abs().max()) > 0


# --- planted optima ---------------------------------------------------------------------------------------------------


def chances(name, table):
    """What is known of the classes at each exit, exactly, given all evidence so far."""
    log_probs = torch.log_softmax(table.logits.double(), dim=2)
    if name == "posterior":  # independent evidence
        return torch.softmax(log_probs.cumsum(dim=1), dim=2)
    if name == "typed":
        return torch.nn.functional.one_hot(table.labels, 4)[:, None].expand(-1, 3, -1).double()
    return log_probs.exp()


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
        kind = 3 - test.utility.sum(dim=1)
        parts = [(kind == i).nonzero().squeeze(1)[: fresh * share // 12] for i, share in enumerate((5, 3, 2))]
        test = test.select(torch.cat(parts))
    truth = chances(name, test)
    for seed in seeds:
        dial = scheduler.sweep(make(num_samples, seed=seed))
        policies = [dial.at(budget) for budget in standard_budgets(test.costs)]
        gains = [measure_gain(policy, test, optimum, chances=truth, accuracies=exact) for policy in policies]
        whole = sum(gain.reached for gain in gains) / sum(gain.possible for gain in gains)
        rows.append([*(gain.share for gain in gains), whole])
    return np.array(rows)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == "classwise" else []) for name in PLANTED]
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
def test_the_planted_optimum_is_reached_for_any_draw(name):
    found = shares(StoppingScheduler(), name, 5000, range(6), 300_000)
    assert found[:, -1].mean() >= 0.98, found
    assert found[:, -1].min() >= 0.965, found
    assert found.min() >= 0.8, found  # of single budgets, where little can be gained


# --- promises ---------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@example(seed=40, num_samples=18, num_exits=2, num_classes=4, graded=True, share=0.0)  # no held-out sample goes on
@given(
    seed=st.integers(0, 10_000),
    num_samples=st.integers(5, 120),
    num_exits=st.integers(2, 4),
    num_classes=st.integers(2, 4),
    graded=st.booleans(),
    share=st.floats(0, 1.2),
)
def test_any_budget_is_kept_and_more_never_hurts(seed, num_samples, num_exits, num_classes, graded, share):
    table = random_table(seed, num_samples, num_exits, num_classes, graded=graded)
    costs, replayer = table.costs, Replayer(table)
    dial = StoppingScheduler().sweep(table)
    budgets = sorted([costs.low, costs.low + share * (costs.high - costs.low), *standard_budgets(costs), costs.high])
    outcome = [replayer.expected(dial.at(budget), costs) for budget in budgets]
    for budget, (cost, _) in zip(budgets, outcome, strict=True):
        assert cost <= budget
    gains = [utility for _, utility in outcome]
    assert all(later >= earlier - 1e-9 for earlier, later in pairwise(gains))
    assert list(dial.fit_costs) == sorted(dial.fit_costs)
    assert all(a < b for a, b in pairwise(dial.fit_utilities))
    assert dial.fit_costs[0] == pytest.approx(costs.low)
    assert replay(dial.policies[0], table).exit_index.tolist() == [0] * num_samples


@pytest.mark.parametrize("scheduler", [StoppingScheduler(), ALONE], ids=["ensemble", "alone"])
def test_the_order_of_samples_does_not_matter_beyond_the_folds(scheduler):
    table, fresh = synthetic_table(1500, seed=0), synthetic_table(2000, seed=1)
    order = torch.randperm(1500, generator=torch.Generator().manual_seed(5))
    policies = [scheduler.fit(part, budget="55%") for part in (table, table.select(order))]
    (cost, gain), (other_cost, other_gain) = (Replayer(fresh).expected(one, table.costs) for one in policies)
    assert cost == pytest.approx(other_cost, abs=0.05)
    assert gain == pytest.approx(other_gain, abs=0.01)
    check_policy(policies[0], fresh)


def test_without_folds_of_its_own_the_order_of_samples_does_not_matter_at_all():
    # with as many folds as samples there is one way only to hold each out
    table = random_table(7, 12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    one, two = (StoppingScheduler(ensemble=False, folds=12).sweep(part) for part in (table, table.select(order)))
    assert one.fit_costs == pytest.approx(two.fit_costs)
    assert one.fit_utilities == pytest.approx(two.fit_utilities)


def test_both_ends_of_the_dial():
    table = synthetic_table(800)
    dial = StoppingScheduler().sweep(table)
    assert dial.fit_costs[0] == table.costs.low
    cheapest = dial.at(table.costs.low)
    assert Replayer(table).expected(cheapest, table.costs)[0] == table.costs.low
    assert replay(cheapest, synthetic_table(500, seed=1)).cost.unique().tolist() == [table.costs.low]
    with pytest.raises(BudgetError):
        dial.at(0.99 * table.costs.low)


@pytest.mark.parametrize("gains_end", [1, 2])
def test_nothing_is_spent_where_later_exits_add_nothing(gains_end):
    base = synthetic_table(2000, num_exits=4, seed=3)
    logits = base.logits.clone()
    logits[:, gains_end + 1 :] = logits[:, gains_end : gains_end + 1]  # copies
    table = ExitTable(logits=logits, labels=base.labels, costs=base.costs)
    fresh = synthetic_table(2000, num_exits=4, seed=4)
    fresh_logits = fresh.logits.clone()
    fresh_logits[:, gains_end + 1 :] = fresh_logits[:, gains_end : gains_end + 1]
    dial = StoppingScheduler().sweep(table)
    assert dial.fit_costs[-1] <= base.costs.cumulative[gains_end] + 0.1
    dearest = dial.at(10 * table.costs.high)
    on_fresh = ExitTable(logits=fresh_logits, labels=fresh.labels, costs=base.costs)
    cost, utility = Replayer(on_fresh).expected(dearest, table.costs)
    assert cost <= base.costs.cumulative[gains_end] + 0.1
    assert utility >= float(on_fresh.utility[:, -1].mean()) - 0.01


def test_nothing_at_all_is_spent_where_no_exit_adds_anything():
    base = synthetic_table(1000, seed=3)
    table = ExitTable(logits=base.logits[:, :1].repeat(1, 4, 1), labels=base.labels, costs=base.costs)
    assert StoppingScheduler().sweep(table).fit_costs == (table.costs.low,)


@pytest.mark.parametrize("never", [True, False])
def test_the_ensemble_is_used_where_it_pays(never):
    table = synthetic_table(1500, seed=1)
    policy = StoppingScheduler(ensemble=not never).fit(table, budget="60%")
    parts = [part for _, part in unmixed(policy)]
    assert all(isinstance(part, TransformedPolicy) is not never for part in parts)
    together = table.transformed(fit_ensemble(table))
    assert all(isinstance(part, ScorePolicy) for _, part in unmixed(StoppingScheduler().fit(together, budget="60%")))


def test_an_ensemble_that_does_not_pay_is_left_out(monkeypatch):
    table = synthetic_table(300, seed=1)
    worse = ExitTable(logits=-table.logits, labels=table.labels)
    monkeypatch.setattr("eenet.schedulers.stopping.held_out_ensemble", lambda *_: (table, worse))
    parts = [part for _, part in unmixed(StoppingScheduler().fit(table, budget="60%"))]
    assert not any(isinstance(part, TransformedPolicy) for part in parts)


def test_an_ensemble_with_nothing_to_combine_does_no_harm():
    # the last exit knows all, the first nothing
    def drawn(seed):
        label = torch.arange(1200) % 2
        logits = torch.randn(1200, 2, 2, generator=torch.Generator().manual_seed(seed))
        logits[:, 1] = 8.0 * torch.nn.functional.one_hot(label, 2)
        return ExitTable(logits=logits, labels=label, costs=CostTable((1.0, 2.0), "ms"))

    policy = StoppingScheduler().fit(drawn(0), budget=1.5)
    cost, utility = Replayer(drawn(1)).expected(policy, drawn(1).costs)
    assert (cost, utility) == pytest.approx((1.5, 0.75), abs=0.05)


# --- odd tables -------------------------------------------------------------------------------------------------------


def odd_tables():
    base = synthetic_table(60, num_exits=3, num_classes=3, seed=9)
    costs, logits, labels = base.costs, base.logits, base.labels
    few = synthetic_table(5, num_exits=3, seed=1)
    one_hot = torch.nn.functional.one_hot(labels, 3)[:, None].expand(-1, 3, -1).float()
    generator = torch.Generator().manual_seed(2)
    return {
        "utility only": ExitTable(logits=logits, utility=base.utility, costs=costs),
        "graded": ExitTable(logits=logits, labels=labels, utility=torch.rand(60, 3, generator=generator), costs=costs),
        "useless": ExitTable(logits=logits, utility=torch.zeros(60, 3), costs=costs),
        "two classes, two exits": synthetic_table(50, num_exits=2, num_classes=2),
        "constant": ExitTable(logits=torch.zeros(60, 3, 3), labels=labels, costs=costs),
        "all right": ExitTable(logits=20 * one_hot, labels=labels, costs=costs),
        "all wrong": ExitTable(logits=-20 * one_hot, labels=labels, costs=costs),
        "five samples": few,
        "two samples": synthetic_table(2, num_exits=3),
        "half precision": ExitTable(logits=logits.half(), labels=labels, costs=costs),
        "sharp": ExitTable(logits=1e4 * logits, labels=labels, costs=costs),
        "more classes than samples": synthetic_table(20, num_exits=3, num_classes=50),
    }


@pytest.mark.parametrize("scheduler", [StoppingScheduler(), ALONE], ids=["ensemble", "alone"])
@pytest.mark.parametrize("name", odd_tables())
def test_odd_tables_are_fitted(name, scheduler):
    table = odd_tables()[name]
    dial = scheduler.sweep(table)
    for budget in (table.costs.low, *standard_budgets(table.costs), table.costs.high):
        policy = dial.at(budget)
        assert Replayer(table).expected(policy, table.costs)[0] <= budget
    for policy in dial.policies:
        assert isinstance(policy, Policy)
        assert all(bool(buffer[buffer.isfinite().logical_not()].isinf().all()) for buffer in policy.buffers())
    if name in ("useless", "constant", "all right", "all wrong"):
        assert dial.fit_costs == (table.costs.low,)


def test_labels_and_given_accuracy_serve_alike_without_an_ensemble():
    table, fresh = synthetic_table(500, seed=6), synthetic_table(500, seed=7)
    blind = ExitTable(logits=table.logits, utility=table.utility, costs=table.costs)
    policy, same = (StoppingScheduler().fit(blind, budget="55%"), ALONE.fit(blind, budget="55%"))
    assert torch.equal(Replayer(fresh).exit_index(policy), Replayer(fresh).exit_index(same))
    cost, utility = Replayer(fresh).expected(policy, table.costs)
    assert utility >= static_mix(table, fresh, table.costs, cost).utility + 0.01


def test_what_is_missing_is_named():
    table = synthetic_table(30)
    with pytest.raises(TableError, match=r"lacks labels: fitting stopping needs 'labels' or 'utility'\. Add either"):
        StoppingScheduler().sweep(ExitTable(logits=table.logits, costs=table.costs))
    with pytest.raises(TableError, match="costs are missing"):
        StoppingScheduler().sweep(ExitTable(logits=table.logits, labels=table.labels))
    for scheduler in (StoppingScheduler(), ALONE):
        with pytest.raises(TableError, match=r"table of 1 sample is too small: stopping holds samples out in turn"):
            scheduler.sweep(table.select(slice(0, 1)))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"folds": 1}, "folds 1 are too few"),
        ({"ridge": 0.0}, "ridge 0 cannot be used"),
        ({"ridge": math.inf}, "ridge inf cannot be used"),
        ({"feature_ridge": math.nan}, "feature_ridge nan cannot be used"),
    ],
)
def test_settings_that_cannot_work_are_refused(setting, words):
    with pytest.raises(InputError, match=words):
        StoppingScheduler(**setting)


# --- features ---------------------------------------------------------------------------------------------------------


def telling_table(num_samples, seed):
    """The logits of the first exit say nothing; a feature tells who is right there."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (num_samples,), generator=generator)
    right = torch.rand(num_samples, generator=generator) < 0.5
    one_hot = torch.nn.functional.one_hot(label, 2).float()
    logits = torch.stack([torch.where(right[:, None], one_hot, 1 - one_hot), 3 * one_hot], dim=1)
    features = torch.randn(num_samples, 2, 3, generator=generator)
    features[:, 0, 1] += 4.0 * right
    return ExitTable(logits=logits, labels=label, features=features, costs=CostTable((1.0, 2.0), "ms"))


def test_features_are_used_when_asked_for_and_then_needed(tmp_path):
    val, test = telling_table(1000, 0), telling_table(1000, 1)
    gains = {}
    for used in (False, True):
        policy = StoppingScheduler(use_features=used).fit(val, budget=1.5)
        gains[used] = Replayer(test).expected(policy, val.costs)[1]
        save_policy(policy, tmp_path / str(used))
        again = load_policy(tmp_path / str(used)).policy
        assert torch.equal(Replayer(test).exit_index(again), Replayer(test).exit_index(policy))
    assert gains[False] == pytest.approx(0.75, abs=0.03)
    assert gains[True] >= 0.94
    check_policy(policy, test)
    blind = ExitTable(logits=test.logits, labels=test.labels, costs=test.costs)
    with pytest.raises(InputError, match=r"features None are missing: .* Pass those of the samples too"):
        Replayer(blind).exit_index(policy)
    plain = StoppingScheduler(use_features=True).fit(blind, budget=1.5)  # nothing to use
    assert Replayer(blind).expected(plain, blind.costs)[0] <= 1.5


# --- on disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [StoppingScheduler(), ALONE], ids=["ensemble", "alone"])
def test_a_saved_policy_decides_and_answers_the_same(scheduler, tmp_path):
    table, fresh = synthetic_table(1500, seed=1), synthetic_table(300, seed=2)
    policy = scheduler.fit(table, budget="55%")
    assert len(unmixed(policy)) == 2
    save_policy(policy, tmp_path / "policy", costs=table.costs)
    saved = load_policy(tmp_path / "policy")
    one, two = replay(policy, fresh), replay(saved.policy, fresh)
    assert torch.equal(one.exit_index, two.exit_index)
    assert torch.equal(one.log_probs, two.log_probs)
    assert type(saved.policy) is type(policy)
    parts = [part for _, part in unmixed(saved.policy)]
    assert all(isinstance(part, TransformedPolicy) is scheduler.ensemble for part in parts)
    if scheduler.ensemble:
        assert parts[0].transform is parts[1].transform  # one for both, as before

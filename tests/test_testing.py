"""The planted tables: their optimum is the optimum, and their samples are what they claim to be."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import norm

from eenet.errors import BudgetError, InputError
from eenet.policies.policy import Policy, ScorePolicy
from eenet.policies.replay import Replayer
from eenet.policies.scorers import ConfidenceScorer
from eenet.policies.store import load_policy
from eenet.schedulers import EENetScheduler, GeometricScheduler, JointScheduler, VoteScheduler, static_mix
from eenet.tables.costs import standard_budgets
from eenet.testing import (
    check_policy,
    check_scheduler,
    classwise_accuracies,
    classwise_optimum,
    classwise_table,
    gaussian_accuracies,
    gaussian_optimum,
    gaussian_table,
    measure_gain,
    synthetic_table,
    typed_optimum,
    typed_table,
)

PLANTED = {"gaussian": (gaussian_table, gaussian_optimum), "classwise": (classwise_table, classwise_optimum)}
INFORMATION = {  # the defaults
    "gaussian": ((0.8, 0.2, 1.4, 0.1, 1.5, 1.0),),
    "classwise": ((1.5, 2.5, 1.0, 0.5), (1.5, 0.1, 0.2, 4.0), (1.5, 0.0, 0.0, 0.0), (1.5, 0.8, 0.8, 0.8)),
}
SCHEDULERS = {
    "max_prob": GeometricScheduler(),
    "vote": VoteScheduler(),
    "joint": JointScheduler(),
    "eenet": EENetScheduler(epochs=20),
}


@pytest.fixture(scope="module", params=PLANTED)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def large(name):
    """A large fresh draw that is judged by chances."""
    return PLANTED[name][0](100_000, seed=77, expected=True)


def right(information):
    """How often an exit is right that has seen so much: two unit Gaussians, ``sqrt(information)`` apart."""
    return norm.cdf(math.sqrt(information) / 2)


def exit_utilities(name):
    """Closed form of every static exit's expected utility."""
    seen = np.cumsum(INFORMATION[name], axis=1)
    return [float(np.mean([right(v) for v in seen[:, k]])) for k in range(seen.shape[1])]


def test_exits_are_as_good_as_their_evidence(name, large):
    table = PLANTED[name][0](100_000, seed=78)
    assert table.require_utility("").mean(axis=0).tolist() == pytest.approx(exit_utilities(name), abs=0.006)
    assert large.require_utility("").mean(axis=0).tolist() == pytest.approx(exit_utilities(name), abs=0.003)


def test_outputs_are_calibrated_and_a_martingale(name):
    table = PLANTED[name][0](100_000, seed=79)
    probs = np.exp(table.seen())
    for k in range(table.num_exits):
        top, chosen = probs[:, k].max(axis=1), probs[:, k].argmax(axis=1)
        for low in (0.5, 0.6, 0.7, 0.8, 0.9):
            inside = (top >= low) & (top < low + 0.1)
            found = (chosen[inside] == table.labels[inside]).mean()
            assert float(found) == pytest.approx(float(top[inside].mean()), abs=4 * 0.5 / math.sqrt(int(inside.sum())))
    # what exit 0 says about a class is what the last exit will say on average
    first, last = probs[:, 0, 0], probs[:, -1, 0]
    for low in (0.1, 0.4, 0.7):
        inside = (first >= low) & (first < low + 0.2)
        assert float((last - first)[inside].mean()) == pytest.approx(0, abs=4 * 0.4 / math.sqrt(int(inside.sum())))


def test_confidences_at_exit_0_are_the_same_for_all_pairs_but_later_gains_are_not():
    table = classwise_table(80_000, seed=5, expected=True)
    pair = table.labels // 2
    confidence = np.exp(table.seen()[:, 0].max(axis=1))
    means = [float(confidence[pair == i].mean()) for i in range(4)]
    assert means == pytest.approx([right(1.5)] * 4, abs=0.004)
    gains = [float((table.utility[:, -1] - table.utility[:, 0])[pair == i].mean()) for i in range(4)]
    assert gains[2] == 0.0
    assert min(gains[0], gains[1], gains[3]) > 0.1


def test_the_optimum_at_both_ends_is_that_of_the_first_and_the_last_exit(name):
    make, optimum = PLANTED[name]
    costs, utilities = make(2).require_costs(), exit_utilities(name)
    assert optimum(costs.low) == pytest.approx(utilities[0], abs=1e-5)
    # more evidence never hurts, so that with money to burn going to the end is best
    assert optimum(costs.high) == pytest.approx(utilities[-1], abs=1e-5)
    assert optimum(10 * costs.high) == pytest.approx(utilities[-1], abs=1e-5)


@pytest.mark.parametrize("budget", [1.1, 1.3, 1.6, 1.9])
def test_two_exits_agree_with_numerical_integration(budget):
    # going on costs 1 and is worth it where |L| is small: one threshold, found from the budget
    v, w = 1.0, 2.0

    def density(odds):
        return (norm.pdf(odds, v / 2, math.sqrt(v)) + norm.pdf(odds, -v / 2, math.sqrt(v))) / 2

    def later(odds):  # right in the end: the evidence leads to the side of the true class
        return expit(odds) * norm.cdf((odds + w / 2) / math.sqrt(w)) + expit(-odds) * norm.cdf(
            (-odds + w / 2) / math.sqrt(w)
        )

    def going_on(threshold):
        return 2 * quad(density, 0, threshold)[0]

    threshold = brentq(lambda t: going_on(t) - (budget - 1), 0, 20)
    best = 2 * quad(lambda x: density(x) * later(x), 0, threshold)[0]
    best += 2 * quad(lambda x: density(x) * expit(x), threshold, 30)[0]
    assert gaussian_optimum(budget, information=(v, w), costs=(1.0, 2.0)) == pytest.approx(best, abs=2e-5)


def best_thresholds(information, costs, multiplier):
    """Slow twin of the dynamic program: Gauss-Hermite steps on signed log-odds; leave where ``|L|`` reaches it."""
    grid = np.linspace(-25, 25, 5001)
    nodes, weights = np.polynomial.hermite_e.hermegauss(61)
    weights = weights / weights.sum()
    value = expit(np.abs(grid))
    thresholds = [-math.inf]
    for k in reversed(range(1, len(costs))):
        v = information[k]
        ahead = sum(
            w * chance * np.interp(grid + drift + math.sqrt(v) * x, grid, value)
            for x, w in zip(nodes, weights, strict=True)
            for chance, drift in ((expit(grid), v / 2), (expit(-grid), -v / 2))
        )
        stays = ahead - multiplier * (costs[k] - costs[k - 1]) > expit(np.abs(grid)) + 1e-12
        half = stays[2500:]
        assert np.array_equal(half, stays[2500::-1])  # the region is symmetric
        assert not (np.diff(half.astype(int)) > 0).any()  # and one interval around 0: a threshold on the largest chance
        thresholds.append(float(grid[2500:][~half][0]))
        value = np.where(stays, ahead - multiplier * (costs[k] - costs[k - 1]), expit(np.abs(grid)))
    return thresholds[::-1]


class Best(Policy):
    """The best rule at a Lagrange multiplier: thresholds on the log-odds, of each pair its own."""

    answers_newest = True

    def __init__(self, information, costs, multiplier):
        self.num_exits = len(costs)
        self.levels = np.array([best_thresholds(row, costs, multiplier) for row in information])

    def leaves(self, seen, sample_ids):
        pair = seen[:, -1].argmax(axis=1) // 2
        inside = seen[:, -1].reshape(len(seen), -1, 2)[np.arange(len(seen)), pair]
        return np.abs(inside[:, 0] - inside[:, 1]) >= self.levels[pair, seen.shape[1] - 1]

    def answers(self, seen, sample_ids):
        return seen[:, -1]


@pytest.mark.parametrize("multiplier", [0.02, 0.05, 0.09])
def test_the_best_rule_reaches_the_optimum(name, large, multiplier):
    optimum, costs = PLANTED[name][1], large.require_costs()
    rule = Best(INFORMATION[name], costs.cumulative, multiplier)
    replayer = Replayer(large)
    cost, utility = replayer.expected(rule)
    assert costs.low < cost < costs.high
    # with what the rule deducts for cost, noise of the two cancels
    worth = replayer.utility(rule) - multiplier * replayer.cost(replayer.exit_index(rule))
    assert utility == pytest.approx(optimum(cost), abs=4 * float(worth.std()) / math.sqrt(large.num_samples))
    assert measure_gain(rule, large, optimum).share == pytest.approx(1, abs=0.03)


def test_no_scheduler_beats_the_optimum(name, large):
    make, optimum = PLANTED[name]
    val, costs, replayer = make(3000, seed=3), large.require_costs(), Replayer(large)
    for scheduler in SCHEDULERS.values():
        dial = scheduler.sweep(val)
        for fraction in (0.15, 0.5):
            policy = dial.at(costs.low + fraction * (costs.high - costs.low))
            cost, utility = replayer.expected(policy)
            noise = float(replayer.utility(policy).std()) / math.sqrt(large.num_samples)
            assert utility <= optimum(cost) + 4 * noise


@pytest.mark.parametrize("multiplier", [0.02, 0.05, 0.09])
@pytest.mark.parametrize("seed", [1, 2])
def test_joint_finds_the_optimum_of_its_class(multiplier, seed):
    # where it searched, it does at least as well as the best thresholds there are; all else is noise of the sample
    val = gaussian_table(5000, seed=seed)
    costs, replayer = val.require_costs(), Replayer(val)
    cost, utility = replayer.expected(Best(INFORMATION["gaussian"], costs.cumulative, multiplier))
    assert replayer.expected(JointScheduler().fit(val, budget=cost))[1] >= utility - 1e-9


def test_without_the_noise_of_labels_joint_reaches_the_optimum_on_fresh_data():
    dial = JointScheduler().sweep(gaussian_table(5000, seed=3, expected=True))
    test = gaussian_table(100_000, seed=103, expected=True)
    budgets = standard_budgets(test.costs)
    gains = [measure_gain(dial.at(b), test, gaussian_optimum, accuracies=gaussian_accuracies()) for b in budgets]
    assert sum(gain.reached for gain in gains) / sum(gain.possible for gain in gains) > 0.97


def test_thresholds_on_a_confidence_are_not_the_best_where_the_class_decides():
    # fitted on as much data as one likes, they stay far below the rule that looks at the pair
    dial = JointScheduler().sweep(classwise_table(20_000, seed=1))
    test = classwise_table(100_000, seed=2, expected=True)
    for budget in (1.3, 1.6, 2.2):
        assert measure_gain(dial.at(budget), test, classwise_optimum).share < 0.75


def static(k, exits):
    """Everybody leaves at exit ``k``."""
    return ScorePolicy(ConfidenceScorer("max_prob"), np.array([math.inf] * k + [-math.inf] * (exits - k)))


def test_the_gain_of_a_blind_policy_is_zero():
    test = classwise_table(50_000, seed=6, expected=True)
    assert measure_gain(static(1, 4), test, classwise_optimum).share == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    ("draw", "optimum", "accuracies"),
    [
        (gaussian_table, gaussian_optimum, gaussian_accuracies()),
        (classwise_table, classwise_optimum, classwise_accuracies()),
    ],
)
def test_accuracies_are_those_of_the_exits(draw, optimum, accuracies):
    test = draw(200_000, seed=8)
    assert test.utility.mean(axis=0).tolist() == pytest.approx(accuracies, abs=0.005)
    costs = test.costs.cumulative
    assert accuracies[0] == pytest.approx(optimum(costs[0]), abs=1e-4)  # all leave at once, or all go to the end
    assert accuracies[-1] == pytest.approx(optimum(costs[-1]), abs=1e-4)


def test_the_gain_by_hand():
    # typed: exits are right for 0.5, 0.8 and 1 of all samples, at costs of 1, 2 and 4
    test = typed_table(1000)
    policy = JointScheduler().fit(test, budget=1.5)
    cost, utility = Replayer(test).expected(policy)
    blind = static_mix(test, test, test.costs, cost).utility
    exact = {"accuracies": (0.5, 0.8, 1.0), "chances": np.eye(4)[test.labels][:, None].repeat(3, axis=1)}
    assert measure_gain(policy, test, lambda _: utility).share == pytest.approx(1)
    assert measure_gain(policy, test, lambda _: 2 * utility - blind).share == pytest.approx(0.5)
    # the best policy gains 0.3 at a cost of 1.5, the best blind mix half of that
    gain = measure_gain(policy, test, typed_optimum, **exact)
    assert (gain.cost, gain.possible) == pytest.approx((cost, typed_optimum(cost) - 0.5 - 0.3 * (cost - 1)))
    assert gain.reached == pytest.approx(utility - blind)
    with pytest.raises(InputError, match="leaves nothing to gain"):
        measure_gain(policy, test, lambda _: blind)


@settings(max_examples=5, deadline=None)
@given(
    information=st.lists(st.floats(0.05, 3), min_size=2, max_size=4),
    stages=st.lists(st.floats(0.1, 2), min_size=4, max_size=4),
)
def test_the_optimum_is_concave_and_not_below_a_blind_mix(information, stages):
    costs = np.cumsum(stages)[: len(information)].tolist()
    budgets = np.linspace(costs[0], costs[-1], 9)
    best = np.array([gaussian_optimum(float(b), information=information, costs=costs) for b in budgets])
    assert (np.diff(best) >= -1e-9).all()
    assert (np.diff(best, 2) <= 1e-9).all()
    utilities = [right(v) for v in np.cumsum(information)]
    assert (best >= np.interp(budgets, costs, utilities) - 1e-5).all()
    assert best[-1] == pytest.approx(utilities[-1], abs=1e-5)


def test_tables_that_cannot_be_planted_are_refused():
    with pytest.raises(InputError, match="information of 2 exits does not fit: costs have 6"):
        gaussian_table(10, information=(1.0, 2.0))
    with pytest.raises(InputError, match=r"information of exit 1, 0\.001, cannot be used"):
        gaussian_optimum(1.5, information=(1.0, 0.001), costs=(1.0, 2.0))
    with pytest.raises(InputError, match="information of exit 0, 0, cannot be used"):
        classwise_table(10, information=((0.0, 1.0),), costs=(1.0, 2.0))
    with pytest.raises(BudgetError, match="out of reach"):
        classwise_optimum(0.5)


# what is checked of policies


class Spoilt(Policy):
    """Leaves everybody at exit 1, or breaks one promise."""

    num_exits = 4

    def __init__(self, broken=""):
        self.broken = broken

    def leaves(self, seen, sample_ids):
        k = seen.shape[1] - 1
        if self.broken == "batch":
            return np.full(len(seen), k == (1 if len(seen) % 2 else 2))
        if self.broken == "order":
            return np.arange(len(seen)) % 2 + 1 == k
        return np.full(len(seen), k == 1)

    def answers(self, seen, sample_ids):
        newest = seen[:, -1]
        if self.broken == "last bit":
            return newest if len(seen) == 1 else np.nextafter(newest, np.float32(-1e9))
        return newest - 1 if self.broken == "sum" else newest


def test_a_policy_that_keeps_its_promises_passes():
    check_policy(Spoilt(), synthetic_table(500))


@pytest.mark.parametrize(
    ("broken", "found"),
    [("batch", "decisions"), ("order", "decisions"), ("last bit", "answers change"), ("sum", "no log-probabilities")],
)
def test_a_broken_promise_is_found(broken, found):
    with pytest.raises(AssertionError, match=found):
        check_policy(Spoilt(broken), synthetic_table(500))


def test_what_saving_changes_is_found(monkeypatch):
    check_scheduler(GeometricScheduler())

    def other(path, parts):
        saved = load_policy(path, parts)
        return dataclasses.replace(saved, policy=static(0, 4))

    monkeypatch.setattr("eenet.testing.checks.load_policy", other)
    with pytest.raises(AssertionError, match="saving and loading changes decisions"):
        check_scheduler(GeometricScheduler())
    check_scheduler(GeometricScheduler(confidence=lambda log_probs: log_probs.max(axis=1)))  # cannot be saved

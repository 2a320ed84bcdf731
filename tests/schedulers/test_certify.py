"""Promises beyond the table: the betting bound, and certificates for budgets and accuracy."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eenet.errors import BudgetError, InputError, RunError, TableError
from eenet.policies import ConfidenceScorer, MixedPolicy, Replayer, ScorePolicy, replay
from eenet.schedulers import (
    DeadlineScheduler,
    EENetScheduler,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    Scheduler,
    StoppingScheduler,
    TransformedScheduler,
    certify,
    fit_ensemble,
)
from eenet.schedulers.betting import betting_bound, mean_is_below
from eenet.schedulers.certify import check_promise
from eenet.schedulers.thresholds import threshold_dial
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import posterior_table, synthetic_table

LATER = 0.95  # accuracy of the last exit of `posterior_table`

values = st.lists(st.floats(0, 1), min_size=1, max_size=60).map(np.array)
deltas = st.floats(0.01, 0.9)


def draw(n, kind, seed):
    u = np.random.default_rng(seed).random(n)
    return {
        "seldom": (u < 0.03).astype(float),
        "often": (u < 0.5).astype(float),
        "even": u,
        "narrow": 0.5 + 0.02 * (u - 0.5),
        "loss": 0.5 + 0.5 * ((u < 0.02).astype(float) - (u > 0.98)),
        "two costs": 0.3 + 0.7 * (u < 0.4),
    }[kind]


def permutation(n, seed):
    return np.random.default_rng(seed).permutation(n)


MEANS = {"seldom": 0.03, "often": 0.5, "even": 0.5, "narrow": 0.5, "loss": 0.5, "two costs": 0.58}


# the bound


def test_by_hand_one_sample():
    # delta 1/2: rich at capital 2. The sample 0 is 1 from below; the bet 2.35 is cut to 0.9 / m, so the capital is
    # 1 + 0.9 (1 - m) / m, which is 2 at m = 9/19
    assert betting_bound(np.zeros(1), 0.5) == pytest.approx(10 / 19, abs=1e-9)
    assert betting_bound(np.ones(1), 0.5) == 1  # nothing speaks against a large mean


def test_by_hand_two_samples():
    # delta 1/2, samples 0 and 0, bet on as 1 and 1 from below. Bets: sqrt(log 2 / (1/4)) = 1.665; then the variance is
    # known to be (1/4 + (1 - 3/4)^2) / 2 = 0.15625, so 2.106. Both are cut to 0.9 / m where that is less.
    first, second = math.sqrt(math.log(2) / 0.25), math.sqrt(math.log(2) / 0.15625)

    def capital(m):
        return (1 + min(first, 0.9 / m) * (1 - m)) * (1 + min(second, 0.9 / m) * (1 - m))

    bound = 1 - betting_bound(np.zeros(2), 0.5)
    assert capital(bound - 1e-6) > 2 > capital(bound + 1e-6)
    assert 0.6 < bound < 0.7


def slow_bound(sample, delta, grid=2000):
    """The bound on a grid, bet by bet, on one minus the values: the largest mean that nobody got rich against."""
    n = len(sample)
    for step in range(1, grid + 1):
        m = step / grid
        capital, richest, total, squares = 1.0, 0.0, 0.0, 0.0
        variance = 0.25
        for t, x in enumerate(1 - sample, start=1):
            bet = min(math.sqrt(2 * math.log(1 / delta) / (n * variance)), 0.9 / m)
            capital *= 1 + bet * (x - m)
            richest = max(richest, capital)
            total += x
            mean = (0.5 + total) / (1 + t)
            squares += (x - mean) ** 2
            variance = (0.25 + squares) / (1 + t)
        if richest < 1 / delta:
            return 1 - m
    return 0.0


@pytest.mark.parametrize("kind", MEANS)
def test_slow_twin(kind):
    sample = draw(40, kind, seed=3)
    for values in (sample, 1 - sample):
        slow = slow_bound(values[permutation(40, 7)], 0.1)
        assert slow - 1e-9 <= betting_bound(values, 0.1, seed=7) <= slow + 1 / 2000


def test_closed_form_of_certain_values():
    # zeros only: once the bets are cut to 0.9 / m, capital grows by 0.1 + 0.9 / m a round, so that the bound approaches
    # log(1 / delta) / (0.9 n); exact chances (Clopper & Pearson) would give log(1 / delta) / n
    for n in (10_000, 100_000):
        bound = betting_bound(np.zeros(n), 0.1)
        assert math.log(10) / n < bound < 1.2 * math.log(10) / (0.9 * n)


@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("n", [200, 2000])
def test_bound_is_monotone_in_delta_and_close(kind, n):
    sample = draw(n, kind, seed=1)
    bounds = [betting_bound(sample, delta) for delta in (0.01, 0.05, 0.1, 0.3)]
    assert bounds == sorted(bounds, reverse=True)
    hoeffding = sample.mean() + math.sqrt(math.log(10) / (2 * n))
    normal = sample.mean() + 1.2816 * sample.std(ddof=1) / math.sqrt(n)
    assert bounds[2] > normal - 0.35 * (hoeffding - sample.mean())  # nothing is for free
    if kind in ("seldom", "narrow", "loss"):
        assert bounds[2] - sample.mean() < 0.5 * (hoeffding - sample.mean())


@given(sample=values, delta=deltas, limit=st.floats(-0.5, 1.5))
def test_one_pass_agrees_with_the_search(sample, delta, limit):
    bound = betting_bound(sample, delta)
    assert 0 <= bound <= 1
    if abs(bound - limit) > 1e-9:
        assert mean_is_below(sample, limit, delta) == (bound <= limit)


@pytest.mark.parametrize(
    ("sample", "delta", "words"),
    [
        (np.zeros(5), 0.0, "delta 0"),
        (np.zeros(5), 1.0, "delta 1"),
        (np.zeros(5), math.nan, "delta nan"),
        (np.zeros(0), 0.1, "values of 0"),
        (np.array([0.5, 1.5]), 0.1, "1.5"),
        (np.array([0.5, math.nan]), 0.1, "nan"),
    ],
)
def test_what_is_no_bound_is_refused(sample, delta, words):
    for call in (lambda: betting_bound(sample, delta), lambda: mean_is_below(sample, 0.5, delta)):
        with pytest.raises(InputError, match=words):
            call()


@pytest.mark.slow
@pytest.mark.parametrize("kind", MEANS)
@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_the_bound_covers_as_often_as_it_says(kind, delta):
    draws = 500
    missed = sum(betting_bound(draw(150, kind, seed), delta, seed=seed) < MEANS[kind] - 1e-12 for seed in range(draws))
    assert missed / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)


# certificates


def test_a_budget_is_certified_on_samples_that_fitted_nothing():
    table = synthetic_table(3000)
    certified = certify(JointScheduler(), table, budget="60%")
    certificate = certified.certificate
    assert (certificate.guarantee, certificate.delta, certificate.epsilon, certificate.budget, certificate.unit) == (
        "budget",
        0.1,
        None,
        2.4,
        "ms",
    )
    assert (certificate.n_fit, certificate.n_certify, certificate.fell_back) == (1500, 1500, False)
    assert certificate.mean_cost < certificate.bound <= 2.4
    assert certificate.bound > 2.35 and certificate.mean_cost > 2.2  # and not far below
    assert certificate.cost_added <= 0 and abs(certificate.utility_lost) < 0.05
    fresh = synthetic_table(20000, seed=9)
    assert Replayer(fresh).expected(certified.policy)[0] <= 2.4


@pytest.mark.parametrize(
    "scheduler",
    [
        GeometricScheduler(),
        EENetScheduler(epochs=5),
        StoppingScheduler(),
        DeadlineScheduler(scheduler=EENetScheduler(epochs=5), deadline=3.0),
    ],
)
def test_what_a_certificate_says_is_what_its_policy_does(scheduler):
    table = synthetic_table(1001)
    certified = certify(scheduler, table, budget=2.5, seed=4)
    rows = permutation(1001, 4)[:500]
    certificate = certified.certificate
    cost, utility = Replayer(table.select(rows)).expected(certified.policy)
    assert (certificate.n_fit, certificate.n_certify) == (501, 500)
    assert (certificate.mean_cost, certificate.mean_utility) == (
        pytest.approx(cost, abs=1e-12),
        pytest.approx(utility, abs=1e-12),
    )
    assert certificate.full_utility == pytest.approx(table.utility[rows, -1].mean())


def test_the_loss_compares_with_what_the_fit_part_alone_would_choose():
    table = synthetic_table(1000)
    certificate = certify(GeometricScheduler(), table, budget=2.5).certificate
    order = permutation(1000, 0)
    fit, rest = table.select(np.sort(order[500:])), table.select(order[:500])
    cost, utility = Replayer(rest).expected(GeometricScheduler().fit(fit, budget=2.5))
    assert certificate.utility_lost == pytest.approx(utility - certificate.mean_utility, abs=1e-9)
    assert certificate.cost_added == pytest.approx(certificate.mean_cost - cost, abs=1e-9)


def test_accuracy_is_certified_from_the_full_path_downwards():
    table = synthetic_table(6000)
    certificate = certify(JointScheduler(), table, guarantee="accuracy", epsilon=0.02).certificate
    assert certificate.budget is None and certificate.epsilon == 0.02 and not certificate.fell_back
    assert certificate.full_utility - certificate.mean_utility < certificate.bound <= 0.02
    assert certificate.mean_cost < 3.4  # of 4: it is worth something
    assert certificate.cost_added >= 0  # certainty is paid in cost


@pytest.mark.parametrize("scheduler", [GeometricScheduler(), JointScheduler(), PatienceScheduler()])
def test_accuracy_never_walks_below_a_budget(scheduler):
    table = synthetic_table(2000)
    loose = certify(scheduler, table, guarantee="accuracy", epsilon=0.5).certificate
    tight = certify(scheduler, table, guarantee="accuracy", epsilon=0.5, budget="75%").certificate
    assert loose.mean_cost == pytest.approx(1, abs=0.05)  # half of the accuracy may go: everybody leaves at once
    assert tight.mean_cost == pytest.approx(3, abs=0.1) and tight.budget == 3
    full = certify(scheduler, table, guarantee="accuracy", epsilon=0.5, budget=9.0).certificate
    assert full.mean_cost == pytest.approx(4, abs=0.1)


def test_what_needs_no_test_is_the_fallback():
    table = synthetic_table(200)
    cheap = certify(GeometricScheduler(), table, budget=1.001)
    assert cheap.certificate.fell_back and cheap.certificate.bound == cheap.certificate.mean_cost == 1
    assert (Replayer(synthetic_table(500, seed=8)).exit_index(cheap.policy) == 0).all()
    assert "every sample does" in cheap.certificate.statement
    full = certify(GeometricScheduler(), table, guarantee="accuracy", epsilon=0.001)
    assert full.certificate.fell_back and full.certificate.bound == 0
    assert full.certificate.mean_utility == full.certificate.full_utility
    assert (Replayer(synthetic_table(500, seed=8)).exit_index(full.policy) == 3).all()
    assert "full path" in full.certificate.statement


@pytest.mark.parametrize("budget", [4.0, "100%", 9.0])
def test_a_budget_of_the_full_path_needs_no_margin(budget):
    table = synthetic_table(400)
    certificate = certify(GeometricScheduler(), table, budget=budget).certificate
    assert not certificate.fell_back and certificate.utility_lost == pytest.approx(0, abs=1e-12)
    assert certificate.mean_cost == pytest.approx(4)


def test_costs_given_replace_those_of_the_table():
    costs = CostTable((10.0, 20.0, 30.0, 40.0), "MFLOPs", reference=50.0)
    certificate = certify(GeometricScheduler(), synthetic_table(1000), costs, budget="50%").certificate
    assert (certificate.budget, certificate.unit) == (25, "MFLOPs") and certificate.bound <= 25


def test_the_same_seed_gives_the_same_promise():
    table = synthetic_table(600)
    once, twice, other = (certify(JointScheduler(), table, budget=2.0, seed=seed).certificate for seed in (0, 0, 1))
    assert once == twice != other


def test_an_unknown_guarantee_is_refused():
    with pytest.raises(InputError, match="guarantee 'speed'"):
        check_promise("speed", 0.1, 0.01, 2.0)


def test_a_certificate_is_json_and_says_on_what_it_rests():
    certificate = certify(GeometricScheduler(), synthetic_table(500), budget="60%", delta=0.05).certificate
    value = json.loads(json.dumps(certificate.to_dict(), allow_nan=False))
    assert value["statement"] == certificate.statement and value["bound"] == certificate.bound
    for fact in ("95 %", "delta 0.05", "mean cost per sample is at most 2.4 ms", "no other", "250 samples"):
        assert fact in certificate.statement


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"delta": 0.0}, InputError, "delta 0 "),
        ({"delta": 1.0}, InputError, "delta 1 "),
        ({"epsilon": 0.0}, InputError, "epsilon 0 "),
        ({"epsilon": 1.5}, InputError, "epsilon 1.5 "),
        ({"budget": None}, InputError, "budget is missing"),
        ({"budget": 0.5}, BudgetError, "out of reach"),
        ({"budget": "soon"}, BudgetError, "no mean cost"),
        ({"table": synthetic_table(99)}, TableError, "99 samples"),
        ({"table": synthetic_table(200, labels=False)}, TableError, "lacks labels"),
        ({"table": ExitTable(logits=np.zeros((200, 2, 2)), labels=np.zeros(200, dtype=int))}, TableError, "costs"),
    ],
    ids=str,
)
def test_what_cannot_be_promised_is_refused(change, error, words):
    arguments = {"table": synthetic_table(200), "budget": 2.0} | change
    table = arguments.pop("table")
    with pytest.raises(error, match=words):
        certify(GeometricScheduler(), table, **arguments)


def test_a_deadline_joins_a_budget():
    table = synthetic_table(2000)
    scheduler = DeadlineScheduler(scheduler=JointScheduler(), deadline=3.0)
    certified = certify(scheduler, table, budget=2.2)
    fresh = synthetic_table(4000, seed=5)
    assert Replayer(fresh).exit_index(certified.policy).max() == 2
    assert certified.certificate.bound <= 2.2
    loose = certify(scheduler, table, budget=3.5).certificate
    assert loose.bound <= 3.0 and not loose.fell_back  # no sample can cost more


def test_a_deadline_before_exit_1_needs_no_test():
    scheduler = DeadlineScheduler(scheduler=JointScheduler(), deadline=1.5)
    certificate = certify(scheduler, synthetic_table(200), budget=2.0).certificate
    assert (certificate.bound, certificate.mean_cost, certificate.fell_back) == (1, 1, False)


def test_a_deadline_joins_accuracy_where_something_can_be_promised():
    table = synthetic_table(3000)
    certificate = certify(
        DeadlineScheduler(scheduler=JointScheduler(), deadline=3.0), table, guarantee="accuracy", epsilon=0.3
    ).certificate
    assert certificate.mean_cost <= 3 and certificate.bound <= 0.3
    with pytest.raises(RunError, match=r"epsilon 0\.001 .* exit 2"):
        certify(DeadlineScheduler(scheduler=JointScheduler(), deadline=3.0), table, guarantee="accuracy", epsilon=0.001)


def test_the_full_path_answers_as_the_original_even_where_policies_combine_exits():
    table = synthetic_table(200)
    certified = certify(StoppingScheduler(), table, guarantee="accuracy", epsilon=0.001)
    assert certified.certificate.fell_back
    assert np.array_equal(replay(certified.policy, table).log_probs, table.seen()[:, -1])


def with_cost_per_sample(table, low, high):
    cost = np.random.default_rng(5).uniform(low, high, (table.num_samples, 1)) * np.array(table.costs.cumulative)
    return ExitTable(logits=table.logits, labels=table.labels, cost=cost, costs=table.costs)


def test_costs_per_sample_are_certified_within_their_largest_value():
    table = with_cost_per_sample(synthetic_table(2000), 0.5, 1.5)
    certified = certify(JointScheduler(), table, budget=2.4)
    certificate = certified.certificate
    assert certificate.mean_cost < certificate.bound <= 2.4 and not certificate.fell_back
    half = table.select(permutation(2000, 0)[:1000])
    spent = Replayer(half).per_sample(certified.policy)[0]
    least, largest = table.cost[:, 0].min(), table.cost[:, -1].max()
    bound = betting_bound((spent - least) / (largest - least), 0.1)
    assert certificate.bound == pytest.approx(least + bound * (largest - least))
    accurate = certify(JointScheduler(), table, guarantee="accuracy", epsilon=0.1).certificate
    assert accurate.mean_cost < 4 and accurate.bound <= 0.1


def test_where_exit_0_itself_may_cost_too_much_nothing_is_promised():
    table = with_cost_per_sample(synthetic_table(200), 0.2, 1.8)
    with pytest.raises(RunError, match="exit 0"):
        certify(GeometricScheduler(), table, budget=table.costs.low)
    certificate = certify(GeometricScheduler(), table, budget=1.18).certificate
    assert certificate.mean_cost <= certificate.bound <= 1.18


def test_tables_of_features_can_be_certified():
    plain = synthetic_table(1000)
    odds = Replayer(plain).scores(ConfidenceScorer("max_prob"))[:, :, None]
    table = ExitTable(features=odds, feature_names=("odds",), utility=plain.utility, costs=plain.costs)
    named, known = (
        certify(GeometricScheduler(confidence=name), one, budget="60%").certificate
        for name, one in (("odds", table), ("max_prob", plain))
    )
    assert named == known
    assert certify(GeometricScheduler(confidence="odds"), table, budget=1.001).certificate.fell_back


# promises, by repeated draws of a table whose truth is known in closed form


def truth(policy):
    """Expected cost and loss against the full model of a policy on `posterior_table`.

    A sample of exit-0 probability s, uniform on [1/2, 1], goes on below a level, and is right with chance s or 0.95.
    """
    if isinstance(policy, MixedPolicy):
        (cost_a, loss_a), (cost_b, loss_b) = truth(policy.a), truth(policy.b)
        w = policy.weight
        return w * cost_a + (1 - w) * cost_b, w * loss_a + (1 - w) * loss_b
    assert isinstance(policy, ScorePolicy)
    level = min(
        max(1 / (1 + math.exp(min(-float(policy.thresholds[0]), 700.0))), 0.5), 1.0
    )  # the score is the log-odds of s
    return 1 + 2 * (level - 0.5), LATER * 2 * (1 - level) - (1 - level**2)


def test_the_closed_form_is_that_of_the_table():
    fresh = posterior_table(200_000, seed=77)
    for budget in (1.2, 1.5, 1.8):
        policy = GeometricScheduler().fit(posterior_table(2000, seed=1), budget=budget)
        cost, utility = Replayer(fresh).expected(policy)
        full = fresh.utility[:, -1].mean()
        assert truth(policy) == (pytest.approx(cost, abs=0.004), pytest.approx(full - utility, abs=0.004))


class Coarse(Scheduler):
    """The least sure go on, in 20 steps: as `GeometricScheduler` on two exits, in a fraction of its time."""

    def dial(self, table, budgets):
        scorer, replayer = ConfidenceScorer("max_prob"), Replayer(table)
        levels = np.quantile(replayer.scores(scorer)[:, 0], np.linspace(0, 1, 20))
        levels[0], levels[-1] = -math.inf, math.inf
        thresholds = np.stack([levels, np.full_like(levels, -math.inf)], axis=1)
        return threshold_dial(scorer, replayer, thresholds, self.seed)


@pytest.mark.parametrize("goal", [{"budget": 1.5}, {"guarantee": "accuracy", "epsilon": 0.05}], ids=str)
def test_the_certifying_half_itself_never_exceeds_the_limit_nor_the_bound(goal):
    # by chance the betting bound may lie below the mean of what it was computed from: at this delta it often does
    below = 0
    for seed in range(10):
        table = posterior_table(200, seed=seed)
        certified = certify(Coarse(), table, delta=0.9, seed=seed, **goal)
        certificate, half = certified.certificate, Replayer(table.select(permutation(200, seed)[:100]))
        if "budget" in goal:
            assert certificate.mean_cost <= certificate.bound <= 1.5
            below += betting_bound(half.per_sample(certified.policy)[0] - 1, 0.9, seed=seed) < certificate.mean_cost - 1
        else:
            assert certificate.full_utility - certificate.mean_utility <= certificate.bound <= 0.05
    assert below > 0 or "budget" not in goal


@pytest.mark.slow
@pytest.mark.parametrize("goal", [{"budget": 1.5}, {"guarantee": "accuracy", "epsilon": 0.02}], ids=str)
def test_promises_are_broken_as_seldom_as_they_say(goal):
    draws, delta = 300, 0.1
    broken = fell_back = plainly_broken = 0
    for seed in range(draws):
        table = posterior_table(1000, seed=seed)
        certified = certify(Coarse(), table, delta=delta, seed=seed, **goal)
        cost, loss = truth(certified.policy)
        broken += cost > 1.5 if "budget" in goal else loss > goal["epsilon"]
        fell_back += certified.certificate.fell_back
        if "budget" in goal and seed < 50:
            plainly_broken += truth(Coarse().fit(table, budget=1.5))[0] > 1.5
    assert broken / draws <= delta + 3 * math.sqrt(delta * (1 - delta) / draws)
    assert fell_back / draws < 0.1  # a promise of nothing would be easy to keep
    if "budget" in goal:
        assert plainly_broken / 50 > 0.3  # without a certificate it is a coin's toss


def test_a_deadline_inside_another_scheduler_is_kept():
    inner = DeadlineScheduler(scheduler=GeometricScheduler(), deadline="2ms")
    wrapped = TransformedScheduler(scheduler=inner, fit_transform=fit_ensemble)
    table = synthetic_table(400)  # exits cost 1, 2, 3 and 4 ms
    with pytest.raises(RunError, match="deadline"):
        certify(wrapped, table, guarantee="accuracy", epsilon=1e-4)
    certified = certify(wrapped, table, guarantee="accuracy", epsilon=0.9)
    assert replay(certified.policy, table).cost.max() <= 2.0

"""PCEE and EERO by hand, against slow twins, and what both promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.errors import InputError
from eenet.policies import ConfidenceScorer, PceeScorer, Replayer, exit_distribution
from eenet.policies.confidence import max_prob, squash
from eenet.schedulers.baselines import EeroScheduler, PceeScheduler, exponential_weights, reliability
from eenet.schedulers.search import geometric_shares
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import CostTable, standard_budgets
from eenet.tables.table import ExitTable
from eenet.testing import synthetic_table

INF = math.inf
SCHEDULERS = {
    "pcee": PceeScheduler(),
    "pcee_margin": PceeScheduler(confidence="margin", bins=7),
    "eero": EeroScheduler(),
    "eero_certainty": EeroScheduler(confidence="certainty", beta=0.0),
}


def of_odds(odds):
    """Log-probabilities of two classes, the first of the given log-odds."""
    values = np.array(odds)
    return log_softmax(np.stack([values, np.zeros_like(values)], axis=-1))


def test_reliability_by_hand():
    confidence = np.array([4.0, 1.0, 3.0, 2.0, 6.0, 5.0])
    utility = np.array([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    edges, means = reliability(confidence, utility, 3)
    assert edges.tolist() == [-INF, 2.5, 4.5]  # 1 and 2; 3 and 4; 5 and 6
    assert means.tolist() == [0.5, 0.5, 1.0]


def test_equal_confidences_share_a_bin():
    edges, means = reliability(np.array([1.0, 1.0, 1.0, 2.0]), np.array([0.0, 1.0, 0.5, 1.0]), 4)
    assert edges.tolist() == [-INF, 1.5]
    assert means.tolist() == [0.5, 1.0]
    edges, means = reliability(np.ones(5), np.array([0.0, 1.0, 1.0, 1.0, 1.0]), 3)
    assert edges.tolist() == [-INF]
    assert means.tolist() == pytest.approx([0.8])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 12), st.booleans())
def test_no_bin_is_empty_and_their_masses_are_equal(seed, n, bins, ties):
    rng = np.random.default_rng(seed)
    confidence = rng.standard_normal(n)
    confidence = confidence.round() if ties else confidence
    utility = rng.random(n)
    edges, means = reliability(confidence, utility, bins)
    place = (confidence[:, None] >= edges).sum(axis=1) - 1
    sizes = np.bincount(place, minlength=len(edges))
    assert 1 <= len(edges) == len(means) <= bins
    assert sizes.min() >= 1
    for b, mean in enumerate(means):
        assert float(mean) == pytest.approx(utility[place == b].mean())
    if not ties and n >= bins:
        assert len(edges) == bins
        assert sizes.max() - sizes.min() <= 1


def test_pcee_scores_by_hand():
    scorer = PceeScorer(
        confidence="max_prob",
        edges=np.array([[-INF, 0.0], [-INF, 2.0]]),
        means=np.array([[0.5, 0.75], [0.625, 1.0]]),
    )
    # max_prob is the log-odds v of the larger class; the tie-breaker is 1/2 + v / (2 (1 + v)) of half the way
    # to the next larger mean: 0.625, 0.75, 1, and 2 after the largest
    seen = of_odds([[1.0, 1.0], [3.0, 3.0]])
    first, second = scorer(seen[:, :1]), scorer(seen)
    assert first.tolist() == pytest.approx([0.75 + 0.75 * 0.125, 0.75 + 0.875 * 0.125])
    assert second.tolist() == pytest.approx([0.625 + 0.75 * 0.0625, 1.0 + 0.875 * 0.5])


def slow_score(scorer, seen):
    """One sample at a time: find its bin, then the next larger mean."""
    k = seen.shape[1] - 1
    levels = sorted(set(scorer.means.flatten().tolist()))
    scores = []
    for row in seen[:, -1]:
        confidence = scorer.inner(row[None, None])[0]
        place = max(b for b, edge in enumerate(scorer.edges[k].tolist()) if float(confidence) >= edge)
        mean = float(scorer.means[k, place])
        following = min((level for level in levels if level > mean), default=mean + 1)
        scores.append(mean + (following - mean) / 2 * float(squash(np.array([confidence]))[0]))
    return scores


@pytest.mark.parametrize("confidence", ["max_prob", "certainty", "margin"])
def test_pcee_scores_equal_the_slow_twin_in_every_batch(confidence):
    table = synthetic_table(400, seed=3)
    scorer = PceeScheduler(confidence=confidence, bins=9).sweep(table).policies[0].scorer
    seen = table.seen(slice(0, 150))
    for k in range(3):
        whole = scorer(seen[:, : k + 1])
        np.testing.assert_allclose(whole, slow_score(scorer, seen[:, : k + 1]), rtol=0, atol=1e-6)
        for size in (1, 3, 64):
            parts = [scorer(seen[i : i + size, : k + 1]) for i in range(0, 150, size)]
            assert np.array_equal(np.concatenate(parts), whole)


def test_bins_keep_their_order():
    table = synthetic_table(1000, seed=1)
    scorer = PceeScheduler(bins=30).sweep(table).policies[0].scorer
    scores = Replayer(table).scores(scorer)[:, :-1]
    confidence = Replayer(table).scores(ConfidenceScorer("max_prob"))[:, :-1]
    place = (confidence[:, :, None] >= scorer.edges).sum(axis=2) - 1
    mean = scorer.means[np.arange(3), place]
    order = scores.argsort(axis=None, kind="stable")
    assert (np.diff(mean.flatten()[order]) >= 0).all()
    first = mean[:, 0] == mean[0, 0]
    assert np.array_equal(
        scores[first, 0].argsort(kind="stable"), confidence[first, 0].argsort(kind="stable")
    )  # and inside a bin the confidence


def four_samples(utility):
    """Two exits; the first has log-odds 1 to 4."""
    logits = [[[v, 0.0], [9.0, 0.0]] for v in (1.0, 2.0, 3.0, 4.0)]
    return ExitTable(logits=logits, utility=utility, costs=CostTable((1.0, 2.0), "ms"))


def test_pcee_by_hand():
    # where the surest are least useful, accuracy is not confidence: 20 samples in two bins of ten
    value = np.arange(1.0, 21.0)
    logits = np.stack([value, np.zeros(20)], axis=1)[:, None].repeat(2, axis=1)
    utility = np.stack([value <= 10, np.ones(20)], axis=1)
    table = ExitTable(logits=logits, utility=utility, costs=CostTable((1.0, 2.0), "ms"))
    policy = PceeScheduler(bins=2).fit(table, budget=1.5)
    assert Replayer(table).exit_index(policy).tolist() == [0] * 10 + [1] * 10
    assert Replayer(table).expected(policy) == (1.5, 1.0)
    assert 0.0 < float(policy.thresholds[0]) < 1.5  # a level of utility, above the useless bin


def test_the_dial_holds_every_outcome_of_a_level():
    table = synthetic_table(60, num_exits=3, seed=5)
    dial = PceeScheduler(bins=4).sweep(table)
    scores = Replayer(table).scores(dial.policies[0].scorer)
    reached = set()
    for level in [*np.unique(scores[:, :2]).tolist(), INF]:
        exits = [next((k for k in (0, 1) if float(row[k]) >= level), 2) for row in scores]
        reached.add(round(sum(exits) / 60 + 1, 9))
    assert {round(cost, 9) for cost in dial.fit_costs} == reached


def test_eero_shares_by_hand():
    # risks 1/2 and 0, beta = ln 4: weights 1/3 and 2/3 before the budget
    table = four_samples([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    beta = math.log(4)
    assert exponential_weights(np.array([0.5, 0.0]), beta).tolist() == pytest.approx([1 / 3, 2 / 3])
    # with two exits the budget alone decides: at 1.5 the two surest leave
    policy = EeroScheduler(beta=beta).fit(table, budget=1.5)
    assert Replayer(table).exit_index(policy).tolist() == [1, 1, 0, 0]


def test_eero_shares_are_tilted_by_cost():
    costs = np.array([1.0, 1.1, 4.0])
    base = np.array([0.2, 0.3, 0.5])
    targets = np.array([1.05, 2.0, 3.9])
    shares = geometric_shares(targets, costs, base, costs)
    np.testing.assert_allclose(shares @ costs, targets)
    multiplier = np.diff(np.log(shares / base)) / np.diff(costs)  # log(P_k / base_k) is linear in the cost
    np.testing.assert_allclose(multiplier[:, 0], multiplier[:, 1])


def test_eero_shares_are_the_best_of_all_that_cost_as_much():
    costs, risk = np.array([1.0, 1.5, 4.0]), np.array([0.5, 0.2, 0.1])
    best = geometric_shares(np.array([2.0]), costs, exponential_weights(risk, 3.0), costs)[0]

    def value(shares):
        return float(shares @ risk + (shares * np.log(3 * shares)).sum() / 3.0)

    direction = np.array([2.5, -3.0, 0.5])  # keeps sum and cost
    for step in (-0.05, -0.01, 0.01, 0.05):
        assert value(best) < value(best + step * direction)


def test_large_beta_prefers_the_exits_on_the_hull_of_risks():
    utility = np.ones((100, 3))
    utility[:50, 0], utility[:49, 1] = 0.0, 0.0  # exit 1 costs 2 and is hardly better than exit 0
    logits = np.random.default_rng(0).standard_normal((100, 3, 4))
    table = ExitTable(logits=logits, utility=utility, costs=CostTable((1.0, 2.0, 3.0), "ms"))
    shares = [
        exit_distribution(Replayer(table).exit_index(EeroScheduler(beta=beta).fit(table, budget=2.0)), 3)
        for beta in (0.0, 30.0)
    ]
    assert shares[0][1] > 0.3
    assert shares[1][1] < 0.01


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("num_samples", [3, 50, 2000])
def test_the_budget_is_spent(name, num_samples):
    table = synthetic_table(num_samples, seed=4)
    dial, replayer = SCHEDULERS[name].sweep(table), Replayer(table)
    for budget in standard_budgets(table.costs):
        cost, _ = replayer.expected(dial.at(budget))
        assert 0.999 * budget <= cost <= budget


@pytest.mark.parametrize("name", SCHEDULERS)
def test_utility_serves_instead_of_labels(name):
    labelled = synthetic_table(500, seed=6)
    useful = ExitTable(logits=labelled.logits, utility=labelled.utility, costs=labelled.costs)
    on_test = Replayer(synthetic_table(500, seed=7))
    first, second = (SCHEDULERS[name].fit(table, budget="55%") for table in (labelled, useful))
    assert np.array_equal(on_test.exit_index(first), on_test.exit_index(second))


def test_utility_of_every_size_is_controlled():
    table = synthetic_table(400, seed=8, labels=False)
    graded = ExitTable(logits=table.logits, utility=np.random.default_rng(0).random((400, 4)), costs=table.costs)
    dial = PceeScheduler().sweep(graded)
    cost, gain = Replayer(graded).expected(dial.policies[7])
    assert (cost, gain) == pytest.approx((dial.fit_costs[7], dial.fit_utilities[7]))
    means = dial.policies[0].scorer.means
    assert 0.2 < float(means.min()) < float(means.max()) < 0.8


def test_confidence_may_be_a_function():
    table = synthetic_table(300, seed=9)
    for scheduler in (PceeScheduler, EeroScheduler):
        named, own = scheduler().fit(table, budget="60%"), scheduler(confidence=max_prob).fit(table, budget="60%")
        assert np.array_equal(Replayer(table).exit_index(named), Replayer(table).exit_index(own))
    scorer = own.components()[0][1].scorer
    with pytest.raises(InputError, match="cannot be saved"):
        scorer.settings()


def features_of(table):
    """The same table, its exits summed up by two columns in place of logits."""
    scores = [Replayer(table).scores(ConfidenceScorer(name)) for name in ("margin", "max_prob")]
    return ExitTable(
        features=np.stack(scores, axis=2), feature_names=("gap", "odds"), utility=table.utility, costs=table.costs
    )


@pytest.mark.parametrize("scheduler", [PceeScheduler, EeroScheduler])
def test_a_column_of_features_serves_as_the_confidence_it_holds(scheduler):
    table = synthetic_table(300, seed=9)
    columns = features_of(table)
    known = scheduler().fit(table, budget="60%")
    named = scheduler(confidence="odds").fit(columns, budget="60%")
    assert np.array_equal(Replayer(table).exit_index(known), Replayer(columns).exit_index(named))
    with pytest.raises(InputError, match=r"'max_prob' .* gap, odds"):
        scheduler().fit(columns, budget="60%")


@pytest.mark.parametrize("name", SCHEDULERS)
def test_costs_per_sample_are_kept_in_the_mean(name):
    plain = synthetic_table(300, seed=4)
    cost = np.random.default_rng(0).uniform(0.5, 1.5, (300, 1)) * np.array(plain.costs.cumulative)
    table = ExitTable(logits=plain.logits, labels=plain.labels, cost=cost)
    dial, replayer = SCHEDULERS[name].sweep(table), Replayer(table)
    for budget in standard_budgets(table.costs):
        cost, _ = replayer.expected(dial.at(budget))
        assert 0.99 * budget <= cost <= budget * (1 + 1e-12)

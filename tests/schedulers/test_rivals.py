"""PCEE and EERO by hand, against slow twins, and what both promise."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.core.combined import MixedPolicy
from eenet.core.confidence import max_prob, squash
from eenet.core.costs import CostTable, standard_budgets
from eenet.core.scorers import ConfidenceScorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, exit_distribution
from eenet.errors import InputError
from eenet.schedulers.rivals import EeroScheduler, PceeScheduler, PceeScorer, reliability
from eenet.schedulers.thresholds import geometric_shares, outcomes
from eenet.testing import check_scheduler, posterior_optimum, posterior_table, synthetic_table

INF = math.inf
RIVALS = {
    "pcee": PceeScheduler(),
    "pcee_margin": PceeScheduler(confidence="margin", bins=7),
    "eero": EeroScheduler(),
    "eero_certainty": EeroScheduler(confidence="certainty", beta=0.0),
}


def of_odds(odds):
    """Log-probabilities of two classes, the first of the given log-odds."""
    values = torch.as_tensor(odds, dtype=torch.float32)
    return torch.log_softmax(torch.stack([values, torch.zeros_like(values)], dim=-1), dim=-1)


def test_reliability_by_hand():
    confidence = torch.tensor([4.0, 1.0, 3.0, 2.0, 6.0, 5.0])
    utility = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    edges, means = reliability(confidence, utility, 3)
    assert edges.tolist() == [-INF, 2.5, 4.5]  # 1 and 2; 3 and 4; 5 and 6
    assert means.tolist() == [0.5, 0.5, 1.0]


def test_equal_confidences_share_a_bin():
    edges, means = reliability(torch.tensor([1.0, 1.0, 1.0, 2.0]), torch.tensor([0.0, 1.0, 0.5, 1.0]), 4)
    assert edges.tolist() == [-INF, 1.5]
    assert means.tolist() == [0.5, 1.0]
    edges, means = reliability(torch.ones(5), torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]), 3)
    assert edges.tolist() == [-INF]
    assert means.tolist() == pytest.approx([0.8])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 12), st.booleans())
def test_no_bin_is_empty_and_their_masses_are_equal(seed, n, bins, ties):
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.randn(n, generator=generator)
    confidence = confidence.round() if ties else confidence
    utility = torch.rand(n, generator=generator)
    edges, means = reliability(confidence, utility, bins)
    place = (confidence[:, None] >= edges).sum(dim=1) - 1
    sizes = torch.bincount(place, minlength=len(edges))
    assert 1 <= len(edges) == len(means) <= bins
    assert sizes.min() >= 1
    for b, mean in enumerate(means):
        assert float(mean) == pytest.approx(float(utility[place == b].double().mean()))
    if not ties and n >= bins:
        assert len(edges) == bins
        assert sizes.max() - sizes.min() <= 1


def test_pcee_scores_by_hand():
    scorer = PceeScorer(
        3,
        2,
        edges=torch.tensor([[-INF, 0.0], [-INF, 2.0]]),
        means=torch.tensor([[0.5, 0.75], [0.625, 1.0]]),
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
        confidence = scorer.confidence.function(row[None])
        place = max(b for b, edge in enumerate(scorer.edges[k].tolist()) if float(confidence) >= edge)
        mean = float(scorer.means[k, place])
        following = min((level for level in levels if level > mean), default=mean + 1)
        scores.append(mean + (following - mean) / 2 * float(squash(confidence.double())))
    return torch.tensor(scores)


@pytest.mark.parametrize("confidence", ["max_prob", "certainty", "margin"])
def test_pcee_scores_equal_the_slow_twin_in_every_batch(confidence):
    table = synthetic_table(400, seed=3)
    scorer = PceeScheduler(confidence=confidence, bins=9).sweep(table).policies[0].scorer
    seen = table.log_probs(slice(0, 150))
    for k in range(3):
        whole = scorer(seen[:, : k + 1])
        assert torch.allclose(whole, slow_score(scorer, seen[:, : k + 1]), rtol=0, atol=1e-6)
    if confidence == "max_prob":  # the others round differently by themselves at the end of a batch
        for size, k in itertools.product((1, 3, 64), range(3)):
            parts = torch.cat([scorer(part[:, : k + 1]) for part in torch.split(seen, size)])
            assert torch.equal(parts, scorer(seen[:, : k + 1]))


def test_bins_keep_their_order():
    table = synthetic_table(1000, seed=1)
    scorer = PceeScheduler(bins=30).sweep(table).policies[0].scorer
    scores = Replayer(table).scores(scorer)[:, :-1]
    confidence = Replayer(table).scores(ConfidenceScorer("max_prob"))[:, :-1]
    place = (confidence[:, :, None] >= scorer.edges).sum(dim=2) - 1
    mean = scorer.means.expand(1000, -1, -1).gather(2, place[:, :, None]).squeeze(2)
    order = scores.flatten().argsort()
    assert bool((mean.flatten()[order].diff() >= 0).all())
    first = mean[:, 0] == mean[0, 0]
    assert torch.equal(scores[first, 0].argsort(), confidence[first, 0].argsort())  # and inside a bin the confidence


def four_samples(utility):
    """Two exits; the first has log-odds 1 to 4."""
    logits = torch.tensor([[[v, 0.0], [9.0, 0.0]] for v in (1.0, 2.0, 3.0, 4.0)])
    return ExitTable(logits=logits, utility=torch.tensor(utility), costs=CostTable((1.0, 2.0), "ms"))


def test_pcee_by_hand():
    # where the surest are least useful, accuracy is not confidence: 20 samples in two bins of ten
    value = torch.arange(1.0, 21.0)
    logits = torch.stack([value, torch.zeros(20)], dim=1)[:, None].repeat(1, 2, 1)
    utility = torch.stack([(value <= 10).float(), torch.ones(20)], dim=1)
    table = ExitTable(logits=logits, utility=utility, costs=CostTable((1.0, 2.0), "ms"))
    policy = PceeScheduler(bins=2).fit(table, budget=1.5)
    assert Replayer(table).exit_index(policy).tolist() == [0] * 10 + [1] * 10
    assert Replayer(table).expected(policy, table.costs) == (1.5, 1.0)
    assert 0.0 < float(policy.thresholds[0]) < 1.5  # a level of utility, above the useless bin


def test_one_level_serves_all_exits_and_both_ends_are_reached():
    table = synthetic_table(300, seed=2)
    dial = PceeScheduler().sweep(table)
    for policy in dial.policies:
        assert len(set(policy.thresholds[:-1].tolist())) == 1
    assert Replayer(table).exit_index(dial.policies[0]).tolist() == [0] * 300
    assert Replayer(table).exit_index(dial.policies[-1]).tolist() == [3] * 300
    assert (dial.fit_costs[0], dial.fit_costs[-1]) == (table.costs.low, table.costs.high)


def test_the_dial_holds_every_outcome_of_a_level():
    table = synthetic_table(60, num_exits=3, seed=5)
    dial = PceeScheduler(bins=4).sweep(table)
    scores = Replayer(table).scores(dial.policies[0].scorer)
    reached = set()
    for level in [*scores[:, :2].unique().tolist(), INF]:
        exits = [next((k for k in (0, 1) if float(row[k]) >= level), 2) for row in scores]
        reached.add(round(sum(exits) / 60 + 1, 9))
    assert {round(cost, 9) for cost in dial.fit_costs} == reached


def test_eero_shares_by_hand():
    # risks 1/2 and 0, beta = ln 4: weights 1/3 and 2/3 before the budget
    table = four_samples([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    scheduler = EeroScheduler(beta=math.log(4))
    assert torch.allclose(scheduler._weights(torch.tensor([0.5, 0.0])).float(), torch.tensor([1 / 3, 2 / 3]))
    # with two exits the budget alone decides: at 1.5 the two surest leave
    policy = scheduler.fit(table, budget=1.5)
    assert Replayer(table).exit_index(policy).tolist() == [1, 1, 0, 0]


def test_eero_shares_are_tilted_by_cost():
    costs = torch.tensor([1.0, 1.1, 4.0], dtype=torch.float64)
    base = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    targets = torch.tensor([1.05, 2.0, 3.9], dtype=torch.float64)
    shares = geometric_shares(targets, costs, base, costs)
    assert torch.allclose(shares @ costs, targets)
    multiplier = (shares / base).log().diff(dim=1) / costs.diff()  # log(P_k / base_k) is linear in the cost
    assert torch.allclose(multiplier[:, 0], multiplier[:, 1])


def test_eero_shares_are_the_best_of_all_that_cost_as_much():
    costs, risk = torch.tensor([1.0, 1.5, 4.0], dtype=torch.float64), torch.tensor([0.5, 0.2, 0.1]).double()
    scheduler = EeroScheduler(beta=3.0, prior=(0.5, 0.25, 0.25))
    prior = torch.tensor(scheduler.prior, dtype=torch.float64)
    best = geometric_shares(torch.tensor([2.0]).double(), costs, scheduler._weights(risk), costs)[0]

    def value(shares):
        return float(shares @ risk + (shares * (shares / prior).log()).sum() / 3.0)

    direction = torch.tensor([2.5, -3.0, 0.5], dtype=torch.float64)  # keeps sum and cost
    for step in (-0.05, -0.01, 0.01, 0.05):
        assert value(best) < value(best + step * direction)


def test_large_beta_prefers_the_exits_on_the_hull_of_risks():
    utility = torch.ones(100, 3)
    utility[:50, 0], utility[:49, 1] = 0.0, 0.0  # exit 1 costs 2 and is hardly better than exit 0
    logits = torch.randn(100, 3, 4, generator=torch.Generator().manual_seed(0))
    table = ExitTable(logits=logits, utility=utility, costs=CostTable((1.0, 2.0, 3.0), "ms"))
    shares = [
        exit_distribution(Replayer(table).exit_index(EeroScheduler(beta=beta).fit(table, budget=2.0)), 3)
        for beta in (0.0, 30.0)
    ]
    assert shares[0][1] > 0.3
    assert shares[1][1] < 0.01


@pytest.mark.parametrize("name", RIVALS)
def test_every_promise_is_kept(name):
    check_scheduler(RIVALS[name])


@pytest.mark.parametrize("name", RIVALS)
@pytest.mark.parametrize("num_samples", [3, 50, 2000])
def test_the_budget_is_spent(name, num_samples):
    table = synthetic_table(num_samples, seed=4)
    dial, replayer = RIVALS[name].sweep(table), Replayer(table)
    for budget in standard_budgets(table.costs):
        cost, _ = replayer.expected(dial.at(budget), table.costs)
        assert 0.999 * budget <= cost <= budget


@pytest.mark.parametrize("name", RIVALS)
def test_utility_serves_instead_of_labels(name):
    labelled = synthetic_table(500, seed=6)
    useful = ExitTable(logits=labelled.logits, utility=labelled.utility, costs=labelled.costs)
    on_test = Replayer(synthetic_table(500, seed=7))
    first, second = (RIVALS[name].fit(table, budget="55%") for table in (labelled, useful))
    assert torch.equal(on_test.exit_index(first), on_test.exit_index(second))


def test_utility_of_every_size_is_controlled():
    generator = torch.Generator().manual_seed(0)
    table = synthetic_table(400, seed=8, labels=False)
    graded = ExitTable(logits=table.logits, utility=torch.rand(400, 4, generator=generator), costs=table.costs)
    dial = PceeScheduler().sweep(graded)
    cost, gain = Replayer(graded).expected(dial.policies[7], graded.costs)
    assert (cost, gain) == pytest.approx((dial.fit_costs[7], dial.fit_utilities[7]))
    means = dial.policies[0].scorer.means
    assert 0.2 < float(means.min()) < float(means.max()) < 0.8


@pytest.mark.parametrize("name", ["pcee", "eero"])
def test_planted_optimum_is_nearly_reached(name):
    val, test = posterior_table(4000, seed=0), posterior_table(4000, seed=1)
    for budget in (1.2, 1.5, 1.8):
        cost, gain = Replayer(test).expected(RIVALS[name].fit(val, budget=budget), test.costs)
        assert gain > posterior_optimum(cost) - 0.02


@pytest.mark.parametrize("name", ["max_prob", "streak"])
def test_pcee_scorer_is_rebuilt_from_settings_and_tensors(name):
    table = synthetic_table(300, seed=9)
    dial = PceeScheduler(confidence=name, bins=8).sweep(table)
    scorer = dial.policies[0].scorer
    other = PceeScorer(**scorer.settings())
    other.load_state_dict(scorer.state_dict())
    assert torch.equal(Replayer(table).scores(scorer), Replayer(table).scores(other))


def test_confidence_may_be_a_function():
    table = synthetic_table(300, seed=9)
    for scheduler in (PceeScheduler, EeroScheduler):
        named, own = scheduler().fit(table, budget="60%"), scheduler(confidence=max_prob).fit(table, budget="60%")
        assert torch.equal(Replayer(table).exit_index(named), Replayer(table).exit_index(own))
    policy = own.a if isinstance(own, MixedPolicy) else own
    with pytest.raises(InputError, match="cannot be saved"):
        policy.scorer.settings()


def test_geometric_shares_without_steps_are_as_ever():
    costs, targets = torch.tensor([1.0, 1.1, 4.0]).double(), torch.tensor([1.05, 2.0]).double()
    shares = geometric_shares(targets, costs)
    assert torch.equal(shares, geometric_shares(targets, costs, None, torch.arange(3).double()))
    assert torch.allclose(shares[:, 1] ** 2, shares[:, 0] * shares[:, 2])


def test_outcomes_of_the_dial_are_what_replay_finds():
    table = synthetic_table(200, seed=10)
    for scheduler in (PceeScheduler(), EeroScheduler()):
        dial = scheduler.sweep(table)
        policy = dial.policies[len(dial.policies) // 2]
        scores = Replayer(table).scores(policy.scorer)
        cumulative = torch.tensor(table.costs.cumulative, dtype=torch.float64)
        found = outcomes(scores, table.utility.double(), cumulative, policy.thresholds[None])
        assert [float(value) for value in found] == pytest.approx(Replayer(table).expected(policy, table.costs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PceeScheduler(bins=0), "bins 0"),
        (lambda: EeroScheduler(beta=-1.0), "beta -1"),
        (lambda: EeroScheduler(beta=INF), "beta inf"),
        (lambda: EeroScheduler(prior=(0.5, 0.0)), "prior"),
        (lambda: PceeScheduler(confidence="nonsense").sweep(synthetic_table(50)), "nonsense"),
        (lambda: EeroScheduler(prior=(0.5, 0.5)).sweep(synthetic_table(50)), "prior of 2 exits"),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()

"""Policies, the coin, and replay against its slow twin."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.core import confidence
from eenet.core.coins import coin
from eenet.core.combined import MixedPolicy, TransformedPolicy, answers_with_newest, unmixed
from eenet.core.costs import CostTable
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import ConfidenceScorer, Scorer, StateScorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer, exit_distribution, replay
from eenet.core.transform import Transform
from eenet.errors import InputError, ShapeError, TableError
from eenet.schedulers.eenet import EENetScorer, exit_features
from eenet.testing import check_policy, synthetic_table

INF = math.inf


def policy(*thresholds, name="max_prob"):
    return ScorePolicy(ConfidenceScorer(name), torch.tensor([*thresholds, -INF]))


def test_replay_by_hand():
    # log-odds of the top class of two are the difference of the logits
    logits = torch.tensor([[[3.0, 0.0], [5.0, 0.0]], [[1.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, 0.0]]])
    table = ExitTable(logits=logits, labels=torch.tensor([0, 1, 0]), costs=CostTable((1.0, 3.0), "ms"))
    trace = replay(policy(2.0), table)
    assert trace.exit_index.tolist() == [0, 1, 0]  # a score equal to the threshold leaves
    assert trace.cost.tolist() == [1.0, 3.0, 1.0]
    assert trace.mean_cost == pytest.approx(5 / 3)
    assert trace.log_probs.argmax(dim=1).tolist() == [0, 1, 1]
    assert Replayer(table).utility(policy(2.0)).tolist() == [1.0, 1.0, 0.0]


def test_max_prob_does_not_saturate():
    log_probs = torch.log_softmax(torch.tensor([[20.0, 0, 0], [40.0, 0, 0], [80.0, 0, 0]]), dim=1)
    assert (log_probs.exp().amax(dim=1)[1:] == 1).all()  # the probability itself cannot tell them apart
    scores = confidence.max_prob(log_probs)
    assert torch.allclose(scores, torch.tensor([20.0, 40.0, 80.0]) - math.log(2), rtol=1e-4)


def test_confidences_by_hand():
    seen = torch.tensor([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3]]]).log()
    assert confidence.margin(seen[:, 0]).tolist() == pytest.approx([0.5])
    assert confidence.max_prob(seen[:, 1]).tolist() == pytest.approx([math.log(4)])
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert confidence.certainty(seen[:, 0]).tolist() == pytest.approx([1 - entropy / math.log(3)])
    assert confidence.vote_share(seen).tolist() == pytest.approx([2 / 3])
    assert confidence.streak(seen).tolist() == [2.0]
    assert confidence.streak(seen[:, :1]).tolist() == [1.0]


def slow_replay(rule, table):
    stops = []
    for n in range(table.num_samples):
        for k in range(table.num_exits):
            seen = torch.log_softmax(table.logits[n : n + 1, : k + 1], dim=2)
            if k == table.num_exits - 1 or bool(rule.leaves(seen, torch.tensor([n]))):
                stops.append(k)
                break
    return stops


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 100), st.sampled_from(["max_prob", "certainty", "margin", "vote_share", "streak"]), st.floats(0, 1)
)
def test_replay_equals_the_slow_twin(seed, name, weight):
    table = synthetic_table(40, seed=seed)
    mixed = MixedPolicy(policy(0.4, 0.4, 0.4, name=name), policy(1.5, 1.5, 1.5, name=name), weight, seed)
    assert replay(mixed, table).exit_index.tolist() == slow_replay(mixed, table)


def test_a_policy_of_your_own():
    class Second(Policy):
        def score(self, seen, features=None):
            return seen[:, -1].amax(dim=1)

        def answer(self, seen, features=None):
            return torch.log_softmax(seen.mean(dim=1), dim=1)

    table = synthetic_table(300)
    rule = Second(torch.tensor([-0.2, -0.2, -0.2, -INF]))
    check_policy(rule, table)
    trace = replay(rule, table)
    n = int((trace.exit_index == 2).nonzero()[0])
    seen = table.log_probs(slice(n, n + 1))[:, :3]
    assert torch.allclose(trace.log_probs[n], torch.log_softmax(seen.mean(dim=1), dim=1)[0])
    right = (trace.log_probs.argmax(dim=1) == table.labels).double()
    assert torch.equal(Replayer(table).utility(rule), right)
    unlabelled = ExitTable(logits=table.logits, utility=table.utility, costs=table.costs)
    with pytest.raises(TableError, match="answers with several exits together"):
        Replayer(unlabelled).utility(rule)


def test_the_coin_is_fair_and_follows_the_sample():
    ids = torch.arange(100_000)
    draws = coin(ids, 0)
    assert float(draws.min()) >= 0 and float(draws.max()) < 1
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.005)
    assert float(draws.std()) == pytest.approx(1 / math.sqrt(12), abs=0.005)
    assert torch.equal(coin(ids[500:600], 0), draws[500:600])
    other = coin(ids, 1)
    assert abs(float(torch.corrcoef(torch.stack([draws, other]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([draws[1:], draws[:-1]]))[0, 1])) < 0.02


def test_a_mix_costs_what_it_promises():
    table = synthetic_table(1000)
    cheap, dear = policy(0.0, 0.0, 0.0), policy(INF, INF, INF)
    replayer = Replayer(table)
    cost, utility = replayer.expected(MixedPolicy(dear, cheap, 0.25), table.costs)
    (c0, u0), (c1, u1) = replayer.expected(cheap, table.costs), replayer.expected(dear, table.costs)
    assert cost == pytest.approx(0.75 * c0 + 0.25 * c1)
    assert utility == pytest.approx(0.75 * u0 + 0.25 * u1)
    realised = replay(MixedPolicy(dear, cheap, 0.25), table).mean_cost
    assert realised == pytest.approx(cost, abs=5 * (c1 - c0) / math.sqrt(1000))


def test_what_is_no_policy_is_refused():
    with pytest.raises(InputError, match="the last is -inf"):
        ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([0.5, 0.5]))
    with pytest.raises(InputError, match="no rule"):
        policy(float("nan"))
    with pytest.raises(InputError, match="unknown"):
        ConfidenceScorer("maxprob")
    with pytest.raises(InputError, match=r"weight 1\.5"):
        MixedPolicy(policy(0.0), policy(1.0), 1.5)
    with pytest.raises(ShapeError, match="policy of 2 exits does not fit"):
        replay(policy(0.0), synthetic_table(5))
    with pytest.raises(InputError, match="undefined"):
        MixedPolicy(policy(0.0), policy(1.0), 0.5).score(torch.zeros(1, 1, 2))
    with pytest.raises(TableError, match="costs are missing"):
        replay(policy(0.0), ExitTable(logits=torch.zeros(2, 2, 2)))


def test_exit_distribution_by_hand():
    assert exit_distribution(torch.tensor([0, 2, 2, 0]), 4).tolist() == [0.5, 0, 0.5, 0]


def test_eenet_features_by_hand():
    seen = torch.tensor([[[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]]]).log()
    features = exit_features(seen)
    assert features.shape == (1, 3, 5)
    assert features[0, :, 2].tolist() == pytest.approx([0.7, 0.6, 0.8])
    assert features[0, :, 4].tolist() == pytest.approx([1.0, 0.5, 2 / 3])


def test_eenet_scores_are_clipped_and_ties_broken_by_max_prob():
    weight = torch.zeros(2, 2 + 3 + 1)
    weight[:, 0] = 5.0  # saturates as soon as class 0 is likely
    scorer = EENetScorer(2, 2, weight)
    seen = torch.tensor([[[0.1, 0.9]], [[0.5, 0.5]], [[0.9, 0.1]], [[0.01, 0.99]]]).log()
    scores = scorer(seen)
    assert float(scores[0]) == pytest.approx(0.5)
    assert 1 < float(scores[1]) < float(scores[2])  # both clipped to 1
    assert float(scores[3]) == pytest.approx(0.05, abs=1e-6)


def test_eenet_uses_earlier_scores():
    weight = torch.zeros(2, 2 + 3 + 1)
    weight[0, 2] = 1.0  # q0 = max p
    weight[1, 5] = 0.5  # q1 = q0 / 2
    seen = torch.tensor([[[0.2, 0.8], [0.6, 0.4]]]).log()
    assert float(EENetScorer(2, 2, weight)(seen)) == pytest.approx(0.4)


def test_confidences_leave_their_input_alone():
    log_probs = torch.log_softmax(torch.randn(4, 3, 5, dtype=torch.float64), dim=2)
    before = log_probs.clone()
    for name in confidence.__all__:
        getattr(confidence, name)(log_probs)
    assert torch.equal(before, log_probs)


class Mean(Transform):
    """The normalised geometric mean of all exits seen."""

    calls = 0

    def forward(self, seen):
        self.calls += 1
        return torch.log_softmax(seen.mean(dim=1), dim=1)


class Together(Policy):
    """Leaves by the newest exit, answers with all."""

    def score(self, seen, features=None):
        return seen[:, -1].amax(dim=1)

    def answer(self, seen, features=None):
        return torch.log_softmax(seen.mean(dim=1), dim=1)


TOGETHER = Together(torch.tensor([-0.4, -0.4, -0.4, -INF]))


def test_a_transformed_policy_by_hand():
    # log-odds 3, -1 (and 1 together); 1, 2 (1.5 together); the threshold is 2 for all
    logits = torch.tensor([[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]])
    table = ExitTable(logits=logits, labels=torch.tensor([0, 0, 1]), costs=CostTable((1.0, 3.0), "ms"))
    rule = TransformedPolicy(Mean(), policy(2.0))
    trace = replay(rule, table)
    assert trace.exit_index.tolist() == [0, 1, 1]
    odds = trace.log_probs[:, 0] - trace.log_probs[:, 1]
    assert odds.tolist() == pytest.approx([3.0, 1.5, 0.5])
    replayer = Replayer(table)
    assert replayer.utility(rule).tolist() == [1.0, 1.0, 0.0]
    assert replayer.expected(rule, table.costs) == pytest.approx((7 / 3, 2 / 3))
    assert rule.thresholds.tolist() == [2.0, -INF]


@pytest.mark.parametrize("name", ["max_prob", "streak", "vote_share"])
def test_a_transformed_policy_decides_as_its_policy_does_on_the_transformed_table(name):
    table = synthetic_table(400)
    inner = policy(1.0, 1.0, 1.0, name=name)
    rule = TransformedPolicy(Mean(), inner)
    check_policy(rule, table)
    outside, inside = replay(rule, table), replay(inner, table.transformed(Mean()))
    assert torch.equal(outside.exit_index, inside.exit_index)
    assert torch.equal(outside.log_probs, inside.log_probs)
    assert torch.equal(Replayer(table).utility(rule), Replayer(table.transformed(Mean())).utility(inner))
    seen = table.log_probs(slice(None))[:, :3]
    assert torch.equal(rule.score(seen), inner.score(Mean().history(seen)))


def test_earlier_exits_are_worked_out_only_for_policies_that_look_at_them():
    seen = torch.log_softmax(torch.randn(5, 3, 4), dim=2)
    ids = torch.arange(5)
    for inner, calls in (
        (policy(1.0, 1.0, 1.0), 1),
        (policy(1.0, 1.0, 1.0, name="streak"), 3),
        (MixedPolicy(policy(1.0, 1.0, 1.0), policy(1.0, 1.0, 1.0, name="margin"), 0.5), 1),
        (MixedPolicy(policy(1.0, 1.0, 1.0), policy(1.0, 1.0, 1.0, name="streak"), 0.5), 3),
        (TOGETHER, 3),
    ):
        rule = TransformedPolicy(Mean(), inner)
        assert torch.equal(rule.leaves(seen, ids), inner.leaves(rule.transform.history(seen), ids))
        rule.transform.calls = 0
        rule.leaves(seen, ids)
        assert rule.transform.calls == calls
        rule.transform.calls = 0
        answers = rule.answers(seen, ids)
        assert rule.transform.calls == (3 if inner is TOGETHER else 1)
        assert torch.equal(answers, inner.answers(rule.transform.history(seen), ids))


def test_one_transform_is_enough():
    rule = TransformedPolicy(Mean(), policy(1.0))
    for inner in (rule, MixedPolicy(rule, policy(2.0), 0.5)):
        with pytest.raises(InputError, match=r"policy is transformed already: .* Use one transform"):
            TransformedPolicy(Mean(), inner)


def test_who_answers_with_the_newest_exit():
    a, b = policy(1.0, 1.0, 1.0), policy(2.0, 2.0, 2.0)
    assert answers_with_newest(a)
    assert answers_with_newest(MixedPolicy(a, MixedPolicy(a, b, 0.5), 0.5))
    assert not answers_with_newest(TOGETHER)
    assert not answers_with_newest(MixedPolicy(a, MixedPolicy(TOGETHER, b, 0.5), 0.5))
    assert not answers_with_newest(TransformedPolicy(Mean(), a))  # not as the model gave it


def test_unmixed_by_hand():
    a, b, c = policy(1.0), policy(2.0), policy(3.0)
    assert unmixed(a) == [(1.0, a)]
    nested = MixedPolicy(MixedPolicy(a, b, 0.25), c, 0.5)
    assert unmixed(nested) == [(0.125, a), (0.375, b), (0.5, c)]
    transform = Mean()
    parts = unmixed(TransformedPolicy(transform, nested))
    assert [(share, part.policy) for share, part in parts] == [(0.125, a), (0.375, b), (0.5, c)]
    assert all(part.transform is transform for _, part in parts)
    alone = TransformedPolicy(transform, a)
    assert unmixed(alone) == [(1.0, alone)]
    outside = MixedPolicy(alone, b, 0.5)
    assert unmixed(outside) == [(0.5, alone), (0.5, b)]


def test_a_mix_of_two_policies_behind_one_transform_asks_it_once():
    seen = torch.log_softmax(torch.randn(50, 3, 4), dim=2)
    ids, a, b = torch.arange(50), policy(0.5, 0.5, 0.5), policy(2.0, 2.0, 2.0)
    for other, calls in ((b, 1), (policy(2.0, 2.0, 2.0, name="margin"), 1), (policy(2.0, 2.0, 2.0, name="streak"), 3)):
        transform = Mean()
        mixed = MixedPolicy(TransformedPolicy(transform, a), TransformedPolicy(transform, other), 0.5, 3)
        leaves = mixed.leaves(seen, ids)
        assert transform.calls == calls
        one, two = (part.leaves(seen, ids) for part in (mixed.a, mixed.b))
        assert torch.equal(leaves, torch.where(mixed.follows_a(ids), one, two))
        answers = torch.where(mixed.follows_a(ids)[:, None], mixed.a.answers(seen, ids), mixed.b.answers(seen, ids))
        assert torch.equal(mixed.answers(seen, ids), answers)


def test_what_takes_batches_only_says_so():
    with pytest.raises(InputError, match=r"scorer ConfidenceScorer scores batches only\. Call it instead\."):
        ConfidenceScorer("margin").one([0.0, 0.0, 0.0], 0)
    with pytest.raises(InputError, match=r"transform Mean takes batches only\. Call it instead\."):
        Mean().one([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])


class Single(Scorer):
    """Scores single samples without torch."""

    newest_only = single = True
    asked = 0

    def forward(self, seen, features=None):
        return seen[:, -1, 0].exp()

    def one(self, newest, k):
        self.asked += 1
        return torch.tensor(newest[:1]).exp().item()


class SingleMean(Transform):
    """The mean of all exits seen, single samples without torch."""

    single = True
    asked = 0

    def forward(self, seen):
        return torch.log_softmax(seen.mean(dim=1), dim=1)

    def one(self, seen):
        self.asked += 1
        return self(torch.tensor([seen]))[0].tolist()


def test_single_samples_are_worked_out_without_torch_where_all_can():
    table, scorer, transform = synthetic_table(60), Single(), SingleMean()
    plain = ScorePolicy(scorer, torch.tensor([0.6, 0.5, 0.4, -INF]))
    behind = TransformedPolicy(transform, plain)
    check_policy(plain, table)
    check_policy(behind, table)
    assert scorer.asked > 0 and transform.asked > 0
    scorer.asked = transform.asked = 0
    seen, ids = table.log_probs(slice(0, 1)), torch.zeros(1).long()
    plain.leaves(seen[:, :2], ids)
    assert (scorer.asked, transform.asked) == (1, 0)
    behind.leaves(seen[:, :2], ids)
    assert (scorer.asked, transform.asked) == (2, 1)
    behind.leaves(table.log_probs(slice(0, 2))[:, :2], torch.arange(2))  # two are a batch
    TransformedPolicy(Mean(), plain).leaves(seen[:, :2], ids)  # the scorer alone
    assert (scorer.asked, transform.asked) == (3, 1)


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 100), st.floats(0, 1))
def test_a_mix_inside_a_transform_is_the_mix_outside(seed, weight):
    table = synthetic_table(60, seed=seed)
    transform, a, b = Mean(), policy(0.4, 0.4, 0.4), policy(1.5, 1.5, 1.5, name="streak")
    inside = TransformedPolicy(transform, MixedPolicy(a, b, weight, seed))
    outside = MixedPolicy(TransformedPolicy(transform, a), TransformedPolicy(transform, b), weight, seed)
    one, two = replay(inside, table), replay(outside, table)
    assert torch.equal(one.exit_index, two.exit_index)
    assert torch.equal(one.log_probs, two.log_probs)
    assert one.exit_index.tolist() == slow_replay(inside, table)
    assert Replayer(table).expected(inside, table.costs) == Replayer(table).expected(outside, table.costs)


def test_outcomes_per_sample_are_expected_ones():
    table = synthetic_table(200)
    a, b = policy(0.5, 0.5, 0.5), TransformedPolicy(Mean(), policy(2.0, 2.0, 2.0))
    replayer = Replayer(table)
    cost, utility = replayer.per_sample(MixedPolicy(a, b, 0.25), table.costs)
    cumulative = torch.tensor(table.costs.cumulative).double()
    at_a, at_b = replay(a, table).exit_index, replay(b, table).exit_index
    assert torch.allclose(cost, 0.25 * cumulative[at_a] + 0.75 * cumulative[at_b])
    assert torch.allclose(utility, 0.25 * replayer.utility(a) + 0.75 * replayer.utility(b))
    assert replayer.expected(MixedPolicy(a, b, 0.25), table.costs) == pytest.approx(
        (float(cost.mean()), float(utility.mean()))
    )


class Sum(StateScorer):
    """Reads one column of a state that counts how often it is worked out."""

    def __init__(self, state, column):
        super().__init__(state)
        self.column = column

    def read(self, state, k):
        return state[:, self.column] + k


class Counted(torch.nn.Module):
    calls = 0

    def forward(self, seen, features=None):
        self.calls += 1
        return seen[:, -1]


def test_prepared_policies_share_one_pass_and_a_state_is_worked_out_once():
    table, state, transform = synthetic_table(100), Counted(), Mean()
    scorers = [Sum(state, column) for column in (0, 1)]
    plain = [ScorePolicy(scorer, torch.tensor([0.0, -1.0, -2.0, -INF])) for scorer in scorers]
    behind = [TransformedPolicy(transform, one) for one in plain]
    whole = [MixedPolicy(plain[0], behind[1], 0.5), TransformedPolicy(transform, MixedPolicy(*plain, 0.5)), TOGETHER]
    prepared, anew = Replayer(table), Replayer(table)
    prepared.prepare(whole)
    assert state.calls == 2 * 3  # two views, three early exits
    known = [*whole[:2], plain[0], *behind]
    found = [prepared.exit_index(one) for one in known]
    assert state.calls == 2 * 3
    assert prepared.behind(transform) is prepared.behind(transform)
    for one, exits in zip(known, found, strict=True):
        assert torch.equal(exits, anew.exit_index(one))
    seen = table.log_probs(slice(None))
    assert torch.equal(prepared.scores(scorers[0])[:, 2], scorers[0](seen[:, :3]))
    assert torch.equal(prepared.scores(TOGETHER)[:, 1], TOGETHER.score(seen[:, :2]))


def test_a_policy_behind_a_transform_has_no_utility_where_that_is_not_accuracy():
    table = synthetic_table(50)
    graded = ExitTable(logits=table.logits, labels=table.labels, utility=torch.rand(50, 4), costs=table.costs)
    with pytest.raises(TableError, match="judging a policy needs 'labels' or 'utility'"):
        Replayer(graded).utility(TransformedPolicy(Mean(), policy(1.0, 1.0, 1.0)))

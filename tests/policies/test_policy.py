"""Policies, confidences, the coin, and replay against its slow twin."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eenet.errors import InputError, ShapeError, TableError
from eenet.evaluation import evaluate
from eenet.policies import (
    ColumnScorer,
    ConfidenceScorer,
    EENetScorer,
    Ensemble,
    MixedPolicy,
    Policy,
    Replayer,
    ScorePolicy,
    Scorer,
    Transform,
    TransformedPolicy,
    VoteScorer,
    confidence,
    exit_distribution,
    replay,
    static_policy,
)
from eenet.policies.learned import exit_features
from eenet.policies.mixture import coin
from eenet.schedulers import GeometricScheduler, TransformedScheduler, fit_ensemble
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable
from eenet.testing import check_policy, synthetic_table

INF = math.inf


def policy(*thresholds, name="max_prob"):
    return ScorePolicy(ConfidenceScorer(name), np.array([*thresholds, -INF]))


def logs(probs):
    return np.log(np.array(probs)).astype(np.float32)


class Mean(Transform):
    """The normalised geometric mean of all exits seen."""

    calls = 0

    def __call__(self, seen):
        self.calls += 1
        return log_softmax(np.add.reduce(seen, axis=1) / np.float32(seen.shape[1]))


class Together(Policy):
    """Leaves by the newest exit, answers with all: a policy of a user's own."""

    num_exits = 4

    def leaves(self, seen, sample_ids):
        return seen[:, -1].max(axis=1) >= -0.4

    def answers(self, seen, sample_ids):
        return Mean()(seen)


def test_replay_by_hand():
    # log-odds of the top class of two are the difference of the logits
    logits = [[[3.0, 0.0], [5.0, 0.0]], [[1.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, 0.0]]]
    table = ExitTable(logits=logits, labels=[0, 1, 0], costs=CostTable((1.0, 3.0), "ms"))
    trace = replay(policy(1.99999), table)
    assert trace.exit_index.tolist() == [0, 1, 0]
    assert trace.cost.tolist() == [1.0, 3.0, 1.0]
    assert trace.mean_cost == pytest.approx(5 / 3)
    assert trace.log_probs.argmax(axis=1).tolist() == [0, 1, 1]
    assert Replayer(table).utility(policy(1.99999)).tolist() == [1.0, 1.0, 0.0]


def test_a_score_equal_to_the_threshold_leaves():
    table = ExitTable(features=[[[2.0], [0.0]], [[1.5], [0.0]]], utility=np.ones((2, 2)))
    assert Replayer(table).exit_index(ScorePolicy(ColumnScorer(0, 1), np.array([2.0, -INF]))).tolist() == [0, 1]


def test_costs_per_sample_by_hand():
    logits = [[[3.0, 0.0], [5.0, 0.0]], [[1.0, 0.0], [0.0, 4.0]], [[0.0, 2.0], [0.0, 0.0]]]
    table = ExitTable(logits=logits, labels=[0, 1, 0], cost=[[1.0, 2.0], [3.0, 9.0], [2.0, 4.0]])
    trace = replay(policy(1.9), table)
    assert trace.cost.tolist() == [1.0, 9.0, 2.0]
    assert Replayer(table).expected(policy(1.9)) == (4.0, pytest.approx(2 / 3))
    mixed = MixedPolicy(policy(1.9), static_policy(ConfidenceScorer("max_prob"), 1, 2), 0.5)
    cost, _ = Replayer(table).per_sample(mixed)
    assert cost.tolist() == [1.5, 9.0, 3.0]
    assert replay(policy(1.9), table, CostTable((1.0, 3.0), "ms")).cost.tolist() == [1.0, 3.0, 1.0]


def test_features_are_decided_on_and_answer_nothing():
    table = ExitTable(
        features=[[[0.1, 9.0], [0.2, 0.0]], [[0.7, 1.0], [0.1, 0.0]]],
        feature_names=("sure", "other"),
        utility=[[0.2, 0.8], [0.6, 0.9]],
        costs=CostTable((1.0, 2.0), "ms"),
    )
    rule = ScorePolicy(ColumnScorer(0, 2), np.array([0.5, -INF]))
    trace = replay(rule, table)
    assert (trace.exit_index.tolist(), trace.log_probs) == ([1, 0], None)
    assert Replayer(table).utility(rule).tolist() == [0.8, 0.6]
    for scorer in (VoteScorer(), ConfidenceScorer("streak")):
        with pytest.raises(TableError, match="name no classes"):
            replay(ScorePolicy(scorer, np.array([0.5, -INF])), table)
    with pytest.raises(ShapeError, match=r"3 .* 2"):
        replay(ScorePolicy(ColumnScorer(0, 3), np.array([0.5, -INF])), table)


def test_max_prob_does_not_saturate():
    log_probs = log_softmax(np.array([[20.0, 0, 0], [40.0, 0, 0], [80.0, 0, 0]]))
    assert (np.exp(log_probs).max(axis=1)[1:] == 1).all()  # the probability itself cannot tell them apart
    np.testing.assert_allclose(confidence.max_prob(log_probs), np.array([20.0, 40.0, 80.0]) - math.log(2), rtol=1e-4)


def test_confidences_by_hand():
    seen = logs([[[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3]]])
    assert confidence.margin(seen[:, 0]).tolist() == pytest.approx([0.5])
    assert confidence.max_prob(seen[:, 1]).tolist() == pytest.approx([math.log(4)])
    entropy = -sum(p * math.log(p) for p in (0.7, 0.2, 0.1))
    assert confidence.certainty(seen[:, 0]).tolist() == pytest.approx([1 - entropy / math.log(3)])
    assert confidence.vote_share(seen).tolist() == pytest.approx([2 / 3])
    assert confidence.streak(seen).tolist() == [2.0]
    assert confidence.streak(seen[:, :1]).tolist() == [1.0]
    assert VoteScorer()(seen).tolist() == pytest.approx([2.25])  # log-odds 0: half of half a vote


@pytest.mark.parametrize("name", confidence.__all__)
def test_confidences_leave_their_input_alone(name):
    log_probs = log_softmax(np.random.default_rng(0).standard_normal((4, 3, 5)))
    before = log_probs.copy()
    ConfidenceScorer(name)(log_probs)
    assert np.array_equal(before, log_probs)


def test_no_answer_is_never_sure():
    log_probs = np.full((1, 3), np.nan, dtype=np.float32)
    assert not (confidence.max_prob(log_probs) >= -INF).any()


def slow_replay(rule, table):
    """One sample and one exit at a time."""
    stops = []
    for n in range(table.num_samples):
        for k in range(table.num_exits):
            seen = log_softmax(table.logits[n : n + 1, : k + 1])
            if k == table.num_exits - 1 or rule.leaves(seen, np.array([n])).item():
                stops.append(k)
                break
    return stops


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 100), st.sampled_from(confidence.__all__), st.floats(0, 1))
def test_replay_equals_the_slow_twin(seed, name, weight):
    table = synthetic_table(40, seed=seed)
    mixed = MixedPolicy(policy(0.4, 0.4, 0.4, name=name), policy(1.5, 1.5, 1.5, name=name), weight, seed)
    assert replay(mixed, table).exit_index.tolist() == slow_replay(mixed, table)


def rough_table(seed):
    """Half precision, impossible classes, duplicated rows: everything that invites ties."""
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal((700, 4, 5)) * rng.choice([0.5, 4, 30])).astype(np.float16)
    logits[1::2] = logits[::2]
    logits[:, :, 1][rng.random((700, 4)) < 0.2] = -60000
    return ExitTable(logits=logits, labels=rng.integers(0, 5, 700), costs=CostTable((1.0, 2.0, 3.0, 4.0), "ms"))


def every_policy():
    """One policy of each kind."""
    weights = np.tril(np.random.default_rng(1).random((4, 4))), np.random.default_rng(2).standard_normal((4, 5))
    ensemble = Ensemble(weight=weights[0], bias=weights[1])
    confident = policy(1.0, 0.5, 2.0)
    eenet = EENetScorer(weight=np.random.default_rng(3).standard_normal((4, 11)), num_columns=5)
    return {
        "confidence": confident,
        "vote": ScorePolicy(VoteScorer(), np.array([0.9, 1.9, 2.9, -INF])),
        "eenet": ScorePolicy(eenet, np.array([0.5, 0.6, 0.3, -INF])),
        "mixed": MixedPolicy(confident, policy(2.0, 2.0, 2.0, name="streak"), 0.4, 7),
        "ensemble": TransformedPolicy(ensemble, confident),
        "mixed ensemble": MixedPolicy(TransformedPolicy(ensemble, confident), policy(3.0, 3.0, 3.0), 0.6),
        "own": Together(),
    }


@pytest.mark.parametrize("name", every_policy())
@pytest.mark.parametrize("seed", range(2))
def test_decisions_and_answers_are_the_same_to_the_bit_in_every_batch(name, seed):
    check_policy(every_policy()[name], rough_table(seed))


def test_a_policy_of_your_own():
    table, rule = synthetic_table(300), Together()
    check_policy(rule, table)
    trace = replay(rule, table)
    n = int(np.flatnonzero(trace.exit_index == 2)[0])
    assert np.array_equal(trace.log_probs[n], Mean()(table.seen(slice(n, n + 1))[:, :3])[0])
    right = (trace.log_probs.argmax(axis=1) == table.labels).astype(float)
    assert np.array_equal(Replayer(table).utility(rule), right)
    unlabelled = ExitTable(logits=table.logits, utility=table.utility, costs=table.costs)
    with pytest.raises(TableError, match="several exits"):
        Replayer(unlabelled).utility(rule)
    with pytest.raises(InputError, match="Together"):
        rule.extended(5)


def test_the_coin_is_fair_and_follows_the_sample():
    ids = np.arange(100_000)
    tosses = coin(ids, 0)
    assert tosses.min() >= 0 and tosses.max() < 1
    assert tosses.mean() == pytest.approx(0.5, abs=0.005)
    assert tosses.std() == pytest.approx(1 / math.sqrt(12), abs=0.005)
    assert np.array_equal(coin(ids[500:600], 0), tosses[500:600])
    assert abs(np.corrcoef(tosses, coin(ids, 1))[0, 1]) < 0.02
    assert abs(np.corrcoef(tosses[1:], tosses[:-1])[0, 1]) < 0.02


def test_a_mixture_costs_what_it_promises():
    table = synthetic_table(1000)
    cheap, expensive = policy(0.0, 0.0, 0.0), policy(INF, INF, INF)
    replayer = Replayer(table)
    cost, utility = replayer.expected(MixedPolicy(expensive, cheap, 0.25))
    (c0, u0), (c1, u1) = replayer.expected(cheap), replayer.expected(expensive)
    assert cost == pytest.approx(0.75 * c0 + 0.25 * c1)
    assert utility == pytest.approx(0.75 * u0 + 0.25 * u1)
    realised = replay(MixedPolicy(expensive, cheap, 0.25), table).mean_cost
    assert realised == pytest.approx(cost, abs=5 * (c1 - c0) / math.sqrt(1000))


def test_outcomes_per_sample_are_expected_ones():
    table = synthetic_table(200)
    a, b = policy(0.5, 0.5, 0.5), TransformedPolicy(Mean(), policy(2.0, 2.0, 2.0))
    replayer, cumulative = Replayer(table), np.array(table.costs.cumulative)
    cost, utility = replayer.per_sample(MixedPolicy(a, b, 0.25))
    at_a, at_b = replay(a, table).exit_index, replay(b, table).exit_index
    np.testing.assert_allclose(cost, 0.25 * cumulative[at_a] + 0.75 * cumulative[at_b])
    np.testing.assert_allclose(utility, 0.25 * replayer.utility(a) + 0.75 * replayer.utility(b))
    assert replayer.expected(MixedPolicy(a, b, 0.25)) == pytest.approx((cost.mean(), utility.mean()))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.5, 0.5])), InputError, "last is -inf"),
        (lambda: policy(float("nan")), InputError, "NaN"),
        (lambda: ConfidenceScorer("maxprob"), InputError, "'maxprob'"),
        (lambda: MixedPolicy(policy(0.0), policy(1.0), 1.5), InputError, r"weight 1\.5"),
        (lambda: MixedPolicy(policy(0.0), policy(1.0, 1.0), 0.5), ShapeError, "2 and 3 exits"),
        (lambda: replay(policy(0.0), synthetic_table(5)), ShapeError, "2 exits .* 4"),
        (lambda: replay(policy(0.0), ExitTable(logits=np.zeros((2, 2, 2)))), TableError, "costs are missing"),
        (lambda: ScorePolicy(EENetScorer(weight=np.zeros((2, 6)), num_columns=2), np.array([0.0, 0.0, -INF])),
         ShapeError, "2 exits .* 3"),
    ],
)  # fmt: skip
def test_what_is_no_policy_is_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_static_policies_let_everybody_leave_at_one_exit():
    table = synthetic_table(20)
    for k in range(4):
        rule = static_policy(ConfidenceScorer("max_prob"), k, 4)
        assert Replayer(table).exit_index(rule).tolist() == [k] * 20


def test_eenet_features_by_hand():
    features = exit_features(logs([[[0.7, 0.3], [0.4, 0.6], [0.2, 0.8]]]))
    assert features.shape == (1, 3, 5)
    assert features[0, :, 2].tolist() == pytest.approx([0.7, 0.6, 0.8])
    assert features[0, :, 4].tolist() == pytest.approx([1.0, 0.5, 2 / 3])


def test_eenet_scores_are_clipped_and_ties_broken_by_max_prob():
    weight = np.zeros((2, 2 + 3 + 1))
    weight[:, 0] = 5.0  # saturates as soon as class 0 is likely
    scores = EENetScorer(weight=weight, num_columns=2)(logs([[[0.1, 0.9]], [[0.5, 0.5]], [[0.9, 0.1]], [[0.01, 0.99]]]))
    assert scores[0] == pytest.approx(0.5)
    assert 1 < scores[1] < scores[2]  # both clipped to 1
    assert scores[3] == pytest.approx(0.05, abs=1e-6)


def test_eenet_uses_earlier_scores():
    weight = np.zeros((2, 2 + 3 + 1))
    weight[0, 2] = 1.0  # q0 = max p
    weight[1, 5] = 0.5  # q1 = q0 / 2
    seen = logs([[[0.2, 0.8], [0.6, 0.4]]])
    assert EENetScorer(weight=weight, num_columns=2)(seen).tolist() == pytest.approx([0.4])


# transforms before policies


def test_a_transformed_policy_by_hand():
    # log-odds 3, -1 (and 1 together); 1, 2 (1.5 together); the threshold is 2 for all
    logits = [[[3.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [2.0, 0.0]]]
    table = ExitTable(logits=logits, labels=[0, 0, 1], costs=CostTable((1.0, 3.0), "ms"))
    rule = TransformedPolicy(Mean(), policy(2.0))
    trace = replay(rule, table)
    assert trace.exit_index.tolist() == [0, 1, 1]
    assert (trace.log_probs[:, 0] - trace.log_probs[:, 1]).tolist() == pytest.approx([3.0, 1.5, 0.5])
    replayer = Replayer(table)
    assert replayer.utility(rule).tolist() == [1.0, 1.0, 0.0]
    assert replayer.expected(rule) == pytest.approx((7 / 3, 2 / 3))


@pytest.mark.parametrize("name", ["max_prob", "streak", "vote_share"])
def test_a_transformed_policy_decides_as_its_policy_does_on_the_transformed_table(name):
    table = synthetic_table(400)
    inner = policy(1.0, 1.0, 1.0, name=name)
    rule = TransformedPolicy(Mean(), inner)
    check_policy(rule, table)
    outside, inside = replay(rule, table), replay(inner, table.transformed(Mean()))
    assert np.array_equal(outside.exit_index, inside.exit_index)
    assert np.array_equal(outside.log_probs, inside.log_probs)
    assert np.array_equal(Replayer(table).utility(rule), Replayer(table.transformed(Mean())).utility(inner))


def test_earlier_exits_are_transformed_only_for_policies_that_look_at_them():
    seen = log_softmax(np.random.default_rng(0).standard_normal((5, 3, 4)))
    ids = np.arange(5)
    for inner, calls in (
        (policy(1.0, 1.0, 1.0), 1),
        (policy(1.0, 1.0, 1.0, name="streak"), 3),
        (MixedPolicy(policy(1.0, 1.0, 1.0), policy(1.0, 1.0, 1.0, name="margin"), 0.5), 1),
        (MixedPolicy(policy(1.0, 1.0, 1.0), policy(1.0, 1.0, 1.0, name="streak"), 0.5), 3),
        (Together(), 3),
    ):
        rule = TransformedPolicy(Mean(), inner)
        assert np.array_equal(rule.leaves(seen, ids), inner.leaves(rule.transform.history(seen), ids))
        rule.transform.calls = 0
        rule.leaves(seen, ids)
        assert rule.transform.calls == calls
        rule.transform.calls = 0
        answers = rule.answers(seen, ids)
        assert rule.transform.calls == (1 if inner.answers_newest else 3)
        assert np.array_equal(answers, inner.answers(rule.transform.history(seen), ids))


def test_one_transform_is_enough():
    rule = TransformedPolicy(Mean(), policy(1.0))
    for inner in (rule, MixedPolicy(rule, policy(2.0), 0.5)):
        with pytest.raises(InputError, match="transformed already"):
            TransformedPolicy(Mean(), inner)


def test_which_policies_answer_with_the_newest_exit():
    a, b, own = policy(1.0, 1.0, 1.0), policy(2.0, 2.0, 2.0), Together()
    assert a.answers_newest
    assert MixedPolicy(a, MixedPolicy(a, b, 0.5), 0.5).answers_newest
    assert not own.answers_newest
    assert not MixedPolicy(a, MixedPolicy(own, b, 0.5), 0.5).answers_newest
    assert not TransformedPolicy(Mean(), a).answers_newest  # not as the model gave it


def test_components_by_hand():
    a, b, c = policy(1.0), policy(2.0), policy(3.0)
    assert a.components() == ((1.0, a),)
    nested = MixedPolicy(MixedPolicy(a, b, 0.25), c, 0.5)
    assert nested.components() == ((0.125, a), (0.375, b), (0.5, c))
    transform = Mean()
    parts = TransformedPolicy(transform, nested).components()
    assert [(share, part.policy) for share, part in parts] == [(0.125, a), (0.375, b), (0.5, c)]
    assert all(part.transform is transform for _, part in parts)
    alone = TransformedPolicy(transform, a)
    assert alone.components() == ((1.0, alone),)
    assert MixedPolicy(alone, b, 0.5).components() == ((0.5, alone), (0.5, b))


def test_samples_of_one_coin_follow_one_component():
    a, b = policy(1.0), policy(2.0)
    mixed = MixedPolicy(a, b, 0.5, 3)
    ids = np.arange(100)
    first = mixed.follows_a(ids)
    assert mixed.following(ids) is mixed
    assert mixed.following(ids[first]) is a
    assert mixed.following(ids[~first]) is b
    behind = TransformedPolicy(Mean(), mixed)
    assert behind.following(ids) is behind
    assert behind.following(ids[first]).policy is a


@settings(max_examples=3, deadline=None)
@given(st.integers(0, 100), st.floats(0, 1))
def test_a_mixture_inside_a_transform_is_the_mixture_outside(seed, weight):
    table = synthetic_table(60, seed=seed)
    transform, a, b = Mean(), policy(0.4, 0.4, 0.4), policy(1.5, 1.5, 1.5, name="streak")
    inside = TransformedPolicy(transform, MixedPolicy(a, b, weight, seed))
    outside = MixedPolicy(TransformedPolicy(transform, a), TransformedPolicy(transform, b), weight, seed)
    one, two = replay(inside, table), replay(outside, table)
    assert np.array_equal(one.exit_index, two.exit_index)
    assert np.array_equal(one.log_probs, two.log_probs)
    assert one.exit_index.tolist() == slow_replay(inside, table)
    assert Replayer(table).expected(inside) == Replayer(table).expected(outside)


def test_extended_policies_keep_their_rule_and_close_what_is_beyond():
    rule = MixedPolicy(TransformedPolicy(Mean(), policy(1.0)), policy(2.0), 0.3, 5)
    wide = rule.extended(4)
    assert (wide.num_exits, wide.num_open, wide.weight, wide.seed) == (4, 2, 0.3, 5)
    assert wide.a.transform is rule.a.transform
    assert wide.a.policy.thresholds.tolist() == [1.0, -INF, -INF, -INF]
    table = synthetic_table(100)
    assert np.array_equal(Replayer(table).exit_index(wide), Replayer(table.until(2)).exit_index(rule))


class Column(Scorer):
    """Scores by one column of what all scorers share; counts how often that is worked out."""

    calls = 0

    def __init__(self, column):
        self.column = column

    def __call__(self, seen):
        return self.shared(seen, {})

    def shared(self, seen, known):
        if "newest" not in known:
            Column.calls += 1
            known["newest"] = seen[:, -1]
        return known["newest"][:, self.column] + np.float32(seen.shape[1] - 1)


def test_prepared_policies_share_one_pass_and_what_they_read_is_worked_out_once():
    table, transform = synthetic_table(100), Mean()
    scorers = [Column(column) for column in (0, 1)]
    plain = [ScorePolicy(scorer, np.array([0.0, -1.0, -2.0, -INF])) for scorer in scorers]
    behind = [TransformedPolicy(transform, one) for one in plain]
    whole = [MixedPolicy(plain[0], behind[1], 0.5), TransformedPolicy(transform, MixedPolicy(*plain, 0.5)), Together()]
    prepared, anew = Replayer(table), Replayer(table)
    prepared.prepare(whole)
    assert Column.calls == 2 * 3  # two views, three early exits
    known = [*whole[:2], plain[0], *behind]
    found = [prepared.exit_index(one) for one in known]
    assert Column.calls == 2 * 3
    for one, exits in zip(known, found, strict=True):
        assert np.array_equal(exits, anew.exit_index(one))
    assert np.array_equal(prepared.scores(scorers[0])[:, 2], scorers[0](table.seen()[:, :3]))


def test_a_policy_after_a_transform_has_no_utility_where_that_is_not_accuracy():
    table = synthetic_table(50)
    worth = np.random.default_rng(0).random((50, 4))
    graded = ExitTable(logits=table.logits, labels=table.labels, utility=worth, costs=table.costs)
    with pytest.raises(TableError, match="'labels' or 'utility'"):
        Replayer(graded).utility(TransformedPolicy(Mean(), policy(1.0, 1.0, 1.0)))


def test_mixtures_inside_mixtures_toss_coins_of_their_own():
    table = synthetic_table(20_000, num_exits=3)
    first, second, third = (static_policy(ConfidenceScorer("max_prob"), k, 3) for k in range(3))
    nested = MixedPolicy(MixedPolicy(first, second, 0.5), third, 0.5)
    replayer = Replayer(table)
    shares = exit_distribution(replayer.exit_index(nested), 3)
    assert np.allclose(shares, [0.25, 0.25, 0.5], atol=0.02)
    assert replayer.cost(replayer.exit_index(nested)).mean() == pytest.approx(replayer.expected(nested)[0], abs=0.03)
    same = MixedPolicy(first, MixedPolicy(second, third, 0.5, seed=3), 0.5, seed=3)
    assert len(same.seeds) == 2 and same.b.seed == 3


def test_decisions_do_not_depend_on_how_numbers_lie_in_memory():
    rng = np.random.default_rng(0)
    seen = synthetic_table(400, num_exits=4, num_classes=30).seen()
    ensemble = Ensemble(weight=rng.normal(size=(4, 4)), bias=rng.normal(size=(4, 30)))
    rule, ids, other = TransformedPolicy(ensemble, policy(1.0, 1.0, 1.0)), np.arange(400), np.asfortranarray(seen)
    for k in range(4):
        part, wanted = other[:, : k + 1], seen[:, : k + 1]
        assert rule.answers(part, ids).tobytes() == rule.answers(wanted, ids).tobytes()
        assert np.array_equal(rule.leaves(part, ids), rule.leaves(wanted, ids))


def test_a_confidence_that_gives_no_number_is_refused():
    scheduler = GeometricScheduler(confidence=lambda log_probs: np.where(log_probs[:, 0] < -1, np.nan, 0.0))
    with pytest.raises(InputError, match="is NaN"):
        scheduler.fit(synthetic_table(200), budget="50%")


def test_policies_dials_and_reports_say_in_words_what_they_are():
    policy = ScorePolicy("margin", [0.5, math.inf, -math.inf, -math.inf])
    assert repr(policy) == "leaves by the score margin: exit 0 at 0.5, exit 1 at inf; all leave at exit 2"
    mixed = MixedPolicy(policy, ScorePolicy("margin", [-math.inf] * 4), 0.25)
    assert repr(mixed) == f"by a coin per sample, 25.0%: {policy!r}, or 75.0%: all leave at exit 0"
    table = synthetic_table(200)
    dial = GeometricScheduler().sweep(table)
    low, high = dial.fit_costs[0], dial.fit_costs[-1]
    assert f"cost {low:.4g} to {high:.4g} ms" in str(dial) and f"{dial.fit_utilities[-1]:.2%}" in str(dial)
    report = evaluate(dial.at("60%"), table, budget="60%")
    assert f"{report.cost:.4g} ms per sample (budget 2.4)" in str(report) and "at exit 3." in str(report)
    transformed = TransformedPolicy(fit_ensemble(table, 0), ScorePolicy("margin", [0.5, 1, 1, -math.inf]))
    assert repr(transformed).startswith("on outputs changed by Ensemble, leaves by the score margin: exit 0 at 0.5")


def test_the_parts_of_a_mixture_behind_a_transform_are_the_same_objects_whenever_they_are_asked_for() -> None:
    table = synthetic_table(300, num_exits=3)
    dial = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_ensemble).sweep(table)
    policy = dial.at(0.5 * (dial.fit_costs[0] + dial.fit_costs[1]))
    first, second = policy.components(), policy.components()
    assert len(first) == 2
    assert all(a is b for (_, a), (_, b) in zip(first, second, strict=True))

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eenet.errors import InputError, TableError
from eenet.evaluation import calibration, score_weights, separation
from eenet.evaluation.scores import auroc, main_score, mid_ranks, on_unit_scale
from eenet.policies import ConfidenceScorer, MixedPolicy, Policy, ScorePolicy, StoppingScorer, TransformedPolicy
from eenet.policies.confidence import probabilities, vote_shares
from eenet.policies.learned import StoppingState
from eenet.schedulers import (
    EENetScheduler,
    GeometricScheduler,
    StoppingScheduler,
    TransformedScheduler,
    fit_calibration,
    fit_ensemble,
)
from eenet.tables import ExitTable
from eenet.testing import synthetic_table

TABLE = synthetic_table(300, seed=2)


def slow_auroc(scores, right):
    pairs = [(a > b) + (a == b) / 2 for a in scores[right] for b in scores[~right]]
    return float(np.mean(pairs)) if pairs else float("nan")


def test_ranks_and_areas_by_hand():
    scores = np.array([3.0, 1.0, 2.0, 2.0])
    assert mid_ranks(scores).tolist() == [4, 1, 2.5, 2.5]
    # right: 3 and 2, wrong: 1 and 2; won: 3>1, 3>2, 2>1, and half of 2=2
    assert auroc(scores, np.array([True, False, True, False])) == 3.5 / 4
    assert np.isnan(auroc(scores, np.ones(4, dtype=bool)))


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(arrays(float, n, elements=st.integers(0, 5)), arrays(bool, n))))
def test_areas_are_those_of_all_pairs(drawn):
    scores, right = drawn
    assert auroc(scores, right) == pytest.approx(slow_auroc(scores, right), nan_ok=True)


def test_separation_is_that_of_scores_over_all_and_within_classes():
    policy = GeometricScheduler(confidence="margin").fit(TABLE, budget="60%")
    found = separation(policy, TABLE)
    scorer = ConfidenceScorer("margin")
    for k in range(3):
        scores, right = scorer(TABLE.seen()[:, : k + 1]), TABLE.utility[:, k] == 1
        assert found.overall[k] == pytest.approx(slow_auroc(scores, right))
        for label in range(5):
            of = TABLE.labels == label
            assert found.by_class[label, k] == pytest.approx(slow_auroc(scores[of], right[of]), nan_ok=True)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert np.shape(plain["overall"]) == (3,)
    assert np.shape(plain["by_class"]) == (5, 3)


def test_separation_reads_what_a_transformed_policy_reads():
    ensemble = TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_ensemble)
    policy = ensemble.fit(TABLE, budget="60%")
    transformed = TABLE.transformed(policy.components()[0][1].transform)
    scores, right = ConfidenceScorer("max_prob")(transformed.seen()[:, :2]), transformed.utility[:, 1] == 1
    assert separation(policy, TABLE).overall[1] == pytest.approx(slow_auroc(scores, right))


def test_of_a_mixture_the_score_that_most_samples_follow_counts():
    thresholds = [0.0, 0.0, 0.0, -np.inf]
    a, b = (ScorePolicy(name, thresholds) for name in ("margin", "certainty"))
    main = main_score(MixedPolicy(a, MixedPolicy(b, b, 0.5), 0.4))
    assert (main.scorer, main.share, main.early_exits) == (b.scorer, pytest.approx(0.6), 3)


def test_closed_exits_have_no_score():
    policy = ScorePolicy("margin", [0.0, 0.0, -np.inf, -np.inf])
    assert main_score(policy).early_exits == 2
    assert separation(policy, TABLE).overall.shape == (2,)
    with pytest.raises(InputError, match="has no score"):
        main_score(ScorePolicy("margin", [-np.inf] * 4))


def test_a_policy_of_ones_own_has_no_score():
    class Own(Policy):
        num_exits = 4

        def leaves(self, seen, sample_ids):
            return np.ones(len(seen), dtype=bool)

        def answers(self, seen, sample_ids):
            return seen[:, -1]

    with pytest.raises(InputError, match="Own has no score"):
        separation(Own(), TABLE)


def test_scores_are_brought_between_0_and_1():
    seen = TABLE.seen()[:, :1]
    values, what = on_unit_scale(ConfidenceScorer("max_prob"), ConfidenceScorer("max_prob")(seen))
    assert what == "largest probability"
    assert values == pytest.approx(np.exp(seen[:, 0].max(axis=1).astype(float)), rel=1e-5)
    scorer = main_score(EENetScheduler(epochs=2).fit(TABLE, budget="60%")).scorer
    values, what = on_unit_scale(scorer, np.array([-0.3, 0.5, 1.4], dtype=np.float32))
    assert (values.tolist(), what) == ([0, 0.5, 1], "learned score")
    scorer = main_score(StoppingScheduler().fit(TABLE, budget="60%")).scorer
    values, what = on_unit_scale(scorer, np.array([-7, 5, 900, 5], dtype=np.float32))
    assert values.tolist() == [0.125, 0.5, 0.875, 0.5]
    assert "rank" in what


# weights


def test_weights_of_eenet_are_those_that_its_score_is_made_of():
    policy = EENetScheduler(epochs=2).fit(TABLE, budget="60%")
    found, seen = score_weights(policy), TABLE.seen()
    assert list(found.named)[:3] == ["largest probability", "1 - entropy", "vote"]
    assert list(found.named)[3:] == ["score of exit 0", "score of exit 1"]
    assert found.columns == "class"
    p, log_p = probabilities(seen)
    read = {"largest probability": p.max(axis=2), "1 - entropy": 1 + (p * log_p).sum(axis=2) / np.log(5)}
    read["vote"] = vote_shares(seen)
    scores = []
    for k in range(3):
        q = p[:, k] @ found.by_column["probability"][k]
        q = q + sum(read[name][:, k] * found.named[name][k] for name in read)
        q = q + sum(score * found.named[f"score of exit {j}"][k] for j, score in enumerate(scores))
        scores.append(q.clip(0, 1))
    for k, score in enumerate(scores):
        found_score = main_score(policy).scorer(seen[:, : k + 1]).clip(0, 1)
        assert found_score == pytest.approx(score, abs=1e-6)
    assert np.isnan(found.named["score of exit 1"][:2]).all()


def features_table():
    rng = np.random.default_rng(0)
    utility = (rng.random((300, 3)) < [0.5, 0.7, 0.9]).astype(float)
    features = rng.standard_normal((300, 3, 2)) + utility[:, :, None]
    return ExitTable(features=features, utility=utility, costs=TABLE.until(3).costs)


STATES = {
    "probability": lambda seen, k: np.exp(seen[:, k].astype(float)),
    "value": lambda seen, k: seen[:, k].astype(float),
    "largest probability": lambda seen, k: np.exp(seen[:, k].astype(float)).max(axis=1),
    "sum of p log p": lambda seen, k: (np.exp(seen[:, k].astype(float)) * seen[:, k]).sum(axis=1),
    "sum of squares": lambda seen, k: np.square(np.exp(seen[:, k].astype(float))).sum(axis=1),
    "constant": lambda seen, k: np.ones(len(seen)),
}


@pytest.mark.parametrize("kind", ["curved", "summed", "features"])
def test_weights_of_stopping_are_those_that_its_score_is_made_of(kind):
    table, rng = features_table() if kind == "features" else TABLE, np.random.default_rng(1)
    early, width = table.num_exits - 1, StoppingState(kind).width(table.num_columns)
    weights = {"weight": rng.standard_normal((early, width)), "bias": rng.standard_normal(early)}
    scorer = StoppingScorer(**weights, num_columns=table.num_columns, kind=kind)
    found, seen = score_weights(ScorePolicy(scorer, [0.0] * early + [-np.inf])), table.seen()
    assert found.columns == ("feature" if kind == "features" else "class")
    for k in range(early):
        total = sum(STATES[name](seen, k) * weights[k] for name, weights in found.named.items())
        plain = STATES[next(iter(found.by_column))](seen, k)
        for name, weights in found.by_column.items():
            total = total + (plain**2 if name == "its square" else plain) @ weights[k]
        assert scorer(seen[:, : k + 1]) == pytest.approx(total, abs=1e-4)


def test_weights_are_found_through_transforms_and_mixtures():
    calibrated = TransformedScheduler(scheduler=EENetScheduler(epochs=2), fit_transform=fit_calibration)
    dial = calibrated.sweep(TABLE)
    policy = dial.at(2.3)
    assert len(policy.components()) == 2
    found = score_weights(policy)
    assert found.transformed
    assert found.share == pytest.approx(1)
    inner = policy.components()[0][1]
    assert isinstance(inner, TransformedPolicy)
    assert np.array_equal(found.named["vote"], inner.policy.scorer.weight[:3, 7])


def test_weights_of_a_score_without_any_are_refused():
    with pytest.raises(InputError, match="ConfidenceScorer has no weights"):
        score_weights(GeometricScheduler().fit(TABLE, budget="60%"))


# calibration


def test_calibration_by_hand():
    probs = [[[0.8, 0.2], [0.6, 0.4]], [[0.9, 0.1], [0.4, 0.6]], [[0.7, 0.3], [0.6, 0.4]]]
    table = ExitTable.from_probs(probs, labels=[0, 1, 0])
    found = calibration(table, bins=2)
    assert found.count.tolist() == [[0, 3], [0, 3]]
    assert found.confidence[:, 1] == pytest.approx([0.8, 0.6])
    assert found.accuracy[:, 1] == pytest.approx([2 / 3, 1])
    assert found.error == pytest.approx([0.8 - 2 / 3, 0.4])
    assert np.isnan(found.accuracy[:, 0]).all()


def test_calibration_by_a_slow_twin():
    found, p = calibration(TABLE, bins=7), np.exp(TABLE.seen().astype(float))
    for k in range(4):
        total = 0.0
        for b in range(7):
            sure = p[:, k].max(axis=1)
            here = (sure > b / 7) & (sure <= (b + 1) / 7)
            if here.any():
                right = (p[here, k].argmax(axis=1) == TABLE.labels[here]).mean()
                total += here.mean() * abs(right - sure[here].mean())
        assert found.error[k] == pytest.approx(total)
    assert found.count.sum(axis=1).tolist() == [300] * 4


def test_calibration_needs_labels():
    with pytest.raises(TableError, match="labels"):
        calibration(features_table())
    with pytest.raises(InputError, match="bins"):
        calibration(TABLE, bins=0)


@pytest.mark.usefixtures("unchecked")
def test_arguments_of_the_wrong_kind_are_refused():
    dial = GeometricScheduler().sweep(TABLE)
    for call in (lambda: score_weights(dial), lambda: separation(dial, TABLE)):
        with pytest.raises(InputError, match="a Policy is needed"):
            call()
    for call in (lambda: separation(dial.at("60%"), None), lambda: calibration(None)):
        with pytest.raises(InputError, match="table of type NoneType"):
            call()

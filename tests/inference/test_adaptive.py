"""Adaptive inference: it stops for real, and decides as replay does."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.conftest import POLICIES, Featured, policies, quantile_policy, replaying
from torch import nn

from eenet.core.coins import coin
from eenet.core.combined import MixedPolicy, TransformedPolicy, unmixed
from eenet.core.costs import CostTable
from eenet.core.policy import ScorePolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.core.table import ExitTable
from eenet.core.trace import replay
from eenet.core.views import FEW_CLASSES
from eenet.errors import InputError, ShapeError
from eenet.inference.adaptive import AdaptiveModel, toss
from eenet.inference.engines import EagerEngine
from eenet.inference.record import outputs
from eenet.models.model import MultiExitModel
from eenet.schedulers import (
    Ensemble,
    GeometricScheduler,
    JointScheduler,
    PatienceScheduler,
    PceeScheduler,
    StoppingScheduler,
    TransformedScheduler,
    fit_ensemble,
    fit_geometric_ensemble,
    load_policy,
    save_policy,
)
from eenet.schedulers.eenet import EENetScorer
from eenet.schedulers.heuristics import VoteScorer
from eenet.schedulers.stopping import StoppingScorer
from eenet.testing import synthetic_table

COSTS = CostTable(cumulative=(1.0, 2.5, 4.0, 7.0), unit="ms", reference=6.0)


def predict_in_batches(adaptive, inputs, size, features=None):
    """Answers, exits and costs of all samples, `size` at a time, ids being row numbers."""
    parts = []
    for rows in torch.arange(len(inputs)).split(size):
        parts.append(adaptive(inputs[rows], rows, None if features is None else features[rows]))
    return (torch.cat([getattr(part, name) for part in parts]) for name in ("log_probs", "exit_index", "cost"))


def test_three_samples_by_hand():
    # log-odds of the top class with 2 classes are the difference of the logits: exits 0 / 1 / 2
    logits = torch.tensor(
        [[[3.0, 0.0], [9.0, 0.0], [9.0, 0.0]], [[0.0, 1.0], [0.0, 4.0], [9.0, 0.0]], [[0.5, 0.0]] * 3]
    )
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([2.0, 3.0, -math.inf]))
    model = replaying(logits)
    adaptive = AdaptiveModel(model, policy, CostTable(cumulative=(1.0, 2.0, 4.0), unit="ms"))
    found = adaptive(torch.arange(3)[:, None])
    assert found.exit_index.tolist() == [0, 1, 2]
    assert found.cost.tolist() == [1, 2, 4]
    assert found.labels.tolist() == [0, 1, 0]
    assert torch.equal(found.log_probs, torch.log_softmax(logits[[0, 1, 2], [0, 1, 2]], dim=-1))
    assert [head.asked for head in model.heads] == [[3], [2], [1]]  # those that left were not computed


@pytest.mark.parametrize("size", [1, 7, 64, 120])
@pytest.mark.parametrize("name", POLICIES)
def test_decides_as_replay_does_to_the_bit(logits, name, size):
    policy = policies(logits)[name]
    trace = replay(policy, ExitTable(logits=logits, costs=COSTS))
    adaptive = AdaptiveModel(replaying(logits), policy, COSTS)
    log_probs, exit_index, cost = predict_in_batches(adaptive, torch.arange(120)[:, None], size)
    assert torch.equal(exit_index, trace.exit_index)
    assert torch.equal(log_probs, trace.log_probs)
    assert torch.equal(cost, trace.cost)


KNOWN = {}


def fitted(logits):
    """Policies of the schedulers that look at classes, or answer with several exits, fitted once to the logits."""
    if not KNOWN:
        KNOWN.update(fit_all(logits))
    return KNOWN


def fit_all(logits):
    labels = logits.sum(dim=1).argmax(dim=1)
    table = ExitTable(logits=logits, labels=labels, costs=COSTS)
    budget = 3.0
    alone = {
        "pcee": PceeScheduler(bins=5).fit(table, budget=budget),
        "stopping": StoppingScheduler(ensemble=False).fit(table, budget=budget),
        "ztw": TransformedScheduler(scheduler=JointScheduler(), fit_transform=fit_geometric_ensemble).fit(
            table, budget=budget
        ),
        "patience behind an ensemble": TransformedScheduler(
            scheduler=PatienceScheduler(), fit_transform=fit_ensemble
        ).fit(table, budget=budget),
        "stopping behind an ensemble": TransformedScheduler(
            scheduler=StoppingScheduler(), fit_transform=fit_ensemble
        ).fit(table, budget=budget),
    }
    together = alone["stopping behind an ensemble"]
    (_, first), (_, second) = unmixed(together)
    weight = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
    inside = TransformedPolicy(Ensemble(4, 10, weight), MixedPolicy(alone["pcee"], alone["stopping"], 0.4, seed=2))
    return alone | {
        "mixed inside": inside,
        "mixed with another transform": MixedPolicy(first, inside, 0.5, seed=5),
        "mixed with a plain one": MixedPolicy(together, MixedPolicy(second, alone["pcee"], 0.5, seed=6), 0.4, seed=7),
    }


FITTED = (
    "pcee",
    "stopping",
    "ztw",
    "patience behind an ensemble",
    "stopping behind an ensemble",
    "mixed inside",
    "mixed with another transform",
    "mixed with a plain one",
)


@pytest.mark.parametrize("name", FITTED)
def test_fitted_policies_decide_and_answer_as_replay_does_to_the_bit(logits, name, tmp_path):
    policy = fitted(logits)[name]
    trace = replay(policy, ExitTable(logits=logits, costs=COSTS))
    assert len(trace.exit_index.unique()) >= 2
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy").policy
    for rule, size in ((policy, 1), (policy, 7), (policy, 64), (loaded, 64)):
        adaptive = AdaptiveModel(replaying(logits), rule, COSTS)
        log_probs, exit_index, cost = predict_in_batches(adaptive, torch.arange(120)[:, None], size)
        assert torch.equal(exit_index, trace.exit_index)
        assert torch.equal(log_probs, trace.log_probs)
        assert torch.equal(cost, trace.cost)


def test_the_fitted_policies_are_of_many_kinds(logits):
    kinds = fitted(logits)
    assert tuple(kinds) == FITTED
    shared = kinds["stopping behind an ensemble"]
    assert isinstance(shared, MixedPolicy) and shared.a.transform is shared.b.transform
    assert isinstance(kinds["stopping"], MixedPolicy)
    assert isinstance(kinds["mixed inside"].policy, MixedPolicy)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_stopping_with_features_decides_as_replay_does(logits, size):
    features = torch.randn(120, 4, 3, generator=torch.Generator().manual_seed(2))
    table = ExitTable(logits=logits, labels=logits[:, 3].argmax(dim=1), features=features, costs=COSTS)
    policy = StoppingScheduler(use_features=True, feature_ridge=1.0).fit(table, budget=3.0)
    trace = replay(policy, table)
    adaptive = AdaptiveModel(replaying(logits), policy, COSTS)
    log_probs, exit_index, _ = predict_in_batches(adaptive, torch.arange(120)[:, None], size, features)
    assert torch.equal(exit_index, trace.exit_index)
    assert torch.equal(log_probs, trace.log_probs)
    with pytest.raises(InputError, match="features None are missing"):
        AdaptiveModel(replaying(logits), policy)(torch.arange(120)[:, None])


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("scorer", [EENetScorer(4, 10, torch.rand(4, 16) - 0.3), VoteScorer()], ids=["eenet", "vote"])
def test_learned_scores_do_not_depend_on_the_batch(logits, scorer, size):
    log_probs = torch.log_softmax(logits, dim=-1)
    for k in range(3):
        alone = torch.cat([scorer(part[:, : k + 1]) for part in log_probs.split(size)])
        assert torch.equal(alone, scorer(log_probs[:, : k + 1]))


@pytest.mark.parametrize("size", [1, 7, 64])
def test_features_follow_their_samples(logits, size):
    features = torch.randn(120, 4, 2)
    policy = Featured(torch.tensor([0.8, 0.5, 0.0, -math.inf]))
    trace = replay(policy, ExitTable(logits=logits, features=features, costs=COSTS))
    adaptive = AdaptiveModel(replaying(logits), policy, COSTS)
    _, exit_index, _ = predict_in_batches(adaptive, torch.arange(120)[:, None], size, features)
    assert torch.equal(exit_index, trace.exit_index)


@pytest.mark.parametrize("name", ["max_prob", "mixed on two scorers"])
def test_order_of_samples_does_not_matter(logits, name):
    adaptive = AdaptiveModel(replaying(logits), policies(logits)[name])
    order = torch.randperm(120)
    straight, shuffled = adaptive(torch.arange(120)[:, None], torch.arange(120)), adaptive(order[:, None], order)
    assert torch.equal(straight.exit_index[order], shuffled.exit_index)
    assert torch.equal(straight.log_probs[order], shuffled.log_probs)


@pytest.mark.parametrize("size", [1, 7, 32])
def test_a_real_model_differs_only_within_rounding_of_a_threshold(tiny, images, size):
    recorded = outputs(EagerEngine(tiny, optimise=False), images)
    policy = quantile_policy(recorded, "max_prob")
    expected = replay(
        policy, ExitTable(logits=recorded, costs=CostTable(cumulative=(1.0, 2.0, 3.0), unit="ms"))
    ).exit_index
    exits = torch.cat([AdaptiveModel(tiny, policy)(part).exit_index for part in images.split(size)])
    scores = torch.stack([policy.score(torch.log_softmax(recorded[:, : k + 1], -1)) for k in range(2)], dim=1)
    near = ((scores - policy.thresholds[:2]).abs() < 1e-4).any(dim=1)
    assert not ((exits != expected) & ~near).any()
    assert (exits != expected).sum() <= 2
    assert len(exits.unique()) == 3


def test_ids_count_on_from_call_to_call(logits):
    policy = policies(logits)["mixed on one scorer"]
    counting, named = AdaptiveModel(replaying(logits), policy), AdaptiveModel(replaying(logits), policy)
    for rows in torch.arange(120).split(30):
        assert torch.equal(counting(rows[:, None]).exit_index, named(rows[:, None], rows).exit_index)
    assert counting.next_id == 120
    assert named.next_id == 0


def test_predict_all_joins_batches_and_counts_from_zero(logits):
    policy = policies(logits)["mixed on one scorer"]
    adaptive = AdaptiveModel(replaying(logits), policy, COSTS)
    adaptive.next_id = 55
    loader = [(rows[:, None], rows) for rows in torch.arange(120).split(30)]
    found = adaptive.predict_all(loader)
    assert torch.equal(found.exit_index, replay(policy, ExitTable(logits=logits, costs=COSTS)).exit_index)
    assert found.cost is not None
    assert (
        AdaptiveModel(replaying(logits), policy).predict_all(rows[:, None] for rows in torch.arange(9).split(4)).cost
        is None
    )
    with pytest.raises(InputError, match="nothing to predict"):
        adaptive.predict_all([])


def test_batch_of_one_never_gathers(logits, monkeypatch):
    model = replaying(logits)
    monkeypatch.setattr(MultiExitModel, "select", lambda *_: pytest.fail("a single sample was gathered"))
    policy = policies(logits)["mixed on two scorers"]
    for row in range(20):
        AdaptiveModel(model, policy)(torch.tensor([[row]]))
    AdaptiveModel(model, policies(logits)["nobody leaves early"])(torch.arange(20)[:, None])


def test_states_may_be_trees_with_things_that_are_not_tensors():
    class Stage(nn.Module):
        def forward(self, state):
            return {"x": state["x"] + 1, "pair": (state["x"], "word"), "n": 3}

    class Head(nn.Module):
        def forward(self, state):
            assert state["pair"][1] == "word"
            return torch.cat([state["x"], -state["x"]], dim=1)

    model = MultiExitModel([Stage(), Stage(), Stage()], [Head(), Head(), Head()])
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([4.0, 4.0, -math.inf]))
    found = AdaptiveModel(model, policy)({"x": torch.tensor([[0.0], [5.0], [0.5], [-2.0]])})
    assert found.exit_index.tolist() == [1, 0, 1, 2]
    assert torch.equal(found.labels, torch.tensor([0, 0, 0, 0]))


def test_half_precision_logits_are_read_as_float32(logits):
    half = logits.to(torch.bfloat16)
    policy = policies(half)["max_prob"]
    found = AdaptiveModel(replaying(half), policy)(torch.arange(120)[:, None])
    expected = replay(policy, ExitTable(logits=half, costs=COSTS))
    assert found.log_probs.dtype == torch.float32
    assert torch.equal(found.exit_index, expected.exit_index)
    assert torch.equal(found.log_probs, expected.log_probs)


def test_training_flags_are_restored_and_do_not_matter(tiny, images):
    policy = quantile_policy(outputs(EagerEngine(tiny, optimise=False), images), "max_prob")
    expected = AdaptiveModel(tiny, policy)(images)
    tiny.train()
    tiny.heads[0].eval()
    before = [module.training for module in tiny.modules()]
    means = [buffer.clone() for buffer in tiny.buffers()]
    assert torch.equal(AdaptiveModel(tiny, policy)(images).log_probs, expected.log_probs)
    assert [module.training for module in tiny.modules()] == before
    assert all(torch.equal(a, b) for a, b in zip(means, tiny.buffers(), strict=True))


def test_what_does_not_fit_is_refused(logits, tiny, images):
    policy = policies(logits)["max_prob"]
    with pytest.raises(ShapeError, match="policy with 4 exits does not fit: the model has 3"):
        AdaptiveModel(tiny, policy)
    with pytest.raises(ShapeError, match="costs with 2 exits"):
        AdaptiveModel(replaying(logits), policy, CostTable(cumulative=(1.0, 2.0), unit="ms"))
    adaptive = AdaptiveModel(replaying(logits), policy)
    with pytest.raises(InputError, match="at least 1"):
        adaptive(torch.empty(0, 1, dtype=torch.long))
    with pytest.raises(InputError, match="one number of samples"):
        adaptive({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})
    with pytest.raises(ShapeError, match="one id per sample"):
        adaptive(torch.arange(3)[:, None], torch.arange(2))


THRESHOLDS = torch.tensor([0.5, 0.5, 0.5, -math.inf])
FOR_FIVE_CLASSES = {  # each on its own, and as a part of another
    "eenet": ScorePolicy(EENetScorer(4, 5, torch.rand(4, 11)), THRESHOLDS),
    "stopping": ScorePolicy(StoppingScorer(4, 2 * 5 + 2), THRESHOLDS),
    "stopping on many classes": ScorePolicy(StoppingScorer(4, 5 + 3, curved=False), THRESHOLDS),
    "ensemble": TransformedPolicy(Ensemble(4, 5), ScorePolicy(ConfidenceScorer("max_prob"), THRESHOLDS)),
    "mixed": MixedPolicy(
        ScorePolicy(ConfidenceScorer("max_prob"), THRESHOLDS),
        ScorePolicy(StoppingScorer(4, 2 * 5 + 2), THRESHOLDS),
        0.5,
    ),
}


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", FOR_FIVE_CLASSES)
def test_a_policy_for_other_classes_is_refused_whatever_the_batch_size(logits, name, size):
    policy, rows = FOR_FIVE_CLASSES[name], torch.arange(14)[:, None]
    adaptive = AdaptiveModel(replaying(logits), policy)
    said = "policy fitted for 5 classes does not fit: the model's logits have 10"
    for sample_ids in (torch.zeros(size, dtype=torch.long), torch.arange(size)):
        with pytest.raises(ShapeError, match=said):
            adaptive(rows[:size], sample_ids)
    for regroup in (True, False):
        with pytest.raises(ShapeError, match=said):
            adaptive.predict_all(rows.split(size), regroup=regroup)
    fitting = AdaptiveModel(replaying(logits[:, :, :5]), policy)
    assert len(fitting.predict_all(rows.split(size)).labels) == len(fitting(rows).labels) == 14
    fitting.policy = ScorePolicy(EENetScorer(4, 3), THRESHOLDS)  # exchanged, as by a controller
    with pytest.raises(ShapeError, match="policy fitted for 3 classes"):
        fitting(rows)


def test_parts_for_different_classes_fit_no_model(logits):
    policy = TransformedPolicy(Ensemble(4, 5), ScorePolicy(EENetScorer(4, 10), THRESHOLDS))
    with pytest.raises(ShapeError, match="policy with parts for 5 and 10 classes cannot be used"):
        AdaptiveModel(replaying(logits), policy)(torch.arange(3)[:, None])


def test_the_policy_is_looked_into_once(logits, monkeypatch):
    asked = []
    monkeypatch.setattr("eenet.inference.adaptive.require_classes", lambda *words: asked.append(words))
    policy = policies(logits)["max_prob"]
    adaptive = AdaptiveModel(replaying(logits), policy)
    for row in range(5):
        adaptive(torch.tensor([[row]]))
    adaptive.predict_all(torch.arange(20)[:, None].split(5))
    assert asked == [(policy, 10, None)]


@pytest.mark.parametrize("kind", ["list", "numpy", "uint8", "uint64"])
def test_ids_may_be_whole_numbers_of_any_kind(logits, kind):
    policy, rows = policies(logits)["mixed on one scorer"], torch.arange(60)
    ids = {
        "list": rows.tolist(),
        "numpy": rows.numpy(),
        "uint8": rows.to(torch.uint8),
        "uint64": rows.numpy().astype(np.uint64),
    }[kind]
    adaptive = AdaptiveModel(replaying(logits), policy)
    wanted = adaptive(rows[:, None], rows)
    assert torch.equal(adaptive(rows[:, None], ids).exit_index, wanted.exit_index)
    assert torch.equal(adaptive.predict_all(rows[:, None].split(25), sample_ids=ids).exit_index, wanted.exit_index)


NO_IDS = {
    "sample_ids of torch.float32 do not fit": torch.rand(4),
    "sample_ids of torch.float64 do not fit": np.arange(4.0),
    "sample_ids of torch.bool do not fit": torch.ones(4, dtype=torch.bool),
    "sample_ids cannot be read": np.array(list("abcd")),
    r"sample_ids of shape \(3,\) do not fit": [1, 2, 3],
    r"sample_ids of shape \(0,\) do not fit": [],
    r"sample_ids of shape \(4, 1\) do not fit": torch.arange(4)[:, None],
    r"sample_ids of shape \(\) do not fit": torch.tensor(4),
    r"sample_ids of shape \(100,\) do not fit: th.* 4 samples. Pass one id per sample": torch.arange(100),
}


@pytest.mark.parametrize("said", NO_IDS)
def test_ids_that_are_not_one_whole_number_per_sample_are_refused(logits, said):
    adaptive = AdaptiveModel(replaying(logits), policies(logits)["mixed on one scorer"])
    with pytest.raises(InputError, match=said):
        adaptive(torch.arange(4)[:, None], NO_IDS[said])
    for size in (1, 3, 4):
        with pytest.raises(InputError, match=said):
            adaptive.predict_all(torch.arange(4)[:, None].split(size), sample_ids=NO_IDS[said])


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("shape", [(0, 0, 0), (0, 1, 0), (0, -1, 0), (1, 0, 0), (0, 0, 1)])
def test_features_of_other_samples_exits_or_numbers_are_refused(logits, size, shape):
    policy = ScorePolicy(StoppingScorer(4, 2 * 10 + 2 + 3, with_features=True), THRESHOLDS)
    adaptive = AdaptiveModel(replaying(logits), policy)
    features = torch.zeros(*(a + b for a, b in zip((size, 4, 3), shape, strict=True)))
    if shape == (0, 0, 0):
        assert len(adaptive(torch.arange(size)[:, None], features=features).labels) == size
        return
    with pytest.raises(ShapeError, match=r"features of .* (do not fit|per exit do not fit)"):
        adaptive(torch.arange(size)[:, None], features=features)


@pytest.mark.parametrize("size", [1, 7])
def test_a_whole_loader_has_no_features(logits, size):
    policy = ScorePolicy(StoppingScorer(4, 2 * 10 + 2 + 3, with_features=True), THRESHOLDS)
    adaptive = AdaptiveModel(replaying(logits), MixedPolicy(policies(logits)["max_prob"], policy, 0.5))
    with pytest.raises(InputError, match=r"features None are missing: .*Call the model batch by batch"):
        adaptive.predict_all(torch.arange(14)[:, None].split(size))


def test_logits_must_be_one_vector_per_sample():
    model = MultiExitModel([nn.Identity(), nn.Identity()], [nn.Identity(), nn.Identity()])
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([0.0, -math.inf]))
    with pytest.raises((ShapeError, TypeError)):
        AdaptiveModel(model, policy)(torch.randn(2, 3, 4))


@settings(deadline=None, max_examples=50)
@given(sample_id=st.integers(0, 2**62), seed=st.integers(-(2**70), 2**70))
def test_one_sample_tosses_the_same_coin_as_a_batch(sample_id, seed):
    assert toss(sample_id, seed) == coin(torch.tensor([sample_id]), seed).item()


@pytest.mark.parametrize("classes", [FEW_CLASSES, FEW_CLASSES + 1])
def test_alone_and_together_with_few_and_many_classes(classes):
    table = synthetic_table(300, num_exits=3, num_classes=classes)
    dial = StoppingScheduler().sweep(table)
    for policy in (dial.at("60%"), GeometricScheduler().fit(table, budget="60%")):
        model = replaying(table.logits)
        together = AdaptiveModel(model, policy)(torch.arange(40)[:, None])
        alone = AdaptiveModel(model, policy).predict_all(torch.arange(40)[:, None].split(1))
        wanted = replay(policy, table.select(slice(0, 40)))
        assert torch.equal(together.exit_index, wanted.exit_index)
        assert torch.equal(alone.exit_index, wanted.exit_index)
        assert torch.allclose(alone.log_probs, together.log_probs, atol=1e-6)

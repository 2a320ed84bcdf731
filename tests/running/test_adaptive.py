"""Adaptive inference: it stops for real, and decides as replay does."""

import math
from collections import UserDict

import numpy as np
import pytest
import torch
from replaying import POLICIES, MeanOfExits, ReplayEngine, batches, policies, quantile_policy, rows
from tests.running.conftest import replaying
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eenet.errors import BudgetError, EenetError, InputError, RunError, ShapeError
from eenet.models.model import MultiExitModel
from eenet.policies import (
    ConfidenceScorer,
    Dial,
    EENetScorer,
    Ensemble,
    MixedPolicy,
    ScorePolicy,
    StoppingScorer,
    TransformedPolicy,
    VoteScorer,
    load_policy,
    replay,
    save_policy,
)
from eenet.policies.policy import Policy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import EagerEngine
from eenet.running.recording import outputs
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

COSTS = CostTable(cumulative=(1.0, 2.5, 4.0, 7.0), unit="ms", reference=6.0)
LARGE = (2 * np.random.default_rng(1).standard_normal((600, 4, 10))).cumsum(axis=1).astype(np.float32)


def same(found, wanted, costs=True):
    """Check that a prediction is what a replay says, to the bit."""
    assert np.array_equal(found.exit_index, wanted.exit_index)
    assert found.log_probs.dtype == np.float32
    assert found.log_probs.tobytes() == wanted.log_probs.tobytes()
    assert not costs or np.array_equal(found.cost, wanted.cost)


def test_three_samples_by_hand():
    # log-odds of the top class with 2 classes are the difference of the logits: exits 0 / 1 / 2
    logits = torch.tensor(
        [[[3.0, 0.0], [9.0, 0.0], [9.0, 0.0]], [[0.0, 1.0], [0.0, 4.0], [9.0, 0.0]], [[0.5, 0.0]] * 3]
    )
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([2.0, 3.0, -math.inf]))
    model = replaying(logits)
    adaptive = AdaptiveModel(model, policy, CostTable(cumulative=(1.0, 2.0, 4.0), unit="ms"), optimise=False)
    found = adaptive(torch.arange(3)[:, None])
    assert found.exit_index.tolist() == [0, 1, 2]
    assert found.cost.tolist() == [1, 2, 4]
    assert found.labels.tolist() == [0, 1, 0]
    assert np.array_equal(found.log_probs, log_softmax(logits.numpy()[[0, 1, 2], [0, 1, 2]]))
    assert found.outputs is found.log_probs
    # those that left were not computed; one and two samples were looked at before
    assert [head.asked for head in model.heads] == [[1, 2, 3], [1, 2, 2], [1, 2, 1]]


@pytest.mark.usefixtures("unchecked")  # the next test checks shapes and types
@pytest.mark.parametrize("size", [1, 7, 64, 600])
@pytest.mark.parametrize("name", POLICIES)
def test_decides_as_replay_does_to_the_bit(name, size):
    policy, count = policies(LARGE)[name], {1: 60, 7: 200}.get(size, 600)
    wanted = replay(policy, ExitTable(logits=LARGE[:count], costs=COSTS))
    adaptive = AdaptiveModel(ReplayEngine(LARGE), policy, COSTS)
    for regroup in (False, True):
        same(adaptive.predict_all(batches(count, size), regroup=regroup), wanted)
    found = [adaptive(part) for part in batches(count, size)]  # ids counted on from call to call
    assert np.array_equal(np.concatenate([part.exit_index for part in found]), wanted.exit_index)
    order = np.random.default_rng(0).permutation(count)[: 3 * size]
    named = adaptive(order[:, None], order)
    assert np.array_equal(named.exit_index, wanted.exit_index[order])
    assert named.log_probs.tobytes() == wanted.log_probs[order].tobytes()


@pytest.mark.parametrize("name", [name for name in POLICIES if "own" not in name])
def test_a_saved_policy_decides_alike(logits, name, tmp_path):
    policy = policies(logits)[name]
    save_policy(policy, tmp_path / "policy")
    loaded = load_policy(tmp_path / "policy").policy
    wanted = replay(policy, ExitTable(logits=logits, costs=COSTS))
    same(AdaptiveModel(ReplayEngine(logits), loaded, COSTS).predict_all(batches(120, 7)), wanted)


def walk(logits, policy, ids):
    """What a policy does with logits, one sample at a time: the slow twin of the loop."""
    seen = log_softmax(logits)
    exits, answers = [], []
    for row, one in enumerate(seen):
        name = ids[row : row + 1]
        steps = range(len(one) - 1)
        leaves = (k for k in steps if policy.leaves(np.ascontiguousarray(one[None, : k + 1]), name)[0])
        k = next(leaves, len(one) - 1)
        exits.append(k)
        answers.append(policy.answers(np.ascontiguousarray(one[None, : k + 1]), name)[0])
    return np.array(exits), np.array(answers)


def check_random_table(seed):
    """Check one random table against the slow twin, and against `replay` where a table takes its numbers."""
    rng = np.random.default_rng(seed)
    count, exits, classes = int(rng.integers(1, 25)), int(rng.integers(2, 6)), int(rng.integers(2, 12))
    logits = (rng.choice([0.5, 2, 20]) * rng.standard_normal((count, exits, classes))).astype(np.float32)
    if rng.random() < 0.5:
        logits = np.round(logits)  # ties everywhere
    logits[rng.integers(count, size=count // 3)] = logits[0]  # duplicates
    if rng.random() < 0.3:
        logits = logits.astype(np.float16)
    finite = bool(rng.random() < 0.7)
    every = policies(logits, seed=int(rng.integers(1000)))
    if not finite:
        logits[rng.random(logits.shape) < 0.2] = -np.inf
        logits[..., 0] = np.nan_to_num(logits[..., 0], neginf=0.0)  # some class is possible
    policy = list(every.values())[int(rng.integers(len(every)))]
    ids = rng.integers(-(2**62), 2**62, size=count) if rng.random() < 0.5 else np.arange(count)
    exit_index, answers = walk(logits, policy, ids)
    for size, regroup in ((1, False), (7, False), (int(rng.integers(2, 20)), True)):
        adaptive = AdaptiveModel(ReplayEngine(logits), policy)
        found = adaptive.predict_all(batches(count, size), regroup=regroup, sample_ids=ids)
        assert np.array_equal(found.exit_index, exit_index), (seed, size, regroup)
        assert found.log_probs.tobytes() == answers.tobytes(), (seed, size, regroup)
    if finite:
        table = ExitTable(logits=logits, costs=CostTable(tuple(range(1, exits + 1)), "ms"))
        same(AdaptiveModel(ReplayEngine(logits), policy)(rows(count)), replay(policy, table), costs=False)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("first", range(0, 100, 50))
def test_random_tables_to_the_bit(first):
    for seed in range(first, first + 50):
        check_random_table(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(100, 2100, 500))
def test_many_random_tables_to_the_bit(first):
    for seed in range(first, first + 500):
        check_random_table(seed)


@pytest.mark.parametrize("size", [1, 7, 32])
def test_a_real_model_differs_only_within_rounding_of_a_threshold(tiny, images, size):
    recorded = outputs(EagerEngine(tiny, optimise=False), images)
    policy = quantile_policy(recorded, "max_prob")
    wanted = replay(policy, ExitTable(logits=recorded, costs=CostTable((1.0, 2.0, 3.0), "ms"))).exit_index
    seen = log_softmax(recorded)
    scores = np.stack([policy.scorer(seen[:, : k + 1]) for k in range(2)], axis=1)
    near = (np.abs(scores - policy.thresholds[:2]) < 1e-4).any(axis=1)
    for optimise in (True, False):
        exits = AdaptiveModel(tiny, policy, optimise=optimise).predict_all(images.split(size)).exit_index
        assert not ((exits != wanted) & ~near).any()
        assert (exits != wanted).sum() <= 2
        assert len(np.unique(exits)) == 3


def test_a_model_is_optimised_on_the_way_in(tiny, images):
    policy = quantile_policy(outputs(EagerEngine(tiny), images), "max_prob")
    fast, plain = AdaptiveModel(tiny, policy), AdaptiveModel(tiny, policy, optimise=False)
    assert fast.engine.optimised and not plain.engine.optimised
    assert plain.engine.model is tiny
    before = fast(images).log_probs
    np.testing.assert_allclose(before, plain(images).log_probs, atol=1e-4)
    with torch.no_grad():
        for parameter in tiny.parameters():
            parameter.zero_()
    assert np.array_equal(fast(images).log_probs, before)
    assert not np.allclose(plain(images).log_probs, before, atol=1e-2)


def test_ids_count_on_from_call_to_call(logits):
    policy = policies(logits)["mixed on one scorer"]
    counting, named = AdaptiveModel(ReplayEngine(logits), policy), AdaptiveModel(ReplayEngine(logits), policy)
    for part in batches(120, 30):
        assert np.array_equal(counting(part).exit_index, named(part, part[:, 0]).exit_index)
    assert counting.next_id == 120
    assert named.next_id == 0
    counting.next_id = 55
    wanted = replay(policy, ExitTable(logits=logits, costs=COSTS)).exit_index
    assert np.array_equal(counting.predict_all(batches(120, 30)).exit_index, wanted)  # counts from 0


def test_what_loaders_yield(logits):
    adaptive = AdaptiveModel(replaying(logits), policies(logits)["max_prob"], COSTS)
    inputs, labels = torch.arange(120)[:, None], torch.zeros(120)
    wanted = adaptive.predict_all(inputs.split(30))
    for loader in (
        DataLoader(TensorDataset(inputs, labels), batch_size=30),
        [(part, labels[:30]) for part in inputs.split(30)],
        (part.numpy() for part in inputs.split(30)),
        inputs,
        (inputs, labels),
    ):
        same(adaptive.predict_all(loader), wanted)
    for nothing in ([], iter(())):
        with pytest.raises(InputError, match="nothing to predict"):
            adaptive.predict_all(nothing)


class Keywords(nn.Module):
    """Reads two inputs by name."""

    def forward(self, inputs):
        assert type(inputs) is dict
        return inputs["a"] + inputs["b"]


def test_mappings_of_any_kind_are_inputs():
    model = MultiExitModel([nn.Identity(), nn.Identity()], [nn.Identity(), nn.Identity()], start=Keywords())
    adaptive = AdaptiveModel(model, ScorePolicy(ConfidenceScorer("max_prob"), np.array([1.0, -math.inf])))
    inputs = {"a": torch.randn(9, 3), "b": torch.randn(9, 3)}
    wanted = adaptive(inputs)
    same(adaptive(UserDict(inputs)), wanted, costs=False)
    same(adaptive({name: value.double().numpy() for name, value in inputs.items()}), wanted, costs=False)
    same(adaptive.predict_all([{**inputs, "labels": torch.zeros(9)}]), wanted, costs=False)
    for named in ({"a": inputs["a"]}, {"a": inputs["a"], "c": inputs["b"]}):
        with pytest.raises(InputError, match=r"inputs named a.* do not fit: .*'b'"):
            adaptive(named)
    with pytest.raises(InputError, match="one number of samples"):
        adaptive({"a": torch.zeros(2, 1), "b": torch.zeros(3, 1)})


def test_batch_of_one_is_never_gathered(logits, monkeypatch):
    monkeypatch.setattr(ReplayEngine, "select", lambda *_: pytest.fail("a single sample was gathered"))
    for name in ("mixed on two scorers", "mixed inside an ensemble"):
        for row in range(20):
            AdaptiveModel(ReplayEngine(logits), policies(logits)[name])(rows(20)[row : row + 1])
    AdaptiveModel(ReplayEngine(logits), policies(logits)["nobody leaves early"])(rows(20))


def test_the_coin_of_a_single_sample_is_tossed_once(logits, monkeypatch):
    asked = []
    follows = MixedPolicy.follows_a
    monkeypatch.setattr(MixedPolicy, "follows_a", lambda self, ids: (asked.append(len(ids)), follows(self, ids))[1])
    never = policies(logits)["nobody leaves early"]
    AdaptiveModel(ReplayEngine(logits), MixedPolicy(never, never, 0.5))(rows(1))
    assert asked == [1]


def test_states_may_be_trees_with_things_that_are_not_tensors():
    class Stage(nn.Module):
        def forward(self, state):
            return {"x": state["x"] + 1, "pair": (state["x"], "word"), "n": 3}

    class Head(nn.Module):
        def forward(self, state):
            assert state["pair"][1] == "word"
            return torch.cat([state["x"], -state["x"]], dim=1)

    model = MultiExitModel([Stage(), Stage(), Stage()], [Head(), Head(), Head()])
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([4.0, 4.0, -math.inf]))
    found = AdaptiveModel(model, policy)({"x": torch.tensor([[0.0], [5.0], [0.5], [-2.0]])})
    assert found.exit_index.tolist() == [1, 0, 1, 2]
    assert found.labels.tolist() == [0, 0, 0, 0]


def test_half_precision_logits_are_read_as_float32(logits):
    half = torch.from_numpy(logits).to(torch.bfloat16)
    policy = policies(half.float().numpy())["max_prob"]
    found = AdaptiveModel(replaying(half), policy, COSTS)(torch.arange(120)[:, None])
    same(found, replay(policy, ExitTable(logits=half, costs=COSTS)))


def test_training_flags_are_restored_and_do_not_matter(tiny, images):
    policy = quantile_policy(outputs(EagerEngine(tiny, optimise=False), images), "max_prob")
    wanted = AdaptiveModel(tiny, policy, optimise=False)(images)
    tiny.train()
    tiny.heads[0].eval()
    before = [module.training for module in tiny.modules()]
    means = [buffer.clone() for buffer in tiny.buffers()]
    assert np.array_equal(AdaptiveModel(tiny, policy, optimise=False)(images).log_probs, wanted.log_probs)
    np.testing.assert_allclose(AdaptiveModel(tiny, policy)(images).log_probs, wanted.log_probs, atol=1e-4)
    assert [module.training for module in tiny.modules()] == before
    assert all(torch.equal(a, b) for a, b in zip(means, tiny.buffers(), strict=True))


class Pair(nn.Module):
    """A head that says features for the policy and an answer of its own."""

    def forward(self, x):
        return x[:, :2], 10 * x


def test_answers_of_heads_that_say_features():
    model = MultiExitModel([nn.Identity(), nn.Identity()], [Pair(), Pair()])
    policy = ScorePolicy(ConfidenceScorer(lambda newest: newest[:, 0]), np.array([0.5, -math.inf]))
    x = torch.tensor([[0.0, 1.0, 2.0], [0.7, 1.0, 3.0], [0.1, 0.0, 4.0]])
    for size, regroup in ((3, False), (1, False), (2, True)):
        found = AdaptiveModel(model, policy).predict_all(x.split(size), regroup=regroup)
        assert found.exit_index.tolist() == [1, 0, 1]
        assert found.log_probs is None
        assert torch.equal(found.outputs, 10 * x)
        with pytest.raises(InputError, match="labels are unknown"):
            _ = found.labels


FEATURES = np.random.default_rng(3).standard_normal((60, 3, 4)).astype(np.float32)
THRESHOLDS_3 = np.array([0.5, 0.5, -math.inf])


@pytest.mark.parametrize("size", [1, 7, 60])
def test_features_decide_as_replay_does(size):
    answers = np.arange(180).reshape(60, 3)
    weight = np.random.default_rng(4).standard_normal((2, 8))
    first = ScorePolicy(ConfidenceScorer(lambda newest: newest[:, 0]), THRESHOLDS_3)
    second = ScorePolicy(StoppingScorer(weight=weight, bias=weight[:, 0], num_columns=4, kind="features"), THRESHOLDS_3)
    table = ExitTable(features=FEATURES, utility=np.zeros((60, 3)), costs=CostTable((1.0, 2.0, 3.0), "ms"))
    for policy in (first, second, MixedPolicy(first, second, 0.5)):
        wanted = replay(policy, table).exit_index
        for regroup in (False, True):
            adaptive = AdaptiveModel(ReplayEngine(FEATURES, answers), policy)
            found = adaptive.predict_all(batches(60, size), regroup=regroup)
            assert np.array_equal(found.exit_index, wanted)
            assert np.array_equal(found.outputs, answers[np.arange(60), wanted])
            assert found.log_probs is None


@pytest.mark.parametrize("size", [1, 7])
def test_policies_that_need_classes_are_refused_on_features(size):
    plain = ScorePolicy(ConfidenceScorer("max_prob"), THRESHOLDS_3)
    ensemble = Ensemble(weight=np.ones((3, 3)), bias=np.zeros((3, 4)))
    for policy, said in (
        (MixedPolicy(plain, ScorePolicy(VoteScorer(), THRESHOLDS_3), 0.5), "compares the classes"),
        (ScorePolicy(ConfidenceScorer("streak"), THRESHOLDS_3), "compares the classes"),
        (TransformedPolicy(ensemble, plain), "several exits together"),
        (MeanOfExits(THRESHOLDS_3), "several exits together"),
    ):
        with pytest.raises(InputError, match=said):
            AdaptiveModel(ReplayEngine(FEATURES, FEATURES), policy)(rows(size))


def test_what_does_not_fit_is_refused(logits, tiny):
    policy = policies(logits)["max_prob"]
    with pytest.raises(ShapeError, match=r"policy with 4 exits .* 3"):
        AdaptiveModel(tiny, policy)
    with pytest.raises(ShapeError, match="costs with 2 exits"):
        AdaptiveModel(ReplayEngine(logits), policy, CostTable(cumulative=(1.0, 2.0), unit="ms"))
    with pytest.raises(InputError, match="policy is missing"):
        AdaptiveModel(ReplayEngine(logits))
    with pytest.raises(InputError, match="Linear has no exits"):
        AdaptiveModel(nn.Linear(2, 2), policy)
    adaptive = AdaptiveModel(ReplayEngine(logits), policy)
    with pytest.raises(InputError, match="at least 1"):
        adaptive(np.empty((0, 1), dtype=np.int64))
    with pytest.raises(ShapeError, match="one id per sample"):
        adaptive(rows(3), np.arange(2))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("size", [1, 30])
def test_what_is_no_number_is_refused_by_exit_and_sample(logits, value, size):
    logits[17, 2, 4] = value
    adaptive = AdaptiveModel(ReplayEngine(logits), policies(LARGE)["nobody leaves early"])
    for regroup in (False, True):
        with pytest.raises(RunError, match=r"exit 2 returns NaN or infinity for sample 17 \(id 217\)"):
            adaptive.predict_all(batches(120, size), regroup=regroup, sample_ids=np.arange(200, 320))


THRESHOLDS = np.array([0.5, 0.5, 0.5, -math.inf])
STOPPING = StoppingScorer(weight=np.ones((3, 12)), bias=np.zeros(3), num_columns=5)
SUMMED = StoppingScorer(weight=np.ones((3, 8)), bias=np.zeros(3), num_columns=5, kind="summed")
FOR_FIVE_CLASSES = {  # each on its own, and as a part of another
    "eenet": ScorePolicy(EENetScorer(weight=np.ones((4, 11)), num_columns=5), THRESHOLDS),
    "stopping": ScorePolicy(STOPPING, THRESHOLDS),
    "stopping on many classes": ScorePolicy(SUMMED, THRESHOLDS),
    "ensemble": TransformedPolicy(
        Ensemble(weight=np.eye(4), bias=np.zeros((4, 5))), ScorePolicy(ConfidenceScorer("max_prob"), THRESHOLDS)
    ),
    "mixed": MixedPolicy(ScorePolicy(ConfidenceScorer("max_prob"), THRESHOLDS), ScorePolicy(STOPPING, THRESHOLDS), 0.5),
}


@pytest.mark.parametrize("size", [1, 7])
@pytest.mark.parametrize("name", FOR_FIVE_CLASSES)
def test_a_policy_for_other_classes_is_refused_whatever_the_batch_size(logits, name, size):
    policy = FOR_FIVE_CLASSES[name]
    adaptive = AdaptiveModel(ReplayEngine(logits), policy)
    with pytest.raises(ShapeError, match=r"5 classes.* 10"):
        adaptive(rows(size))
    for regroup in (True, False):
        with pytest.raises(ShapeError, match=r"5 classes.* 10"):
            adaptive.predict_all(batches(14, size), regroup=regroup)
    fitting = AdaptiveModel(ReplayEngine(np.ascontiguousarray(logits[:, :, :5])), policy)
    assert len(fitting.predict_all(batches(14, size)).labels) == len(fitting(rows(14)).labels) == 14
    fitting.policy = ScorePolicy(EENetScorer(weight=np.ones((4, 9)), num_columns=3), THRESHOLDS)  # exchanged
    with pytest.raises(ShapeError, match="3 classes"):
        fitting(rows(14))


@pytest.mark.parametrize("kind", ["list", "numpy", "int32", "uint8", "uint64", "tensor"])
def test_ids_may_be_whole_numbers_of_any_kind(logits, kind):
    policy, names = policies(logits)["mixed on one scorer"], np.arange(60)
    ids = {
        "list": names.tolist(),
        "numpy": names,
        "int32": torch.arange(60, dtype=torch.int32),
        "uint8": names.astype(np.uint8),
        "uint64": names.astype(np.uint64),
        "tensor": torch.arange(60),
    }[kind]
    adaptive = AdaptiveModel(ReplayEngine(logits), policy)
    wanted = adaptive(rows(60), names).exit_index
    assert np.array_equal(adaptive(rows(60), ids).exit_index, wanted)
    assert np.array_equal(adaptive.predict_all(batches(60, 25), sample_ids=ids).exit_index, wanted)


NO_IDS = {
    "float32": torch.rand(4),
    "float64": np.arange(4.0),
    "bool": torch.ones(4, dtype=torch.bool),
    "<U1": np.array(list("abcd")),
    r"shape \(3,\)": [1, 2, 3],
    r"shape \(0,\)": [],
    r"shape \(4, 1\)": torch.arange(4)[:, None],
    r"shape \(\)": torch.tensor(4),
    r"shape \(100,\) do not fit: th.* 4 samples": torch.arange(100),
}


@pytest.mark.parametrize("said", NO_IDS)
def test_ids_that_are_not_one_whole_number_per_sample_are_refused(logits, said):
    adaptive = AdaptiveModel(ReplayEngine(logits), policies(logits)["mixed on one scorer"])
    with pytest.raises(InputError, match="sample_ids of (type )?" + said):
        adaptive(rows(4), NO_IDS[said])
    for size in (1, 3, 4):
        with pytest.raises(InputError, match="sample_ids of (type )?" + said):
            adaptive.predict_all(batches(4, size), sample_ids=NO_IDS[said])


def test_logits_must_be_one_vector_per_sample():
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([math.inf, -math.inf]))
    with pytest.raises(ShapeError, match=r"exit 0 returns \(2, 3, 4\)"):
        AdaptiveModel(ReplayEngine(np.zeros((2, 2, 3, 4), np.float32)), policy)(rows(2))
    model = MultiExitModel([nn.Identity(), nn.Identity()], [nn.Linear(2, 3), nn.Linear(2, 4)])
    with pytest.raises(ShapeError, match=r"exit 1 returns \(2, 4\) .* equally long"):
        AdaptiveModel(model, policy)(torch.zeros(2, 2))


def test_other_budgets_by_the_dial(logits):
    cheap, expensive = policies(logits)["all leave at once"], policies(logits)["nobody leaves early"]
    dial = Dial((cheap, expensive), (1.0, 7.0), (0.5, 0.9), COSTS)
    adaptive = AdaptiveModel(ReplayEngine(logits), expensive, COSTS, dial=dial)
    half = adaptive.at("4ms")
    assert half.engine is adaptive.engine and half.dial is dial
    assert half(rows(120)).cost.mean() == pytest.approx(4, abs=0.8)
    assert half.at(1)(rows(120)).cost.mean() == 1
    assert adaptive(rows(120)).cost.mean() == 7
    with pytest.raises(InputError, match="there is no dial"):
        AdaptiveModel(ReplayEngine(logits), expensive).at("50%")


def test_a_budget_is_in_the_costs_of_the_model(logits):
    cheap, expensive = policies(logits)["all leave at once"], policies(logits)["nobody leaves early"]
    dial = Dial((cheap, expensive), (1.0, 7.0), (0.5, 0.9), COSTS)

    def mean(costs: CostTable, budget: object) -> float:
        return AdaptiveModel(ReplayEngine(logits), expensive, costs, dial=dial).at(budget)(rows(120)).cost.mean()

    twice = CostTable(tuple(2 * cost for cost in COSTS.cumulative), "MFLOPs", 28.0)
    for budget in (8, "8 MFLOPs", "8000 kFLOPs", f"{800 / 28}%"):
        assert mean(twice, budget) == pytest.approx(8, abs=1.6)
    assert mean(twice, 2) == 2 and mean(twice, 20) == 14
    with pytest.raises(BudgetError, match=r"1 MFLOPs .* exit 0 costs 2 MFLOPs"):
        mean(twice, 1)
    third = CostTable(tuple(cost / 3 for cost in COSTS.cumulative), "s")
    assert mean(third, third.low) == pytest.approx(third.low)
    other = CostTable((*(2 * cost for cost in COSTS.cumulative[:-1]), 15.0), "ms")
    for budget in (8, "50%"):
        with pytest.raises(InputError, match=f"budget {budget} .* 15 ms.* fitted for 1.* 7 {COSTS.unit}.*sweep"):
            mean(other, budget)


class WithPlaces(nn.Module):
    """A stage that adds a table of positions, or passes it on in the state."""

    def __init__(self):
        super().__init__()
        self.places = nn.Parameter(torch.randn(16, 3))

    def forward(self, x):
        return x + 1, self.places


class MeanOfFirst(nn.Module):
    def forward(self, state):
        return state[0].mean(dim=1)


class SecondAxis(nn.Module):
    def forward(self, x):
        return x.transpose(0, 1)


class MeanOverTokens(nn.Module):
    def forward(self, x):
        return x.mean(dim=0)


@pytest.mark.parametrize("regroup", [False, True])
def test_states_without_the_samples_first_are_refused(regroup):
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.0, 2.0, -math.inf]))

    class More(nn.Module):
        def forward(self, state):
            return state[0] + state[1], state[1]

    x = 3 * torch.randn(17, 16, 3)
    model = MultiExitModel([WithPlaces(), More(), More()], [MeanOfFirst(), MeanOfFirst(), MeanOfFirst()])
    for count in (17, 16, 2):  # as many samples as positions
        with pytest.raises(ShapeError, match=r"state after stage 0 .*\(16, 3\)"):
            AdaptiveModel(model, policy).predict_all([x[:1], x[:count]], regroup=regroup)
    stages = [nn.Identity(), nn.Identity(), nn.Identity()]
    model = MultiExitModel(stages, [MeanOverTokens() for _ in stages], start=SecondAxis())
    for count in (17, 16):  # as many samples as tokens
        with pytest.raises(ShapeError, match=r"state after stage 0 .*\(16, 1, 3\)"):
            AdaptiveModel(model, policy).predict_all([x[:count]], regroup=regroup)


def test_errors_are_eenets_and_nothing_is_left_in_inference_mode(tiny):
    class Broken(Policy):
        num_exits = 3

        def leaves(self, seen, sample_ids):
            raise ShapeError("broken")

        def answers(self, seen, sample_ids):
            return seen[:, -1]

    with pytest.raises(EenetError, match="broken"):
        AdaptiveModel(tiny, Broken())(torch.randn(2, 1, 8, 8))
    assert not torch.is_inference_mode_enabled()

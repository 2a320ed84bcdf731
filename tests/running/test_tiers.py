"""One model on several tiers: the decisions and answers of one machine, and nothing else is taken up."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from replaying import POLICIES, policies, quantile_policy
from segmenting import rectangles, segmenter
from tests.running.conftest import replaying
from torch import nn

from eenet.errors import EenetError, InputError, ShapeError
from eenet.evaluation import fitting_exits
from eenet.experiments.zoo.tiny import tiny_cnn
from eenet.models import capacities
from eenet.models.model import MultiExitModel
from eenet.policies import ConfidenceScorer, MixedPolicy, ScorePolicy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.cuts import tier_report
from eenet.running.engines import DenseEngine, FeatureEngine, as_engine
from eenet.running.engines.packing import packed, unpacked
from eenet.running.recording import outputs
from eenet.running.sent import Sent
from eenet.running.split import split_export
from eenet.running.tiers import Tier, flips, together
from eenet.tables import CostTable, log_softmax
from eenet.tables.capacity import read_capacities
from eenet.tables.tensors import from_bytes, to_bytes

COSTS = CostTable((1.0, 2.0, 4.0), "ms")
HALF = ScorePolicy("max_prob", [0.1, 0.2, -np.inf])


def through(tiers, inputs, ids=None, compress=None):
    """Run a batch through all tiers, and return what they answered together."""
    results = [tiers[0](inputs, ids, compress=compress)]
    for tier in tiers[1:]:
        if results[-1].state is None:
            break
        results.append(tier.resume(results[-1].state, compress=compress))
    return together(results)


def assert_same_bits(found, wanted):
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
    np.testing.assert_array_equal(found.cost, wanted.cost)
    assert found.log_probs.tobytes() == wanted.log_probs.tobytes()


@pytest.fixture(scope="module")
def small():
    """A small convolutional net with 3 exits, 1,000 images, and a policy that lets a third leave at each exit."""
    torch.manual_seed(0)
    model = tiny_cnn(width=8)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(64, 1, 8, 8))
        images = torch.randn(1000, 1, 8, 8)
        seen = log_softmax(torch.stack(model.eval()(images), dim=1).numpy())
    a, b = quantile_policy(seen, "max_prob", 0.3), quantile_policy(seen, "certainty", 0.5)
    return model, images, MixedPolicy(a, b, 0.4, seed=3)


# --- the decisions of one machine -------------------------------------------------------------------------------------


def test_by_hand():
    logits = np.log([[[0.9, 0.1], [0.5, 0.5]], [[0.6, 0.4], [0.2, 0.8]], [[0.3, 0.7], [0.9, 0.1]]]).astype(np.float32)
    policy, costs = ScorePolicy("max_prob", [0.6, -np.inf]), CostTable((1, 3), "ms")
    device, server = (Tier(replaying(logits), policy, costs, **at) for at in ({"last": 0}, {"first": 1}))
    result = device(torch.tensor([[0], [1], [2]]), [70, 71, 72])
    assert result.rows.tolist() == [0, 2]
    assert result.sample_ids.tolist() == [70, 72]
    assert result.prediction.labels.tolist() == [0, 1]
    assert result.prediction.cost.tolist() == [1, 1]
    assert result.staying.tolist() == [71]
    assert "2 samples left, 1 go on" in repr(result)
    rest = server.resume(result.state)
    assert (rest.rows.tolist(), rest.sample_ids.tolist(), rest.state) == ([1], [71], None)
    assert rest.prediction.labels.tolist() == [1]
    assert together([result, rest]).exit_index.tolist() == [0, 1, 0]


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("cuts", [(0,), (2,), (0, 1, 2)])
def test_every_policy_decides_as_on_one_machine(logits, name, cuts):
    model, policy = replaying(logits), policies(logits)[name]
    costs = CostTable((1, 2, 3, 4), "ms")
    rows, ids = torch.arange(len(logits))[:, None], np.arange(len(logits)) * 7 + 3
    wanted = AdaptiveModel(model, policy, costs)(rows, ids)
    begins, ends = (0, *(cut + 1 for cut in cuts)), (*cuts, 3)
    tiers = [Tier(model, policy, costs, first=a, last=b) for a, b in zip(begins, ends, strict=True)]
    assert_same_bits(through(tiers, rows, ids), wanted)


@pytest.mark.parametrize("optimise", [True, False])
def test_a_thousand_samples_the_same_to_the_bit(small, optimise):
    model, images, policy = small
    one = AdaptiveModel(model, policy, COSTS, optimise=optimise)
    device, server = (Tier(model, policy, COSTS, optimise=optimise, **at) for at in ({"last": 0}, {"first": 1}))
    for first in range(0, 1000, 100):
        batch = images[first : first + 100]
        assert_same_bits(through([device, server], batch), one(batch))
    assert device.next_id == one.next_id == 1000


def test_who_stays_beside_whom_does_not_matter_to_the_coin(small):
    model, images, policy = small
    ids = np.arange(1000)
    wanted = AdaptiveModel(model, policy, COSTS)(images, ids)
    device, server = Tier(model, policy, COSTS, last=1), Tier(model, policy, COSTS, first=2)
    order = np.random.default_rng(0).permutation(1000)
    found = through([device, server], images[order], ids[order])
    assert flips(found, replace(wanted, exit_index=wanted.exit_index[order], log_probs=wanted.log_probs[order])) <= 1


def test_nobody_or_all_stay(small):
    model, images, _ = small
    for low, count in ((-np.inf, 0), (np.inf, 5)):
        policy = ScorePolicy("max_prob", [low, low, -np.inf])
        result = Tier(model, policy, last=1)(images[:5])
        assert len(result.staying) == count
        assert (result.state is None) == (count == 0)
        assert (result.prediction is None) == (count == 5)
        if count:
            found = together([result, Tier(model, policy, first=2).resume(result.state)])
            assert found.exit_index.tolist() == [2] * 5
            assert found.cost is None


class Pair(nn.Module):
    def forward(self, x):
        return {"h": x.transpose(1, 2) * 2, "rest": (x.half(), [x.to(torch.bfloat16)], None, 3, "word", True)}


class Back(nn.Module):
    def forward(self, state):
        half, [brain], nothing, three, word, true = state["rest"]
        assert (nothing, three, word, true) == (None, 3, "word", True)
        assert brain.dtype == torch.bfloat16
        return state["h"].transpose(1, 2) + half + brain


class Mean(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, state):
        return self.linear((state["h"].transpose(1, 2) if isinstance(state, dict) else state).mean(dim=1))


@pytest.mark.parametrize("compress", [None, "float16", "int8"])
def test_states_of_many_parts_travel(compress):
    torch.manual_seed(0)
    model = MultiExitModel([Pair(), Back()], [Mean(), Mean()]).eval()
    policy = ScorePolicy("max_prob", [-0.3, -np.inf])
    inputs = torch.randn(20, 5, 4)
    wanted = AdaptiveModel(model, policy, CostTable((1, 2), "ms"))(inputs)
    assert 0 < wanted.exit_index.sum() < 20
    tiers = [Tier(model, policy, CostTable((1, 2), "ms"), **at) for at in ({"last": 0}, {"first": 1})]
    found = through(tiers, inputs, compress=compress)
    if compress is None:
        assert_same_bits(found, wanted)
    np.testing.assert_allclose(found.log_probs, wanted.log_probs, atol=0.05)


def test_tensors_come_back_in_their_memory_order():
    base = torch.randn(3, 4, 5, 6)
    for tensor in (
        base,
        base.to(memory_format=torch.channels_last),
        base[:1].to(memory_format=torch.channels_last),
        base[:, :1].contiguous(memory_format=torch.channels_last),
        base.transpose(1, 3),
        torch.randn(3, 7).T,
    ):
        arrays, form = packed((tensor, None))
        back, _ = unpacked(arrays, json.loads(json.dumps(form)), torch.device("cpu"))
        assert torch.equal(back, tensor)
        assert back.stride() == tensor.stride()


def _first(seen):
    return seen[:, 0]


def test_features_and_maps_go_on():
    features = np.random.default_rng(0).standard_normal((30, 3, 2)).astype(np.float32)
    engine = FeatureEngine(as_engine(replaying(features)))
    policy = ScorePolicy(ConfidenceScorer(_first), [0.0, 0.0, -np.inf])
    rows = torch.arange(30)[:, None]
    wanted = AdaptiveModel(engine, policy)(rows)
    found = through([Tier(engine, policy, last=0), Tier(engine, policy, first=1)], rows)
    np.testing.assert_array_equal(found.outputs, wanted.outputs)
    model, data = segmenter(), rectangles(12, seed=3).images
    seen = outputs(DenseEngine(as_engine(model)), data)
    policy = ScorePolicy(ConfidenceScorer(_first), [float(np.median(seen[:, 0, 0])), np.inf, -np.inf])
    wanted = AdaptiveModel(model, policy)(data)
    assert set(wanted.exit_index.tolist()) == {0, 2}
    found = through([Tier(model, policy, last=1), Tier(model, policy, first=2)], data)
    np.testing.assert_array_equal(found.outputs, wanted.outputs)
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index)


# --- compressed states ------------------------------------------------------------------------------------------------


def test_compressed_states_are_smaller_and_flips_are_counted(small):
    model, images, policy = small
    device, server = Tier(model, policy, COSTS, last=0), Tier(model, policy, COSTS, first=1)
    wanted = AdaptiveModel(model, policy, COSTS)(images)
    sizes, flipped = [], []
    for compress in (None, "float16", "int8"):
        result = device(images, np.arange(1000), compress=compress)
        sizes.append(len(result.state))
        flipped.append(flips(together([result, server.resume(result.state)]), wanted))
    assert sizes[0] > 1.5 * sizes[1] > 2.2 * sizes[2]
    assert flipped[0] == 0
    assert flipped[1] <= flipped[2] <= 100


def test_int8_by_hand():
    base = Sent(
        source="", policy="", engine="torch", exit=0, num_exits=2, ids=np.arange(2), rows=np.arange(2),
        seen=None, arrays=[], form=None,
    )  # fmt: skip
    values = np.array([[0.0, 255.0, 100.4], [-1.0, -1.0, -1.0]], dtype=np.float32)
    far = np.array([[np.inf], [0.0]], dtype=np.float32)
    sent = replace(base, arrays=[values, far, np.array([3, 4])])
    found = Sent.from_bytes(sent.to_bytes("int8")).arrays
    assert found[0].tolist() == [[0, 255, 100], [-1, -1, -1]]
    assert found[0].dtype == np.float32
    np.testing.assert_array_equal(found[1], far)  # what is not finite stays
    np.testing.assert_array_equal(found[2], [3, 4])
    clipped = replace(base, arrays=[np.array([[1e6], [-1e6]], dtype=np.float32)])
    assert Sent.from_bytes(clipped.to_bytes("float16")).arrays[0].tolist() == [[65504], [-65504]]


def test_a_policy_of_the_newest_exit_sends_no_history(logits):
    rows = torch.arange(len(logits))[:, None]
    sent = [
        Sent.from_bytes(Tier(replaying(logits), policies(logits)[name], last=1)(rows).state)
        for name in ("max_prob", "vote")
    ]
    assert sent[0].seen is None
    assert sent[1].seen.shape[1:] == (2, 10)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def state(small):
    model, images, policy = small
    return Tier(model, policy, last=0)(images[:20]).state


def test_damage_is_refused_wherever_it_is(small, state):
    server = Tier(small[0], small[2], first=1)
    for place in (0, 3, 9, 40, len(state) // 2, len(state) - 1):
        with pytest.raises(InputError, match="state"):
            server.resume(state[:place] + bytes([state[place] ^ 1]) + state[place + 1 :])
    for cut in (0, 5, 100, len(state) - 1):
        with pytest.raises(InputError, match="state"):
            server.resume(state[:cut])
    with pytest.raises(InputError, match="state"):
        server.resume((1 << 60).to_bytes(8, "little") + b"{}")


def changed(state, about=None, **arrays):
    """The same state, sealed again with other content."""
    content = dict(from_bytes(state, "state"))
    told = json.loads(content["about"].tobytes()) | (about or {})
    content["about"] = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
    return to_bytes(content | arrays)


@pytest.mark.parametrize(
    ("about", "arrays", "facts"),
    [
        ({"version": 2}, {}, ("version 2", "version 1")),
        ({"source": "0" * 64}, {}, ("another model", "000000000000")),
        ({"policy": "1" * 64}, {}, ("another policy", "111111111111")),
        ({"exit": 1}, {"seen": np.zeros((1, 2, 10), np.float32)}, ("seen",)),
        ({"engine": "graphs"}, {}, ("graphs", "eager")),
        ({"exit": -1}, {}, ("exit -1",)),
        ({"exit": True}, {}, ("exit", "True")),
        ({"num_exits": 1 << 40}, {}, ("1099511627776",)),
        ({}, {"seen": np.zeros((1, 1, 10), np.float32)}, ("seen",)),
        ({"form": {"tensor": 5}}, {}, ("eager",)),
        ({"form": {"tensor": 0, "dtype": "float32", "order": [0, 0, 0, 0]}}, {}, ("order", "eager")),
        ({"form": {"dict": "word"}}, {}, ("eager",)),
        ({}, {"ids": np.arange(3)}, ("ids", "3")),
        ({}, {"rows": np.zeros((1, 1))}, ("rows",)),
        ({}, {"rows": np.zeros(10, np.int64), "ids": np.arange(10)}, ("rows",)),
        ({}, {"state0": np.zeros((1, 8, 8, 8), np.float32)}, ("tensor", "(1, 8, 8, 8)")),
        ({"dtypes": ["float64"]}, {}, ("float32", "float64")),
        ({"dtypes": ["no type"]}, {}, ("no type",)),
        ({"form": {"size": [8, 8], "of": {}}}, {}, ("eager",)),
        ({"form": {"size": "word"}}, {}, ("maps",)),
    ],
)
def test_states_that_do_not_fit_are_refused(small, state, about, arrays, facts):
    with pytest.raises(EenetError) as caught:
        Tier(small[0], small[2], first=1).resume(changed(state, about, **arrays))
    assert all(fact in str(caught.value) for fact in facts if fact not in ("order",)), caught.value


def test_what_was_seen_must_be_numbers(small, state):
    shape = (len(from_bytes(state, "state")["ids"]), 1, 10)
    for value in (np.nan, np.inf):
        with pytest.raises(InputError, match="seen holds NaN or infinity"):
            Tier(small[0], small[2], first=1).resume(changed(state, seen=np.full(shape, value, np.float32)))


def test_ranges_of_int8_must_be_numbers(small):
    model, images, policy = small
    sent = Tier(model, policy, last=0)(images[:20], compress="int8").state
    ranges = np.full_like(from_bytes(sent, "state")["state0.range"], 1e308)
    with pytest.raises(InputError, match=r"damaged: .*ranges"):
        Tier(model, policy, first=1).resume(changed(sent, **{"state0.range": ranges}))


def test_a_state_that_is_refused_does_not_harm_the_next(small, state):
    model, _, policy = small
    server = Tier(model, policy, first=1)
    wanted = server.resume(state).prediction
    form = json.loads(from_bytes(state, "state")["about"].tobytes())["form"]
    for damaged in ({"size": [8, 8]}, {"size": [8, 8], "of": form}):  # such as a model of maps sends
        with pytest.raises(EenetError):
            server.resume(changed(state, {"form": damaged}))
        assert_same_bits(server.resume(state).prediction, replace(wanted, cost=None))


def test_deep_forms_are_refused(small, state):
    form = {"tensor": 0}
    for _ in range(200):
        form = {"list": [form]}
    with pytest.raises(InputError, match="64 deep"):
        Tier(small[0], small[2], first=1).resume(changed(state, {"form": form}))


def test_another_tensor_shape_is_said_by_the_stage(small, state):
    count = len(from_bytes(state, "state")["ids"])
    with pytest.raises(InputError, match="stage 1 cannot be run"):
        Tier(small[0], small[2], first=1).resume(changed(state, state0=np.zeros((count, 3, 8, 8), np.float32)))


def test_other_files_and_other_stages_are_refused(small, state):
    model, images, policy = small
    server = Tier(model, policy, first=2)
    with pytest.raises(InputError, match="something else"):
        server.resume(to_bytes({"x": np.zeros(3)}))
    with pytest.raises(InputError, match=r"after exit 0 of 3.*begins with stage 2"):
        server.resume(state)
    with pytest.raises(InputError, match=r"begins with stage 2.*resume"):
        server(images[:4])
    with pytest.raises(InputError, match=r"first 3 .*0 to 2"):
        Tier(model, policy, first=3)
    with pytest.raises(InputError, match=r"last 0 .*1 to 2"):
        Tier(model, policy, first=1, last=0)
    with pytest.raises(ShapeError, match="2 and 3"):
        flips(AdaptiveModel(model, policy)(images[:2]), AdaptiveModel(model, policy)(images[:3]))
    with pytest.raises(InputError, match="missing"):
        together([Tier(model, policy, last=0)(images[:20])])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "call",
    [
        lambda: together([]),
        lambda: together(None),
        lambda: together([1]),
        lambda: flips(None, None),
        lambda: Tier("nowhere"),
        lambda: Tier(3, HALF),
        lambda: Tier(replaying(np.zeros((2, 3, 4), np.float32)), "max_prob"),
        lambda: Tier(replaying(np.zeros((2, 3, 4), np.float32)), HALF, first="0"),
        lambda: capacities("1MB"),
        lambda: capacities(None),
        lambda: capacities([]),
        lambda: capacities([3]),
        lambda: fitting_exits(["1MB"], COSTS),
        lambda: fitting_exits(read_capacities(["1ms"]), 3),
        lambda: split_export("nowhere", "out", last=0),
        lambda: tier_report(3, HALF, np.zeros((2, 1))),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused_in_a_sentence(call):
    with pytest.raises(InputError):
        call()


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_compression_is_refused(small):
    with pytest.raises(InputError, match="'gzip'"):
        Tier(small[0], small[2], last=0)(small[1][:4], compress="gzip")
    with pytest.raises(InputError, match="str"):
        Tier(small[0], small[2], first=1).resume("state")


def test_a_policy_that_reads_all_exits_needs_what_they_said(logits):
    state = Tier(replaying(logits), policies(logits)["max_prob"], last=0)(torch.arange(120)[:, None]).state
    later = Tier(replaying(logits), policies(logits)["vote"], first=1, check_source=False)
    with pytest.raises(InputError, match="reads all"):
        later.resume(state)


def test_other_models_and_policies_are_taken_where_asked_for(small, state):
    model, _, policy = small
    other = tiny_cnn(width=8).eval()
    with pytest.raises(InputError, match="another model"):
        Tier(other, policy, first=1).resume(state)
    assert Tier(other, policy, first=1, check_source=False).resume(state).state is None
    with pytest.raises(InputError, match="another policy"):
        Tier(model, HALF, first=1).resume(state)

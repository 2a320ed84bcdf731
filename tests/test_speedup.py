"""One call from a model and data to a model that stops early, and to a sentence that says what that saves."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eenet import Bundle, TrainSettings, attach, cascade, replay, speed_up
from eenet.errors import AttachError, BudgetError, DataError, InputError
from eenet.schedulers import GeometricScheduler
from eenet.speedup import one_call
from eenet.speedup.parts import parts_of, split_rows


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    """Time few samples, few times, and choose no scheduler: these are tested elsewhere."""
    monkeypatch.setattr(one_call, "PASSES", 1)
    monkeypatch.setattr(one_call, "TIMED", 64)
    monkeypatch.setattr(one_call, "AutoScheduler", GeometricScheduler)


def net(width=32):
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(width, width), nn.ReLU())  # noqa: E731
    return nn.Sequential(nn.Linear(16, width), *(block() for _ in range(4)), nn.Linear(width, 3))


def samples(count=400, seed=0):
    """Points ``[sample, 16]`` of three classes: of half of them any layer can tell the class, of the others late ones.

    The class is the sum of two numbers modulo 3, which is not linear; half of the points have it as it is besides.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.integers(3, size=(2, count))
    labels, easy, unit = (a + b) % 3, rng.random(count) < 0.5, np.eye(16)
    centres = 2 * (unit[a] + unit[3 + b]) + 3 * easy[:, None] * unit[6 + labels]
    return (centres + 0.4 * rng.normal(size=(count, 16))).astype(np.float32), labels


@cache
def trained_weights():
    """The weights of a net that has learnt from other samples."""
    model, (inputs, labels) = net(), map(torch.from_numpy, samples(600, seed=99))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.state_dict()


def trained():
    model = net()
    model.load_state_dict(trained_weights())
    return model


def quick(*words, **more):
    return speed_up(*words, progress=False, **{"settings": TrainSettings(epochs=2, batch_size=32, lr=0.05)} | more)


def weights_of(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


# --- what comes back --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """Samples, and the result for a net whose own weights stayed as they were."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_call, "PASSES", 1)
        patch.setattr(one_call, "TIMED", 64)
        patch.setattr(one_call, "AutoScheduler", GeometricScheduler)
        inputs, labels = samples()
        model = trained()
        before = weights_of(model)
        result = quick(model, (inputs, labels), exits=["0", "2"], settings=None)
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    return inputs, labels, result


def test_a_module_gets_exits_that_learn_while_its_own_weights_stay(made):
    _, _, result = made  # whose fixture looks at the weights
    assert (result.calibration.num_samples, result.test.num_samples) == (80, 80)
    early, _, last = result.test.require_utility("test").mean(axis=0)
    assert 0.5 < early < 0.9 < last  # a third by chance; the class of half of the points is plain
    # by hand: 2 operations per weight of the linear layer before exit 0, and of its head
    assert result.model.costs.cumulative[0] == 2 * 16 * 32 + 2 * 32 * 3
    assert result.budget == "60%" and result.model.costs.unit == "FLOPs"


def test_what_is_printed_is_what_was_timed_and_what_replay_says(made):
    _, _, result = made
    trace = replay(result.model.policy, result.test)
    shown = {row.batch_size: row.speedup for row in result.bench.rows}
    assert str(result) == repr(result) == result.saving.sentence
    factors = {size: f"{max(one, 1 / one):.1f}x" for size, one in shown.items()}
    words = {size: f"{factors[size]} {'faster' if one > 1 else 'slower'}" for size, one in shown.items()}
    words |= {size: "as fast" for size, factor in factors.items() if factor == "1.0x"}
    assert list(shown) == [1, 32] and f"{words[1]} at batch 1 (" in str(result)
    assert f"({shown[32]:.1f}x at 32)" in str(result) or f"({words[32]} at 32)" in str(result)
    lost = 100 * float((result.test.utility[:, -1] - result.test.utility[np.arange(80), trace.exit_index]).mean())
    assert result.saving.lost == pytest.approx(lost, abs=3)  # which tosses no coins


def test_another_budget_needs_no_training_and_the_page_has_few_policies(made, tmp_path):
    _, _, result = made
    other = result.at("20%")
    assert (other.budget, other.trained, other.test) == ("20%", result.trained, result.test)
    assert other.saving.cost_share < result.saving.cost_share and result.budget == "60%"
    result.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert all(word in page for word in ("auto", "max_prob", "random", result.saving.sentence[:12]))


def test_a_saved_result_decides_as_before(made, tmp_path):
    inputs, _, result = made
    result.save(tmp_path / "fast")
    found = Bundle.load(tmp_path / "fast", lambda info: attach(net(), torch.from_numpy(inputs[:2]), info["exits"]))
    first, again = result.model(inputs, np.arange(400)), found.adaptive()(inputs, np.arange(400))
    assert np.array_equal(again.exit_index, first.exit_index) and len(set(first.exit_index)) > 1
    np.testing.assert_array_equal(again.log_probs, first.log_probs)
    assert found.info["saving"]["sentence"] == str(result)
    turned = [one.at("50%")(inputs, np.arange(400)).exit_index for one in (found.adaptive(), result.model)]
    assert np.array_equal(*turned)


def test_the_seed_decides_everything_but_the_clock(made):
    inputs, labels, result = made
    again = quick(trained(), (inputs, labels), exits=["0", "2"], settings=None)
    assert np.array_equal(again.test.logits, result.test.logits)
    assert again.saving.exits == result.saving.exits


def test_a_model_with_exits_that_are_ready_is_left_as_it_is(made):
    inputs, labels, result = made
    model = result.trained
    before = weights_of(model)
    loader = DataLoader(TensorDataset(torch.from_numpy(inputs), torch.from_numpy(labels)), batch_size=8, shuffle=True)
    again = quick(model, loader, train=False)
    assert again.trained is model
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert (again.calibration.num_samples, again.test.num_samples) == (200, 200)  # nothing to train on: halves


def test_a_cascade_needs_no_training_and_takes_what_its_members_take():
    labels = np.arange(240) % 2
    texts = [f"{'yes' if label else 'no'} {row}" for row, label in enumerate(labels)]

    def member(sure):
        return lambda batch: np.array([[1 - sure, sure] if "yes" in one else [sure, 1 - sure] for one in batch])

    both = cascade([("small", member(0.7)), ("large", member(0.9))], source="words")
    result = quick(both, (texts, labels), budget="9s")
    assert result.model.costs.unit == "ms"
    assert (result.calibration.num_samples, result.test.num_samples) == (120, 120)
    assert result.model(["yes 1", "no 2"]).log_probs.argmax(axis=1).tolist() == [1, 0]
    with pytest.raises(InputError, match="cascade cannot become one model"):
        result.save("unused")


def test_parts_of_ones_own_are_taken_as_they_are_and_heads_that_are_there_learn():
    parts = tuple(samples(count, seed) for seed, count in enumerate((96, 60, 70)))
    model = attach(trained(), torch.from_numpy(parts[0][0][:2]), 3)
    before = weights_of(model)
    result = quick(model, parts)
    assert (result.calibration.num_samples, result.test.num_samples) == (60, 70)
    assert np.array_equal(result.test.labels, parts[2][1])
    changed = {name for name, now in model.state_dict().items() if not torch.equal(before[name], now)}
    assert changed and changed <= {name for name in before if name.startswith("heads.")}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_too_few_samples_are_refused_before_anything_is_trained():
    model = net()
    with pytest.raises(DataError, match=r"48 samples for calibration .* 50"):
        quick(model, samples(240))
    with pytest.raises(DataError, match="40 samples for test"):
        quick(model, (samples(100), samples(60, 1), samples(40, 2)))


@pytest.mark.parametrize("same", [(0, 1), (0, 2), (1, 2)])
def test_parts_that_are_the_same_samples_are_refused(same):
    parts = [samples(100, seed) for seed in range(3)]
    parts[same[1]] = tuple(array.copy() for array in parts[same[0]])
    names = [("train", "calibration", "test")[one] for one in same]
    with pytest.raises(InputError, match=f"{names[0]} and {names[1]} are the same"):
        quick(net(), tuple(parts))


def test_parts_that_share_half_of_their_samples_in_any_order_are_refused():
    inputs, labels = samples(200)
    parts = samples(100, 1), (inputs[:100], labels[:100]), (inputs[50:150][::-1].copy(), labels[50:150][::-1].copy())
    with pytest.raises(InputError, match="calibration and test are the same"):
        quick(net(), parts)
    few = (inputs[90:190], labels[90:190])  # a tenth: doubles are usual
    assert len(parts_of((None, parts[1], few), 0, in_memory=True, trains=False)) == 3
    same = np.zeros_like(inputs[:100])  # samples that repeat are no sign
    assert parts_of((None, (same, labels[:100]), (same[:60], labels[:60])), 0, in_memory=True, trains=False)


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        ({"model": "resnet18"}, InputError, "of type str"),
        ({"model": [net(), net()]}, InputError, "cascade"),
        ({"train": False}, InputError, "has no exits"),
        ({"data": (None, samples(60, 1), samples(60, 2))}, InputError, "train on"),
        ({"data": samples()[0]}, InputError, "label"),
        ({"budget": "1%"}, BudgetError, "1%"),
        ({"budget": "2.5ms"}, BudgetError, "ms"),
        ({"exits": ["no such"]}, AttachError, "no such"),
        ({"seed": -1}, InputError, "seed"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_trained(change, error, facts, monkeypatch):
    monkeypatch.setattr(one_call, "fit_exits", lambda *words, **more: pytest.fail("it was trained"))
    words = {"model": net(), "data": samples(), "exits": 3} | change
    with pytest.raises(error, match=facts):
        quick(words.pop("model"), words.pop("data"), **words)


# --- no sample has two parts ------------------------------------------------------------------------------------------


@given(st.integers(3, 2000), st.integers(0, 2**32 - 1), st.lists(st.floats(0.05, 1), min_size=1, max_size=4))
def test_every_row_is_in_one_part_of_about_its_share(count, seed, shares):
    parts = split_rows(count, shares, seed)
    assert sorted(np.concatenate(parts).tolist()) == list(range(count))
    assert all(abs(len(part) - count * share / sum(shares)) <= 1 for part, share in zip(parts, shares, strict=True))
    assert all(map(np.array_equal, parts, split_rows(count, shares, seed)))


@pytest.mark.parametrize("in_memory", [False, True])
def test_no_sample_is_fitted_on_and_judged_on(in_memory):
    inputs, labels = np.arange(300, dtype=np.float32)[:, None], np.arange(300) % 3
    parts = parts_of((inputs, labels), 5, in_memory=in_memory, trains=True)
    rows = [np.asarray(part[0] if in_memory else part.inputs(slice(0, None))).ravel().tolist() for part in parts]
    assert sorted(row for one in rows for row in one) == list(range(300))
    assert [len(one) for one in rows] == [180, 60, 60]


def test_large_models_are_timed_on_fewer_samples():
    from eenet import CostTable

    costs = CostTable(cumulative=(1.0, 2.0), unit="MFLOPs")
    assert one_call.samples_to_time(costs) == 64
    assert one_call.samples_to_time(replace(costs, unit="ms")) == 64


def test_parts_in_memory_are_compared_by_what_they_contain():
    texts, labels = [str(row) for row in range(60)], np.arange(60) % 2
    with pytest.raises(InputError, match="calibration and test are the same samples"):
        parts_of((None, (texts, labels), (list(texts), labels.copy())), 0, in_memory=True, trains=False)
    others = [f"{row} more" for row in range(60)]
    assert parts_of((None, (texts, labels), (others, labels)), 0, in_memory=True, trains=False)[0] is None


@pytest.mark.parametrize("training", [True, False])
def test_the_model_of_the_user_keeps_its_mode(training):
    model = trained().train(training)
    model[2].eval()
    before = [module.training for module in model.modules()]
    quick(model, samples(), exits=["2"], settings=TrainSettings(epochs=0.1, batch_size=32))
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize(("part", "name"), [(1, "calibration"), (2, "test")])
def test_samples_without_a_class_are_refused_before_anything_is_trained(part, name, monkeypatch):
    monkeypatch.setattr(one_call, "fit_exits", lambda *words, **more: pytest.fail("it was trained"))
    parts = [samples(100, seed) for seed in range(3)]
    parts[part][1][7] = -100
    with pytest.raises(DataError, match=f"-100 of sample 7 for {name}"):
        quick(net(), tuple(parts))

"""ONNX Runtime: the same outputs stage by stage, samples dropped between sessions, the same decisions as replay."""

import sys
from collections import UserDict

import exporting
import numpy as np
import pytest
import torch
from exporting import by_name
from foreign import FAMILIES, check_onnx
from torch import nn

from eenet.errors import InputError, MissingExtraError, RunError, ShapeError
from eenet.experiments.zoo import tiny_cnn
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.running.adaptive import AdaptiveModel
from eenet.running.benchmark import bench
from eenet.running.engines import EagerEngine, OnnxEngine
from eenet.running.recording import outputs
from eenet.schedulers import JointScheduler
from eenet.tables import CostTable, ExitTable

COSTS = CostTable((1.0, 2.0, 3.0), "ms")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_cnn(exits=3).eval()


@pytest.fixture(scope="module")
def named():
    """An engine of a model of two inputs."""
    exporting.need("onnxruntime")
    return OnnxEngine(*by_name())


@pytest.fixture(scope="module")
def engine(model):
    exporting.need("onnxruntime")
    return OnnxEngine(model, torch.randn(2, 1, 8, 8))  # making an engine takes seconds: one for all tests


def test_outputs_are_the_models():
    model, inputs = FAMILIES["gated"]()
    check_onnx(attach(model, inputs, exits=3).eval(), inputs)


def test_flags_are_restored_and_the_exporter_is_silent(capfd):
    exporting.need("onnxruntime")
    model = tiny_cnn(exits=2).train()
    OnnxEngine(model, torch.randn(2, 1, 8, 8))
    assert model.training
    assert all(module.training for module in model.modules())
    assert capfd.readouterr() == ("", "")


def test_threads_are_as_many_as_torch_uses(monkeypatch):
    runtime = pytest.importorskip("onnxruntime")
    used = []
    make = runtime.InferenceSession
    monkeypatch.setattr(
        runtime, "InferenceSession", lambda *words, **named: used.append(words[1]) or make(*words, **named)
    )
    model = MultiExitModel([nn.Linear(3, 3), nn.Linear(3, 3)], [nn.Identity(), nn.Identity()])
    engine = OnnxEngine(model, torch.randn(2, 3))
    assert {options.intra_op_num_threads for options in used} == {torch.get_num_threads()} == {engine.threads}


def test_one_benchmark_of_both_engines(model, engine):
    images = torch.randn(40, 1, 8, 8)
    engines = [EagerEngine(model), engine]
    table = ExitTable(logits=outputs(engines[0], images), labels=np.arange(40) % 10, costs=COSTS)
    policy = JointScheduler().fit(table, budget=2.0)
    report = bench(model, policy, images, batch_sizes=(1, 8), engines=engines, passes=2, progress=False)
    assert [(row.engine, row.batch_size) for row in report.rows] == [
        ("eager", 1),
        ("eager", 8),
        ("onnxruntime", 1),
        ("onnxruntime", 8),
    ]
    assert all(row.flips <= 1 for row in report.rows)


GOOD = torch.zeros(2, 1, 8, 8)
WRONG = {
    "'input' of float64 .* float32.*Convert": (InputError, GOOD.double()),
    "'input' of float16 .* float32": (InputError, GOOD.half()),
    "'input' of bfloat16 .* float32": (InputError, GOOD.bfloat16()),
    "'input' of >f4 .* float32": (InputError, GOOD.numpy().astype(">f4")),
    r"'input' of shape \(2, 1, 8, 9\) .* \(sample, 1, 8, 8\)": (ShapeError, torch.zeros(2, 1, 8, 9)),
    r"'input' of shape \(\) .* \(sample, 1, 8, 8\)": (ShapeError, np.float32(1)),
    "0 in 'input'": (InputError, GOOD[:0]),
    r"inputs \['x'\] .* \['input'\]": (InputError, {"x": GOOD}),
}


@pytest.mark.parametrize("facts", WRONG)
def test_inputs_unlike_the_example_are_refused(facts, engine):
    kind, batch = WRONG[facts]
    for run in (engine.start, engine.full):
        with pytest.raises(kind, match=facts):
            run(batch)


@pytest.mark.parametrize("count", [1, 20])
def test_arrays_of_any_kind_are_inputs_like_others(engine, count, tmp_path):
    images = torch.randn(count, 1, 8, 8)
    given = images.numpy()
    wanted = outputs(engine, images)
    np.save(tmp_path / "images.npy", given)
    fixed = given.copy()
    fixed.flags.writeable = False
    for batch in (
        given,
        fixed,
        {"input": given},
        images.clone().requires_grad_(),
        images.flip(3).contiguous().flip(3),
        np.frombuffer(given.tobytes(), np.float32).reshape(given.shape),
        np.load(tmp_path / "images.npy", mmap_mode="r"),
        np.asfortranarray(given),
    ):
        np.testing.assert_array_equal(outputs(engine, batch), wanted)
    assert not fixed.flags.writeable


def test_inputs_by_name_are_those_of_the_example(named):
    engine, batch = named, by_name()[1]
    swapped = {name: batch[name] for name in reversed(batch)}
    wanted = outputs(engine, batch)
    for same in (swapped, UserDict(batch), {name: one.numpy() for name, one in batch.items()}):
        np.testing.assert_array_equal(outputs(engine, same), wanted)
    for inputs in ({"ids": batch["ids"]}, batch | {"more": batch["ids"]}, batch["ids"]):
        with pytest.raises(InputError, match=r"\['ids', 'mask'\]"):
            engine.start(inputs)
    with pytest.raises(InputError, match=r"'mask' of bool .* int64"):
        engine.start(batch | {"mask": batch["mask"].bool()})
    with pytest.raises(InputError, match="40 in 'ids', 3 in 'mask'"):
        engine.start(batch | {"mask": batch["mask"][:3]})


def test_what_the_runtime_cannot_run_is_said_with_the_stage_and_the_cause(named):
    engine, batch = named, by_name()[1]
    wrong = batch | {"ids": batch["ids"] + 1000}  # there are 20 words
    with pytest.raises(RunError, match=r"stage 0 .*onnxruntime.*Gather") as caught:
        engine.stage(0, engine.start(wrong))
    assert "\n" not in str(caught.value)
    with pytest.raises(RunError, match=r"original model .*onnxruntime"):
        engine.full(wrong)


class Kept(nn.Module):
    """Passes on a tensor without the samples."""

    def forward(self, x):
        return (x, torch.arange(4.0)) if isinstance(x, torch.Tensor) else x


class Summed(nn.Module):
    def forward(self, state):
        return state[0] + state[1].sum()


def test_a_state_without_the_samples_is_refused_when_some_leave():
    exporting.need("onnxruntime")
    images, heads = torch.randn(4, 3), [Summed(), Summed()]
    engine = OnnxEngine(MultiExitModel([Kept(), nn.Identity()], heads), images)
    policy = exporting.quantile_policy(
        exporting.log_probs(MultiExitModel([Kept(), Kept()], heads), images), "margin", 0.5
    )
    with pytest.raises(ShapeError, match=r"state after stage 0 .* of shape \(4,\)"):
        AdaptiveModel(engine, policy)(images[:3])


def test_heads_that_return_pairs_are_refused():
    exporting.need("onnxruntime")

    class Pair(nn.Module):
        def forward(self, state):
            return state, state

    model = MultiExitModel([nn.Linear(3, 3), nn.Linear(3, 3)], [Pair(), Pair()])
    with pytest.raises(InputError, match="head returns tuple"):
        OnnxEngine(model, torch.randn(2, 3))


def test_bad_requests_are_refused(monkeypatch):
    exporting.need("onnxruntime")
    model = tiny_cnn(exits=2)
    with pytest.raises(ShapeError, match="example_inputs of 1 sample"):
        OnnxEngine(model, torch.randn(1, 1, 8, 8))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "eenet\[onnx\]"'):
        OnnxEngine(model, torch.randn(2, 1, 8, 8))

"""ONNX Runtime: the same outputs stage by stage, samples dropped between sessions, the same decisions as replay."""

import sys

import pytest
import torch
from exporting import by_name
from foreign import FAMILIES, check_onnx
from tests.inference.conftest import tiny_onnx
from torch import nn

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.core.trace import replay
from eenet.errors import InputError, MissingExtraError, ShapeError
from eenet.inference.adaptive import AdaptiveModel
from eenet.inference.bench import bench
from eenet.inference.engines import EagerEngine, OnnxEngine
from eenet.inference.record import outputs
from eenet.models.attach import attach
from eenet.models.model import MultiExitModel
from eenet.models.zoo import tiny_cnn
from eenet.schedulers import JointScheduler


def test_outputs_are_the_models():
    model, inputs = FAMILIES["gated"]()
    check_onnx(attach(model, inputs, exits=3).eval(), inputs)


def test_running_decides_as_replay_on_the_engines_own_outputs():
    _, engine = tiny_onnx()
    images, labels = torch.randn(200, 1, 8, 8), torch.arange(200) % 10
    costs = CostTable((1.0, 2.0, 3.0), "ms")
    table = ExitTable(logits=outputs(engine, images), labels=labels, costs=costs)
    policy = JointScheduler().fit(table, budget=2.0)
    wanted = replay(policy, table)
    for size in (1, 50, 200):
        adaptive = AdaptiveModel(engine, policy, costs)
        prediction = adaptive.predict_all(images.split(size))
        assert (
            int((prediction.exit_index != wanted.exit_index).sum()) <= 1
        )  # other kernels at other sizes round otherwise
    assert set(prediction.exit_index.tolist()) == {0, 1, 2}


def test_flags_are_restored_and_the_exporter_is_silent(capfd):
    pytest.importorskip("onnxruntime")
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


def test_one_benchmark_of_both_engines():
    (model, engine), images = tiny_onnx(), torch.randn(40, 1, 8, 8)
    engines = [EagerEngine(model), engine]
    table = ExitTable(
        logits=outputs(engines[0], images), labels=torch.arange(40) % 10, costs=CostTable((1.0, 2.0, 3.0), "ms")
    )
    policy = JointScheduler().fit(table, budget=2.0)
    report = bench(model, policy, images, batch_sizes=(1, 8), engines=engines, passes=2, progress=False)
    assert [(row.engine, row.batch_size) for row in report.rows] == [
        ("eager", 1),
        ("eager", 8),
        ("onnxruntime", 1),
        ("onnxruntime", 8),
    ]
    assert all(row.flips <= 1 for row in report.rows)


WRONG = {
    r"input 'input' of torch.float64 does not fit: .*Convert it with .to\(torch.float32\)": torch.zeros(
        2, 1, 8, 8
    ).double(),
    "input 'input' of torch.float16 does not fit": torch.zeros(2, 1, 8, 8).half(),
    r"input 'input' of shape \(2, 1, 8, 9\) does not fit: .*shape \(1, 8, 8\)": torch.zeros(2, 1, 8, 9),
    r"inputs \['x'\] do not fit: the graphs were made for \['input'\]": {"x": torch.zeros(2, 1, 8, 8)},
}


@pytest.mark.parametrize("said", WRONG)
def test_inputs_unlike_the_example_are_refused(said):
    _, engine = tiny_onnx()
    for run in (lambda batch: outputs(engine, batch), engine.full):
        with pytest.raises(InputError, match=said):
            run(WRONG[said])


def test_inputs_by_name_are_those_of_the_example():
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model, batch = by_name()
    engine = OnnxEngine(model, batch)
    swapped = {name: batch[name] for name in reversed(batch)}
    assert torch.equal(outputs(engine, swapped), outputs(engine, batch))
    for inputs in ({"ids": batch["ids"]}, batch | {"more": batch["ids"]}, batch["ids"]):
        with pytest.raises(InputError, match=r"do not fit: the graphs were made for \['ids', 'mask'\]"):
            outputs(engine, inputs)
    with pytest.raises(InputError, match=r"input 'mask' of torch.bool does not fit: .*\.to\(torch.int64\)"):
        outputs(engine, batch | {"mask": batch["mask"].bool()})


def test_a_model_of_another_number_format_is_refused():
    pytest.importorskip("onnxruntime")
    with pytest.raises(InputError, match=r"model of torch.float64 on cpu cannot be exported"):
        OnnxEngine(tiny_cnn(exits=2).double(), torch.randn(2, 1, 8, 8).double())


def test_bad_requests_are_refused(monkeypatch):
    pytest.importorskip("onnxruntime")
    model = tiny_cnn(exits=2)
    with pytest.raises(ShapeError, match="are too few"):
        OnnxEngine(model, torch.randn(1, 1, 8, 8))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r'pip install "eenet\[onnx\]"'):
        OnnxEngine(model, torch.randn(2, 1, 8, 8))

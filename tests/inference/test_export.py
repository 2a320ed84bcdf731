"""Exports: every stage is a graph that says what the model says, everything is listed, and bad parts are refused."""

import json
import sys

import exporting
import numpy as np
import pytest
import torch
from exporting import COSTS, ENGINES
from tests.inference.conftest import Featured
from torch import nn

import eenet
import eenet.inference.export as module
from eenet import CostTable, MultiExitModel, ScorePolicy
from eenet.core.files import sha256
from eenet.core.scorers import ConfidenceScorer
from eenet.errors import InputError, MissingExtraError, RunError, ShapeError
from eenet.inference.export import Preparation, export
from eenet.recipes import RECIPES
from eenet.schedulers.eenet import EENetScorer
from eenet.schedulers.stopping import StoppingScorer

LAST = [-torch.inf]


def simple(exits=3):
    return ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([0.5] * (exits - 1) + LAST))


def inputs(count=4):
    return exporting.digits().inputs(slice(0, count))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_manifest_lists_everything(engine):
    made = exporting.exported(engine)
    manifest = json.loads((made.path / "manifest.json").read_text())
    assert manifest == made.manifest
    told = ("format", "version", "engine", "num_exits", "num_classes")
    assert [manifest[name] for name in told] == ["eenet export", 1, engine, 3, 10]
    assert manifest["inputs"] == [{"name": "input", "dtype": "float32", "shape": [None, 1, 8, 8]}]
    suffix = {"onnx": "onnx", "openvino": "xml"}[engine]
    between = {"inputs": ["state_0"], "outputs": ["logits", "next_0"]}
    assert manifest["stages"] == [
        {"file": f"stage_0.{suffix}", **between},
        {"file": f"stage_1.{suffix}", **between},
        {"file": f"stage_2.{suffix}", "inputs": ["state_0"], "outputs": ["logits"]},
    ]
    assert manifest["costs"] == {"cumulative": [1.0, 2.0, 4.0], "unit": "ms", "reference": 3.5}
    assert manifest["classes"] == list(exporting.CLASSES)
    assert manifest["preparation"]["size"] == [8, 8] and len(manifest["preparation"]["mean"]) == 1
    present = {file.relative_to(made.path).as_posix() for file in made.path.rglob("*") if file.is_file()}
    assert {*manifest["sha256"], "manifest.json"} == present
    assert all(sha256(made.path / name) == digest for name, digest in manifest["sha256"].items())
    weights = {f"stage_{k}.bin" for k in range(3)} if engine == "openvino" else set()
    assert present == {f"stage_{k}.{suffix}" for k in range(3)} | weights | {
        "manifest.json",
        "policy/policy.json",
        "policy/policy.safetensors",
    }
    assert made.error < 1e-5 and made.size == sum((made.path / name).stat().st_size for name in present)


def test_stages_run_by_hand_while_samples_leave():
    runtime = pytest.importorskip("onnxruntime")
    made, images = exporting.exported("onnx"), inputs(7)
    with torch.no_grad():
        wanted = [logits.numpy() for logits in exporting.model()(images)]
    state, rows = images.numpy(), np.arange(7)
    for k in range(3):
        session = runtime.InferenceSession(str(made.path / f"stage_{k}.onnx"), providers=["CPUExecutionProvider"])
        logits, *rest = session.run(None, {"state_0": state})
        np.testing.assert_allclose(logits, wanted[k][rows], rtol=1e-4, atol=1e-4)
        if rest:
            state, rows = rest[0][::2], rows[::2]  # 7, 4, 2 samples


def test_the_policy_comes_along_with_its_costs():
    saved = eenet.load_policy(exporting.exported("onnx").path / "policy")
    assert saved.costs == COSTS and (saved.policy.weight, saved.policy.seed) == (0.4, 3)


def test_inputs_by_name_and_what_is_not_known():
    manifest = exporting.exported_by_name().manifest
    assert manifest["inputs"] == [
        {"name": "ids", "dtype": "int64", "shape": [None, 6]},
        {"name": "mask", "dtype": "int64", "shape": [None, 6]},
    ]
    assert (manifest["costs"], manifest["classes"], manifest["preparation"]) == (None, None, None)
    assert (manifest["engine"], manifest["num_exits"], manifest["num_classes"]) == ("onnx", 2, 4)


# --- what is refused --------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """A head that answers for every pixel."""

    def forward(self, state):
        return state


def exports(tmp_path, **changes):
    given = {"model": exporting.model(), "policy": simple(), "example_inputs": inputs(), "path": tmp_path / "out"}
    return export(**(given | changes))


REFUSED = {
    "policy with 2 exits does not fit": lambda: {"policy": simple(2)},
    "costs with 2 exits does not fit": lambda: {"costs": CostTable((1.0, 2.0), "ms")},
    "classes of 1 names do not fit": lambda: {"classes": ["zero"]},
    "example_inputs of 1 sample are too few": lambda: {"example_inputs": inputs(1)},
    "hold no tensor": lambda: {"example_inputs": {}},
    "model of torch.float64 on cpu cannot be exported": lambda: {"model": eenet.tiny_cnn(exits=3).double()},
    "policy cannot be saved": lambda: {"policy": Stranger(torch.tensor([0.5, 0.5, *LAST]))},
    "features None are missing": lambda: {
        "policy": ScorePolicy(StoppingScorer(3, 2 * 10 + 4, with_features=True), torch.tensor([0.0, 0.0, *LAST]))
    },
    "policy fitted for 4 classes does not fit: the model's logits have 10": lambda: {
        "policy": ScorePolicy(EENetScorer(3, 4), torch.tensor([0.0, 0.0, *LAST]))
    },
    r"preparation to images of shape \(3, 8, 8\) does not fit: the model takes \(1, 8, 8\)": lambda: {
        "preparation": Preparation(mean=(0.5,) * 3, std=(0.2,) * 3, size=(8, 8))
    },
    r"preparation to images of shape \(1, 8, 9\) does not fit": lambda: {
        "preparation": Preparation(mean=(0.5,), std=(0.2,), size=(8, 9))
    },
    "mean and std of 3 and 1 numbers do not fit": lambda: {
        "preparation": Preparation(mean=(0.5,) * 3, std=(0.2,), size=(8, 8))
    },
    r"std \[0.0\] cannot be used": lambda: {"preparation": Preparation(mean=(0.5,), std=(0.0,), size=(8, 8))},
    r"std \[-0.2\] cannot be used": lambda: {"preparation": Preparation(mean=(0.5,), std=(-0.2,), size=(8, 8))},
    r"mean \[nan\] and std": lambda: {"preparation": Preparation(mean=(float("nan"),), std=(0.2,), size=(8, 8))},
    "logits of exit 0 of shape": lambda: {
        "model": MultiExitModel([nn.Identity() for _ in range(3)], [Wide() for _ in range(3)])
    },
}


class Stranger(Featured):
    """A policy of somebody else's."""

    def score(self, seen, features=None):
        return seen[:, -1].amax(dim=-1)


@pytest.mark.parametrize("said", REFUSED)
def test_parts_that_do_not_fit_are_refused_and_nothing_is_left(said, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    monkeypatch.setattr(module, "stage_programs", lambda *_: pytest.fail("work began") if "saved" not in said else [])
    monkeypatch.setattr(module, "_check", lambda *_: 0.0)
    with pytest.raises(InputError, match=said) as caught:
        exports(tmp_path, **REFUSED[said]())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert issubclass(ShapeError, InputError)


@pytest.mark.parametrize(
    ("engine", "name"), [("onnx", "onnxruntime"), ("openvino", "openvino"), ("onnx", "onnxscript")]
)
def test_a_missing_extra_is_named_before_work_starts(engine, name, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_NEEDED", {engine: (name,)})
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'{name} is missing.*pip install "eenet\[{engine}\]"'):
        exports(tmp_path, engine=engine)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_engine():
    with pytest.raises(InputError, match="engine 'tensorrt' is unknown: exports are made for onnx and openvino"):
        module.require_engine("tensorrt")


def test_graphs_that_say_something_else_are_refused_and_the_older_export_stays(tmp_path, monkeypatch):
    exporting.exported("onnx")
    monkeypatch.setattr(module, "stage_programs", lambda *_: exporting.programs())
    first = exports(tmp_path)
    other = RECIPES["digits_tiny"].with_seed(1).build().eval()
    with pytest.raises(RunError, match="export of stage 0 is wrong: its logits differ"):
        exports(tmp_path, model=other)
    with torch.no_grad():
        other.load_state_dict(exporting.model().state_dict())
        other.heads[1][-1].bias += 1e-2  # the others still agree
    with pytest.raises(RunError, match="export of stage 1"):
        exports(tmp_path, model=other)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == first.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    exports(tmp_path, costs=COSTS)
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["costs"]["unit"] == "ms"


@pytest.mark.parametrize("held", ["thesis.txt", "manifest.json"])
def test_a_folder_that_holds_something_else_is_not_replaced(held, tmp_path):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / held).write_text('{"format": "eenet bundle"}')
    with pytest.raises(InputError, match="holds no export"):
        exports(tmp_path)
    assert (tmp_path / "out" / held).exists()


@pytest.mark.parametrize("name", ["thesis.txt", "stage_best.onnx", "policy/thesis.txt"])
def test_what_somebody_put_into_an_export_is_not_deleted(name, tmp_path, monkeypatch):
    exporting.exported("onnx")
    monkeypatch.setattr(module, "stage_programs", lambda *_: exporting.programs())
    path = exports(tmp_path).path / name
    path.write_text("years of work")
    with pytest.raises(
        InputError, match=rf"holds {path.name}, which is no part of a saved export and would be deleted"
    ):
        exports(tmp_path)
    assert path.exists()

"""Writing exports: the graphs say what the model says, everything is listed, parts that do not fit are refused."""

import sys
from collections import UserDict

import exporting
import numpy as np
import pytest
import torch
from exporting import COSTS, ENGINES, LAST, SUFFIXES
from torch import nn

from eenet.errors import InputError, MissingExtraError, RunError, ShapeError
from eenet.experiments.recipes import RECIPES
from eenet.experiments.zoo import tiny_cnn
from eenet.models.model import MultiExitModel
from eenet.policies import ConfidenceScorer, EENetScorer, Policy, ScorePolicy, load_policy
from eenet.running.engines.eager import fingerprint
from eenet.running.engines.graphs import input_specs
from eenet.running.engines.programs import example_tensors
from eenet.running.exporting import export
from eenet.running.exports import open_export
from eenet.running.manifest import Preparation
from eenet.tables import CostTable
from eenet.tables.files import read_json, sha256

module = sys.modules[export.__module__]


def simple(exits=3):
    return ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.5] * (exits - 1) + [LAST]))


def inputs(count=4):
    return exporting.digits().inputs(slice(0, count))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_manifest_lists_everything(engine):
    made = exporting.exported(engine)
    manifest = read_json(made.path / "manifest.json", "manifest")
    assert manifest == made.manifest == open_export(made.path).manifest.to_dict()
    names = ("format", "version", "engine", "num_exits", "num_classes")
    assert [manifest[name] for name in names] == ["eenet export", 2, engine, 3, 10]
    assert manifest["inputs"] == [{"name": "input", "dtype": "float32", "shape": [None, 1, 8, 8]}]
    suffix = SUFFIXES[engine]
    assert manifest["stages"] == [{"file": f"stage_{k}.{suffix}"} for k in range(3)]
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
    made, images = exporting.exported("onnxruntime"), inputs(7)
    with torch.no_grad():
        wanted = [logits.numpy() for logits in exporting.model()(images)]
    state, rows = images.numpy(), np.arange(7)
    for k in range(3):
        session = runtime.InferenceSession(str(made.path / f"stage_{k}.onnx"), providers=["CPUExecutionProvider"])
        logits, *rest = session.run(None, {"state_0": state})
        np.testing.assert_allclose(logits, wanted[k][rows], rtol=1e-4, atol=1e-4)
        if rest:
            state, rows = rest[0][::2], rows[::2]  # 7, 4, 2 samples


def test_the_policy_comes_along_with_its_dial_costs_and_source():
    saved = load_policy(exporting.exported("onnxruntime").path / "policy")
    assert saved.costs == COSTS and (saved.policy.weight, saved.policy.seed) == (0.4, 3)
    assert saved.dial.fit_costs == (1.0, 4.0) and saved.dial.costs == COSTS
    assert saved.source == ""  # the policy was fitted on no table
    assert exporting.exported("onnxruntime").manifest["source"] == fingerprint(exporting.model())


def test_inputs_by_name_and_what_is_not_known():
    manifest = exporting.exported_by_name().manifest
    assert manifest["inputs"] == [
        {"name": "ids", "dtype": "int64", "shape": [None, 6]},
        {"name": "mask", "dtype": "int64", "shape": [None, 6]},
    ]
    assert (manifest["costs"], manifest["classes"], manifest["preparation"]) == (None, None, None)
    assert (manifest["engine"], manifest["num_exits"], manifest["num_classes"]) == ("onnxruntime", 2, 4)


def test_example_inputs_of_other_forms():
    """Arrays in a mapping that is no dictionary, as tokenisers return."""
    _, batch = exporting.by_name()
    given = UserDict({name: one.numpy() for name, one in batch.items()})
    found = example_tensors(given)
    assert type(found) is dict and all(torch.equal(found[name], batch[name]) for name in batch)
    assert input_specs(given) == input_specs(batch)
    assert torch.equal(example_tensors(inputs().numpy()), inputs())


# --- what is refused --------------------------------------------------------------------------------------------------


class Wide(nn.Module):
    """A head that answers for every pixel."""

    def forward(self, state):
        return state


class Stranger(Policy):
    """A policy of somebody else's."""

    num_exits = 3

    def leaves(self, seen, sample_ids):
        return np.ones(len(seen), dtype=np.bool_)

    def answers(self, seen, sample_ids):
        return seen[:, -1]


def exports(tmp_path, **changes):
    given = {"model": exporting.model(), "policy": simple(), "example_inputs": inputs(), "path": tmp_path / "out"}
    return export(**(given | changes))


def prepared(mean=(0.5,), std=(0.2,), size=(8, 8)):
    return {"preparation": Preparation(mean=mean, std=std, size=size)}


REFUSED = {
    "policy with 2 exits": (ShapeError, lambda: {"policy": simple(2)}),
    "costs with 2 exits": (ShapeError, lambda: {"costs": CostTable((1.0, 2.0), "ms")}),
    "policy with 3 exits .* there are 2": (
        ShapeError,
        lambda: {"dial": exporting.dial(), "policy": simple(2), "model": tiny_cnn(exits=2)},
    ),
    "classes of 1 names": (InputError, lambda: {"classes": ["zero"]}),
    "example_inputs of 1 sample": (ShapeError, lambda: {"example_inputs": inputs(1)}),
    "no array": (InputError, lambda: {"example_inputs": {}}),
    "model of torch.float64 on cpu": (InputError, lambda: {"model": tiny_cnn(exits=3).double()}),
    "policy cannot be saved: Stranger": (InputError, lambda: {"policy": Stranger()}),
    "policy fitted for 4 classes .* 10": (
        ShapeError,
        lambda: {
            "policy": ScorePolicy(EENetScorer(weight=np.zeros((3, 9)), num_columns=4), np.array([0.0, 0.0, LAST]))
        },
    ),
    r"preparation to images of shape \(3, 8, 8\) .*\(1, 8, 8\)": (
        ShapeError,
        lambda: prepared(mean=(0.5,) * 3, std=(0.2,) * 3),
    ),
    r"preparation to images of shape \(1, 8, 9\)": (ShapeError, lambda: prepared(size=(8, 9))),
    "mean and std of 3 and 1 numbers": (InputError, lambda: prepared(mean=(0.5,) * 3)),
    r"std \[0.0\]": (InputError, lambda: prepared(std=(0.0,))),
    r"std \[-0.2\]": (InputError, lambda: prepared(std=(-0.2,))),
    r"mean \[nan\]": (InputError, lambda: prepared(mean=(float("nan"),))),
    r"size \(0, 8\)": (InputError, lambda: prepared(size=(0, 8))),
    "logits of exit 0 of shape": (
        ShapeError,
        lambda: {"model": MultiExitModel([nn.Identity() for _ in range(3)], [Wide() for _ in range(3)])},
    ),
}


@pytest.mark.parametrize("facts", REFUSED)
def test_parts_that_do_not_fit_are_refused_and_nothing_is_left(facts, tmp_path, monkeypatch):
    exporting.need("onnxruntime")
    monkeypatch.setattr(module, "stage_programs", lambda *_: pytest.fail("work began"))
    kind, changes = REFUSED[facts]
    with pytest.raises(kind, match=facts) as caught:
        exports(tmp_path, **changes())
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("engine", "name", "extra"),
    [
        ("onnxruntime", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("openvino", "onnxscript", "onnx"),
    ],
)
def test_a_missing_extra_is_named_before_work_starts(engine, name, extra, tmp_path, monkeypatch):
    exporting.need(engine)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'{name} is not installed.*pip install "eenet\[{extra}\]"'):
        exports(tmp_path, engine=engine)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", ["onnx", "tensorrt"])
def test_an_unknown_engine(engine):
    with pytest.raises(InputError, match=rf"engine '{engine}' is unknown: .*onnxruntime and openvino"):
        module.require_exporter(engine)


def test_graphs_that_say_something_else_are_refused_and_the_older_export_stays(tmp_path, monkeypatch):
    exporting.exported("onnxruntime")
    monkeypatch.setattr(module, "stage_programs", lambda *_: exporting.programs())
    first = exports(tmp_path)
    other = RECIPES["digits_tiny"].with_seed(1).build().eval()
    with pytest.raises(RunError, match="export of stage 0"):
        exports(tmp_path, model=other)
    with torch.no_grad():
        other.load_state_dict(exporting.model().state_dict())
        other.heads[1][-1].bias += 1e-2  # the others still agree
    with pytest.raises(RunError, match="export of stage 1"):
        exports(tmp_path, model=other)
    assert read_json(tmp_path / "out" / "manifest.json", "manifest") == first.manifest
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    exports(tmp_path, costs=COSTS)
    assert read_json(tmp_path / "out" / "manifest.json", "manifest")["costs"]["unit"] == "ms"


@pytest.mark.parametrize("present", ["thesis.txt", "manifest.json"])
def test_a_folder_that_holds_something_else_is_not_replaced(present, tmp_path):
    exporting.need("onnxruntime")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / present).write_text('{"format": "eenet bundle"}')
    with pytest.raises(InputError, match=rf"output {tmp_path}.* is taken"):
        exports(tmp_path)
    assert (tmp_path / "out" / present).exists()


@pytest.mark.parametrize("name", ["thesis.txt", "stage_best.onnx", "policy/thesis.txt"])
def test_what_somebody_put_into_an_export_is_not_deleted(name, tmp_path, monkeypatch):
    exporting.exported("onnxruntime")
    monkeypatch.setattr(module, "stage_programs", lambda *_: exporting.programs())
    path = exports(tmp_path).path / name
    path.write_text("years of work")
    with pytest.raises(InputError, match=rf"{path.name}.* would be deleted"):
        exports(tmp_path)
    assert path.exists()

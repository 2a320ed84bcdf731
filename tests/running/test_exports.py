"""Exports that are opened: without torch, the decisions of the model they were made from; damage is refused."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import exporting
import numpy as np
import pytest
import torch
from exporting import COSTS, ENGINES, SUFFIXES, quantile_policy
from foreign import FAMILIES

from eenet.errors import BundleError, InputError, MissingExtraError, ShapeError
from eenet.models.attach import attach
from eenet.policies import MixedPolicy, replay
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines.base import Engine
from eenet.running.engines.programs import stage_programs
from eenet.running.exporting import export
from eenet.running.exports import open_export
from eenet.running.manifest import Preparation
from eenet.running.recording import outputs
from eenet.tables import ExitTable
from eenet.tables.files import sha256

COUNT = 150
GOOD = np.zeros((2, 1, 8, 8), dtype=np.float32)
RAW = np.linspace(0, 1, 128, dtype=np.float32).reshape(GOOD.shape)


def images(count=COUNT):
    return exporting.digits().inputs(slice(0, count)).contiguous().numpy()


@pytest.fixture(scope="module")
def wanted():
    """What the model says when it runs in torch."""
    return AdaptiveModel(exporting.model(), exporting.mixed(), COSTS).predict_all(batches(40))


@pytest.fixture(scope="module", params=ENGINES)
def opened(request):
    return open_export(exporting.exported(request.param).path, threads=1)


@pytest.fixture
def model(opened):
    return AdaptiveModel(opened.engine, opened.policy, opened.costs, dial=opened.dial)


def onnx():
    return open_export(exporting.exported("onnxruntime").path)


def batches(size, count=COUNT):
    return [images(count)[first : first + size] for first in range(0, count, size)]


def assert_same(found, wanted, rows=slice(None)):
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index[rows])
    np.testing.assert_allclose(found.log_probs, wanted.log_probs[rows], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.cost, wanted.cost[rows])
    np.testing.assert_array_equal(found.labels, wanted.labels[rows])
    assert (found.log_probs.dtype, found.exit_index.dtype, found.cost.dtype) == (np.float32, np.int64, np.float64)


# --- the same decisions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regroup", [False, True])
@pytest.mark.parametrize("size", [1, 7, COUNT])
def test_every_batch_size_decides_as_the_model_does(model, wanted, size, regroup):
    assert set(wanted.exit_index.tolist()) == {0, 1, 2}
    assert_same(model.predict_all(batches(size), regroup=regroup), wanted)


def test_replay_of_its_own_outputs_decides_alike(opened, model):
    labels = np.asarray(exporting.digits().labels[:COUNT])
    table = ExitTable(logits=outputs(opened.engine, images()), labels=labels, costs=COSTS)
    wanted = replay(opened.policy, table).exit_index
    for size in (1, 50, COUNT):  # other kernels at other sizes round otherwise
        assert int((model.predict_all(batches(size)).exit_index != wanted).sum()) <= 1


def test_answers_stay_what_they_were(model):
    """Engines reuse their memory; answers are nobody's but the caller's."""
    first, many = model(images(1), [0]), model(images(20), np.arange(20))
    kept = first.log_probs.copy(), many.log_probs.copy()
    model(-images(1), [0])
    model(-images(20), np.arange(20))
    np.testing.assert_array_equal(first.log_probs, kept[0])
    np.testing.assert_array_equal(many.log_probs, kept[1])


def test_inputs_by_name():
    made, batch = exporting.by_name()
    model = AdaptiveModel(exporting.exported_by_name().path)
    named = {name: value.numpy() for name, value in batch.items()}
    found = model(dict(reversed(named.items())))
    seen = exporting.log_probs(made, batch)
    np.testing.assert_array_equal(found.exit_index, ~model.policy.leaves(seen[:, :1], np.arange(40)))
    assert set(found.exit_index.tolist()) == {0, 1} and found.cost is None
    np.testing.assert_allclose(found.log_probs, seen[np.arange(40), found.exit_index], atol=1e-5)
    for size in (1, 7):
        parts = [{name: value[i : i + size] for name, value in named.items()} for i in range(0, 40, size)]
        np.testing.assert_array_equal(model.predict_all(parts).exit_index, found.exit_index)


def test_another_budget_is_set_by_the_dial(model):
    assert model(images()).cost.mean() > 1
    for budget, exit_index in (("1ms", 0), (4.0, 2)):
        assert set(model.at(budget)(images()).exit_index.tolist()) == {exit_index}
    between = model.at(2.5)(images())
    assert set(between.exit_index.tolist()) == {0, 2} and 2 < between.cost.mean() < 3
    with pytest.raises(InputError, match="dial"):
        AdaptiveModel(exporting.exported_by_name().path).at(2)


def test_what_is_known_of_an_export(opened):
    engine, manifest = opened.engine, opened.manifest
    assert (engine.name, engine.dtype, engine.device, engine.num_exits) == (manifest.engine, "float32", "cpu", 3)
    assert (engine.threads, engine.inputs) == (1, manifest.inputs)
    assert (opened.costs, manifest.classes) == (COSTS, exporting.CLASSES)
    assert [(one.name, one.dtype, one.shape) for one in manifest.inputs] == [("input", np.dtype("float32"), (1, 8, 8))]
    with torch.no_grad():
        last = exporting.model()(torch.from_numpy(images(9)))[-1].numpy()
    np.testing.assert_allclose(engine.full(images(9)), last, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(engine.full(images(9)), Engine.full(engine, images(9)))


def test_no_thread_is_not_enough():
    with pytest.raises(InputError, match="threads 0"):
        open_export(exporting.exported("onnxruntime").path, threads=0)


# --- preparation ------------------------------------------------------------------------------------------------------


def test_images_are_prepared_as_the_data_set_prepares_them():
    raw = np.asarray(exporting.digits().images[:9])
    opened, floats = onnx(), np.float32(raw) / 255 if raw.dtype == np.uint8 else raw
    for given in (raw, floats, torch.from_numpy(floats)):
        np.testing.assert_allclose(opened.prepare(given), images(9), rtol=1e-6, atol=1e-6)
    with pytest.raises(ShapeError, match=r"shape \(9, 8, 8\) .* \(sample, 1, 8, 8\)"):
        opened.prepare(raw[:, 0])
    with pytest.raises(InputError, match="does not say how"):
        open_export(exporting.exported_by_name().path).prepare(raw)


def test_images_by_hand():
    how = Preparation(mean=(0.5,), std=(0.25,), size=(1, 3))
    # bytes: (0 - 0.5) / 0.25, (51 / 255 - 0.5) / 0.25, (1 - 0.5) / 0.25
    np.testing.assert_allclose(how(np.uint8([[[[0, 51, 255]]]])), [[[[-2, -1.2, 2]]]], rtol=1e-6)
    for kind in (np.float16, np.float32, np.float64):
        found = how(np.array([[[[-0.0099, 0.25, 1.0099]]]], dtype=kind))
        np.testing.assert_allclose(found, [[[[-2.0396, -1, 2.0396]]]], rtol=1e-3)
        assert found.dtype == np.float32
    assert how(np.zeros((0, 1, 1, 3))).shape == (0, 1, 1, 3)


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint16, np.bool_, np.complex64])
def test_images_of_a_type_without_a_scale(kind):
    with pytest.raises(InputError, match=f"images of type {np.dtype(kind)} .*uint8"):
        onnx().prepare(np.ones((2, 1, 8, 8), dtype=kind))


@pytest.mark.parametrize("value", [255.0, 1.02, -0.02, np.nan, np.inf])
def test_images_on_another_scale(value):
    given = np.zeros((3, 1, 8, 8), dtype=np.float32)
    given[2, 0, 5, 5] = value
    with pytest.raises(InputError, match=r"outside 0 to 1 in image 2.*uint8 from 0 to 255"):
        onnx().prepare(given)


# --- folders that were changed ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(exporting.exported("onnxruntime").path, tmp_path / "export"))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_a_damaged_file_is_named(engine, damage, tmp_path):
    made = exporting.exported(engine)
    for name in made.manifest["sha256"]:
        folder = Path(shutil.copytree(made.path, tmp_path / name.replace("/", "_")))
        content = bytearray((folder / name).read_bytes())
        if damage == "missing":
            (folder / name).unlink()
        elif damage == "truncated":
            (folder / name).write_bytes(content[: len(content) // 2])
        else:
            content[len(content) // 2] ^= 1
            (folder / name).write_bytes(content)
        fault = "is missing" if damage == "missing" else "was changed or truncated"
        with pytest.raises(BundleError, match=f"file {re.escape(name)} {fault}"):
            open_export(folder)


def test_files_that_nobody_listed_and_files_outside(folder):
    (folder / "more.txt").write_text("?")
    with pytest.raises(BundleError, match=r"file more\.txt is not in the manifest"):
        open_export(folder)
    (folder / "more.txt").rename(folder.parent / "outside")
    edit(folder, lambda manifest: manifest["sha256"].update({"../outside": "0" * 64}))
    with pytest.raises(BundleError, match=r"file \.\./outside is missing"):
        open_export(folder)


def edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("checksum", None)  # as somebody does who changes it on purpose
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def stage(k, **values):
    return lambda manifest: manifest["stages"][k].update(values)


def first_input(**values):
    return lambda manifest: manifest["inputs"][0].update(values)


def part(name, **values):
    return lambda manifest: manifest[name].update(values)


def whole(**values):
    return lambda manifest: manifest.update(values)


CHANGES = {
    "format 'eenet bundle'": whole(format="eenet bundle"),
    "of version 1: .* reads version 2": whole(version=1),
    "of version True": whole(version=True),
    "engine 'tvm' .* onnxruntime, openvino": whole(engine="tvm"),
    "engine 'onnx' .* onnxruntime, openvino": whole(engine="onnx"),
    r"engine \['onnxruntime'\]": whole(engine=["onnxruntime"]),
    "the key 'stages' is missing": lambda manifest: manifest.pop("stages"),
    r"exits, stages and costs are \[3, 2, 3\]": lambda manifest: manifest["stages"].pop(),
    r"exits, stages and costs are \[3, 3, 2\]": lambda manifest: manifest["costs"]["cumulative"].pop(),
    "num_exits '3'": whole(num_exits="3"),
    "num_exits 3.0": whole(num_exits=3.0),
    "of 0 classes": whole(num_classes=0),
    "num_classes True": whole(num_classes=True),
    "classes of 9 names do not fit: the model has 10": lambda manifest: manifest["classes"].pop(),
    "classes 'digits' is no list": whole(classes="digits"),
    r"classes\[2\] 3 is no text": lambda manifest: manifest["classes"].__setitem__(2, 3),
    r"costs\.cumulative\[0\] '1' is no finite number": part("costs", cumulative=["1", "2", "3"]),
    r"cumulative\[0\] True is no finite number": part("costs", cumulative=[True, 2, 3]),
    r"NaN is no finite number": part("costs", cumulative=[float("nan"), 2, 3]),
    "costs of exit 1.* not increasing": part("costs", cumulative=[2, 1, 3]),
    r"costs\.unit 3 is no text": part("costs", unit=3),
    r"costs\.reference \[\] is no finite number": part("costs", reference=[]),
    "of the policy are not those of the manifest": part("costs", cumulative=[1, 2, 5]),
    "file 'other.onnx' of stage 2 has no checksum": stage(2, file="other.onnx"),
    r"stages\[2\] None is no text": stage(2, file=None),
    r"shape \[1, 1, 8, 8\] is no list that begins with the batch": first_input(shape=[1, 1, 8, 8]),
    r"inputs\[0\]\.shape\[2\] 8\.5 is no whole number": first_input(shape=[None, 1, 8, 8.5]),
    r"shape \(1, 8, 0\) of input 'input' .* at least 1": first_input(shape=[None, 1, 8, 0]),
    "shape '8' is no list": first_input(shape="8"),
    r"inputs\[0\]\.name None is no text": first_input(name=None),
    r"inputs \['input', 'input'\]": lambda manifest: manifest["inputs"].append(manifest["inputs"][0]),
    "float33": first_input(dtype="float33"),
    "dtype 'object' is no type of numbers": first_input(dtype="object"),
    "dtype 'f4' is no type of numbers": first_input(dtype="f4"),
    "takes state_0 as float32 .* given float64": first_input(dtype="float64"),
    r"preparation to images of shape \(1, 8, 8\) .*\(3, 8, 8\)": first_input(shape=[None, 3, 8, 8]),
    "mean and std of 1 and 2 numbers": part("preparation", std=[1, 2]),
    r"std \[0\.0\]": part("preparation", std=[0]),
    "std 'wide' is no list": part("preparation", std="wide"),
    r"preparation\.size\[0\] '8' is no whole number": part("preparation", size=["8", 8]),
    "the key 'short_side' is missing": lambda manifest: manifest["preparation"].pop("short_side"),
    r"preparation\.short_side 8\.5 is no whole number": part("preparation", short_side=8.5),
    "size 8 x 8 pixels cannot be cut: the short side has 7": part("preparation", short_side=7),
    r"size \(0, 8\) is no height and width": part("preparation", raw_size=[0, 8]),
    "without checksums": whole(sha256=["stage_0.onnx"]),
    r"stage_0\.onnx was changed": part("sha256", **{"stage_0.onnx": 7}),
    r"stage_2\.onnx does not fit .* takes state_0": stage(0, file="stage_2.onnx"),
    r"takes state_0 as float32 \[sample, .* and is given": stage(1, file="stage_0.onnx"),
    "there are 11 classes": whole(num_classes=11, classes=None),
}


@pytest.mark.parametrize("facts", CHANGES)
def test_a_manifest_that_cannot_be_used(folder, facts):
    edit(folder, CHANGES[facts])
    with pytest.raises(BundleError, match=facts) as caught:
        open_export(folder)
    assert "\n" not in str(caught.value)


def test_a_manifest_that_describes_more_is_read(folder):
    """As earlier versions wrote it: with what every graph takes and returns, and without the source."""
    edit(folder, lambda manifest: (manifest.pop("source"), stage(0, inputs=["state_0"], outputs=["logits"])(manifest)))
    opened = open_export(folder)
    assert opened.engine.source == "" and AdaptiveModel(opened.engine, opened.policy)(images(3))


GRAPHS = {
    r"shape \[2, 96, 4, 4\] does not fit: its first axis": ("state_0", "FLOAT", [2, 96, 4, 4], "logits"),
    r"takes state_0 as int64 \[.* is given float32 \[": ("state_0", "INT64", ["n", 96, 4, 4], "logits"),
    r"takes state_0 as float32 \[sample, 96\] .* is given .* 96, 4, 4": ("state_0", "FLOAT", ["n", 96], "logits"),
    r"takes x .* is given \['state_0'\]": ("x", "FLOAT", ["n", 96, 4, 4], "logits"),
    r"returns \['scores'\], and there are 10 classes": ("state_0", "FLOAT", ["n", 96, 4, 4], "scores"),
    r"returns logits as float32 \[sample, 96, 4, 4\]": ("state_0", "FLOAT", ["n", 96, 4, 4], "logits"),
}


@pytest.mark.parametrize("facts", GRAPHS)
def test_graphs_of_another_model_are_refused_when_the_folder_is_opened(folder, facts):
    onnx = pytest.importorskip("onnx")
    taken, kind, sizes, returned = GRAPHS[facts]
    ports = [
        onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), sizes) for name in (taken, returned)
    ]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [taken], [returned])], "graph", ports[:1], ports[1:]
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    (folder / "stage_2.onnx").write_bytes(made.SerializeToString())
    edit(folder, lambda manifest: manifest["sha256"].update({"stage_2.onnx": sha256(folder / "stage_2.onnx")}))
    with pytest.raises(BundleError, match=rf"stage_2\.onnx .*{facts}") as caught:
        open_export(folder)
    assert "\n" not in str(caught.value)


def test_a_shape_that_the_graphs_do_not_take(folder):
    edit(folder, lambda manifest: (first_input(shape=[None, 3, 8, 8])(manifest), whole(preparation=None)(manifest)))
    with pytest.raises(BundleError, match=r"takes state_0 as float32 \[sample, 1, 8, 8\] and is given .*3, 8, 8"):
        open_export(folder)


def test_folders_that_are_no_export(folder, tmp_path):
    with pytest.raises(BundleError, match="no such folder"):
        open_export(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"manifest\.json is missing"):
        open_export(tmp_path)
    for broken in (b"{", b"[]", b"\x00", b"\xff", b"[" * 100_000):
        (folder / "manifest.json").write_bytes(broken)
        with pytest.raises(BundleError, match=r"not JSON|no JSON object"):
            open_export(folder)


def test_a_policy_of_another_model(folder):
    other = exporting.exported_by_name()
    for name in ("policy/policy.json", "policy/policy.safetensors"):
        shutil.copy(other.path / name, folder / name)
        edit(folder, lambda manifest, name=name: manifest["sha256"].update({name: other.manifest["sha256"][name]}))
    with pytest.raises(BundleError, match=r"policy with 2 exits .* 3"):
        open_export(folder)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_the_engine_cannot_open(engine, tmp_path):
    folder = Path(shutil.copytree(exporting.exported(engine).path, tmp_path / "export"))
    file = f"stage_1.{SUFFIXES[engine]}"
    (folder / file).write_bytes(b"of the year 2040")
    edit(folder, lambda manifest: manifest["sha256"].update({file: sha256(folder / file)}))
    with pytest.raises(BundleError, match=f"{file} cannot be opened") as caught:
        open_export(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("engine", "extra"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_engine_is_named_with_its_remedy(engine, extra, monkeypatch):
    path = exporting.exported(engine).path
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(MissingExtraError, match=rf'{engine} is not installed.*pip install "eenet\[{extra}\]"'):
        open_export(path)


# --- arrays by name ---------------------------------------------------------------------------------------------------


def test_arrays_become_samples_and_batches():
    opened, raw = onnx(), np.asarray(exporting.digits().images[:5])
    inputs, labels = opened.samples({"images": raw, "labels": np.arange(5)}, "raw.npz")
    assert list(inputs) == ["input"] and labels.tolist() == [0, 1, 2, 3, 4]
    found = list(opened.batches(inputs, 2))
    assert [len(batch["input"]) for batch in found] == [2, 2, 1]
    if raw.dtype == np.uint8:
        np.testing.assert_allclose(np.concatenate([batch["input"] for batch in found]), images(5), rtol=1e-6, atol=1e-6)
    scaled = raw / np.float32(255) if raw.dtype == np.uint8 else raw  # raw by their name: prepared, as of a run
    np.testing.assert_allclose(opened.samples({"images": scaled}, "raw.npz")[0]["input"], images(5), atol=1e-6)
    inputs, labels = opened.samples({"": images(5)}, "images.npy")
    assert labels is None and AdaptiveModel(opened.engine, opened.policy).predict_all(opened.batches(inputs, 2))


def test_floats_need_a_scale_where_raw_and_prepared_are_the_same():
    opened = onnx()
    plain = Preparation(mean=(0.0,), std=(1.0,), size=(8, 8))
    opened = replace(opened, manifest=replace(opened.manifest, preparation=plain))
    assert opened.samples({"": RAW}, "here.npy")[0]["input"] is RAW
    with pytest.raises(InputError, match="outside 0 to 1 in image 0"):
        opened.samples({"": 255 * RAW}, "here.npy")


def test_samples_that_do_not_fit():
    ids = np.zeros((45, 6), dtype=np.int64)
    two = open_export(exporting.exported_by_name().path)
    for opened, arrays, facts in (
        (onnx(), {"": GOOD[:0]}, r"inputs here\.npz .* 0 in 'input'"),
        (onnx(), {"": np.array(1.0)}, "0 in 'input'"),
        (onnx(), {"a": GOOD, "b": GOOD}, r"\['a', 'b'\] .* \['input'\]"),
        (onnx(), {"labels": GOOD}, r"\[\] .* \['input'\]"),
        (onnx(), {"input": GOOD, "labels": np.zeros(3, dtype=int)}, r"labels of shape \(3,\) .* 2 samples"),
        (onnx(), {"input": GOOD, "labels": np.zeros(2)}, "labels of type float64"),
        (onnx(), {"input": GOOD, "labels": np.array([0, 10])}, "labels of row 1, 10, .* 0 to 9"),
        (onnx(), {"input": GOOD, "labels": np.array([-1, 1])}, "labels of row 0, -1"),
        (onnx(), {"": 255 * RAW}, r"here\.npz are floats from 0 to 255, outside 0 to 1.* under 'images'"),
        (onnx(), {"x": 255 * RAW}, "outside 0 to 1"),
        (onnx(), {"": GOOD}, r"here\.npz are floats from 0 to 1: .* 'images', prepared ones under 'input'"),
        (onnx(), {"images": GOOD + 2}, "outside 0 to 1 in image 0"),
        (two, {"ids": ids[:32], "mask": ids}, "32 in 'ids', 45 in 'mask'"),
        (two, {"ids": ids}, r"\['ids'\] .* \['ids', 'mask'\]"),
    ):
        with pytest.raises(InputError, match=facts) as caught:
            opened.samples(arrays, "here.npz")
        assert "\n" not in str(caught.value)


# --- without torch ----------------------------------------------------------------------------------------------------

ALONE = """
import sys
sys.modules["torch"] = None  # importing it fails
import numpy as np
import eenet
from eenet import AdaptiveModel, load_policy, save_policy
from eenet.running.exports import open_export

path, images, answers, out = sys.argv[1:]
images, model = np.load(images), AdaptiveModel(path)
with np.load(answers) as wanted:
    for regroup in (False, True):
        for size in (1, 7, len(images)):
            batches = [images[i : i + size] for i in range(0, len(images), size)]
            found = model.predict_all(batches, regroup=regroup)
            np.testing.assert_array_equal(found.exit_index, wanted["exit_index"])
            np.testing.assert_allclose(found.log_probs, wanted["log_probs"], rtol=1e-4, atol=1e-4)
            np.testing.assert_array_equal(found.cost, wanted["cost"])
    opened = open_export(path, threads=1)
    save_policy(opened.policy, out, costs=opened.costs, dial=opened.dial)
    saved = load_policy(out)
    again = AdaptiveModel(opened.engine, saved.policy, saved.costs, dial=saved.dial)
    np.testing.assert_array_equal(again(images).exit_index, wanted["exit_index"])
    assert set(again.at("1ms")(images).exit_index.tolist()) == {0}
    assert opened.prepare(np.zeros((2, 1, 8, 8), dtype=np.uint8)).dtype == np.float32
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
assert not loaded & {"torch", "onnx", "onnxscript", "sklearn", "matplotlib"}, loaded
"""


@pytest.mark.parametrize("engine", ENGINES)
def test_torch_is_neither_imported_nor_needed(engine, wanted, tmp_path):
    path = exporting.exported(engine).path
    np.save(tmp_path / "images.npy", images())
    answers = {"exit_index": wanted.exit_index, "log_probs": wanted.log_probs, "cost": wanted.cost}
    np.savez(tmp_path / "answers.npz", **answers)
    words = [path, tmp_path / "images.npy", tmp_path / "answers.npz", tmp_path / "policy"]
    ran = subprocess.run([sys.executable, "-c", ALONE, *words], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:free sizes stay")
def test_an_attached_model_of_tokens(tmp_path):
    """Its state is a tensor and a mask that goes along; its inputs are a dictionary."""
    backbone, batch = FAMILIES["tokens"]()
    attached = attach(backbone, batch, exits=3).eval()
    for parameter in attached.heads[:2].parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # as they come, heads answer every sample alike
    batch = {name: value.repeat(20, 1) for name, value in batch.items()}
    batch["input_ids"] = torch.randint(5, 50, (60, 16))
    seen = exporting.log_probs(attached, batch)
    policy = MixedPolicy(quantile_policy(seen, "margin", 0.3), quantile_policy(seen, "max_prob", 0.5), 0.5, seed=1)
    wanted = AdaptiveModel(attached, policy)(batch)
    assert set(wanted.exit_index.tolist()) == {0, 1, 2}
    programs = stage_programs(attached, batch)
    for engine in ENGINES:
        exporting.need(engine)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys.modules[export.__module__], "stage_programs", lambda *_: programs)
            made = export(attached, policy, batch, tmp_path / engine, engine=engine)
        assert [one["name"] for one in made.manifest["inputs"]] == ["input_ids", "attention_mask"]
        model = AdaptiveModel(made.path)
        for size in (1, 7, 60):
            parts = [{name: value[i : i + size] for name, value in batch.items()} for i in range(0, 60, size)]
            for regroup in (False, True):
                found = model.predict_all(parts, regroup=regroup)
                np.testing.assert_array_equal(found.exit_index, wanted.exit_index)
                np.testing.assert_allclose(found.log_probs, wanted.log_probs, rtol=1e-4, atol=1e-4)

"""Exported models without torch: the decisions of the model they were made from, whatever the batches."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import exporting
import numpy as np
import pytest
import torch
from exporting import ENGINES, quantile_policy
from foreign import FAMILIES
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import eenet_runtime
from eenet import AdaptiveModel, OnnxEngine, attach, export
from eenet.core.combined import MixedPolicy
from eenet.core.files import sha256
from eenet.inference.engines.onnx import stage_programs
from eenet_runtime import ExportError, InputError, MissingExtraError, PolicyError, load
from eenet_runtime.__main__ import main
from eenet_runtime.manifest import Preparation
from eenet_runtime.queues import run_in_groups
from eenet_runtime.softmax import log_softmax, log_softmax_one

ROOT = Path(__file__).parents[2]
COUNT = 150


def images(count=COUNT):
    return exporting.digits().inputs(slice(0, count)).contiguous()


@pytest.fixture(scope="module")
def wanted():
    """What the model says when it runs in torch."""
    adaptive = AdaptiveModel(exporting.model(), exporting.mixed(), exporting.COSTS)
    return adaptive.predict_all(images().split(40))


@pytest.fixture(params=ENGINES)
def model(request):
    return load(exporting.exported(request.param).path, threads=1)


def batches(size, count=COUNT):
    return [part.numpy() for part in images(count).split(size)]


def assert_same(found, wanted, count=COUNT):
    np.testing.assert_array_equal(found.exit_index, wanted.exit_index.numpy()[:count])
    np.testing.assert_allclose(found.log_probs, wanted.log_probs.numpy()[:count], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(found.cost, wanted.cost.numpy()[:count])
    np.testing.assert_array_equal(found.labels, wanted.labels.numpy()[:count])
    assert (found.log_probs.dtype, found.exit_index.dtype, found.cost.dtype) == (np.float32, np.int64, np.float64)


# --- the same decisions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, COUNT])
def test_every_batch_size_decides_as_the_model_does(model, wanted, size):
    assert set(wanted.exit_index.tolist()) == {0, 1, 2}
    assert_same(model.predict_all(batches(size)), wanted)
    assert model.next_id == 0


@pytest.mark.parametrize(("size", "group"), [(1, 8), (40, 7), (7, 40), (COUNT, 1000)])
def test_regrouping_changes_the_work_and_not_the_answers(model, wanted, size, group):
    sizes = []
    for k, session in enumerate(model._sessions):
        run = session.run
        session.run = lambda state, k=k, run=run: (sizes.append((k, len(state[0]))), run(state))[1]
    try:
        assert_same(model.predict_all(((batch, "label") for batch in batches(size)), regroup=group), wanted)
    finally:
        for session in model._sessions:
            del session.run
    for k in range(3):
        ran = [count for stage, count in sizes if stage == k]
        assert sum(ran) == int((wanted.exit_index >= k).sum())
        assert all(count == group for count in ran[:-1]) and 0 < ran[-1] <= group


def test_slow_twin(model, wanted):
    """Every exit of every sample, one by one, held against the policy by hand."""
    for row in range(30):
        state, seen = [images()[row : row + 1].numpy()], None
        for k in range(3):
            seen, state = model.run_stage(k, state, seen)
            if k == 2 or model.policy.leaves(seen, [row])[0]:
                assert k == wanted.exit_index[row]
                break


def test_samples_are_counted_from_call_to_call_and_ids_decide_coins(model, wanted):
    one = images(3).numpy()
    for row in range(3):
        assert model(one[row : row + 1]).exit_index == wanted.exit_index[row]
    assert model.next_id == 3
    rest = model(images().numpy()[3:])
    np.testing.assert_array_equal(rest.exit_index, wanted.exit_index.numpy()[3:])
    assert model.next_id == COUNT
    order = np.random.default_rng(0).permutation(COUNT)
    shuffled = model(images().numpy()[order], order)
    np.testing.assert_array_equal(shuffled.exit_index, wanted.exit_index.numpy()[order])
    assert model.next_id == COUNT
    other = model(images().numpy(), np.arange(COUNT) + 1000)
    assert (other.exit_index != wanted.exit_index.numpy()).any()


def test_answers_stay_what_they_were(model):
    """Engines reuse their memory; answers are nobody's but the caller's."""
    first, many = model(images(1).numpy(), [0]), model(images(20).numpy(), np.arange(20))
    kept = first.log_probs.copy(), many.log_probs.copy()
    model(-images(1).numpy(), [0])
    model(-images(20).numpy(), np.arange(20))
    np.testing.assert_array_equal(first.log_probs, kept[0])
    np.testing.assert_array_equal(many.log_probs, kept[1])


@pytest.mark.parametrize("count", [1, 20])
def test_read_only_arrays_are_inputs_like_others(model, wanted, count, tmp_path):
    given = images(count).numpy()
    np.save(tmp_path / "images.npy", given)
    kept = given.copy()
    kept.flags.writeable = False
    for batch in (
        kept,
        np.frombuffer(given.tobytes(), np.float32).reshape(given.shape),
        np.load(tmp_path / "images.npy", mmap_mode="r"),
        np.asfortranarray(given),
    ):
        for regroup in (None, 7):
            assert_same(model.predict_all([batch], regroup=regroup), wanted, count)
        np.testing.assert_array_equal(model(batch, np.arange(count)).exit_index, wanted.exit_index.numpy()[:count])
    assert not kept.flags.writeable


def test_inputs_by_name():
    made, batch = exporting.by_name()
    model = load(exporting.exported_by_name().path)
    named = {name: value.numpy() for name, value in batch.items()}
    found = model(dict(reversed(named.items())))
    logits = torch.stack([torch.log_softmax(one, dim=1) for one in made(batch)], dim=1).detach().numpy()
    np.testing.assert_array_equal(found.exit_index, ~model.policy.leaves(logits[:, :1], np.arange(40)))
    assert set(found.exit_index.tolist()) == {0, 1} and found.cost is None
    np.testing.assert_allclose(found.log_probs, logits[np.arange(40), found.exit_index], atol=1e-5)
    for size in (1, 7):
        parts = [{name: value[i : i + size] for name, value in named.items()} for i in range(0, 40, size)]
        for regroup in (None, 5):
            np.testing.assert_array_equal(model.predict_all(parts, regroup=regroup).exit_index, found.exit_index)


@given(
    arrays(np.float32, (4, 6), elements=st.floats(-80, 80, width=32)),
    st.sampled_from([1.0, 1e-3, 30.0]),
)
def test_log_probabilities_are_torchs_but_for_a_rounding(logits, scale):
    logits = logits * np.float32(scale)
    wanted = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
    room = 2 * np.spacing(np.abs(wanted).max(axis=1, keepdims=True))
    assert (np.abs(log_softmax(logits) - wanted) <= room).all()
    np.testing.assert_array_equal(np.stack([log_softmax_one(one) for one in logits]), log_softmax(logits))


@pytest.mark.parametrize("odd", [[np.nan, 0, 1], [np.inf, 0, 1], [-np.inf, 0, 1], [-np.inf] * 3])
def test_odd_logits_are_answered_as_torch_answers_them(odd):
    logits = np.array([odd], dtype=np.float32)
    wanted = torch.log_softmax(torch.from_numpy(logits), dim=-1).numpy()
    np.testing.assert_allclose(log_softmax(logits), wanted, rtol=1e-6)
    np.testing.assert_allclose(log_softmax_one(logits[0]), wanted[0], rtol=1e-6)


@given(st.lists(st.integers(1, 9), max_size=12), st.integers(1, 20))
def test_regrouped_rows_come_back_in_order(sizes, group):
    """Samples that are numbers: stage k adds one, and a number divisible by k + 2 leaves."""

    class Divisible:
        num_exits = 3

        def leaves(self, seen, ids):
            k = seen.shape[1] - 1
            return seen[:, k, 0] % (k + 2) == 0 if k < 2 else np.ones(len(seen), dtype=bool)

        def answers(self, seen, ids):
            return np.stack([ids, seen[:, -1, 0]], axis=1)

    def run_stage(k, state, seen):
        value = state[0] + 1
        newest = value[:, None, None]
        return newest if seen is None else np.concatenate((seen, newest), axis=1), [value]

    numbers = np.random.default_rng(0).integers(100, size=sum(sizes))
    states = ([part] for part in np.split(numbers, np.cumsum(sizes))[:-1])
    if not sizes:
        with pytest.raises(InputError, match="batches are empty"):
            run_in_groups(run_stage, Divisible(), states, group)
        return
    answers, exits = run_in_groups(run_stage, Divisible(), states, group)
    for row, number in enumerate(numbers.tolist()):
        k = 0 if (number + 1) % 2 == 0 else 1 if (number + 2) % 3 == 0 else 2
        assert (exits[row], *answers[row]) == (k, row, number + k + 1)


def test_images_are_prepared_as_the_data_set_prepares_them():
    raw = exporting.digits().images[:9]
    model = load(exporting.exported("onnx").path)
    np.testing.assert_allclose(model.prepare(raw.numpy()), images(9).numpy(), rtol=1e-6, atol=1e-6)
    floats = raw.float() / 255 if raw.dtype == torch.uint8 else raw
    np.testing.assert_allclose(
        model.prepare(floats.numpy()), exporting.digits().prepare(floats).numpy(), rtol=1e-6, atol=1e-6
    )
    with pytest.raises(
        InputError, match=r"images of shape \(9, 8, 8\) do not fit: the model takes \(sample, 1, 8, 8\)"
    ):
        model.prepare(raw.numpy()[:, 0])
    with pytest.raises(InputError, match="the export does not say how"):
        load(exporting.exported_by_name().path).prepare(raw.numpy())


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
    model = load(exporting.exported("onnx").path)
    with pytest.raises(InputError, match=f"images of type {np.dtype(kind)} cannot be prepared.* Convert them"):
        model.prepare(np.ones((2, 1, 8, 8), dtype=kind))


@pytest.mark.parametrize("value", [255.0, 1.02, -0.02, np.nan, np.inf])
def test_images_on_another_scale(value):
    given = np.zeros((3, 1, 8, 8), dtype=np.float32)
    given[2, 0, 5, 5] = value
    with pytest.raises(InputError, match=r"images have a value outside 0 to 1 in image 2: .* pass uint8 from 0 to 255"):
        load(exporting.exported("onnx").path).prepare(given)


# --- inputs that do not fit -------------------------------------------------------------------------------------------

GOOD = np.zeros((2, 1, 8, 8), dtype=np.float32)
WRONG = {
    r"'input' of shape \(2, 8, 8\) does not fit: the model takes \(sample, 1, 8, 8\)": GOOD[:, 0],
    r"'input' of shape \(\) does not fit": np.float32(1),
    "'input' of float64 does not fit: the model takes float32": GOOD.astype(float),
    "'input' of uint8 does not fit": GOOD.astype(np.uint8),
    r"samples are 0 in 'input'": GOOD[:0],
    r"inputs \['images'\] do not fit: the model takes \['input'\]": {"images": GOOD},
}


@pytest.mark.parametrize("said", WRONG)
def test_inputs_that_do_not_fit(said):
    model = load(exporting.exported("onnx").path)
    with pytest.raises(InputError, match=said):
        model(WRONG[said])
    with pytest.raises(InputError, match=said):
        model.predict_all([WRONG[said]])
    assert model.next_id == 0
    assert len(model({"input": GOOD}).labels) == 2


def test_inputs_by_name_that_do_not_fit():
    model, ids = load(exporting.exported_by_name().path), np.zeros((3, 6), dtype=np.int64)
    with pytest.raises(InputError, match=r"of type ndarray do not fit: the model takes \['ids', 'mask'\]. Pass a dict"):
        model(ids)
    with pytest.raises(InputError, match=r"inputs \['ids'\] do not fit: the model takes \['ids', 'mask'\]"):
        model({"ids": ids})
    with pytest.raises(InputError, match="samples are 3 in 'ids', 2 in 'mask'"):
        model({"ids": ids, "mask": ids[:2]})


def test_ids_and_settings_that_do_not_fit():
    model = load(exporting.exported("onnx").path)
    for ids in ([0], [0.5, 1.0], 3):
        with pytest.raises(InputError, match="the batch holds 2 samples"):
            model(GOOD, ids)
    with pytest.raises(InputError, match="regroup 0 is too small"):
        model.predict_all([GOOD], regroup=0)
    for regroup in (None, 4):
        with pytest.raises(InputError, match="batches are empty"):
            model.predict_all([], regroup=regroup)
    with pytest.raises(InputError, match="threads 0 are too few"):
        load(exporting.exported("onnx").path, threads=0)


# --- folders that were changed ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    return Path(shutil.copytree(exporting.exported("onnx").path, tmp_path / "export"))


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
        with pytest.raises(ExportError, match=f"file {re.escape(name)} {fault}"):
            load(folder)


def test_files_that_nobody_listed_and_files_outside(folder):
    (folder / "more.txt").write_text("?")
    with pytest.raises(ExportError, match=r"file more\.txt is not in the manifest"):
        load(folder)
    (folder / "more.txt").rename(folder.parent / "outside")
    edit(folder, lambda manifest: manifest["sha256"].update({"../outside": "0" * 64}))
    with pytest.raises(ExportError, match=r"file \.\./outside is missing"):
        load(folder)


def edit(folder, change):
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


CHANGES = {
    "is none: its manifest.json is of another format": lambda manifest: manifest.update(format="eenet bundle"),
    "is of version 2: this eenet-runtime reads version 1": lambda manifest: manifest.update(version=2),
    "damaged manifest: ValueError engine 'tvm' is none of onnx, openvino": lambda manifest: manifest.update(
        engine="tvm"
    ),
    "damaged manifest: KeyError 'stages'": lambda manifest: manifest.pop("stages"),
    r"exits, stages and costs are \[3, 2, 3\] in number": lambda manifest: manifest["stages"].pop(),
    r"exits, stages and costs are \[3, 3, 2\]": lambda manifest: manifest["costs"]["cumulative"].pop(),
    "10 classes have 9 names": lambda manifest: manifest["classes"].pop(),
    r"stage 1 reads \('state_1',\) of 1 tensors": lambda manifest: manifest["stages"][1].update(inputs=["state_1"]),
    r"stage 0 reads .* and returns \('logits',\)|stage 1 reads": lambda manifest: manifest["stages"][0].update(
        outputs=["logits"]
    ),
    "file 'other.onnx' of stage 2 has no checksum": lambda manifest: manifest["stages"][2].update(file="other.onnx"),
    "does not begin with the batch": lambda manifest: manifest["inputs"][0].update(shape=[1, 1, 8, 8]),
    "damaged manifest: TypeError": lambda manifest: manifest["inputs"][0].update(dtype="float33"),
    "1 means and 2 deviations": lambda manifest: manifest["preparation"].update(std=[1, 2]),
    "damaged manifest: AttributeError": lambda manifest: manifest.update(sha256=["stage_0.onnx"]),
    "does not fit its manifest": lambda manifest: manifest["stages"][0].update(file="stage_2.onnx"),
}


@pytest.mark.parametrize("said", CHANGES)
def test_a_manifest_that_cannot_be_used(folder, said):
    edit(folder, CHANGES[said])
    with pytest.raises(ExportError, match=said) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_folders_that_are_no_export(folder, tmp_path):
    with pytest.raises(ExportError, match="there is no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(ExportError, match=r"holds no manifest\.json"):
        load(tmp_path)
    for broken in ("{", "[]", "\x00"):
        (folder / "manifest.json").write_text(broken)
        with pytest.raises(ExportError, match=r"is not JSON|is of another format"):
            load(folder)


def test_a_policy_that_does_not_fit(folder):
    other = exporting.exported_by_name()
    for name in ("policy/policy.json", "policy/policy.safetensors"):
        shutil.copy(other.path / name, folder / name)
        digest = other.manifest["sha256"][name]
        edit(folder, lambda manifest, name=name, digest=digest: manifest["sha256"].update({name: digest}))
    with pytest.raises(ExportError, match="the policy has 2 exits, the model 3"):
        load(folder)
    assert issubclass(PolicyError, eenet_runtime.EenetRuntimeError)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_graph_that_the_engine_cannot_open(engine, tmp_path):
    folder = Path(shutil.copytree(exporting.exported(engine).path, tmp_path / "export"))
    file = exporting.exported(engine).manifest["stages"][1]["file"]
    (folder / file).write_bytes(b"of the year 2040")
    edit(folder, lambda manifest: manifest["sha256"].update({file: sha256(folder / file)}))
    with pytest.raises(ExportError, match=f"{file} cannot be opened") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("engine", "name"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_engine_is_named_with_its_remedy(engine, name, monkeypatch):
    path = exporting.exported(engine).path
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=rf'{name} is missing.*pip install "eenet-runtime\[{name}\]"'):
        load(path)
    assert issubclass(MissingExtraError, ImportError)


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [(), ("--regroup",), ("--batch-size", "1")])
def test_the_command_reports_and_writes_rows(more, wanted, tmp_path, capsys):
    raw, labels = exporting.digits().images[:COUNT].numpy(), exporting.digits().labels[:COUNT].numpy()
    np.savez(tmp_path / "raw.npz", images=images().numpy(), labels=labels)
    words = [
        str(exporting.exported("onnx").path),
        str(tmp_path / "raw.npz"),
        "--out",
        str(tmp_path / "rows.csv"),
        *more,
    ]
    assert main([*words, "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    exits = wanted.exit_index
    assert value == {
        "num_samples": COUNT,
        "engine": "onnx",
        "unit": "ms",
        "mean_cost": pytest.approx(float(wanted.cost.mean())),
        "exit_distribution": pytest.approx((torch.bincount(exits) / COUNT).tolist()),
        "accuracy": pytest.approx(float((wanted.labels.numpy() == labels).mean())),
    }
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["exit"]) for row in rows] == exits.tolist()
    assert [row["class"] for row in rows] == [exporting.CLASSES[label] for label in wanted.labels]
    assert {row["right"] for row in rows} <= {"True", "False"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw.npz", "rows.csv"]
    if raw.dtype == np.uint8 and not more:
        np.save(tmp_path / "bytes.npy", raw)
        assert main([words[0], str(tmp_path / "bytes.npy")]) == 0
        assert "mean cost (ms)" in capsys.readouterr().out


def test_the_command_takes_inputs_by_name(tmp_path, capsys):
    _, batch = exporting.by_name()
    np.savez(tmp_path / "batch.npz", **{name: value.numpy() for name, value in batch.items()})
    assert main([str(exporting.exported_by_name().path), str(tmp_path / "batch.npz"), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["num_samples"] == 40 and value["unit"] is value["mean_cost"] is value["accuracy"] is None


def test_what_the_command_refuses(tmp_path, capsys):
    export = str(exporting.exported("onnx").path)
    np.save(tmp_path / "good.npy", GOOD)
    np.save(tmp_path / "empty.npy", GOOD[:0])
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "two.npz", a=GOOD, b=GOOD)
    np.savez(tmp_path / "labels.npz", a=GOOD, labels=np.zeros(3))
    (tmp_path / "text.npy").write_text("?")
    good = str(tmp_path / "good.npy")
    refused = [
        ([str(tmp_path / "none"), good], "there is no such folder"),
        ([export, str(tmp_path / "none.npy")], "there is no such file"),
        ([export, str(tmp_path / "empty.npy")], "are empty"),
        ([export, str(tmp_path / "pickled.npy")], "cannot be read"),
        ([export, str(tmp_path / "text.npy")], "cannot be read"),
        ([export, str(tmp_path / "two.npz")], "hold ['a', 'b'] and do not fit: the model takes ['input']"),
        ([export, str(tmp_path / "labels.npz")], "labels of shape (3,) and type float64 do not fit"),
        ([export, good, "--batch-size", "0"], "--batch-size 0 is too small"),
        ([export, good, "--out", str(tmp_path / "no" / "rows.csv")], "cannot be written"),
        ([export, good, "--threads", "0"], "threads 0 are too few"),
        ([export], "required: INPUTS"),
    ]
    for words, said in refused:
        assert main(words) == 2
        captured = capsys.readouterr()
        assert said in captured.err and captured.out == ""
    assert main(["--help"]) == 0


def test_the_command_refuses_inputs_of_different_lengths(tmp_path, capsys):
    ids = np.zeros((45, 6), dtype=np.int64)
    for first, second in ((32, 45), (45, 32)):
        np.savez(tmp_path / "batch.npz", ids=ids[:first], mask=ids[:second])
        assert main([str(exporting.exported_by_name().path), str(tmp_path / "batch.npz")]) == 2
        captured = capsys.readouterr()
        assert f"samples are {first} in 'ids', {second} in 'mask'" in captured.err
        assert captured.err.count("\n") == 1 and captured.out == ""


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed, np.save])
def test_the_command_refuses_damaged_inputs(save, tmp_path, capsys):
    file, path = io.BytesIO(), tmp_path / "inputs.npz"
    save(file, GOOD)
    content = file.getvalue()
    broken = [content[: len(content) * share // 8] for share in range(8)]
    if b"'descr'" in content:
        broken.append(content.replace(b"'descr'", b"(descr'"))
    if save is np.savez_compressed:
        broken.append(content[:60] + b"\xff" * 20 + content[80:])
        broken.append(re.sub(rb"(PK\x01\x02.{6})\x08", b"\\1\x63", content, flags=re.DOTALL))  # an unknown compression
    for part in broken:
        path.write_bytes(part)
        assert main([str(exporting.exported("onnx").path), str(path)]) == 2
        captured = capsys.readouterr()
        assert f"inputs {path} cannot be read: " in captured.err
        assert captured.err.count("\n") == 1 and captured.out == ""


def test_the_command_refuses_archives_of_something_else(tmp_path, capsys):
    with zipfile.ZipFile(tmp_path / "inputs.npz", "w") as archive:
        archive.writestr("input.npy", b"text")
    assert main([str(exporting.exported("onnx").path), str(tmp_path / "inputs.npz")]) == 2
    assert "cannot be read: 'input' is no array" in capsys.readouterr().err


def test_the_command_closes_its_inputs(tmp_path, capsys):
    np.savez(tmp_path / "inputs.npz", a=GOOD)
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        load_arrays = np.load
        patch.setattr(np, "load", lambda *words, **more: (opened.append(load_arrays(*words, **more)), opened[-1])[1])
        assert main([str(exporting.exported("onnx").path), str(tmp_path / "inputs.npz")]) == 0
    assert opened[0].zip is None and capsys.readouterr().err == ""


# --- without torch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_torch_is_never_imported(engine, tmp_path):
    path = exporting.exported(engine).path
    np.save(tmp_path / "images.npy", images(5).numpy())
    code = (
        f"import sys; sys.modules['torch'] = None; sys.path.insert(0, {str(ROOT / 'runtime' / 'src')!r}); "
        f"from eenet_runtime.__main__ import main; code = main([{str(path)!r}, {str(tmp_path / 'images.npy')!r}]); "
        "assert not {'eenet', 'jaxtyping', 'scipy'} & set(sys.modules); sys.exit(code)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "left at exits" in shown.stdout


@pytest.mark.slow
def test_an_attached_model_of_tokens(tmp_path):
    """Its state is a tensor and a mask that goes along; its inputs are a dictionary."""
    backbone, batch = FAMILIES["tokens"]()
    attached = attach(backbone, batch, exits=3).eval()
    for parameter in attached.heads[:2].parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # as they come, heads answer every sample alike
    batch = {name: value.repeat(20, 1) for name, value in batch.items()}
    batch["input_ids"] = torch.randint(5, 50, (60, 16))
    with torch.no_grad():
        logits = torch.stack(attached(batch), dim=1)
    policy = MixedPolicy(quantile_policy(logits, "margin", 0.3), quantile_policy(logits, "max_prob", 0.5), 0.5, seed=1)
    wanted = AdaptiveModel(attached, policy)(batch)
    assert set(wanted.exit_index.tolist()) == {0, 1, 2}
    programs = stage_programs(attached, batch)
    for engine in ENGINES:
        pytest.importorskip({"onnx": "onnxruntime"}.get(engine, engine))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("eenet.inference.export.stage_programs", lambda *_: programs)
            made = export(attached, policy, batch, tmp_path / engine, engine=engine)
        assert [one["name"] for one in made.manifest["inputs"]] == ["input_ids", "attention_mask"]
        model = load(made.path, threads=1)
        for size in (1, 3, 60):
            parts = [{name: value[i : i + size].numpy() for name, value in batch.items()} for i in range(0, 60, size)]
            for regroup in (None, 7):
                found = model.predict_all(parts, regroup=regroup)
                np.testing.assert_array_equal(found.exit_index, wanted.exit_index.numpy())
                np.testing.assert_allclose(found.log_probs, wanted.log_probs.numpy(), rtol=1e-4, atol=1e-4)


ALONE = """
import sys, numpy as np, eenet_runtime
try:
    import torch
except ImportError:
    pass
else:
    sys.exit("torch is here")
model = eenet_runtime.load(sys.argv[1], threads=1)
images = np.load(sys.argv[2])
for size in (1, 7, len(images)):
    for regroup in (None, 5):
        batches = (images[i : i + size] for i in range(0, len(images), size))
        found = model.predict_all(batches, regroup=regroup)
        np.savez(f"{sys.argv[3]}_{size}_{regroup}.npz", log_probs=found.log_probs, exit_index=found.exit_index)
"""


@pytest.mark.slow
def test_an_environment_of_its_own(tmp_path):
    """Installed as users install it, in an environment without torch, both engines decide as eenet's ONNX engine."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    wanted = AdaptiveModel(OnnxEngine(exporting.model(), images(5)), exporting.mixed()).predict_all(images().split(40))
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    package = f"{shutil.copytree(ROOT / 'runtime', tmp_path / 'runtime')}[onnxruntime,openvino]"
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", package], capture_output=True, text=True, check=False
    )
    if "Could not find a version" in installed.stderr:
        pytest.skip("no packages can be installed here")
    assert installed.returncode == 0, installed.stderr
    np.save(tmp_path / "images.npy", images().numpy())
    for engine in ENGINES:
        out = tmp_path / engine
        words = [python, "-c", ALONE, exporting.exported(engine).path, tmp_path / "images.npy", out]
        shown = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        results = list(tmp_path.glob(f"{engine}_*.npz"))
        assert len(results) == 6
        for result in results:
            with np.load(result) as found:
                np.testing.assert_array_equal(found["exit_index"], wanted.exit_index.numpy())
                np.testing.assert_allclose(found["log_probs"], wanted.log_probs.numpy(), rtol=1e-4, atol=1e-4)
        words = [python, "-m", "eenet_runtime", exporting.exported(engine).path, tmp_path / "images.npy", "--json"]
        shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
        assert json.loads(shown.stdout)["num_samples"] == COUNT

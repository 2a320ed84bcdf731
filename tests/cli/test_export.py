"""`eenet export` and what runs its folder: from a run and a policy to answers without PyTorch; what is refused."""

import json
import os
import shutil
import subprocess
import sys

import exporting
import numpy as np
import pytest
import torch
from PIL import Image
from tests.cli.conftest import made_run, refused

from eenet.cli import main
from eenet.running import AdaptiveModel, export, open_export
from eenet.tables.files import write_json

module = sys.modules[export.__module__]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of untrained weights, a policy, and an export of both."""
    for engine in exporting.ENGINES:
        exporting.need(engine)
    folder = made_run(tmp_path_factory.mktemp("made"), "digits_tiny", exporting.model().state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "stage_programs", lambda *_: exporting.programs())
        words = ["export", str(folder / "run"), "--policy", str(folder / "policy"), "--engine", "onnxruntime"]
        assert main([*words, "--out", str(folder / "exported"), "-q"]) == 0
    return folder


def test_a_run_becomes_a_folder_that_decides_alike(eenet, made):
    opened = open_export(made / "exported")
    assert opened.manifest.classes == tuple(str(k) for k in range(10)) and opened.dial is not None
    images = exporting.digits().images.numpy()
    found = AdaptiveModel(made / "exported").predict_all([opened.prepare(images)])
    value = eenet("run", made / "run", "--policy", made / "policy", "split:test", "--json", "-q").value
    same = [sample["exit"] for sample in value["samples"]] == found.exit_index
    assert same.mean() > 0.99 and float(found.cost.mean()) == pytest.approx(value["mean_cost"], rel=0.01)


def test_an_export_runs_on_arrays_and_images(eenet, made, tmp_path):
    digits = exporting.digits()
    raw = (digits.images[:40].numpy() * 255).round().astype(np.uint8)
    np.savez(tmp_path / "raw.npz", images=raw, labels=digits.labels[:40].numpy())
    np.save(tmp_path / "prepared.npy", digits.prepare(torch.from_numpy(raw)).numpy())
    words = ("--batch-size", 7, "--json", "-q")
    value = eenet("run", made / "exported", tmp_path / "raw.npz", *words, "--out", tmp_path / "rows.csv").value
    assert (value["engine"], value["num_samples"], value["num_labelled"]) == ("onnxruntime", 40, 40)
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 41
    prepared = eenet("run", made / "exported", tmp_path / "prepared.npy", "--no-regroup", "--threads", 1, *words).value
    assert [s["exit"] for s in prepared["samples"]] == [s["exit"] for s in value["samples"]]
    Image.fromarray(raw[0, 0]).save(tmp_path / "one.png")
    one = eenet("run", made / "exported", tmp_path / "one.png", "--json", "-q").value["samples"][0]
    assert one["prediction"] == value["samples"][0]["prediction"]


def test_files_that_an_export_cannot_prepare_are_refused_with_what_it_takes(eenet, tmp_path):
    (tmp_path / "texts.csv").write_text("text\nwords\n")
    ran = eenet("run", exporting.exported_by_name().path, tmp_path / "texts.csv", "-q")
    refused(ran, "Pass an .npz with ids int64 [sample, 6], mask int64 [sample, 6].")


def test_a_budget_turns_what_was_fitted(eenet, made, tmp_path):
    np.save(tmp_path / "x.npy", exporting.digits().inputs(slice(None)).contiguous().numpy())
    for words in (
        ("run", made / "exported", tmp_path / "x.npy"),
        ("run", made / "run", "split:test", "-p", made / "policy"),
    ):
        costs = [
            eenet(*words, "--budget", budget, "--json", "-q").value["mean_cost"] for budget in ("40%", "60%", "90%")
        ]
        assert costs == sorted(costs) and costs[0] < costs[2]
        refused(eenet(*words, "--budget", "1%"), "out of reach")


def test_running_an_export_imports_no_torch(made, tmp_path):
    np.save(tmp_path / "x.npy", exporting.digits().inputs(slice(0, 9)).contiguous().numpy())
    code = (
        "import sys; from eenet.cli import main; "
        f"code = main(['run', {str(made / 'exported')!r}, {str(tmp_path / 'x.npy')!r}, '-q']); "
        "sys.exit(code or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("{made}/exported", "{new}/x.npy", "-p", "{made}/policy"), "one too many"),
        (("{made}/exported", "split:test"), "knows no data set"),
        (("{made}/exported", "{new}/none.npy"), "none.npy"),
        (("{made}/exported", "{new}/wrong.npz"), "do not fit"),
        (("{made}/run", "split:test"), "--policy is missing"),
        (("{made}/policy", "split:test", "-p", "{made}/policy"), "recipe.json"),
        (("{new}/nothing", "x.npy"), "does not exist"),
        (("{new}/damaged", "{new}/x.npy"), "changed"),
    ],
)
def test_what_cannot_be_run_is_refused(words, said, eenet, made, tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 1, 8, 8), np.float32))
    np.savez(tmp_path / "wrong.npz", a=np.zeros(2), b=np.zeros(2))
    shutil.copytree(made / "exported", tmp_path / "damaged")
    with (tmp_path / "damaged" / "stage_0.onnx").open("ab") as file:
        file.write(b"x")
    refused(eenet("run", *(word.format(made=made, new=tmp_path) for word in words), "-q"), said)


def test_what_is_printed_and_what_stands_there_already(eenet, made, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "stage_programs", lambda *_: exporting.programs())
    words = (
        "export",
        made / "run",
        "--policy",
        made / "policy",
        "--engine",
        "openvino",
        "--out",
        tmp_path / "exported",
    )
    for _ in range(2):  # an export replaces an export
        ran = eenet(*words)
        assert ran.code == 0 and "stage_2.xml" in ran.stdout and "logits within" in ran.said
        assert "Exporting 3 stages for openvino." in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]
    value = eenet(*words, "--json", "-q").value
    assert (value["engine"], value["num_exits"], value["num_classes"]) == ("openvino", 3, 10)
    assert json.loads((tmp_path / "exported" / "manifest.json").read_text())["engine"] == "openvino"


def test_bad_input_is_refused_before_work_starts(eenet, made, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "stage_programs", lambda *_: pytest.fail("work began"))
    out = tmp_path / "exported"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "bundle").mkdir()
    write_json(tmp_path / "bundle" / "manifest.json", {"format": "eenet bundle"})
    given = {"run": made / "run", "policy": made / "policy", "engine": "onnxruntime", "out": out}
    cases = [
        ({"engine": "onnx"}, "engine 'onnx' is unknown"),
        ({"run": tmp_path / "none"}, "RUN"),
        ({"policy": tmp_path / "none"}, "--policy"),
        ({"out": tmp_path / "thesis"}, "thesis"),
        ({"out": tmp_path / "bundle"}, "bundle"),
        ({"out": tmp_path / "thesis" / "chapter.txt"}, "is a file"),
    ]
    for changes, said in cases:
        now = given | changes
        ran = eenet("export", now["run"], "-p", now["policy"], "--engine", now["engine"], "-o", now["out"], "-q")
        refused(ran, said)
    monkeypatch.setitem(sys.modules, "openvino", None)
    ran = eenet("export", made / "run", "-p", made / "policy", "--engine", "openvino", "-o", out)
    refused(ran, 'pip install "eenet[openvino]"')
    assert not out.exists() and "exported" not in os.listdir(tmp_path)

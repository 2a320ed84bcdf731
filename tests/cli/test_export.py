"""`eenet export`: from a run and a policy to a folder that the runtime opens; what is refused before work starts."""

import sys
from collections.abc import Callable
from pathlib import Path

import exporting
import pytest
from tests.cli.conftest import Ran

import eenet.inference.export as module
import eenet_runtime
from eenet.cli import main
from eenet.core.files import save_tensors, write_json


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of untrained weights and a policy."""
    folder = tmp_path_factory.mktemp("made")
    write_json(folder / "run" / "recipe.json", {"recipe": "digits_tiny", "seed": 0, "data_root": None})
    save_tensors(folder / "run" / "model.safetensors", exporting.model().state_dict())
    assert main(["record", str(folder / "run"), "--split", "val", "--out", str(folder / "val.npz"), "-q"]) == 0
    fitting = ["fit", str(folder / "val.npz"), "-b", "60%", "-p", "max_prob", "--out", str(folder / "policy"), "-q"]
    assert main(fitting) == 0
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the stages of this very model from where they were made already."""
    for names in exporting.NEEDED.values():
        for name in names:
            pytest.importorskip(name)
    monkeypatch.setattr(module, "stage_programs", lambda *_: exporting.programs())


def test_a_run_becomes_a_folder_that_decides_alike(eenet: Callable[..., Ran], made: Path, tmp_path: Path) -> None:
    words = ("export", made / "run", "--policy", made / "policy", "--engine", "onnx", "--out", tmp_path / "exported")
    ran = eenet(*words, "--json", "-q")
    assert (ran.code, ran.stderr) == (0, "")
    value = ran.value
    assert (value["engine"], value["num_exits"], value["num_classes"]) == ("onnx", 3, 10)
    assert [stage["file"] for stage in value["stages"]] == [f"stage_{k}.onnx" for k in range(3)]
    assert value["error"] < 1e-4
    model = eenet_runtime.load(value["out"])
    ran = eenet("run", made / "run", "--policy", made / "policy", "split:test", "--json", "-q")
    test = exporting.load_digits(seed=0).test
    found = model.predict_all([model.prepare(test.images.numpy())])
    assert found.exit_index.tolist() == [sample["exit"] for sample in ran.value["samples"]]
    assert found.cost is not None and float(found.cost.mean()) == pytest.approx(ran.value["mean_cost"])
    assert model.manifest.classes == tuple(str(k) for k in range(10))


def test_what_is_said_and_what_stands_there_already(eenet: Callable[..., Ran], made: Path, tmp_path: Path) -> None:
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
        assert ran.code == 0 and "stage_2.xml" in ran.stdout and "logits within" in ran.stdout
        assert "Exporting 3 stages for openvino." in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["exported"]


def test_bad_input_is_refused_before_work_starts(
    eenet: Callable[..., Ran], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "stage_programs", lambda *_: pytest.fail("work began"))
    out = tmp_path / "exported"
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    (tmp_path / "bundle").mkdir()
    write_json(tmp_path / "bundle" / "manifest.json", {"format": "eenet bundle"})
    given = {"run": made / "run", "policy": made / "policy", "engine": "onnx", "out": out}
    refused: list[tuple[dict[str, object], str]] = [
        ({"engine": "onnxruntime"}, "engine 'onnxruntime' is unknown: there is none of that name. Did you mean onnx?"),
        ({"run": tmp_path / "none"}, "RUN"),
        ({"policy": tmp_path / "none"}, "--policy"),
        ({"out": tmp_path / "thesis"}, "it is a folder that holds no export"),
        ({"out": tmp_path / "bundle"}, "it is a folder that holds no export"),
        ({"out": tmp_path / "thesis" / "chapter.txt"}, "is a file"),
    ]
    for changes, said in refused:
        now = given | changes
        ran = eenet("export", now["run"], "-p", now["policy"], "--engine", now["engine"], "-o", now["out"], "-q")
        assert (ran.code, ran.stdout) == (2, "") and said in ran.stderr and ran.stderr.count("\n") == 1
    monkeypatch.setitem(sys.modules, "openvino", None)
    ran = eenet("export", made / "run", "-p", made / "policy", "--engine", "openvino", "-o", out)
    assert ran.code == 2 and 'pip install "eenet[openvino]"' in ran.stderr
    assert not out.exists()

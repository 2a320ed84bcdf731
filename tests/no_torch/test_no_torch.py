"""What works without PyTorch: everything about tables, and exports."""

import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest

import eenet
from eenet import AdaptiveModel, ExitTable, advise, certify, compare, load_policy, replay, save_policy
from eenet.cli.names import schedulers
from eenet.schedulers.names import POLICIES


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "eenet", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def value(*words: object) -> dict:
    ran = run(*words, "--json", "--quiet")
    assert (ran.returncode, ran.stderr) == (0, "")
    return json.loads(ran.stdout)


def test_torch_is_really_absent() -> None:
    with pytest.raises(ModuleNotFoundError):
        import torch  # noqa: F401


def test_tables_are_loaded_compared_and_advised_on(made: Path) -> None:
    val, test = ExitTable.load(made / "val.npz"), ExitTable.load(made / "test.npz")
    assert (val.num_samples, val.num_exits, val.num_columns) == (500, 3, 10)
    comparison = compare(val, test, schedulers(["max_prob", "stopping"], seed=0), ["60%"])
    assert set(comparison.area) == {"max_prob", "stopping", "random", "oracle"}
    assert advise(val).to_dict()["verdict"]


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "eenet_published"])
def test_every_policy_is_fitted_saved_and_loaded(name: str, made: Path, tmp_path: Path) -> None:
    val = ExitTable.load(made / "val.npz")
    dial = schedulers([name], seed=0)[name].sweep(val)
    save_policy(dial.at("60%"), tmp_path / "policy", costs=val.costs, dial=dial)
    saved = load_policy(tmp_path / "policy")
    assert replay(saved.policy, val).exit_index.tolist() == replay(dial.at("60%"), val).exit_index.tolist()
    assert replay(saved.dial.at("80%"), val).mean_cost == replay(dial.at("80%"), val).mean_cost


def test_a_policy_saved_with_torch_decides_alike(made: Path) -> None:
    saved, test = load_policy(made / "policy"), ExitTable.load(made / "test.npz")
    expected = np.load(made / "answers.npz")
    assert saved.source == test.source
    assert (replay(saved.policy, test).exit_index != expected["exit_index"]).sum() <= 1  # recomputed logits are rounded


def test_a_budget_is_certified(made: Path) -> None:
    certified = certify(schedulers(["max_prob"], seed=0)["max_prob"], ExitTable.load(made / "val.npz"), budget="80%")
    assert certified.certificate.bound <= 2.8


@pytest.mark.parametrize("batch_size", [1, 7, 500])
def test_an_export_gives_the_answers_of_the_model(batch_size: int, made: Path) -> None:
    expected, inputs = np.load(made / "answers.npz"), np.load(made / "inputs.npz")["inputs"]
    model = AdaptiveModel(made / "export")
    batches = [inputs[first : first + batch_size] for first in range(0, len(inputs), batch_size)]
    found = model.predict_all(batches, regroup=batch_size == 7)
    same = found.exit_index == expected["exit_index"]
    assert same.sum() >= len(same) - 1
    np.testing.assert_allclose(found.log_probs[same], expected["log_probs"][same], atol=1e-4)


def test_an_export_is_turned_to_another_budget(made: Path) -> None:
    expected, inputs = np.load(made / "answers.npz"), np.load(made / "inputs.npz")["inputs"]
    found = AdaptiveModel(made / "export").at("90%")(inputs)
    assert (found.exit_index != expected["turned_exit_index"]).sum() <= 1


def test_the_commands_on_tables(made: Path, tmp_path: Path) -> None:
    tables = (made / "val.npz", made / "test.npz")
    words = ("--budget", "60%", "--policy", "max_prob", "--out", tmp_path / "comparison")
    assert "max_prob" in value("compare", *tables, *words)["area"]
    assert value("advise", tables[0], "--budget", "60%")["verdict"]
    fitted = value("fit", tables[0], "--budget", "80%", "--policy", "max_prob", "--out", tmp_path / "policy")
    assert fitted["fit_cost"] <= 2.8 * (1 + 1e-9) and load_policy(tmp_path / "policy").dial is not None
    words = ("--budget", "80%", "--policy", "max_prob", "--guarantee", "budget", "--out", tmp_path / "certified")
    assert value("fit", tables[0], *words)["certificate"]["bound"] <= 2.8
    page = tmp_path / "report.html"
    assert value("report", tmp_path / "comparison", "--out", page)["out"] == str(page)
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_the_command_on_an_export(made: Path, tmp_path: Path) -> None:
    expected = np.load(made / "answers.npz")["exit_index"]
    words = ("run", made / "export", made / "inputs.npz", "--batch-size", 50, "--threads", 1)
    found = value(*words, "--out", tmp_path / "rows.csv")
    assert (found["engine"], found["num_samples"], found["num_labelled"]) == ("onnxruntime", 500, 500)
    assert (np.array([sample["exit"] for sample in found["samples"]]) != expected).sum() <= 1
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 501
    turned = value(*words, "--budget", "90%", "--no-regroup")
    assert turned["mean_cost"] > found["mean_cost"]


@pytest.mark.parametrize(
    "words",
    [
        ("demo", "--out", "{new}"),
        ("train", "digits_tiny", "--out", "{new}"),
        ("attach", "timm:resnet18"),
        ("record", "{made}", "--split", "val", "--out", "{new}"),
        ("profile", "{made}"),
        ("bench", "{made}", "--policy", "{made}/policy"),
        ("run", "{made}", "split:test", "--policy", "{made}/policy"),
        ("export", "{made}", "--policy", "{made}/policy", "--engine", "onnxruntime", "--out", "{new}"),
        ("reproduce", "sst2-bert", "--out", "{new}"),
    ],
    ids=lambda words: words[0],
)
def test_what_needs_torch_names_the_extra(words: tuple[str, ...], made: Path, tmp_path: Path) -> None:
    ran = run(*(word.format(made=made, new=tmp_path / "new") for word in words))
    assert (ran.returncode, ran.stdout) == (2, "")
    assert 'pip install "eenet[torch]"' in ran.stderr and ran.stderr.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_public_names_are_usable_or_name_the_extra() -> None:
    models = {"MultiExitModel", "attach", "tiny_cnn", "TrainSettings", "fit_exits"}
    needs_torch = {*models, "EagerEngine", "Bundle", "export", "speed_up", "SpeedUp"}
    for name in needs_torch:
        with pytest.raises(eenet.EenetError, match=rf"torch is not installed: {name} .*eenet\[torch\]"):
            getattr(eenet, name)
    for name in set(eenet.__all__) - needs_torch - {"CascadeClassifier"}:
        assert getattr(eenet, name) is not None


def test_the_estimator_names_its_extra_where_scikit_learn_is_missing() -> None:
    with pytest.raises(eenet.EenetError, match=r"eenet\[sklearn\]"):
        eenet.CascadeClassifier  # noqa: B018


def test_an_export_is_served(made: Path) -> None:
    images = np.load(made / "inputs.npz")["inputs"][:50]
    command = [sys.executable, "-m", "eenet", "serve", str(made / "export"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            url = re.search(r"http://\S+", process.stderr.readline())[0]
            tensor = {"name": "input", "shape": images.shape, "datatype": "FP32", "data": images.ravel().tolist()}
            body = json.dumps({"inputs": [tensor], "parameters": {"sample_id": 0}}).encode()
            with urllib.request.urlopen(f"{url}/v2/models/export/infer", body) as answer:
                found = {one["name"]: one["data"] for one in json.load(answer)["outputs"]}
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
    expected = np.load(made / "answers.npz")["exit_index"][:50]
    assert (np.array(found["exit"]) != expected).sum() <= 1

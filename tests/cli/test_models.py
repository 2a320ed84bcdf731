"""The commands that run a model, on the tiny net with its random weights: nothing here needs it to be good."""

import csv
import inspect
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tests.cli.conftest import made_run, refused, table_arrays

from eenet.cli import main
from eenet.experiments.recipes import RECIPES, open_run
from eenet.models import exit_sizes
from eenet.policies import load_policy, replay
from eenet.policies.store import policy_size
from eenet.running import Bundle
from eenet.tables.table import ExitTable


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run, its tables and a policy."""
    return made_run(tmp_path_factory.mktemp("made"), "digits_tiny", RECIPES["digits_tiny"].build().state_dict())


def test_record_stores_outputs_labels_and_costs(made):
    table = ExitTable.load(made / "val.npz")
    assert (table.num_samples, table.num_exits, table.num_columns, table.split) == (500, 3, 10, "val")
    assert table.labels is not None and table.costs is not None and table.costs.reference is not None


def test_run_on_a_split_agrees_with_the_table(eenet, made, tmp_path):
    words = ("run", made / "run", "--policy", made / "policy", "split:test", "--out", tmp_path / "rows.csv")
    value = eenet(*words, "--json", "-q").value
    assert value["num_samples"] == len(value["samples"]) == 500
    assert sum(value["exit_distribution"]) == pytest.approx(1)
    labels = ExitTable.load(made / "test.npz").labels
    assert labels is not None and [sample["label"] for sample in value["samples"]] == labels.tolist()
    with (tmp_path / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["exit"]) for row in rows] == [sample["exit"] for sample in value["samples"]]


def test_a_policy_for_some_exits_steers_the_model_without_the_others(eenet, made, tmp_path):
    policy = tmp_path / "policy"
    assert eenet("fit", made / "val.npz", "-b", "70%", "-p", "max_prob", "--exits", "1", "--out", policy).code == 0
    value = eenet("run", made / "run", "--policy", policy, "split:test", "--json", "-q").value
    assert {sample["exit"] for sample in value["samples"]} == {1, 2}  # as the exits of the run are called
    assert value["exit_distribution"][0] == 0 and sum(value["exit_distribution"]) == pytest.approx(1)
    saved, test = load_policy(policy), ExitTable.load(made / "test.npz").keeping([1, 2])
    replayed = replay(saved.policy, test).exit_index + 1
    assert [sample["exit"] for sample in value["samples"]] == replayed.tolist()
    timing = ("--policy", policy, "--batch-size", "2", "--passes", "1", "--json", "-q")
    assert len(eenet("bench", made / "run", *timing, "--samples", "8").value["rows"][0]["exit_distribution"]) == 2
    assert len(eenet("profile", made / "run", *timing).value["flops"]["cumulative"]) == 2


def test_run_takes_images_folders_and_arrays(eenet, made, tmp_path):
    rng = np.random.default_rng(0)
    pictures = tmp_path / "pictures"
    (pictures / "deep").mkdir(parents=True)
    Image.fromarray(rng.integers(256, size=(8, 8), dtype=np.uint8)).save(pictures / "grey.png")
    Image.fromarray(rng.integers(256, size=(20, 30, 3), dtype=np.uint8)).save(pictures / "deep" / "colour.jpg")
    np.save(tmp_path / "floats.npy", rng.random((4, 1, 8, 8)).astype(np.float32))
    np.savez(tmp_path / "named.npz", images=rng.integers(256, size=(2, 8, 8), dtype=np.uint8), labels=np.array([1, 2]))
    inputs = (pictures, tmp_path / "floats.npy", tmp_path / "named.npz", pictures / "grey.png")
    ran = eenet("run", made / "run", "--policy", made / "policy", *inputs, "--batch-size", 3, "--json", "-q")
    names = [sample["input"] for sample in ran.value["samples"]]
    assert len(names) == 9 and ran.value["num_labelled"] == 2
    same = [sample for sample in ran.value["samples"] if sample["input"].endswith("grey.png")]
    assert len(same) == 2 and same[0]["prediction"] == same[1]["prediction"]


def test_run_shows_a_table_of_one_and_a_summary_of_many(eenet, made, tmp_path):
    np.save(tmp_path / "one.npy", np.zeros((8, 8), np.uint8))
    one = eenet("run", made / "run", "-p", made / "policy", tmp_path / "one.npy", "--out", tmp_path / "rows.json")
    assert one.code == 0 and "one.npy:0" in one.stdout
    assert json.loads((tmp_path / "rows.json").read_text())[0]["input"] == "one.npy:0"
    many = eenet("run", made / "run", "-p", made / "policy", "split:test")
    assert many.code == 0 and "test:0" not in many.stdout and "accuracy on 500" in many.stdout


def test_a_bundle_runs_with_its_own_policy(eenet, made, tmp_path):
    saved, model = load_policy(made / "policy"), RECIPES["digits_tiny"].build()
    shared = {"model": model, "policy": saved.policy, "costs": saved.costs, "dial": saved.dial}
    Bundle(**shared, info={"recipe": "digits_tiny", "seed": 0}).save(tmp_path / "bundle")
    value = eenet("run", tmp_path / "bundle", "split:test", "--json", "-q").value
    assert (value["engine"], value["num_samples"]) == ("eager", 500)
    turned = eenet("run", tmp_path / "bundle", "split:test", "--budget", "90%", "--json", "-q").value
    assert turned["mean_cost"] > value["mean_cost"]
    refused(eenet("run", tmp_path / "bundle", "split:test", "--policy", made / "policy"), "one too many")
    Bundle(**shared, info={"made": "by hand"}).save(tmp_path / "own")
    refused(eenet("run", tmp_path / "own", "split:test"), "Bundle.load")


def test_profile_feeds_compare(eenet, made, tmp_path):
    costs = tmp_path / "costs.json"
    ran = eenet("profile", made / "run", "--batch-size", "1,4", "--passes", 1, "--out", costs, "--json", "-q")
    assert [row["batch_size"] for row in ran.value["latency"]] == [1, 4]
    words = ("compare", made / "val.npz", made / "test.npz", "-p", "patience", "--costs", costs)
    value = eenet(*words, "--batch-size", 4, "--json").value
    assert (value["unit"], value["exits"][0]["cost"]) == ("ms", ran.value["latency"][1]["cumulative"][0])
    assert eenet(*words, "--batch-size", 5).code == 2


def test_a_budget_in_ms_holds_for_a_stated_engine_and_batch_size(eenet, made, tmp_path):
    costs, words = tmp_path / "costs.json", ("--batch-size", "1,4", "--passes", 2, "--policy", made / "policy", "-q")
    profile = eenet("profile", made / "run", *words, "--out", costs, "--json").value
    row, sizes = profile["latency"][1], profile["parameters"]
    assert sizes["up_to"] == [int(size) for size in exit_sizes(open_run(made / "run").model)["params"]]
    assert 0 < sizes["policy"] == policy_size(load_policy(made / "policy").policy)
    assert (row["engine"], row["dtype"], row["batch_size"], row["threads"]) == ("eager", "float32", 4, 1)
    middle = (row["cumulative"][0] + row["cumulative"][-1]) / 2
    choice = ("--costs", costs, "--batch-size", 4, "--engine", "eager", "--dtype", "float32")
    words = ("fit", made / "val.npz", "-p", "max_prob", *choice, "--out", tmp_path / "policy", "--json", "-q")
    value = eenet(*words, "--budget", f"{middle}ms").value
    assert (value["unit"], value["budget"]) == ("ms", pytest.approx(middle))
    assert row["cumulative"][0] <= value["fit_cost"] <= middle * (1 + 1e-9)
    kept = json.loads((tmp_path / "policy" / "policy.json").read_text())
    assert kept["costs"]["unit"] == "ms" and kept["costs"]["cumulative"] == row["cumulative"]
    assert eenet(*words, "--budget", f"{middle / 1e3}s").value["budget"] == pytest.approx(middle)


def test_profile_says_where_operations_mislead(eenet, made):
    words = ("profile", made / "run", "--batch-size", 1, "--passes", 1)
    assert eenet(*words, "--json", "-q").value[
        "notes"
    ]  # a tiny net at batch size 1: overhead counts, operations do not
    assert "% of the full operations" in eenet(*words).said


def test_bench_prints_the_json_of_the_contract(eenet, made):
    words = ("--batch-size", "1,8", "--passes", 1, "--samples", 16, "--engine", "eager", "--json", "-q")
    value = eenet("bench", made / "run", "--policy", made / "policy", *words).value
    assert [row["batch_size"] for row in value["rows"]] == [1, 8]
    keys = (
        "engine dtype full_ms adaptive_ms speedup ideal_speedup ideal_speedup_flops efficiency flips exit_distribution"
    )
    assert {"device", "threads"} <= set(value) and all(set(keys.split()) <= set(row) for row in value["rows"])


BAD = {
    "unknown recipe": (("train", "digits_tinny", "--out", "{new}"), "digits_tiny"),
    "no data root": (("train", "cifar10_resnet56_3", "--out", "{new}"), "--data-root"),
    "nowhere to download to": (("train", "cifar10_resnet56_3", "--download", "--out", "{new}"), "--data-root"),
    "no download": (
        ("train", "camvid-hrnet", "--download", "--data-root", "{new}", "--out", "{new}"),
        "data of recipe camvid-hrnet cannot be downloaded",
    ),
    "missing data": (("train", "cifar10_resnet56_3", "--data-root", "{made}", "--out", "{new}"), "cifar10"),
    "data root is no folder": (
        ("train", "digits_tiny", "--data-root", "{made}/val.npz", "--out", "{new}"),
        "--data-root",
    ),
    "no run": (("record", "{made}/policy", "--split", "val", "--out", "{new}"), "recipe.json"),
    "missing run": (("record", "{made}/nothing", "--split", "val", "--out", "{new}"), "nothing"),
    "unknown split": (("record", "{made}/run", "--split", "vall", "--out", "{new}"), "vall"),
    "record over something else": (("record", "{made}/run", "--split", "val", "--out", "{made}"), "--out"),
    "no policy": (("run", "{made}/run", "--policy", "{made}/run", "split:test"), "policy"),
    "missing input": (("run", "{made}/run", "--policy", "{made}/policy", "cat.png"), "cat.png"),
    "no image": (("run", "{made}/run", "--policy", "{made}/policy", "{made}/run/recipe.json"), "recipe.json"),
    "a table is no array": (("run", "{made}/run", "--policy", "{made}/policy", "{made}/val.npz"), "images"),
    "folder without images": (("run", "{made}/run", "--policy", "{made}/policy", "{made}/run"), "no image"),
    "odd rows file": (("run", "{made}/run", "--policy", "{made}/policy", "split:test", "--out", "{new}.txt"), ".csv"),
    "batch sizes": (("profile", "{made}/run", "--batch-size", "1,none"), "none"),
    "batch size 0": (("bench", "{made}/run", "--policy", "{made}/policy", "--batch-size", "0"), "--batch-size"),
    "batch too large": (("bench", "{made}/run", "--policy", "{made}/policy", "--batch-size", "501"), "501"),
    "unknown engine": (("bench", "{made}/run", "--policy", "{made}/policy", "--engine", "eagre"), "eager"),
    "unknown dtype": (("profile", "{made}/run", "--dtype", "bfloat"), "bfloat16"),
    "dtype not offered": (("profile", "{made}/run", "--engine", "compiled", "--dtype", "bfloat16"), "float32"),
    "policy to time": (("profile", "{made}/run", "--policy", "{made}/nothing"), "nothing"),
    "dtype without costs": (("fit", "{made}/val.npz", "-b", "60%", "--dtype", "float32", "--out", "{new}"), "--costs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_any_work(case, eenet, made, tmp_path):
    words, said = BAD[case]
    before = sorted(os.listdir(made))
    refused(eenet(*(word.format(made=made, new=tmp_path / "new") for word in words), "-q"), said)
    assert sorted(os.listdir(made)) == before and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3, 8, 8), np.float32),
        np.zeros((0, 1, 8, 8), np.float32),
        np.full((2, 1, 8, 8), np.nan, np.float32),
        np.full((2, 1, 8, 8), 16, np.float32),
        np.zeros((2, 1, 8, 8), np.int64),
        np.array([{}, {}], dtype=object),
    ],
)
def test_a_bad_array_is_refused(array, eenet, made, tmp_path):
    np.save(tmp_path / "x.npy", array)
    ran = eenet("run", made / "run", "-p", made / "policy", tmp_path / "x.npy", "--out", tmp_path / "rows.csv", "-q")
    refused(ran, "x.npy")
    assert os.listdir(tmp_path) == ["x.npy"]


@pytest.mark.parametrize("name", ["policy.json", "policy.safetensors"])
@pytest.mark.parametrize("harm", ["truncate", "remove", "change"])
def test_a_damaged_policy_is_refused(name, harm, eenet, made, tmp_path):
    for path in (made / "policy").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    if harm != "remove":
        (tmp_path / name).write_bytes(data[: len(data) // 2] if harm == "truncate" else data.replace(b"0", b"1"))
    ran = eenet("bench", made / "run", "--policy", tmp_path, "-q")
    assert (ran.code, ran.stdout) == (2, "") and ran.stderr.startswith("Error: ") and ran.stderr.count("\n") == 1


def test_a_policy_for_other_exits_is_refused(eenet, made, tmp_path):
    logits = table_arrays()["logits"][:, :2]
    np.savez(tmp_path / "two.npz", logits=logits, labels=np.zeros(200, int), costs=[1.0, 2.0], cost_unit="ms")
    assert eenet("fit", tmp_path / "two.npz", "-b", "1.5", "-p", "max_prob", "--out", tmp_path / "two").code == 0
    refused(eenet("run", made / "run", "--policy", tmp_path / "two", "split:test", "-q"), "2 exits")


def test_a_policy_for_other_classes_is_refused(eenet, made, tmp_path):
    np.savez(tmp_path / "four.npz", **table_arrays())
    assert eenet("fit", tmp_path / "four.npz", "-b", "60%", "-p", "max_prob", "--out", tmp_path / "four").code == 0
    for words in (("run", made / "run", "split:test"), ("bench", made / "run")):
        refused(eenet(*words, "--policy", tmp_path / "four", "-q"), "fitted for 4 classes, this run has 10")


def test_damaged_weights_are_refused(eenet, made, tmp_path):
    (tmp_path / "recipe.json").write_bytes((made / "run" / "recipe.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((made / "run" / "model.safetensors").read_bytes()[:1000])
    ran = eenet("record", tmp_path, "--split", "val", "--out", tmp_path / "val.npz", "-q")
    assert ran.code == 2 and ran.stderr.count("\n") == 1 and not (tmp_path / "val.npz").exists()


def shorten():
    """Train for 4 epochs only; also run by the other process of the next test."""
    from dataclasses import replace

    from eenet.experiments.recipes import RECIPES

    recipe = RECIPES["digits_tiny"]
    RECIPES["digits_tiny"] = replace(recipe, settings=replace(recipe.settings, epochs=4))


@pytest.mark.slow
def test_an_interrupted_training_says_how_to_go_on(tmp_path, monkeypatch):
    command = ["train", "digits_tiny", "--out", str(tmp_path / "run"), "--quiet"]
    code = f"{inspect.getsource(shorten)}shorten()\nfrom eenet.cli import main\nraise SystemExit(main({command!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "run" / "checkpoint.safetensors").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stdout == "" and "Traceback" not in stderr
    assert f"To go on: eenet train digits_tiny --out {tmp_path / 'run'} --seed 0" in stderr
    assert not (tmp_path / "run" / "model.safetensors").exists()
    monkeypatch.setitem(RECIPES, "digits_tiny", RECIPES["digits_tiny"])
    shorten()
    assert main(command) == 0
    assert (tmp_path / "run" / "model.safetensors").exists()

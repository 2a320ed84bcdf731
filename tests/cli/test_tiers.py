"""`eenet export --tier` and `--from`, and `eenet run` on what they write."""

import csv
import shutil
import sys

import exporting
import numpy as np
import pytest
from tests.cli.conftest import made_run, refused

from eenet.cli import main
from eenet.running import export

module = sys.modules[export.__module__]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a run of untrained weights and a policy, its export, both parts of it, and inputs."""
    exporting.need("onnxruntime")
    folder = made_run(tmp_path_factory.mktemp("tiers"), "digits_tiny", exporting.model().state_dict())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "stage_programs", lambda *_: exporting.programs())
        words = ["export", str(folder / "run"), "--policy", str(folder / "policy"), "--engine", "onnxruntime", "-q"]
        for name, more in (("whole", []), ("device", ["--tier", "0"]), ("server", ["--from", "0"])):
            assert main([*words, "--out", str(folder / name), *more]) == 0
    digits = exporting.digits()
    inputs = digits.inputs(slice(0, 200)).contiguous().numpy()
    np.savez(folder / "x.npz", inputs=inputs, labels=digits.labels[:200].numpy())
    return folder


def test_the_parts_answer_all_that_the_whole_answers(eenet, made, tmp_path):
    wanted = eenet("run", made / "whole", made / "x.npz", "--json", "-q").value["samples"]
    words = ("--json", "-q", "--batch-size", 40)
    left = eenet("run", made / "device", made / "x.npz", "--state-out", tmp_path / "states", *words).value
    rest = eenet("run", made / "server", "--state", tmp_path / "states", *words).value
    assert len(left["samples"]) + left["going_on"] == 200 and left["going_on"] == len(rest["samples"]) > 0
    assert left["sent_bytes"] == sum(file.stat().st_size for file in (tmp_path / "states").iterdir())
    assert left["num_labelled"] == len(left["samples"]) and rest["going_on"] == 0
    found = {one["sample"]: one for one in (*left["samples"], *rest["samples"])}
    assert sorted(found) == [*range(200)]
    same = [found[one["sample"]]["exit"] == one["exit"] for one in wanted]
    assert sum(same) >= 199  # the whole ran in other batches
    assert [found[i]["class"] for i, kept in enumerate(same) if kept] == [
        one["class"] for one, kept in zip(wanted, same, strict=True) if kept
    ]


def test_rows_say_where_samples_go_on(eenet, made, tmp_path):
    words = ("--state-out", tmp_path / "states", "--out", tmp_path / "rows.csv", "--compress", "int8")
    ran = eenet("run", made / "device", made / "x.npz", *words, "-q")
    assert ran.code == 0 and "samples go on, in" in ran.said
    rows = list(csv.DictReader((tmp_path / "rows.csv").read_text().splitlines()))
    assert {row["exit"] for row in rows} == {"0"} and rows[0]["input"].startswith("x.npz:")
    assert eenet("run", made / "device", made / "x.npz", "--state-out", tmp_path / "states", "-q").code == 0  # again


def test_the_parts_have_their_own_stages_only(made):
    for name, stages in (("whole", [0, 1, 2]), ("device", [0]), ("server", [1, 2])):
        assert sorted(path.name for path in (made / name).glob("stage_*")) == [f"stage_{k}.onnx" for k in stages]


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("{made}/device", "{made}/x.npz"), ("--state-out", "stages 0 to 0 of 3")),
        (("{made}/device", "--state", "{made}", "--state-out", "{new}/s"), ("needs INPUTS", "stages 0 to 0 of 3")),
        (("{made}/device", "{made}/x.npz", "--state-out", "{new}/s", "-b", "50%"), ("--budget", "same policy")),
        (
            ("{made}/device", "{made}/x.npz", "--state-out", "{new}/s", "--compress", "zip"),
            ("'zip'", "float16"),
        ),
        (("{made}/device", "{made}/x.npz", "--state-out", "{made}"), ("--state-out", "other things")),
        (("{made}/server", "{made}/x.npz"), ("needs --state", "stages 1 to 2 of 3")),
        (("{made}/server", "--state", "{made}/policy"), ("no states",)),
        (("{made}/server", "--state", "{new}/none"), ("--state", "does not exist")),
        (("{made}/whole", "{made}/x.npz", "--state-out", "{new}/s"), ("--state-out", "all stages")),
        (("{made}/whole",), ("INPUTS", "missing")),
    ],
)
def test_words_that_do_not_fit_a_tier_are_refused(eenet, made, tmp_path, words, facts):
    refused(eenet("run", *(word.format(made=made, new=tmp_path) for word in words), "-q"), *facts)
    assert not (tmp_path / "s").exists()


def test_a_copy_of_a_state_is_refused(eenet, made, tmp_path):
    states = tmp_path / "states"
    assert eenet("run", made / "device", made / "x.npz", "--state-out", states, "-q").code == 0
    first = min(states.iterdir())
    (states / "batch_0 copy.safetensors").write_bytes(first.read_bytes())
    result = eenet("run", made / "server", "--state", states, "--out", tmp_path / "rest.csv", "-q")
    assert result.code == 2
    assert "twice" in result.stderr
    assert not (tmp_path / "rest.csv").exists()


def test_damaged_states_are_refused(eenet, made, tmp_path):
    assert eenet("run", made / "device", made / "x.npz", "--state-out", tmp_path / "s", "-q").code == 0
    first = min((tmp_path / "s").iterdir())
    first.write_bytes(first.read_bytes()[:-1])
    refused(eenet("run", made / "server", "--state", tmp_path / "s", "-q"), "cannot be read")
    shutil.copy(made / "policy" / "policy.safetensors", first)
    refused(eenet("run", made / "server", "--state", tmp_path / "s", "-q"), "something else")


@pytest.mark.parametrize("more", [("--tier", "3"), ("--tier", "2"), ("--from", "2"), ("--from", "1", "--tier", "1")])
def test_stages_that_are_not_there_are_refused(eenet, made, tmp_path, more):
    words = ("export", made / "run", "-p", made / "policy", "--engine", "onnxruntime", "-o", tmp_path / "out", "-q")
    refused(eenet(*words, *more), "of 3 exits")
    assert not (tmp_path / "out").exists()

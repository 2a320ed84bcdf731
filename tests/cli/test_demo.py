"""The main job from end to end; the command itself is the test."""

import json

import pytest


@pytest.mark.slow
def test_the_demo_trains_fits_compares_and_really_stops_early(eenet, tmp_path):
    ran = eenet("demo", "--out", tmp_path / "demo", "--json")
    assert ran.code == 0, ran.stderr
    value, real = ran.value, ran.value["run"]
    assert real["same_exit"] == real["num_samples"] == 500
    assert real["mean_cost"] < 0.6 * real["full_cost"] and real["accuracy"] > real["full_accuracy"] - 0.03
    assert value["bench"]["rows"] and value["comparison"]["rows"]
    for name in ("run/model.safetensors", "val.npz", "policy/policy.json", "utility_cost.png", "report.html"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert json.loads((tmp_path / "demo" / "costs.json").read_text())["latency"]


def test_the_demo_refuses_a_file_as_its_folder(eenet, tmp_path):
    (tmp_path / "file").write_text("mine")
    ran = eenet("demo", "--out", tmp_path / "file")
    assert (ran.code, ran.stdout) == (2, "") and ran.stderr.startswith("Error: --out")

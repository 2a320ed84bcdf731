"""The main job from end to end; the command itself is the test."""

import json

import pytest


@pytest.mark.slow
def test_the_demo_trains_fits_compares_and_really_stops_early(eenet, tmp_path):
    ran = eenet("demo", "--out", tmp_path / "demo", "--json")
    assert ran.code == 0, ran.stderr
    value, real, saved = ran.value, ran.value["run"], ran.value["saving"]
    assert real["same_exit"] >= 0.999 * real["num_samples"] and real["num_samples"] == 2000
    assert real["mean_cost"] < 0.35 * real["full_cost"] and real["accuracy"] > real["full_accuracy"] - 0.02
    assert saved["pays"] and saved["lost"] < saved["static_lost"] - 0.5  # points: exits differ, policies pay
    rows = {str(row["batch_size"]): row["speedup"] for row in value["bench"]["rows"]}
    assert saved["speedups"] == rows and max(rows.values()) > 1.2
    assert f"{max(rows.values()):.1f}x" in saved["sentence"] and " at batch 1 (" in saved["sentence"]
    assert value["bench"]["rows"] and value["comparison"]["rows"]
    for name in ("run/model.safetensors", "val.npz", "policy/policy.json", "comparison.json", "report.html"):
        assert (tmp_path / "demo" / name).stat().st_size > 0
    assert json.loads((tmp_path / "demo" / "costs.json").read_text())["latency"]
    page = (tmp_path / "demo" / "report.html").read_text()
    assert value["saving"]["sentence"] in page and "data-exits=" in page


def test_the_demo_refuses_a_file_as_its_folder(eenet, tmp_path):
    (tmp_path / "file").write_text("mine")
    ran = eenet("demo", "--out", tmp_path / "file")
    assert (ran.code, ran.stdout) == (2, "") and ran.stderr.startswith("Error: --out")

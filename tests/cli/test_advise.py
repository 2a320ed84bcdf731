"""`eenet advise`: a verdict from one table, with what a profile knows about heads."""

import json
import os

import numpy as np
import pytest
from tests.cli.conftest import made_run, refused

from eenet.models import exit_sizes

KEYS = (
    "pays verdict reasons kept dropped cumulative unit reference frontier statics rows difference low high saving "
    "static_saving num_samples notes"
)


def profile(stages: list[float], heads: list[float]) -> dict[str, object]:
    """What `eenet profile` writes, with operations only."""
    steps = np.cumsum(np.array(stages) + np.array(heads))
    flops = {
        "cumulative": steps.tolist(),
        "unit": "FLOPs",
        "reference": sum(stages) + heads[-1],
        "start": 0.0,
        "stages": stages,
        "heads": heads,
        "uncounted": [],
    }
    return {"format": "eenet profile", "version": 1, "flops": flops, "latency": []}


def test_advice_is_printed_as_json_and_written(eenet, write_table, tmp_path):
    out = tmp_path / "advice.json"
    ran = eenet("advise", write_table(), "-b", "60%", "-b", "3", "--out", out, "--json", "-q")
    assert ran.code == 0 and ran.stderr == ""
    value = ran.value
    assert set(value) == set(KEYS.split())
    assert [row["budget_input"] for row in value["rows"]] == ["60%", "3"]
    assert [row["budget"] for row in value["rows"]] == pytest.approx([2.1, 3.0])
    assert value["kept"][-1] == 2 and sorted(value["kept"] + value["dropped"]) == [0, 1, 2]
    assert (value["unit"], value["num_samples"]) == ("ms", 200)
    assert json.loads(out.read_text()) == value


def test_the_verdict_comes_first_and_says_how_to_drop_exits(eenet, write_table, tmp_path, monkeypatch):
    costs = tmp_path / "costs.json"
    costs.write_text(json.dumps(profile([1e6, 1e5, 1e6], [1e3, 1e7, 1e3])))
    monkeypatch.setenv("COLUMNS", "2000")
    ran = eenet("advise", write_table(samples=400), "--costs", costs, "-q")
    first, second = ran.stdout.splitlines()[:2]
    assert first.startswith("Early exit ") and first.endswith(".")
    assert "does not pay" in first  # so that nobody is told to keep exits
    assert second == "If you want exits all the same: keep 0, 2; drop 1: eenet fit --exits 0,2, or model.without([1])."
    assert "MFLOPs" in ran.stdout and "Note:" not in ran.stdout  # all is known


def test_models_to_compare_with_are_read_from_words_and_files(eenet, write_table, tmp_path):
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_text('{"cost": 2000, "unit": "us", "utility": 0.8}')
    two.write_text('[{"name": "a", "cost": 1, "utility": "70%"}, {"cost": 2, "utility": 0.9}]')
    words = ("--static", "1.5ms:0.75", "--static", "10%:50%", "--static", one, "--static", two)
    value = eenet("advise", write_table(), "-b", "60%", *words, "--json", "-q").value
    found = {model["name"]: (model["cost"], model["utility"]) for model in value["statics"][3:]}
    wanted = {
        "1.5ms:0.75": (1.5, 0.75),
        "10%:50%": (0.35, 0.5),
        "one": (2.0, 0.8),
        "a": (1.0, 0.7),
        "two 1": (2.0, 0.9),
    }
    assert {name: pytest.approx(both) for name, both in wanted.items()} == found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--static", "0.93"), "--static '0.93' is no model"),
        (("--static", "2ms:good"), "'good' is no utility"),
        (("--static", "2parsecs:0.9"), "unit"),
        (("--static", "2:93"), "from 0 to 1"),
        (("--static", "none.json"), "none.json"),
        (("--static", "{folder}/empty.json"), "lacks 'cost' or 'utility'"),
        (("-b", "1%"), "out of reach"),
        (("--batch-size", "1"), "--costs"),
        (("--out", "{folder}"), "--out"),
    ],
)
def test_bad_input_is_refused(words, said, eenet, write_table, tmp_path):
    (tmp_path / "empty.json").write_text("{}")
    before = sorted(os.listdir(tmp_path))
    refused(eenet("advise", write_table(), *(word.format(folder=tmp_path) for word in words), "-q"), said)
    assert sorted(os.listdir(tmp_path)) == sorted([*before, "val.npz"])


def test_few_samples_are_noticed_and_too_few_refused(eenet, write_table):
    ran = eenet("advise", write_table(samples=30), "-q")
    assert ran.code == 0 and ran.stdout
    refused(eenet("advise", write_table(samples=3), "-q"), "3 samples is too small")


def test_capacities_name_the_exits_that_fit(eenet, write_table, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")
    words = (
        "advise",
        write_table(),
        "--capacity",
        "1ms",
        "--capacity",
        "2100us",
        "--capacity",
        "1s",
    )  # exits 1, 2, 3.5
    value = eenet(*words, "--json", "-q").value
    assert [(one["capacity"], one["exit"], one["takes"]) for one in value["tiers"]] == [
        ("1ms", 0, "1 ms"),
        ("2100us", 1, "2 ms"),
        ("1s", 2, "4 ms"),
    ]
    assert "Tier 1 (2100us) ends at exit 1: up to there the model takes 2 ms." in eenet(*words, "-q").stdout
    refused(eenet("advise", write_table(), "--capacity", "1MB", "-q"), "'1MB'", "ms are known", "of a run")
    refused(eenet("advise", write_table(), "--capacity", "2ms", "--capacity", "1ms", "-q"), "do not rise")
    refused(eenet("advise", write_table(), "--capacity", "huge", "-q"), "'huge'")


def test_sizes_come_from_the_run(eenet, tmp_path):
    exporting = pytest.importorskip("exporting")
    made_run(tmp_path, "digits_tiny", exporting.model().state_dict())
    sizes = exit_sizes(exporting.model())
    words = ("advise", tmp_path / "val.npz", "--run", tmp_path / "run", "--json", "-q")
    value = eenet(
        *words, "--capacity", f"{sizes['bytes'][0]:.0f}B", "--capacity", f"{sizes['params'][1]:.0f} params"
    ).value
    assert [one["exit"] for one in value["tiers"]] == [0, 1]
    assert sizes["params"][-1] == sum(one.numel() for one in exporting.model().parameters())
    small = eenet(*words, "--capacity", f"{sizes['bytes'][0] - 1:.0f}B").value["tiers"][0]
    assert small["exit"] is None and "holds no exit" in small["verdict"]
    refused(eenet(*words), "--capacity")

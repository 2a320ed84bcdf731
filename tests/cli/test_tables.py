"""`eenet fit` and `eenet compare` on good tables."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tests.cli.conftest import refused

from eenet.policies import load_policy, replay
from eenet.tables.table import ExitTable

ROW_KEYS = {
    "policy",
    "budget",
    "budget_input",
    "val_cost",
    "test_cost",
    "test_utility",
    "utility_at_budget",
    "exit_distribution",
    "fit_seconds",
}
QUICK = ("--policy", "max_prob", "--policy", "patience")


@pytest.fixture
def tables(write_table):
    return write_table("val.npz", seed=1), write_table("test.npz", seed=2)


def test_compare_prints_the_json_of_the_contract(eenet, tables):
    ran = eenet("compare", *tables, "--budget", "60%", "--budget", "2.5ms", *QUICK, "--json", "--quiet")
    assert (ran.code, ran.stderr) == (0, "")
    value = ran.value
    assert {"unit", "reference", "n_val", "n_test", "splits", "exits", "rows", "area", "pairs"} <= set(value)
    assert (value["unit"], value["reference"], value["n_val"], value["splits"]) == ("ms", 3.5, 200, 1)
    assert [exit_["cost"] for exit_ in value["exits"]] == [1, 2, 4]
    assert set(value["area"]) == {"max_prob", "patience", "random", "oracle"}
    assert {(row["policy"], row["budget_input"]) for row in value["rows"]} == {
        (policy, budget) for policy in value["area"] for budget in ("60%", "2.5ms")
    }
    for row in value["rows"]:
        assert set(row) >= ROW_KEYS and sum(row["exit_distribution"]) == pytest.approx(1)
        assert row["budget"] == pytest.approx(2.1 if row["budget_input"] == "60%" else 2.5)


def test_compare_by_default_leaves_out_the_published_form_only(eenet, tables):
    area = eenet("compare", *tables, "-b", "60%", "--json").value["area"]
    names = {"auto", "stopping", "eenet", "eenet_paper", "max_prob", "certainty", "margin", "joint", "patience", "vote"}
    assert set(area) == names | {"pcee", "eero", "ztw", "max_prob+ensemble", "joint+ensemble", "random", "oracle"}


def test_compare_holds_policies_to_what_pays_on_request(eenet, tables):
    free, held = (eenet("compare", *tables, *QUICK, *more, "--json").value for more in ((), ("--cap",)))
    assert set(free["area"]) == set(held["area"])
    costs = [[row["val_cost"] for row in value["rows"]] for value in (free, held)]
    assert all(after <= before + 1e-9 for before, after in zip(*costs, strict=True))
    assert any("spends at most" in note for note in held["notes"]) == (costs[0] != costs[1])


@pytest.mark.usefixtures("few_policies")
def test_compare_by_default_leaves_out_what_a_utility_of_ones_own_does_not_suit(eenet, write_table):
    worth = np.random.default_rng(0).uniform(size=(200, 3))
    sides = (write_table(f"{name}.npz", seed=seed, utility=worth) for seed, name in enumerate(("val", "test")))
    ran = eenet("compare", *sides, "-b", "60%", "--json")
    assert ran.code == 0 and "ztw" not in ran.value["area"] and "ztw is left out" in ran.stderr


def test_features_with_costs_per_sample_go_through_all_commands(eenet, tmp_path):
    for name, seed in (("val", 0), ("test", 1)):
        rng = np.random.default_rng(seed)
        score, steps = rng.normal(size=(200, 3, 1)), rng.uniform(1e6, 2e6, size=(200, 3))
        costs = {"costs": np.cumsum(steps, axis=1), "cost_unit": "FLOPs"}
        arrays = {"features": score, "feature_names": np.array(["score"]), "utility": 1 / (1 + np.exp(-score[..., 0]))}
        np.savez(tmp_path / f"{name}.npz", **arrays, **costs)
    val, test = tmp_path / "val.npz", tmp_path / "test.npz"
    ran = eenet("compare", val, test, "-b", "60%", "--json")
    assert ran.value["unit"] == "MFLOPs" and {"auto", "stopping", "eenet", "oracle"} <= set(ran.value["area"])
    assert "joint is left out: the table has no feature 'max_prob'" in ran.stderr
    value = eenet("fit", val, "-b", "60%", "-p", "stopping", "--out", tmp_path / "policy", "--json").value
    assert value["fit_cost"] <= value["budget"] * (1 + 1e-9) and "num_classes" not in value
    assert eenet("advise", val, "--confidence", "score", "--json").value["unit"] == "MFLOPs"
    area = eenet("compare", val, test, "-b", "60%", "--confidence", "score", "--json").value["area"]
    assert {"geometric", "joint", "pcee", "eero", "stopping"} <= set(area) and "max_prob" not in area
    words = ("fit", val, "-b", "60%", "--out", tmp_path / "by_score", "--json")
    value = eenet(*words, "-p", "geometric", "--confidence", "score").value
    assert (value["policy"], value["confidence"]) == ("geometric", "score")
    refused(
        eenet(*words, "-p", "stopping", "--confidence", "score"), "--confidence 'score' has no meaning for stopping"
    )
    refused(eenet("compare", val, test, "-p", "margin", "--confidence", "score"), "--confidence 'score'")
    refused(eenet(*words, "-p", "joint", "--confidence", "scores"), "scores")
    ran = eenet("fit", val, "-b", "60%", "--deadline", "80%", "-p", "stopping", "--out", tmp_path / "policy")
    refused(ran, "deadline")


def test_operations_are_asked_for_in_the_same_unit_everywhere(eenet, write_table, tmp_path):
    costs = {"costs": np.array([1e6, 2e6, 4e6]), "cost_unit": "FLOPs", "cost_reference": None}
    val, test = (write_table(f"{name}.npz", seed=seed, **costs) for seed, name in enumerate(("val", "test")))
    said = eenet("fit", val, "-b", "2.5", "-p", "max_prob", "--out", tmp_path / "policy", "--json").value
    assert (said["unit"], said["budget"]) == ("MFLOPs", 2.5)
    for words in (("compare", val, test, "-p", "max_prob"), ("advise", val)):
        value = eenet(*words, "-b", "2.5", "--json").value
        assert (value["unit"], {row["budget"] for row in value["rows"]}) == ("MFLOPs", {2.5})


def test_compare_without_a_budget_shows_the_standard_ones(eenet, tables):
    rows = eenet("compare", *tables, "-p", "max_prob", "--json").value["rows"]
    assert len({row["budget"] for row in rows}) == 10


def test_tables_of_two_models_need_force(eenet, tables):
    for path, source in zip(tables, ("abc", "abd"), strict=True):
        replace(ExitTable.load(path), source=source).save(path)
    words = ("compare", *tables, "-b", "60%", "-p", "max_prob", "--json")
    refused(eenet(*words), "source", "abc", "abd", "--force")
    assert eenet(*words, "--force").value["n_test"] == 200


def test_splits_give_deviations(eenet, tables):
    value = eenet("compare", *tables, "-b", "60%", "-p", "max_prob", "--splits", "3", "--json").value
    assert value["splits"] == 3 and all("sd" in row for row in value["rows"])


def test_the_same_seed_gives_the_same_numbers(eenet, tables):
    def numbers(seed: int) -> list[float]:
        words = ("-b", "60%", "-p", "stopping", "--splits", "2", "--seed", seed, "--json")
        return [row["test_utility"] for row in eenet("compare", *tables, *words).value["rows"]]

    assert numbers(3) == numbers(3)


def test_compare_shows_tables_and_writes_a_folder(eenet, tables, tmp_path):
    ran = eenet("compare", *tables, "-b", "60%", *QUICK, "--out", tmp_path / "a" / "b")
    assert ran.code == 0 and "max_prob at 60%: " in ran.said and "of the ms saved" in ran.said
    assert "Asked and realised" not in ran.stdout  # the long list is what --all is for
    assert "60% of the original model without exits = 2.1 ms" in ran.stderr
    written = {path.name for path in (tmp_path / "a" / "b").iterdir()}
    assert written == {"comparison.json", "report.html"}
    value = json.loads((tmp_path / "a" / "b" / "comparison.json").read_text())
    assert set(value["rows"][0]) >= ROW_KEYS


def test_compare_says_first_that_both_tables_are_one(eenet, tables):
    ran = eenet("compare", tables[0], tables[0], "-b", "60%", *QUICK)
    assert ran.stdout.split()[:8] == ["VAL", "and", "TEST", "are", "the", "same", "data:", "these"]
    assert eenet("compare", tables[0], tables[0], "-b", "60%", *QUICK, "--json").value["same_data"] is True
    assert eenet("compare", *tables, "-b", "60%", *QUICK, "--json").value["same_data"] is False


@pytest.mark.parametrize("splits", [1, 2])
def test_compare_prints_costs_asked_and_realised_differences_and_who_pays(eenet, tables, splits, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    words = ("compare", *tables, "-b", "60%", *QUICK, "-p", "margin", "--splits", splits, "--quiet", "--all")
    shown, value = eenet(*words).stdout, eenet(*words, "--json").value
    for heading in ("asked [ms]", "val cost [ms]", "test cost [ms]", "fit [s]", "95 % interval", "significant"):
        assert heading in shown
    for pair in value["pairs"]:
        sign = -1 if pair["b"] == value["family"]["policy"] else 1
        low, high = sorted((sign * pair["low"], sign * pair["high"]))
        assert f"{sign * pair['difference']:+.2f}" in shown and f"{low:+.2f} to {high:+.2f}" in shown
    assert value["pairs"][0]["method"] in shown and ("±" in shown) == (splits > 1)
    assert "hardest hit" in shown and "class " in shown
    for entry in value["groups"]:
        assert any(line.split()[:3] == [entry["policy"], "60%", f"{entry['loss']:.2f}"] for line in shown.splitlines())


def test_groups_come_from_a_file(eenet, tables, tmp_path):
    words = ("compare", *tables, "-b", "60%", "-p", "max_prob")
    (tmp_path / "groups.csv").write_text("night\nday\n" * 100)
    np.save(tmp_path / "groups.npy", np.arange(200) % 2)
    by_name = eenet(*words, "--groups", tmp_path / "groups.csv", "--json").value["groups"]
    by_number = eenet(*words, "--groups", tmp_path / "groups.npy", "--json").value["groups"]
    assert [entry["by"] for entry in by_name] == ["class", "group"]
    assert {group["name"] for group in by_name[1]["groups"]} == {"night", "day"}
    losses = [sorted(group["loss"] for group in found[1]["groups"]) for found in (by_name, by_number)]
    assert losses[0] == losses[1]
    ran = eenet(*words, "--groups", tmp_path / "groups.csv", "--out", tmp_path / "out")
    assert "group night" in ran.stdout or "group day" in ran.stdout
    assert f"--groups {tmp_path / 'groups.csv'}" in (tmp_path / "out" / "report.html").read_text()


def test_groups_that_do_not_fit_are_refused_before_any_work(eenet, tables, tmp_path):
    cases = {
        "short": ("a\nb\n", (), "200 samples"),
        "wide": ("a,b\n" * 200, (), "several values in line 1"),
        "gap": ("a\n\nb\n", (), "nothing in line 2"),
        "splits": ("a\n" * 200, ("--splits", 2), "groups with splits 2"),
        "bytes": ("", (), "cannot be read"),
    }
    for name, (content, words, said) in cases.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes(content.encode() or b"\xff\xfe\x00")
        ran = eenet("compare", *tables, "-b", "60%", "-p", "max_prob", "--groups", path, *words, "--quiet")
        assert ran.code == 2 and said in ran.stderr and ran.stderr.count("\n") == 1, name
    np.save(tmp_path / "objects.npy", np.array([{}, None], dtype=object), allow_pickle=True)
    assert eenet("compare", *tables, "--groups", tmp_path / "objects.npy").code == 2
    assert eenet("compare", *tables, "--groups", tmp_path / "missing.npy").code == 2


def test_naming_a_bound_is_allowed(eenet, tables):
    value = eenet("compare", *tables, "-b", "60%", "-p", "random", "-p", "max_prob", "--json").value
    assert set(value["area"]) == {"max_prob", "random", "oracle"}


def test_costs_from_a_file_replace_those_of_the_tables(eenet, write_table, tmp_path):
    val, test = write_table("val.npz", costs=None), write_table("test.npz", costs=np.array([1.0, 2.0, 3.0]))
    costs = {"cumulative": [10, 30, 50], "unit": "MFLOPs", "reference": None}
    (tmp_path / "costs.json").write_text(json.dumps(costs))
    ran = eenet("compare", val, test, "-b", "60%", "-p", "max_prob", "--costs", tmp_path / "costs.json", "--json")
    assert (ran.value["unit"], ran.value["rows"][0]["budget"]) == ("MFLOPs", 30)
    assert "60% of the last exit = 30 MFLOPs" in ran.stderr


def test_fit_writes_a_policy_that_meets_its_budget(eenet, tables, tmp_path):
    ran = eenet("fit", tables[0], "--budget", "60%", "--policy", "max_prob", "--out", tmp_path / "policy", "--json")
    assert ran.code == 0 and "60% of the original model without exits = 2.1 ms" in ran.stderr
    saved = load_policy(tmp_path / "policy")
    assert saved.costs is not None and saved.costs.cumulative == (1, 2, 4)
    assert (saved.info["policy"], saved.info["budget"]) == ("max_prob", pytest.approx(2.1))
    assert ran.value["fit_cost"] == pytest.approx(2.1, rel=1e-3)
    assert replay(saved.policy, ExitTable.load(tables[0])).mean_cost == pytest.approx(2.1, rel=0.05)


def test_fit_on_some_exits_takes_the_heads_of_the_others_off_the_costs(eenet, write_table, tmp_path):
    table = write_table()
    record = {"cumulative": [2, 4, 6], "unit": "FLOPs", "reference": 4, "start": 0, "stages": [1, 1, 1]}
    profile = {"format": "eenet profile", "version": 1, "flops": record | {"heads": [1, 1, 1]}, "latency": []}
    (tmp_path / "costs.json").write_text(json.dumps(profile))
    (tmp_path / "advice.json").write_text(json.dumps({"kept": [1, 2]}))
    words = ("fit", table, "-b", "90%", "-p", "max_prob", "--out", tmp_path / "policy", "-q")
    for exits, costs, expected in (
        ("1", (), (2, 4)),
        ("1,2", ("--costs", tmp_path / "costs.json"), (3, 5)),
        (tmp_path / "advice.json", ("--costs", tmp_path / "costs.json"), (3, 5)),
    ):
        assert eenet(*words, "--exits", exits, *costs).code == 0
        saved = load_policy(tmp_path / "policy")
        assert saved.exits == (1, 2) and saved.costs is not None and saved.costs.cumulative == expected
        assert saved.policy.num_exits == 2


@pytest.mark.parametrize("exits", ["2", "7", "a", "", "-1", "0;1"])
def test_exits_that_a_table_does_not_have_are_refused(eenet, write_table, tmp_path, exits):
    ran = eenet("fit", write_table(), "-b", "90%", "--out", tmp_path / "policy", f"--exits={exits}")
    assert ran.code == 2 and "they are 0 to 1. Name some" in ran.stderr and not (tmp_path / "policy").exists()


def test_fit_replaces_an_older_policy(eenet, tables, tmp_path):
    for budget in ("60%", "80%"):
        ran = eenet("fit", tables[0], "-b", budget, "-p", "patience", "--out", tmp_path / "policy", "--quiet")
        assert (ran.code, ran.stderr) == (0, "") and "utility on the samples fitted on (optimistic)" in ran.said
    assert load_policy(tmp_path / "policy").info["budget_input"] == "80%"


def test_fit_with_a_guarantee_prints_and_keeps_the_certificate(eenet, write_table, tmp_path):
    words = ("fit", write_table(samples=2000), "--budget", "60%", "--policy", "max_prob", "--out", tmp_path / "policy")
    ran = eenet(*words, "--guarantee", "budget", "--delta", "0.05", "--json")
    said = ran.value["certificate"]
    assert (said["guarantee"], said["delta"], said["epsilon"], said["fell_back"]) == ("budget", 0.05, None, False)
    assert said["budget"] == pytest.approx(2.1) and said["mean_cost"] < said["bound"] <= 2.1
    assert (said["n_fit"], said["n_certify"]) == (1000, 1000) and abs(said["utility_lost"]) < 0.1
    assert "at most 2.1 ms" in said["statement"] and "same distribution as the calibration set" in said["statement"]
    assert load_policy(tmp_path / "policy").info["certificate"] == said
    shown = eenet(*words, "--guarantee", "budget").said
    assert "mean cost, at most: asked for 2.1 ms" in shown and "mean cost, at most: bound reached" in shown
    assert "With confidence 90 % (delta 0.1), the mean cost per sample is at most 2.1 ms." in shown


def test_exits_that_know_nothing_are_noticed_when_a_policy_is_fitted(eenet, write_table, tmp_path):
    rng = np.random.default_rng(0)
    words = ("-b", "60%", "-p", "max_prob", "--out", tmp_path / "policy", "-q")
    noise = rng.normal(size=(200, 3, 4)).astype(np.float32)
    assert "Warning: early exits know hardly anything" in eenet("fit", write_table(logits=noise), *words).said
    assert "Warning" not in eenet("fit", write_table(), *words).said


def test_a_budget_below_measured_times_is_refused_as_such(eenet, write_table, tmp_path):
    row = {"cumulative": [3.0, 4.0, 5.0], "unit": "ms", "reference": 4.0, "engine": "eager", "batch_size": 1}
    flops = {"cumulative": [1.0, 2.0, 4.0], "unit": "FLOPs", "reference": 4.0}
    profile = {"format": "eenet profile", "version": 1, "flops": flops, "latency": [row]}
    (tmp_path / "costs.json").write_text(json.dumps(profile))
    words = ("-b", "60%", "--costs", tmp_path / "costs.json")
    for command in (("fit", write_table(), "--out", tmp_path / "policy"), ("advise", write_table())):
        refused(eenet(*command, *words, "--batch-size", "1"), "out of reach", "measured", "costs.json", "Profile again")
    assert eenet("fit", write_table(), "--out", tmp_path / "policy", "-p", "max_prob", *words).code == 0


def test_fit_can_promise_accuracy_without_a_budget(eenet, write_table, tmp_path):
    words = ("fit", write_table(samples=2000), "-p", "joint", "--guarantee", "accuracy", "--out", tmp_path / "policy")
    value = eenet(*words, "--epsilon", "0.05", "--json").value
    said = value["certificate"]
    assert (value["budget"], said["budget"], said["epsilon"]) == (None, None, 0.05) and said["bound"] <= 0.05
    assert "at most 5 percentage points below the full model's" in said["statement"]
    bounded = eenet(*words, "--epsilon", "0.05", "--budget", "3.5ms", "--json").value["certificate"]
    assert bounded["budget"] == 3.5 and bounded["mean_cost"] > said["mean_cost"]
    shown = eenet(*words, "--epsilon", "0.05").said
    assert "loss of utility, at most: asked for 5 percentage points" in shown
    assert f"bound reached {100 * said['bound']:.3g} percentage points" in shown
    assert "-" not in shown.split("against no guarantee")[1].split("points")[0]  # gained or lost, not minus


@pytest.mark.parametrize("extra", [(), ("--guarantee", "budget"), ("--guarantee", "accuracy", "--epsilon", "0.5")])
def test_fit_under_a_deadline(extra, eenet, write_table, tmp_path):
    words = ("fit", write_table(), "-b", "1.5", "-p", "max_prob", "--deadline", "2.5ms", "--out", tmp_path / "policy")
    ran = eenet(*words, *extra, "--json")
    assert ran.code == 0 and "Deadline of every sample: 2.5 ms." in ran.stderr
    assert (ran.value["deadline"], ran.value["deadline_input"]) == (2.5, "2.5ms")
    saved = load_policy(tmp_path / "policy")
    assert replay(saved.policy, ExitTable.load(write_table("test.npz", seed=5))).cost.max() == 2
    assert saved.info["deadline_meaning"] == "2.5 ms"
    assert "deadline of every sample" in eenet(*words, *extra, "--quiet").stdout


def test_the_default_policy_can_be_saved_under_a_deadline(eenet, tables, tmp_path):
    ran = eenet("fit", tables[0], "-b", "50%", "--deadline", "2ms", "--out", tmp_path / "policy", "--quiet")
    assert ran.code == 0
    assert replay(load_policy(tmp_path / "policy").policy, ExitTable.load(tables[1])).cost.max() == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "--budget is missing: only --guarantee accuracy goes without one"),
        (("--guarantee", "budget"), "budget is missing"),
        (("--guarantee", "speed"), "guarantee 'speed' is unknown"),
        (
            ("-b", "60%", "--guarantee", "budget", "--delta", "0"),
            "delta 0 cannot be used: a finite number above 0 and below 1",
        ),
        (("-b", "60%", "--guarantee", "budget", "--delta", "1.5"), "delta 1.5 cannot be used"),
        (("--guarantee", "accuracy", "--epsilon", "0"), "epsilon 0 cannot be used"),
        (("-b", "60%", "--delta", "0.2"), "--delta 0.2 has no meaning"),
        (("-b", "60%", "--epsilon", "0.2"), "--epsilon 0.2 has no meaning"),
        (("-b", "60%", "--guarantee", "budget", "--epsilon", "0.2"), "--epsilon 0.2 has no meaning"),
        (("-b", "60%", "--deadline", "0.5"), "deadline 0.5 ms per sample is out of reach"),
        (("-b", "60%", "--deadline", "soon"), "deadline 'soon' is no cost per sample"),
        (("-b", "0.5", "--guarantee", "accuracy"), "budget 0.5 ms per sample is out of reach"),
    ],
    ids=" ".join,
)
def test_a_promise_that_makes_no_sense_is_refused(words, said, eenet, tables, tmp_path):
    ran = eenet("fit", tables[0], *words, "--out", tmp_path / "new", "--quiet")
    assert (ran.code, ran.stdout, ran.stderr.count("\n")) == (2, "", 1)
    assert said in ran.stderr and not (tmp_path / "new").exists()


def test_a_promise_needs_samples_and_must_be_possible(eenet, write_table, tmp_path):
    words = ("-p", "max_prob", "--guarantee", "accuracy", "--out", tmp_path / "new", "--quiet")
    ran = eenet("fit", write_table("few.npz", samples=99), *words)
    refused(ran, "table of 99 samples is too small for a promise")
    ran = eenet("fit", write_table(), *words, "--deadline", "2ms")
    assert ran.code == 1 and "epsilon 0.01 cannot be promised within the deadline" in ran.stderr
    assert not (tmp_path / "new").exists()


def test_report_makes_a_page_of_what_compare_wrote(eenet, tables, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "comparison.json").write_text(eenet("compare", *tables, "-b", "60%", *QUICK, "--json").stdout)
    ran = eenet("report", tmp_path / "out", "--out", tmp_path / "page.html", "--json")
    assert ran.code == 0 and ran.value["from"] == [str(tmp_path / "out" / "comparison.json")]
    page = (tmp_path / "page.html").read_text()
    assert page.startswith("<!DOCTYPE html>") and "max_prob" in page and "http" not in page.split("<body>")[0]


@pytest.mark.parametrize("content", ["[]", "{}", '{"rows": [], "area": {}, "exits": []}', '{"flops": 1, "latency": 2}'])
def test_report_refuses_what_it_does_not_know(eenet, tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    ran = eenet("report", tmp_path / "x.json", "--out", tmp_path / "page.html")
    assert ran.code == 2 and ran.stderr.startswith("Error: ") and ran.stderr.count("\n") == 1
    assert not (tmp_path / "page.html").exists()

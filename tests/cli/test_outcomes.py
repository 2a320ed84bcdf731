"""`eenet compare`, `fit` and `advise` on outcome tables, with models without exits beside them."""

import csv

import numpy as np
import pytest
from tests.cli.conftest import refused

from eenet.policies import load_policy
from eenet.tables import read_outcomes
from eenet.testing import planted_outcomes

QUICK = ("-p", "stopping", "-p", "joint", "--confidence", "score")


@pytest.fixture
def outcomes(tmp_path):
    def write(samples=400, name="outcomes.csv", **settings):
        columns = planted_outcomes(samples, **settings)
        path = tmp_path / name
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(zip(*columns.values(), strict=True))
        return path

    return write


def test_one_file_is_split_in_halves_with_a_seed(eenet, outcomes):
    path = outcomes(401)
    ran = eenet("compare", path, *QUICK, "-b", "50%", "--json")
    value = ran.value
    assert (value["n_val"], value["n_test"]) == (200, 201)
    assert "200 of the 401 rows of VAL, chosen at random (seed 0), fit, the other 201 judge" in value["notes"][0]
    assert {row["policy"] for row in value["rows"]} == {"stopping", "joint", "random", "oracle"}
    assert value["statics"] == [] and value["unit"] == "units"
    assert [len(entry["groups"]) for entry in value["groups"]] == [2, 2]  # easy and hard
    assert {group["name"] for group in value["groups"][0]["groups"]} == {"easy", "hard"}
    strip = [{**row, "fit_seconds": 0} for row in value["rows"]]
    again = eenet("compare", path, *QUICK, "-b", "50%", "--json", "-q").value
    assert strip == [{**row, "fit_seconds": 0} for row in again["rows"]]
    other = eenet("compare", path, *QUICK, "-b", "50%", "--seed", "1", "--json", "-q").value
    assert strip != [{**row, "fit_seconds": 0} for row in other["rows"]]


def test_halves_are_redrawn_and_two_files_are_taken_as_they_are(eenet, outcomes):
    path, other = outcomes(), outcomes(300, "other.csv", seed=1)
    value = eenet("compare", path, *QUICK, "-b", "50%", "--splits", "3", "--json", "-q").value
    assert value["splits"] == 3 and "sd" in value["rows"][0] and value["groups"] == []
    value = eenet("compare", path, other, *QUICK, "-b", "50%", "--json", "-q").value
    assert (value["n_val"], value["n_test"]) == (400, 300) and "no TEST" not in value["notes"][0]
    lines = [line.split(",") for line in other.read_text().splitlines()]
    other.write_text("\n".join(",".join(reversed(line)) for line in lines))  # stages and features in another order
    refused(eenet("compare", path, other, *QUICK, "-q"), "feature_names", "score, length and length, score")


def test_groups_of_ones_own_are_split_as_the_file_is(eenet, outcomes, tmp_path):
    groups = tmp_path / "groups.txt"
    groups.write_text("\n".join("ab"[i % 2] for i in range(400)))
    value = eenet("compare", outcomes(), *QUICK, "-b", "50%", "--groups", groups, "--json", "-q").value
    assert {group["name"] for group in value["groups"][0]["groups"]} == {"a", "b"}


def test_tables_of_logits_are_split_too(eenet, write_table):
    value = eenet("compare", write_table(), "-p", "max_prob", "-b", "60%", "--json", "-q").value
    assert (value["n_val"], value["n_test"]) == (100, 100)


def test_fit_and_auto_and_default_policies_work(eenet, outcomes, tmp_path):
    path = outcomes(200)
    value = eenet("fit", path, "-b", "50%", "--out", tmp_path / "policy", "--json", "-q").value
    assert value["fit_cost"] <= value["budget"] and load_policy(tmp_path / "policy").policy.num_exits == 3
    refused(eenet("fit", path, "-b", "50%", "--deadline", "60%", "--out", tmp_path / "x", "-q"), "deadline")
    ran = eenet("compare", path, "-b", "50%", "--confidence", "length", "-p", "auto", "-p", "geometric", "--json")
    assert {"auto", "geometric"} < set(ran.value["area"])


def test_a_fallback_is_added_to_every_table(eenet, outcomes, tmp_path, write_table):
    path = outcomes(1000)
    words = ("--fallback", "30:1", "--guarantee", "accuracy", "--epsilon", "0.04", "--out", tmp_path / "policy")
    ran = eenet("fit", path, "-p", "stopping", *words, "-q")
    assert "at most 4 % of the answers are wrong" in ran.said and "% go to fallback." in ran.said
    assert load_policy(tmp_path / "policy").policy.num_exits == 4
    value = eenet("compare", path, *QUICK, "-b", "20", "--fallback", "30:98%", "--json", "-q").value
    assert [one["name"] for one in value["exits"]] == ["stage0", "stage1", "stage2", "fallback"]
    assert value["exits"][3]["utility_test"] == pytest.approx(0.98)
    value = eenet("advise", write_table(), "--fallback", "200%", "--json", "-q").value
    assert value["statics"][3] == {"name": "the original model", "cost": 3.5, "utility": 1.0}


def test_models_without_exits_stand_beside_the_policies(eenet, outcomes, tmp_path):
    path, own = outcomes(300), tmp_path / "tiny.npz"
    table = read_outcomes(path)
    rng = np.random.default_rng(0)
    np.savez(
        own,
        features=np.zeros((300, 2, 1)),
        utility=np.stack([np.zeros(300), rng.random(300) < 0.97], axis=1).astype(float),
        costs=[1.0, 2.0],
        cost_unit="units",
    )
    words = ("--static", "1.9:0.5", "--static", "poor:100%:10%", "--static", own, "--static", "stage1")
    value = eenet("compare", path, *QUICK, "-b", "50%", *words, "--out", tmp_path / "page", "--json", "-q").value
    plain, poor, tiny, stage = value["statics"]
    assert (plain["name"], plain["cost"], plain["utility"], plain["better"]) == ("1.9:0.5", 1.9, 0.5, False)
    assert (poor["name"], poor["utility"]) == ("poor", 0.1) and poor["low"] is None
    assert poor["cost"] == pytest.approx(table.costs.high, rel=0.1)  # of VAL or TEST
    assert tiny["name"] == "tiny" and tiny["cost"] == 2 and tiny["better"] and tiny["policy"] == "stopping"
    assert tiny["low"] < tiny["difference"] < tiny["high"] < 0
    assert tiny["difference"] == pytest.approx(100 * (value_at(value, "stopping", 2) - tiny["utility"]))
    assert stage["name"] == "stage1 by itself" and stage["cost"] == pytest.approx(table.costs.stage_costs[1], rel=0.1)
    assert value["verdict"].startswith("Better than every policy at its cost, without exits: tiny (2 units)")
    assert "poor" not in value["verdict"]
    assert eenet("compare", path, *QUICK, "-b", "50%", *words, "-q").said.startswith("Better than every policy at its")
    said = eenet("compare", path, *QUICK, "-b", "50%", *words, "--all", "-q").said
    assert "A static model, tiny, has" in said and "better than any policy here at that cost (stopping minus" in said
    assert "A static model, poor" not in said and "Models without early exits" in said
    page = (tmp_path / "page" / "report.html").read_text()
    assert "A static model, tiny, has" in page and "stage1 by itself" in page
    several = eenet("compare", path, *QUICK, "-b", "50%", "--splits", "2", *words, "--json", "-q").value["statics"]
    assert several[2]["low"] is None and several[2]["better"]


def value_at(value, policy, cost):
    points = sorted((point["cost"], point["utility"]) for point in value["curves"][policy])
    return float(np.interp(cost, *zip(*points, strict=True)))


def test_advice_takes_names_and_tables_too(eenet, outcomes, tmp_path):
    path = outcomes(300)
    words = ("--confidence", "score", "-b", "50%", "--static", "tiny:2:0.9", "--static", path, "--static", "stage2")
    value = eenet("advise", path, *words, "--json", "-q").value
    assert [one["name"] for one in value["statics"]] == [
        "stage0 alone",
        "stage1 alone",
        "stage2 alone",
        "tiny",
        "outcomes",
        "stage2 by itself",
    ]
    assert all(set(one) == {"name", "cost", "utility"} for one in value["statics"])
    assert value["statics"][4]["utility"] == value["statics"][2]["utility"]


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("--static", "tiny:0.93"), ("--static 'tiny:0.93'", "'tiny'")),
        (("--static", "a:b:c"), ("'c' is no utility",)),
        (("--static", "none.npz"), ("--static 'none.npz' does not exist",)),
        (("--static", "{short}"), ("'short'", "10 samples", "has 200")),
        (("--fallback", "much"), ("--fallback 'much'",)),
        (("--fallback", "3:great"), ("--fallback '3:great'",)),
        (("--fallback", "3:2"), ("--fallback '3:2'", "out of range")),
        (("--fallback", "0"), ("--fallback '0'",)),
        (("--confidence", "scores", "-p", "joint"), ("'scores' is no column",)),
        (("--static", "stage9"), ("'stage9' is no stage", "stage0, stage1")),
    ],
)
def test_bad_words_are_refused(words, facts, eenet, outcomes):
    short = outcomes(10, "short.csv")
    refused(eenet("compare", outcomes(), *(word.format(short=short) for word in words), "-b", "50%", "-q"), *facts)


def test_bad_files_are_refused(eenet, outcomes, tmp_path):
    refused(eenet("compare", outcomes(1), "-q"), "1 sample")
    path = tmp_path / "bad.csv"
    path.write_text("a.utility,a.cost,a.score,b.utility,b.cost\n1,1,1,,1\n")
    for words in (("compare", path), ("fit", path, "-b", "50%", "--out", tmp_path / "p"), ("advise", path)):
        refused(eenet(*words, "-q"), "'b.utility'", "row 0")
    refused(eenet("compare", tmp_path / "none.csv", "-q"), "none.csv")
    assert not (tmp_path / "p").exists()

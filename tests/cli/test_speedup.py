"""`eenet speedup`: one command from a model and data to a run, a policy, a page and a sentence."""

import json
import sys

import numpy as np
import pytest
from tests.cli.conftest import refused

from eenet.schedulers import GeometricScheduler
from eenet.speedup import one_call

MODULE = """
import torch


def make():
    torch.manual_seed(0)
    block = lambda: torch.nn.Sequential(torch.nn.Conv2d(8, 8, 3, padding=1), torch.nn.ReLU())
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3, padding=1),
        *(block() for _ in range(4)),
        torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(),
        torch.nn.Linear(8, 10),
    )
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current directory, with a module of the user's and images of three shades in it."""
    (tmp_path / "users_fast.py").write_text(MODULE)
    rng = np.random.default_rng(0)
    labels = np.arange(300) % 3
    images = (40 + 60 * labels[:, None, None, None] + rng.integers(40, size=(300, 1, 6, 6))).astype(np.uint8)
    np.savez(tmp_path / "shades.npz", images=images, labels=labels)
    np.savez(tmp_path / "few.npz", images=images[:100], labels=labels[:100])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(one_call, "PASSES", 1)
    yield tmp_path
    sys.modules.pop("users_fast", None)


OWN = ("speedup", "users_fast:make", "--input", "1,6,6", "--exits", "2", "--data")


def test_one_command_makes_a_run_that_others_open(eenet, here):
    words = (*OWN, "shades.npz", "--epochs", "1", "--all-layers", "--out", "run", "--json")
    value = eenet(*words).value
    saved = value["saving"]
    assert saved["sentence"] and saved["num_samples"] == 60
    assert saved["speedups"] == {str(row["batch_size"]): row["speedup"] for row in value["bench"]["rows"]}
    assert {row["policy"] for row in value["comparison"]["rows"]} == {"auto", "max_prob", "random", "oracle"}
    assert json.loads((here / "run" / "bench.json").read_text()) == value["bench"]
    assert saved["sentence"][:20] in (here / "run" / "report.html").read_text()
    weights = (here / "run" / "model.safetensors").read_bytes()

    ran = eenet("run", "run", "split:test", "--policy", "run/policy", "--budget", "90%", "--json", "-q").value
    assert ran["num_samples"] == 60
    assert eenet("report", "run", "--out", "page.html", "-q").code == 0
    assert eenet("bench", "run", "--policy", "run/policy", "--batch-size", "8", "--passes", "1", "-q").code == 0

    # another budget trains nothing; what is printed begins with the sentence
    again = eenet(*words[:-1], "--budget", "90%", "-q")
    assert again.code == 0, again.stderr
    assert (here / "run" / "model.safetensors").read_bytes() == weights
    assert "left at exit" in again.stdout.partition("wrote")[0]


@pytest.mark.parametrize("change", ["fewer", "other labels"])
def test_data_that_changed_in_place_are_not_judged_with_the_old_weights(eenet, here, change, monkeypatch):
    monkeypatch.setattr(one_call, "AutoScheduler", GeometricScheduler)  # which chooses nothing
    words = (*OWN, "shades.npz", "--epochs", "0.2", "--all-layers", "--out", "run", "-q")
    assert eenet(*words).code == 0
    weights, page = ((here / "run" / name).read_bytes() for name in ("model.safetensors", "report.html"))
    with np.load(here / "shades.npz") as held:
        images, labels = held["images"], held["labels"]
    rows = slice(0, 280) if change == "fewer" else slice(None)
    np.savez(here / "shades.npz", images=images[rows], labels=labels[rows] if change == "fewer" else 2 - labels)
    refused(eenet(*words), "have changed since run was trained", "--out")
    assert (here / "run" / "model.safetensors").read_bytes() == weights
    assert (here / "run" / "report.html").read_bytes() == page


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (("users_fast:make", "--input", "1,6,6", "--out", "run"), ["--data is missing"]),
        (("timm:resnet18", "--data", "digits", "--out", "run"), ["begins at random", "--weights", "--all-layers"]),
        ((*OWN[1:], "few.npz", "--out", "run"), ["20 samples for calibration", "50"]),
        ((*OWN[1:], "shades.npz", "--budget", "1%", "--out", "run"), ["budget 1%", "out of reach"]),
        ((*OWN[1:], "shades.npz", "--budget", "2ms", "--out", "run"), ["2ms"]),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_training(words, facts, eenet, here):
    refused(eenet("speedup", *words, "-q"), *facts)
    assert not (here / "run").exists()


@pytest.mark.slow
def test_a_model_of_timm_is_faster_on_digits(eenet, tmp_path):
    words = ("timm:resnet18", "--input", "1,32,32", "--data", "digits", "--all-layers", "--epochs", "3")
    value = eenet("speedup", *words, "--budget", "50%", "--out", tmp_path / "run", "--json", "-q").value
    assert value["saving"]["cost_share"] < 0.55 and value["saving"]["lost"] < 3
    assert value["saving"]["num_samples"] == 500

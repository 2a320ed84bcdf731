"""A scheduler and a scorer of the user's own, in a file of the user's, on the command line."""

import sys

import pytest
from tests.cli.conftest import made_run, refused

from eenet.experiments.recipes import RECIPES

MODULE = """
from dataclasses import dataclass

import numpy as np

from eenet import Dial, Scheduler
from eenet.policies import Replayer, Scorer
from eenet.schedulers.search import outcomes


class Doubled(Scorer):
    newest_only = True
    parameters = ("factor",)

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, seen):
        return seen[:, -1].max(axis=1) * np.float32(self.factor)


@dataclass(frozen=True, kw_only=True)
class Own(Scheduler):
    def dial(self, table, budgets):
        scorer = Doubled(factor=2.0)
        scores = Replayer(table).scores(scorer)
        levels = np.quantile(scores[:, :-1], np.linspace(0, 1, 9))
        levels = np.concatenate([[-np.inf], (levels[1:] + levels[:-1]) / 2, [np.inf]])
        thresholds = np.repeat(levels[:, None], table.num_exits, axis=1)
        thresholds[:, -1] = -np.inf
        outcome = outcomes(scores, table.utility, table.leaving_costs, thresholds)
        return Dial.of_thresholds(scorer, thresholds, outcome, table.require_costs(), self.seed)


def none(seed):
    return 3


def broken(seed):
    raise KeyError("lost")


number = 3
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "users_policy.py").write_text(MODULE)
    (tmp_path / "users_broken_policy.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("users_policy", "users_broken_policy"):
        sys.modules.pop(name, None)


def test_a_scheduler_of_ones_own_is_compared_fitted_and_run(eenet, here):
    made_run(here, "digits_tiny", RECIPES["digits_tiny"].build().state_dict())
    path = list(sys.path)
    words = ("-p", "users_policy:Own", "-b", "60%", "-q")
    compared = eenet("compare", "val.npz", "test.npz", *words, "-p", "max_prob", "--json")
    assert set(compared.value["area"]) == {"users_policy:Own", "max_prob", "random", "oracle"}
    fitted = eenet("fit", "val.npz", *words, "--out", "own", "--json")
    assert fitted.value["policy"] == "users_policy:Own" and sys.path == path
    ran = ("run", "run", "--policy", "own", "split:test", "--json", "-q")
    assert eenet(*ran, "--parts", "users_policy:Doubled").value["num_samples"] == 500
    refused(eenet(*ran), "consists of Doubled, a class of yours", "--parts users_policy:Doubled")
    refused(eenet(*ran, "--parts", "users_policy:Own"), "is no part of a policy")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("users_lost:Own", "no module 'users_lost'"),
        ("users_broken_policy:Own", "cannot be imported: ZeroDivisionError"),
        ("users_policy:Owned", "has no 'Owned'. It has Own"),
        ("users_policy:none", "it returned int"),
        ("users_policy:broken", "it fails (KeyError: 'lost')"),
        ("users_policy:number", "makes no scheduler"),
    ],
)
def test_what_is_no_scheduler_is_refused(name, said, eenet, here, write_table):
    refused(eenet("fit", write_table(), "-p", name, "-b", "60%", "--out", here / "policy", "-q"), said)
    assert not (here / "policy").exists()

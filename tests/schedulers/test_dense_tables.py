"""Every scheduler on a table of summaries: it works on what they say, or refuses; none compares classes."""

import numpy as np
import pytest
import torch
from segmenting import dense_table

from eenet.cli.names import POLICIES, scheduler
from eenet.core.combined import answers_with_newest, unmixed
from eenet.core.policy import ScorePolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import TableError
from eenet.evaluation import advise, evaluate
from eenet.schedulers import (
    AutoScheduler,
    BudgetController,
    DeadlineScheduler,
    EENetScheduler,
    GeometricScheduler,
    JointScheduler,
    PceeScheduler,
    StoppingScheduler,
    certify,
    fit_calibration,
    fit_ensemble,
    fit_geometric_ensemble,
    fit_temperatures,
    load_policy,
    save_policy,
    static_mix,
)
from eenet.testing import synthetic_table

REFUSED = {"patience": "name no classes", "vote": "name no classes", "ztw": "lacks labels"}
QUICK = sorted(set(POLICIES) - set(REFUSED) - {"eenet_published"})


@pytest.fixture(scope="module")
def tables():
    return dense_table(400, seed=0), dense_table(2000, seed=1)


def test_tables_know_that_they_hold_summaries(tables):
    val, _ = tables
    assert val.holds_summaries
    assert val.select(torch.arange(5)).holds_summaries
    classes = synthetic_table(200)
    assert not classes.holds_summaries
    assert not ExitTable(logits=classes.logits, utility=classes.utility).holds_summaries
    ordered = classes.logits.sort(dim=2, descending=True).values
    assert not ExitTable(logits=ordered, labels=torch.zeros(200, dtype=torch.long)).holds_summaries


@pytest.mark.parametrize("name", QUICK)
def test_what_reads_chances_keeps_the_budget_and_beats_blind_mixing(name, tables, tmp_path):
    val, test = tables
    policy = scheduler(name, 0).fit(val, budget=2.0)
    assert answers_with_newest(policy)
    report = evaluate(policy, test)
    assert evaluate(policy, val).expected_cost <= 2.0 + 1e-6
    assert report.expected_cost == pytest.approx(2.0, abs=0.12)
    assert report.expected_utility > static_mix(val, test, val.require_costs(), report.expected_cost).utility + 0.01
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy").policy
    assert torch.equal(Replayer(test).exit_index(again), Replayer(test).exit_index(policy))


@pytest.mark.slow
def test_the_published_rule_runs_on_summaries(tables):
    val, test = tables
    policy = EENetScheduler(thresholds="assigned", epochs=100).fit(val, budget=2.0)
    assert evaluate(policy, test).cost == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_classes_is_refused(name, tables):
    with pytest.raises(TableError, match=REFUSED[name]):
        scheduler(name, 0).fit(tables[0], budget=2.0)


@pytest.mark.parametrize("confidence", ["streak", "vote_share"])
def test_confidences_that_compare_classes_are_refused_in_every_scheduler(confidence, tables):
    for make in (GeometricScheduler, JointScheduler, PceeScheduler):
        with pytest.raises(TableError, match="name no classes"):
            make(confidence=confidence).fit(tables[0], budget=2.0)


@pytest.mark.parametrize("make", [fit_ensemble, fit_geometric_ensemble, fit_calibration])
def test_transforms_are_refused(make, tables):
    with pytest.raises(TableError, match="lacks labels"):
        make(tables[0], 0)
    with pytest.raises(TableError, match="lacks labels"):
        fit_temperatures(tables[0])


def test_a_policy_fitted_on_classes_is_not_replayed_on_summaries(tables):
    policy = ScorePolicy(ConfidenceScorer("streak"), torch.tensor([1.5, 1.5, 1.5, -torch.inf]))
    with pytest.raises(TableError, match="'dense' holds summaries of maps, which name no classes"):
        evaluate(policy, tables[0])


def test_no_ensemble_is_ever_chosen(tables):
    val, _ = tables
    choice = AutoScheduler(folds=2).choose(val)
    assert not any("ensemble" in one.name for one in choice.contenders)
    assert all(answers_with_newest(part) for _, part in unmixed(StoppingScheduler().fit(val, budget=2.0)))


def test_promises_deadlines_advice_and_control_work_on_summaries(tables):
    val, test = tables
    certified = certify(GeometricScheduler(), test, budget=2.0)
    assert certified.certificate.bound <= 2.0
    late = DeadlineScheduler(scheduler=JointScheduler(), deadline=2.0).fit(val, budget=1.5)
    assert Replayer(test).exit_index(late).max() <= 1
    assert advise(val).kept[-1] == 3
    controller = BudgetController(GeometricScheduler().sweep(val), budget=2.0)
    assert np.mean(controller.replay(test).cost.numpy()) == pytest.approx(2.0, abs=0.1)

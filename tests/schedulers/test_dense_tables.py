"""Every scheduler on a table of features, such as summaries of maps: it works on what they say, or refuses."""

import numpy as np
import pytest

from eenet.errors import InputError, TableError
from eenet.policies import ConfidenceScorer, Replayer, ScorePolicy, load_policy, save_policy
from eenet.schedulers import (
    BudgetController,
    DeadlineScheduler,
    GeometricScheduler,
    JointScheduler,
    PceeScheduler,
    certify,
    static_mix,
)
from eenet.schedulers.names import POLICIES, scheduler
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

REFUSED = {"patience": "name no classes", "vote": "name no classes", "ztw": "lacks labels"}
REFUSED |= dict.fromkeys(("max_prob+ensemble", "joint+ensemble"), "lacks labels")
SERVED = sorted(set(POLICIES) - set(REFUSED) - {"eenet_published"})


def summaries(samples, seed):
    """A table as recording maps leaves it: mean probabilities in order and three confidences, no labels."""
    rng = np.random.default_rng(seed)
    ease = rng.random((samples, 1))
    worth = (0.45 + 0.4 * ease + np.array([0.0, 0.18, 0.3, 0.36]) * (1 - ease)).clip(0.3, 0.97)
    top = (worth + 0.04 * rng.standard_normal(worth.shape)).clip(0.3, 0.98)
    rest = -np.sort(-rng.dirichlet(np.ones(4), worth.shape), axis=2) * (1 - top)[:, :, None]
    probs = -np.sort(-np.concatenate([top[:, :, None], rest], axis=2), axis=2)
    odds = np.log(probs[:, :, 0] / (1 - probs[:, :, 0]))
    certainty = 1 + (probs * np.log(probs.clip(1e-30))).sum(axis=2) / np.log(5)
    columns = np.stack([odds, probs[:, :, 0] - probs[:, :, 1], certainty], axis=2)
    return ExitTable(
        features=np.concatenate([columns, probs], axis=2),
        feature_names=("max_prob", "margin", "certainty", *(f"p{i}" for i in range(5))),
        utility=worth,
        costs=CostTable((1.0, 2.0, 3.0, 4.0), "ms"),
        split="dense",
    )


@pytest.fixture(scope="module")
def tables():
    return summaries(400, seed=0), summaries(2000, seed=1)


@pytest.mark.parametrize("name", SERVED)
def test_what_reads_features_keeps_the_budget_and_beats_static_mixing(name, tables, tmp_path):
    val, test = tables
    policy = scheduler(name, 0).fit(val, budget=2.0)
    assert policy.answers_newest
    assert Replayer(val).expected(policy)[0] <= 2.0
    cost, utility = Replayer(test).expected(policy)
    assert cost == pytest.approx(2.0, abs=0.12)
    assert utility > static_mix(val, test, val.require_costs(), cost).utility + 0.01
    save_policy(policy, tmp_path / "policy")
    again = load_policy(tmp_path / "policy").policy
    assert np.array_equal(Replayer(test).exit_index(again), Replayer(test).exit_index(policy))


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_classes_is_refused(name, tables):
    with pytest.raises(TableError, match=REFUSED[name]):
        scheduler(name, 0).fit(tables[0], budget=2.0)


@pytest.mark.parametrize("confidence", ["streak", "vote_share", "entropy"])
def test_confidences_that_are_no_column_are_refused_in_every_scheduler(confidence, tables):
    for make in (GeometricScheduler, JointScheduler, PceeScheduler):
        with pytest.raises(InputError, match=f"'{confidence}' .* margin"):
            make(confidence=confidence).fit(tables[0], budget=2.0)


def test_a_policy_fitted_on_classes_is_not_replayed_on_features(tables):
    policy = ScorePolicy(ConfidenceScorer("streak"), np.array([1.5, 1.5, 1.5, -np.inf]))
    with pytest.raises(TableError, match=r"'dense' .* name no classes"):
        Replayer(tables[0]).exit_index(policy)


def test_promises_deadlines_and_control_work_on_features(tables):
    val, test = tables
    certified = certify(GeometricScheduler(), test, budget=2.0)
    assert certified.certificate.bound <= 2.0
    late = DeadlineScheduler(scheduler=JointScheduler(), deadline=2.0).fit(val, budget=1.5)
    assert Replayer(test).exit_index(late).max() <= 1
    controller = BudgetController(GeometricScheduler().sweep(val), budget=2.0)
    assert controller.replay(test).mean_cost == pytest.approx(2.0, abs=0.1)

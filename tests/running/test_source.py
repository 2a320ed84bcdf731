"""A policy fitted on a table of another model is refused wherever it meets a model; unknown models pass."""

import copy

import numpy as np
import pytest
import torch

from eenet.errors import InputError
from eenet.experiments.zoo.tiny import tiny_cnn
from eenet.policies import MixedPolicy, ScorePolicy, load_policy, save_policy
from eenet.running.adaptive import AdaptiveModel
from eenet.running.bundle import Bundle
from eenet.running.engines import EagerEngine
from eenet.running.engines.eager import fingerprint
from eenet.running.exporting import export
from eenet.running.exports import open_export
from eenet.running.recording import record
from eenet.schedulers import DeadlineScheduler, GeometricScheduler, TransformedScheduler, certify, fit_ensemble
from eenet.tables.costs import CostTable

COSTS = CostTable((1.0, 2.0, 3.0), "ms")
THRESHOLDS = np.array([0.5, 0.5, -np.inf])


@pytest.fixture
def table(tiny, images):
    return record(tiny, [(images, torch.arange(96) % 10)] * 2, costs=COSTS)


@pytest.fixture
def dial(table):
    return GeometricScheduler().sweep(table)


@pytest.fixture
def other() -> torch.nn.Module:
    return tiny_cnn(width=8).eval()


@pytest.mark.parametrize(
    "scheduler",
    [
        GeometricScheduler(),
        TransformedScheduler(scheduler=GeometricScheduler(), fit_transform=fit_ensemble),
        DeadlineScheduler(scheduler=GeometricScheduler(), deadline=2.5),
    ],
)
def test_fitting_passes_the_fingerprint_on(table, scheduler):
    dial = scheduler.sweep(table)
    policies = (*dial.policies, dial.at(1.5), scheduler.fit(table, budget=1.5))
    assert {policy.source for policy in policies} == {table.source}
    for guarantee in ({"guarantee": "budget", "budget": 2.0}, {"guarantee": "accuracy", "epsilon": 0.5}):
        assert certify(scheduler, table, **guarantee).policy.source == table.source


def test_mixtures_keep_it():
    first = ScorePolicy("max_prob", THRESHOLDS)
    second = first.from_source("abc")
    assert (first.source, second.source, MixedPolicy(first, second, 0.5).source) == ("", "abc", "abc")


def test_saving_keeps_it(dial, table, tmp_path):
    save_policy(dial.at(1.5), tmp_path / "policy", dial=dial)
    saved = load_policy(tmp_path / "policy")
    assert saved.source == saved.policy.source == saved.dial.at(2.5).source == table.source


def test_a_policy_of_another_model_is_refused(dial, tiny, other, images):
    policy = dial.at(1.5)
    for model in (other, EagerEngine(other), EagerEngine(tiny, dtype=torch.bfloat16)):
        with pytest.raises(InputError, match=rf"policy of source {policy.source[:12]} does not fit"):
            AdaptiveModel(model, policy)
    for model in (tiny, EagerEngine(tiny, optimise=False), copy.deepcopy(tiny)):
        assert len(AdaptiveModel(model, policy)(images).labels) == 96
    assert len(AdaptiveModel(other, policy, dial=dial, check_source=False).at(2.5)(images).labels) == 96
    assert len(AdaptiveModel(other, policy.from_source(""))(images).labels) == 96  # not known
    with torch.no_grad():
        tiny.heads[0][-1].bias.add_(0.1)  # tuned further
    with pytest.raises(InputError, match="another model"):
        AdaptiveModel(tiny, policy)


def test_a_model_without_some_exits_is_the_same(table, tiny, images):
    policy = GeometricScheduler().fit(table.keeping([1, 2]), budget=2.5)
    for model in (tiny.without([0]), copy.deepcopy(tiny.without([0])), tiny.without([]).without([0])):
        assert fingerprint(model) == table.source
        assert len(AdaptiveModel(model, policy)(images).labels) == 96


def test_bundles_carry_it(dial, tiny, other, images, tmp_path):
    for model, name in ((tiny, "same"), (other, "other")):
        Bundle(model=model, policy=dial.at(1.5), dial=dial).save(tmp_path / name)
    same, wrong = (Bundle.load(tmp_path / name, lambda _: tiny_cnn(width=8)) for name in ("same", "other"))
    assert len(same.adaptive()(images).labels) == len(wrong.adaptive(check_source=False)(images).labels) == 96
    with pytest.raises(InputError, match="another model"):
        wrong.adaptive()


def test_exports_carry_both(dial, tiny, other, images, tmp_path):
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    policy = dial.at(1.5)
    with pytest.raises(InputError, match="another model"):
        export(other, policy, images[:4], tmp_path / "export")
    export(other, policy, images[:4], tmp_path / "export", check_source=False)
    opened = open_export(tmp_path / "export")
    assert (opened.engine.source, opened.policy.source) == (fingerprint(other), policy.source)
    assert len(AdaptiveModel(tmp_path / "export")(images.numpy()).labels) == 96  # asked when it was exported
    with pytest.raises(InputError, match="another model"):
        AdaptiveModel(tmp_path / "export", policy)

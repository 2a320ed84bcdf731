"""Regrouping: full batches for late stages, the same answers in the same order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replaying import ReplayEngine, policies, quantile_policy, rows
from tests.running.conftest import tiny_onnx

from eenet.experiments.zoo.tiny import tiny_cnn
from eenet.models.model import MultiExitModel
from eenet.policies import ConfidenceScorer, MixedPolicy, ScorePolicy, replay
from eenet.running.adaptive import AdaptiveModel
from eenet.running.engines import EagerEngine
from eenet.running.loop import Loop
from eenet.running.recording import outputs
from eenet.tables.arrays import log_softmax
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

COSTS = CostTable(cumulative=(1.0, 2.5, 4.0, 7.0), unit="ms", reference=6.0)


def test_stages_wait_for_full_batches_by_hand():
    # of each batch of two, the second sample leaves at exit 0, so two batches fill one of stage 1
    early, late = [[9.0, 0.0]] * 2, [[0.0, 0.0], [9.0, 0.0]]
    logits = np.array([late, early] * 3, dtype=np.float32)
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([2.0, -np.inf]))
    engine, parts = ReplayEngine(logits), np.split(rows(6), 3)
    found = AdaptiveModel(engine, policy, CostTable((1.0, 2.0), "ms")).predict_all(parts)
    assert found.exit_index.tolist() == [1, 0] * 3
    assert found.cost.tolist() == [2, 1] * 3
    assert np.array_equal(found.log_probs, log_softmax(logits[np.arange(6), found.exit_index]))
    assert engine.asked == [[1, 2, 2, 2, 2], [1, 2, 2, 1]]  # the last one did not fill a batch; 1 and 2 are probes
    engine = ReplayEngine(logits)
    AdaptiveModel(engine, policy).predict_all(parts, regroup=False)
    assert engine.asked == [[1, 2, 2, 2, 2], [1, 2, 1, 1, 1]]


def test_single_samples_wait_before_the_first_stage_too():
    # as a server feeds them
    logits = np.array([[[0.0, 0.0], [9.0, 0.0]]] * 5, dtype=np.float32)
    engine = ReplayEngine(logits)
    loop = Loop(engine, ScorePolicy(ConfidenceScorer("max_prob"), np.array([2.0, -np.inf])), full=2)
    for row in range(5):
        loop.feed(rows(5)[row : row + 1], np.array([row]))
    assert engine.asked == [[2, 2], [2, 2]]
    assert [left.places.tolist() for left in loop.left] == [[0, 1], [2, 3]]
    assert loop.finish().exit_index.tolist() == [1] * 5
    assert engine.asked == [[2, 2, 1], [2, 2, 1]]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), regroup=st.booleans(), seed=st.integers(0, 99))
def test_any_batches_give_what_replay_gives(sizes, regroup, seed):
    logits = 2 * np.random.default_rng(1).standard_normal((120, 4, 10)).astype(np.float32)
    both = policies(logits)
    names = list(both)
    policy = MixedPolicy(both[names[seed % len(names)]], both[names[seed // 3 % len(names)]], 0.5, seed=seed)
    parts = [part for part in np.split(rows(120), np.cumsum(sizes)) if len(part)]
    found = AdaptiveModel(ReplayEngine(logits), policy, COSTS).predict_all(parts, regroup=regroup)
    trace = replay(policy, ExitTable(logits=logits, costs=COSTS))
    assert np.array_equal(found.exit_index, trace.exit_index)
    assert found.log_probs.tobytes() == trace.log_probs.tobytes()
    assert np.array_equal(found.cost, trace.cost)


class Padded(torch.nn.Module):
    """A stage of sentences: sums what is there."""

    def forward(self, state):
        return state + 1


class Summed(torch.nn.Module):
    def forward(self, state):
        total = state.sum(dim=1)
        return torch.stack((total, torch.zeros_like(total)), dim=1)


def test_sentences_of_other_lengths_wait_apart():
    model = MultiExitModel([Padded(), Padded()], [Summed(), Summed()])
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([9.0, -np.inf]))
    batches = [torch.full((3, 2), 0.5), torch.zeros(3, 5), torch.full((2, 2), 9.0), torch.zeros(1, 2)]
    found = AdaptiveModel(model, policy).predict_all(batches)
    assert found.exit_index.tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1]
    logits = [5.0] * 3 + [10.0] * 3 + [20.0] * 2 + [4.0]
    np.testing.assert_allclose(found.log_probs, log_softmax(np.array(logits)[:, None] * [1.0, 0.0]), rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: EagerEngine(tiny_cnn(exits=3).eval()), lambda: tiny_onnx()[1]])
def test_engines_join_states(make):
    engine = make()
    images = torch.randn(50, 1, 8, 8)
    adaptive = AdaptiveModel(engine, quantile_policy(outputs(engine, images), "max_prob", share=0.4))
    apart, together = (adaptive.predict_all(images.split(8), regroup=regroup) for regroup in (False, True))
    assert len(np.unique(apart.exit_index)) > 1
    assert np.array_equal(apart.exit_index, together.exit_index)
    np.testing.assert_allclose(apart.log_probs, together.log_probs, rtol=1e-5, atol=1e-5)

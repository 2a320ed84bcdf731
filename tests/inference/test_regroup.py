"""Regrouping: full batches for late stages, the same answers in the same order."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.inference.conftest import policies, quantile_policy, replaying, tiny_onnx

from eenet.core.combined import MixedPolicy
from eenet.core.costs import CostTable
from eenet.core.policy import ScorePolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.core.table import ExitTable
from eenet.core.trace import replay
from eenet.errors import InputError
from eenet.inference.adaptive import AdaptiveModel
from eenet.inference.engines import EagerEngine
from eenet.inference.record import outputs
from eenet.models.model import MultiExitModel
from eenet.models.zoo.tiny import tiny_cnn
from eenet.schedulers import StoppingScheduler

COSTS = CostTable(cumulative=(1.0, 2.5, 4.0, 7.0), unit="ms", reference=6.0)


def test_stages_wait_for_full_batches_by_hand():
    # of each batch of two, the second sample leaves at exit 0, so two batches fill one of stage 1
    early, late = [[9.0, 0.0]] * 2, [[0.0, 0.0], [9.0, 0.0]]
    logits = torch.tensor([late, early] * 3)
    model = replaying(logits)
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([2.0, -math.inf]))
    found = AdaptiveModel(model, policy, CostTable((1.0, 2.0), "ms")).predict_all(torch.arange(6)[:, None].split(2))
    assert found.exit_index.tolist() == [1, 0] * 3
    assert found.cost.tolist() == [2, 1] * 3
    assert torch.equal(found.log_probs, torch.log_softmax(logits[torch.arange(6), found.exit_index], dim=-1))
    assert [head.asked for head in model.heads] == [[2, 2, 2], [2, 1]]  # the last one did not fill a batch
    alone = replaying(logits)
    AdaptiveModel(alone, policy).predict_all(torch.arange(6)[:, None].split(2), regroup=False)
    assert [head.asked for head in alone.heads] == [[2, 2, 2], [1, 1, 1]]


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), regroup=st.booleans(), seed=st.integers(0, 99))
def test_any_batches_give_what_replay_gives(sizes, regroup, seed):
    logits = 2 * torch.randn(120, 4, 10, generator=torch.Generator().manual_seed(1))
    count = min(sum(sizes), len(logits))
    both = policies(logits)
    names = list(both)
    policy = MixedPolicy(both[names[seed % len(names)]], both[names[seed // 3 % len(names)]], 0.5, seed=seed)
    table = ExitTable(logits=logits[:count], costs=COSTS)
    batches = torch.arange(sum(sizes)).split(sizes)
    rows = [part[part < count] for part in batches if bool((part < count).any())]
    adaptive = AdaptiveModel(replaying(logits), policy, COSTS)
    found = adaptive.predict_all([(part[:, None], part) for part in rows], regroup=regroup)
    trace = replay(policy, table)
    assert torch.equal(found.exit_index, trace.exit_index)
    assert torch.equal(found.log_probs, trace.log_probs)
    assert torch.equal(found.cost, trace.cost)


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
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([9.0, -math.inf]))
    batches = [torch.full((3, 2), 0.5), torch.zeros(3, 5), torch.full((2, 2), 9.0), torch.zeros(1, 2)]
    found = AdaptiveModel(model, policy).predict_all(batches)
    assert found.exit_index.tolist() == [1, 1, 1, 1, 1, 1, 0, 0, 1]
    logits = [5.0] * 3 + [10.0] * 3 + [20.0] * 2 + [4.0]
    expected = torch.log_softmax(torch.tensor(logits)[:, None] * torch.tensor([1.0, 0.0]), dim=1)
    torch.testing.assert_close(found.log_probs, expected)


@pytest.mark.parametrize("make", [lambda: EagerEngine(tiny_cnn(exits=3).eval()), lambda: tiny_onnx()[1]])
def test_engines_join_states(make):
    engine = make()
    images = torch.randn(50, 1, 8, 8)
    adaptive = AdaptiveModel(engine, quantile_policy(outputs(engine, images), "max_prob", share=0.4))
    apart, together = (adaptive.predict_all(images.split(8), regroup=regroup) for regroup in (False, True))
    assert len(apart.exit_index.unique()) > 1
    assert torch.equal(apart.exit_index, together.exit_index)
    torch.testing.assert_close(apart.log_probs, together.log_probs, rtol=1e-5, atol=1e-5)


def test_no_batches_are_refused():
    model = replaying(torch.zeros(2, 2, 2))
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([0.0, -math.inf]))
    with pytest.raises(InputError, match="batches are empty"):
        AdaptiveModel(model, policy).predict_all([])


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_names_of_any_whole_number_type_toss_the_same_coins(kind):
    logits = 2 * torch.randn(120, 4, 10, generator=torch.Generator().manual_seed(1))
    table = ExitTable(logits=logits, labels=logits.sum(dim=1).argmax(dim=1), costs=COSTS)
    early, late = (StoppingScheduler(ensemble=False).fit(table, budget=budget) for budget in (2.0, 5.0))
    policy = MixedPolicy(early, late, 0.5, seed=3)
    assert policy.quick
    rows = torch.arange(120)
    found = AdaptiveModel(replaying(logits), policy, COSTS)(rows[:, None], rows.to(kind))
    assert torch.equal(found.exit_index, replay(policy, table).exit_index)

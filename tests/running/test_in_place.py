"""Models that write into what they are given: the numbers of the caller stay, and recorded = run = timed."""

import numpy as np
import pytest
import torch
from torch import nn

from eenet.models.model import MultiExitModel
from eenet.policies.policy import ScorePolicy
from eenet.policies.scorers import ConfidenceScorer
from eenet.running.adaptive import AdaptiveModel
from eenet.running.benchmark import bench
from eenet.running.engines import EagerEngine
from eenet.running.inputs import gathered
from eenet.running.recording import outputs, record
from eenet.tables.arrays import log_softmax

STAYS = ScorePolicy(ConfidenceScorer("max_prob"), np.array([np.inf, -np.inf]))
SOME = ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.1, -np.inf]))


class Normalising(nn.Module):
    """Writes into its input, as hand-written preprocessing does."""

    def forward(self, x):
        return x.sub_(0.5).div_(0.5)


class Hidden(nn.Module):
    """Writes into its input where PyTorch does not count it."""

    def forward(self, x):
        x.data.mul_(2)
        return x + 0


class Reading(nn.Module):
    """Converts its input, which is a copy unless it is of that type already."""

    def forward(self, x):
        return Normalising()(x.float())


def writer(first: nn.Module) -> MultiExitModel:
    torch.manual_seed(0)
    return MultiExitModel(
        [nn.Sequential(first, nn.Linear(4, 4)), nn.Linear(4, 4)], [nn.Linear(4, 3), nn.Linear(4, 3)]
    ).eval()


def wanted(model: MultiExitModel, x: torch.Tensor) -> np.ndarray:
    """Log-probabilities of the last exit, of a copy of the inputs."""
    with torch.no_grad():
        return log_softmax(model(x.clone())[-1].numpy())


@pytest.mark.parametrize("first", [Normalising, Hidden, lambda: nn.ReLU(inplace=True)])
@pytest.mark.parametrize("optimise", [True, False])
def test_inputs_stay_and_every_sample_is_answered_as_by_the_model(first, optimise):
    model, x = writer(first()), torch.randn(20, 4)
    kept, expected = x.clone(), wanted(model, x)
    for given in (x, x.numpy()):
        adaptive = AdaptiveModel(model, STAYS, optimise=optimise)
        for part in (slice(0, 1), slice(0, 20), slice(0, 20)):
            np.testing.assert_allclose(adaptive(given[part]).log_probs, expected[part], atol=1e-5)
        np.testing.assert_allclose(adaptive.predict_all(given, batch_size=7).log_probs, expected, atol=1e-5)
        assert torch.equal(x, kept)


def test_two_recordings_are_one_and_what_is_timed_is_what_was_recorded():
    model, x = writer(Normalising()), torch.randn(20, 4)
    kept, labels = x.clone(), torch.zeros(20, dtype=torch.long)
    one, two = (record(model, (x, labels), progress=False) for _ in range(2))
    assert np.array_equal(one.logits, two.logits)
    np.testing.assert_allclose(log_softmax(one.logits[:, 1]), wanted(model, x), atol=1e-6)
    (row,) = bench(model, SOME, x, batch_sizes=(8,), passes=1, progress=False).rows
    assert torch.equal(x, kept)
    assert row.flips == 0
    exits = AdaptiveModel(model, SOME)(x).exit_index
    assert row.exit_distribution == pytest.approx(np.bincount(exits, minlength=2) / 20)


def test_models_that_only_read_are_given_the_very_batch():
    seen = []

    class Looking(nn.Module):
        def forward(self, x):
            seen.append(x.data_ptr())
            return x + 0

    x = torch.randn(8, 4)
    adaptive = AdaptiveModel(writer(Looking()), STAYS)
    adaptive(x)
    assert seen[-1] == x.data_ptr()


def test_inputs_of_a_type_that_the_model_converts_are_judged_by_themselves():
    model, x = writer(Reading()), torch.randint(0, 255, (8, 4), dtype=torch.uint8)
    adaptive = AdaptiveModel(model, STAYS)
    adaptive(x)
    fractions = x.float()
    assert np.allclose(adaptive(fractions).log_probs, wanted(model, fractions), atol=1e-5)
    assert torch.equal(fractions, x.float())


@pytest.mark.parametrize("head", [nn.Identity(), nn.Flatten(0, 0)])
def test_an_exit_that_is_a_view_of_the_state_keeps_its_own_numbers(head):
    model = MultiExitModel([nn.Linear(4, 4), nn.ReLU(inplace=True)], [head, nn.Identity()]).eval()
    x = torch.randn(20, 4)
    with torch.no_grad():
        first = model.stages[0](x)
        found = model(x)
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], first.relu())
    for optimise in (True, False):
        table = outputs(EagerEngine(model, optimise=optimise), x)
        np.testing.assert_allclose(table, torch.stack([first, first.relu()], dim=1).numpy(), atol=1e-6)
    sums = torch.vmap(lambda row: model(row)[0].sum())(x)
    assert torch.allclose(sums, first.sum(1), atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_compiled_as_a_whole_an_exit_keeps_its_own_numbers_too():
    model = MultiExitModel([nn.Linear(4, 4), nn.ReLU(inplace=True)], [nn.Identity(), nn.Identity()]).eval()
    x = torch.randn(20, 4)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x)[0], model.stages[0](x))


def test_a_folded_stage_that_begins_in_place_answers_its_first_batch():
    class Stage(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.conv, self.norm = nn.SiLU(inplace=True), nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x):
            return self.norm(self.conv(self.act(x)))

    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    model, x = MultiExitModel([Stage(), nn.Conv2d(3, 3, 1)], [head, head]).eval(), torch.randn(6, 2, 4, 4)
    expected = wanted(model, x)
    np.testing.assert_allclose(log_softmax(outputs(EagerEngine(model), x)[:, 1]), expected, atol=1e-5)


@pytest.mark.parametrize("stage", [nn.Identity, lambda: nn.Linear(4, 4)])
def test_a_loader_may_use_its_memory_again(stage):
    model, x = MultiExitModel([stage(), nn.Linear(4, 4)], [nn.Linear(4, 3), nn.Linear(4, 3)]).eval(), torch.randn(40, 4)

    def batches():
        buffer, first = np.empty((8, 4), np.float32), 0
        for size in (8, 4, 4, 8, 3, 3, 3, 7):
            buffer[:size] = x[first : first + size]
            yield buffer[:size]
            first += size

    for policy in (STAYS, SOME):
        expected = AdaptiveModel(model, policy)(x)
        found = AdaptiveModel(model, policy).predict_all(batches())
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
        assert np.array_equal(found.exit_index, expected.exit_index)
    assert np.array_equal(gathered(batches()), x.numpy())


class Viewed(nn.Module):
    """Takes channels-first memory for granted."""

    def forward(self, x):
        return x.view(len(x), -1)


@pytest.mark.parametrize("policy", [STAYS, SOME])
def test_a_view_after_a_convolution_is_run_in_its_own_layout(policy):
    flat = nn.Sequential(Viewed(), nn.Linear(48, 4))
    convolution = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.BatchNorm2d(3))
    pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    model, x = MultiExitModel([convolution, flat], [pooled, nn.Linear(4, 3)]).eval(), torch.randn(6, 2, 4, 4)
    for given in (x, x.numpy(), x.contiguous(memory_format=torch.channels_last)):
        adaptive = AdaptiveModel(model, policy)
        found = adaptive(given)
        expected = AdaptiveModel(model, policy, optimise=False)(x)
        assert not adaptive.engine.channels_last
        np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-5)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in adaptive.engine.model.modules())


def test_inputs_that_do_not_fit_leave_the_layout_as_it_is(tiny, images):
    adaptive = AdaptiveModel(tiny, ScorePolicy(ConfidenceScorer("max_prob"), np.array([np.inf, np.inf, -np.inf])))
    with pytest.raises(ValueError, match="do not fit"):
        adaptive(images[:, :, :, :, None])
    assert adaptive.engine.channels_last
    adaptive(images)
    assert adaptive.engine.channels_last

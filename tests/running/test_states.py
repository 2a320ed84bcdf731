"""What a state may hold, and models whose answers depend on who else is in the batch."""

import numpy as np
import pytest
import torch
from torch import nn

from eenet.errors import EenetError, InputError, ShapeError
from eenet.models.model import MultiExitModel
from eenet.policies.policy import ScorePolicy
from eenet.policies.scorers import ConfidenceScorer
from eenet.running.adaptive import AdaptiveModel
from eenet.running.benchmark import bench
from eenet.running.recording import record

SOME = ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.1, -np.inf]))


class Beside(nn.Module):
    """Passes something beside its features."""

    def __init__(self, make):
        super().__init__()
        self.make, self.linear = make, nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x), self.make(x)


class Main(nn.Module):
    """Reads the features only."""

    def __init__(self, columns):
        super().__init__()
        self.linear = nn.Linear(4, columns)

    def forward(self, state):
        return self.linear(state[0])


def carrying(make) -> MultiExitModel:
    return MultiExitModel([Beside(make), Main(4)], [Main(3), nn.Linear(4, 3)]).eval()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda x: x[:, 0].tolist(), "collection"),
        (lambda x: list(x.unbind()), r"\(4,\)"),
        (lambda x: {"lengths": tuple(range(len(x)))}, "collection"),
        (lambda x: x.numpy(), "ndarray"),
        (len, "int"),
        (lambda x: float(x.sum()), "float"),
        (lambda x: x.shape, r"int .* \[1\]\[0\]"),
        (lambda x: object(), "object"),
    ],
)
def test_what_depends_on_the_batch_is_refused_at_the_first_batch(make, what):
    for run in (AdaptiveModel.__call__, AdaptiveModel.predict_all):
        with pytest.raises(ShapeError, match=f"stage 0 .*{what}"):
            run(AdaptiveModel(carrying(make), SOME), torch.randn(8, 4))


@pytest.mark.parametrize("constant", [None, 3, 0.5, "mean", np.arange(3), (1, [2])])
def test_constants_pass(constant):
    adaptive, x = AdaptiveModel(carrying(lambda x: constant), SOME), torch.randn(12, 4)
    found = adaptive(x)
    assert set(found.exit_index) == {0, 1}
    again = adaptive.predict_all([x[:5], x[5:8], x[8:]])
    np.testing.assert_allclose(found.log_probs, again.log_probs, atol=1e-5)


def test_states_that_differ_in_what_is_no_tensor_are_not_joined():
    model = carrying(lambda x: None)
    one = torch.zeros(2, 4)
    assert len(model.join([(one, 3), (one, 3)])[0]) == 4
    for values in ((3, 4), ([1, 2], [1]), (np.arange(2), np.arange(2) + 1)):
        with pytest.raises(ShapeError, match="differ"):
            model.join([(one, value) for value in values])


def test_inputs_without_the_samples_first_do_not_wait():
    class Table(nn.Module):
        def forward(self, x):
            return x, torch.ones(4)

    model = MultiExitModel([Main(4), nn.Linear(4, 4)], [nn.Linear(4, 3)] * 2, start=Table()).eval()
    adaptive, x = AdaptiveModel(model, SOME), torch.randn(8, 4)
    assert np.allclose(adaptive(x).log_probs, adaptive.predict_all([x[:4], x[4:]], regroup=False).log_probs, atol=1e-5)
    with pytest.raises(ShapeError, match=r"before stage 0 .*\(4,\)"):
        adaptive.predict_all([x[:6], x[6:]])


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_batch_norm_without_running_statistics_is_refused_when_the_model_is_made(norm):
    stages = [nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), norm(4, track_running_stats=False))]
    with pytest.raises(InputError, match=rf"'stages\.1\.1' .*{norm.__name__}"):
        MultiExitModel(stages, [nn.Linear(4, 3)] * 2)
    stages[1][1] = nn.InstanceNorm1d(4)  # of single samples
    MultiExitModel(stages, [nn.Linear(4, 3)] * 2)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


@pytest.mark.parametrize("place", [0, 1])
def test_a_model_that_mixes_samples_is_refused_and_a_random_one_is_not(place):
    def model(strange: nn.Module) -> MultiExitModel:
        stages = [nn.Linear(4, 4), nn.Linear(4, 4)]
        stages[place] = nn.Sequential(stages[place], strange)
        return MultiExitModel(stages, [nn.Linear(4, 3), nn.Linear(4, 3)]).eval()

    with pytest.raises(InputError, match=f"mixes the samples .* exit {place}"):
        AdaptiveModel(model(Centred()), SOME)(torch.randn(8, 4))
    AdaptiveModel(model(Noisy()), SOME)(torch.randn(8, 4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", [0, 2.5, "8", True, np.nan])
def test_sizes_of_batches_are_whole_numbers(size, tiny, images):
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([0.0, 0.0, -np.inf]))
    labels = torch.zeros(len(images), dtype=torch.long)
    for run in (
        lambda: AdaptiveModel(tiny, policy).predict_all(images, batch_size=size),
        lambda: record(tiny, (images, labels), batch_size=size, progress=False),
        lambda: bench(tiny, policy, images, batch_sizes=[size], passes=1, progress=False),
    ):
        with pytest.raises(EenetError, match="batch_size"):
            run()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("exit_index", [0.5, True, "0", 2, -1])
def test_exits_that_are_left_out_are_whole_numbers(exit_index, tiny):
    assert tiny.without([np.int64(1)]).num_exits == 2
    with pytest.raises(InputError, match=r"exits .* from 0 to 1"):
        tiny.without([exit_index])

"""Models for the inference tests: one that repeats recorded logits, and small real ones."""

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from eenet.core.combined import MixedPolicy
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.inference.engines import OnnxEngine
from eenet.models.model import MultiExitModel
from eenet.models.zoo.tiny import tiny_cnn


class Replay(nn.Module):
    """A head that says what was recorded for the samples that are still there."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.asked: list[int] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.asked.append(len(rows))
        return self.logits[rows[:, 0]]


def replaying(logits: Tensor) -> MultiExitModel:
    """A model whose inputs are row numbers ``[sample, 1]`` and whose exits repeat ``logits[row]``."""
    exits = range(logits.shape[1])
    return MultiExitModel([nn.Identity() for _ in exits], [Replay(logits[:, k]) for k in exits])


class Ensemble(Policy):
    """Scores by the top log-probability and answers with the mean of all exits seen."""

    def score(self, seen, features=None):
        return seen[:, -1].amax(dim=-1)

    def answer(self, seen, features=None):
        return torch.log_softmax(seen.mean(dim=1), dim=-1)


class Featured(Policy):
    """Scores by the first of the further features."""

    def score(self, seen, features=None):
        return features[:, -1, 0]


@functools.cache
def tiny_onnx() -> tuple[MultiExitModel, OnnxEngine]:
    """A small convolutional net with 3 exits and its engine, made once: exporting takes most of the time."""
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    with torch.random.fork_rng():  # whoever asks first draws the same numbers afterwards as everybody else
        torch.manual_seed(0)
        model = tiny_cnn(exits=3).eval()
        return model, OnnxEngine(model, torch.randn(2, 1, 8, 8))


def quantile_policy(logits: Tensor, confidence: str, share: float = 0.3) -> ScorePolicy:
    """A policy that lets about ``share`` of all samples go at each exit by their confidence."""
    scorer = ConfidenceScorer(confidence)
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    scores = [scorer(log_probs[:, : k + 1]) for k in range(logits.shape[1] - 1)]
    thresholds = [score.quantile(1 - share).item() for score in scores]
    return ScorePolicy(scorer, torch.tensor([*thresholds, -torch.inf]))


def policies(logits: Tensor) -> dict[str, Policy]:
    """Policies of every kind, fitted to these logits so that samples leave everywhere."""
    exits = logits.shape[1]
    a, b = quantile_policy(logits, "max_prob", 0.2), quantile_policy(logits, "max_prob", 0.6)
    vote = quantile_policy(logits, "vote_share", 0.5)
    ensemble = Ensemble(torch.tensor([-0.5] * (exits - 1) + [-torch.inf]))
    return {
        "max_prob": a,
        "certainty": quantile_policy(logits, "certainty"),
        "margin": quantile_policy(logits, "margin"),
        "streak": ScorePolicy(ConfidenceScorer("streak"), torch.tensor([2.0] * (exits - 1) + [-torch.inf])),
        "mixed on one scorer": MixedPolicy(a, b, 0.4, seed=3),
        "mixed on two scorers": MixedPolicy(a, vote, 0.5, seed=1),
        "mixed twice": MixedPolicy(MixedPolicy(a, vote, 0.5, seed=1), b, 0.5, seed=2),
        "ensemble": ensemble,
        "mixed with an ensemble": MixedPolicy(ensemble, b, 0.5),
        "nobody leaves early": ScorePolicy(a.scorer, torch.tensor([torch.inf] * (exits - 1) + [-torch.inf])),
        "all leave at once": ScorePolicy(a.scorer, torch.full((exits,), -torch.inf)),
    }


POLICIES = tuple(policies(torch.randn(4, 3, 2)))


@pytest.fixture
def logits() -> Tensor:
    """Logits of 120 samples at 4 exits, later exits surer, some samples alike."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(120, 4, 10, generator=generator).cumsum(dim=1) * 1.5
    values[50:60] = values[40:50]
    return values


@pytest.fixture
def tiny() -> MultiExitModel:
    """A small convolutional net with 3 exits whose batch norms have seen data, in evaluation mode."""
    model = tiny_cnn(width=8)
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(64, 1, 8, 8))
    return model.eval()


@pytest.fixture
def images() -> Tensor:
    """96 small images."""
    return torch.randn(96, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _no_grad_leaks() -> Iterator[None]:
    """Nothing may switch gradients off for good."""
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()

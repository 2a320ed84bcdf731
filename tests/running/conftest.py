"""Models for the tests of running: one that repeats recorded logits, and small real ones."""

import functools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from jaxtyping import config
from replaying import POLICIES, policies, quantile_policy
from torch import Tensor, nn

from eenet.experiments.zoo.tiny import tiny_cnn
from eenet.models.model import MultiExitModel
from eenet.running.engines import OnnxEngine

__all__ = ["POLICIES", "Replay", "policies", "quantile_policy", "replaying", "tiny_onnx"]


class Replay(nn.Module):
    """A head that says what was recorded for the samples that are still there."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits
        self.asked: list[int] = []

    def forward(self, rows: Tensor) -> Tensor:
        self.asked.append(len(rows))
        return self.logits[rows[:, 0]]


def replaying(logits: Tensor | np.ndarray) -> MultiExitModel:
    """A model whose inputs are row numbers ``[sample, 1]`` and whose exits repeat ``logits[row]``."""
    recorded = torch.as_tensor(logits)
    exits = range(recorded.shape[1])
    return MultiExitModel([nn.Identity() for _ in exits], [Replay(recorded[:, k]) for k in exits])


@functools.cache
def tiny_onnx() -> tuple[MultiExitModel, OnnxEngine]:
    """A small convolutional net with 3 exits and its engine, made once: exporting takes most of the time."""
    for name in ("onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    with torch.random.fork_rng():  # whoever asks first draws the same numbers afterwards as everybody else
        torch.manual_seed(0)
        model = tiny_cnn(exits=3).eval()
        return model, OnnxEngine(model, torch.randn(2, 1, 8, 8))


@pytest.fixture
def logits() -> np.ndarray:
    """Logits of 120 samples at 4 exits, later exits surer, some samples alike."""
    values = (1.5 * np.random.default_rng(0).standard_normal((120, 4, 10)).cumsum(axis=1)).astype(np.float32)
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


@pytest.fixture
def unchecked():
    """Leave out the checks of types, which refuse what they know to be wrong before the library does."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _no_grad_leaks() -> Iterator[None]:
    """Nothing may switch gradients off for good."""
    yield
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()

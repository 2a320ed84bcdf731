"""A small model with three exits, exported once for each engine, and the parts it was made of."""

from __future__ import annotations

import atexit
import functools
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eenet.experiments.data import load_digits
from eenet.experiments.data.dataset import ArrayDataset
from eenet.experiments.recipes import RECIPES
from eenet.models.model import MultiExitModel
from eenet.policies import ConfidenceScorer, Dial, MixedPolicy, ScorePolicy
from eenet.running.engines.graphs import GRAPH_ENGINES
from eenet.running.engines.programs import stage_programs
from eenet.running.exporting import Exported, export
from eenet.running.manifest import Preparation
from eenet.tables import CostTable, log_softmax

COSTS = CostTable((1.0, 2.0, 4.0), "ms", 3.5)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ENGINES = GRAPH_ENGINES
SUFFIXES = {"onnxruntime": "onnx", "openvino": "xml"}
LAST = -np.inf

_folder = tempfile.TemporaryDirectory(prefix="exports")
atexit.register(_folder.cleanup)


def need(engine: str) -> None:
    """Skip the test where an engine, or what writes its graphs, is not installed."""
    for name in ("onnx", "onnxscript", engine):
        pytest.importorskip(name)


@functools.cache
def digits() -> ArrayDataset:
    """Return the embedded images."""
    return load_digits().test


@functools.cache
def model() -> MultiExitModel:
    """Return the model of the recipe ``digits_tiny``, its weights random; nobody needs it to be good."""
    return RECIPES["digits_tiny"].build().eval()


def log_probs(of: MultiExitModel, inputs: Tensor | Mapping[str, Tensor]) -> np.ndarray:
    """Return what every exit says, as policies see it."""
    with torch.no_grad():
        return log_softmax(torch.stack(of(inputs), dim=1).numpy())


def quantile_policy(seen: np.ndarray, confidence: str, share: float) -> ScorePolicy:
    """Return a policy that lets about a share of all samples go at each exit."""
    scorer = ConfidenceScorer(confidence)
    scores = [scorer(seen[:, : k + 1]) for k in range(seen.shape[1] - 1)]
    return ScorePolicy(scorer, np.array([*(np.quantile(score, 1 - share) for score in scores), LAST]))


@functools.cache
def mixed() -> MixedPolicy:
    """Return a policy that tosses a coin."""
    seen = log_probs(model(), digits().inputs(slice(None)))
    return MixedPolicy(quantile_policy(seen, "max_prob", 0.25), quantile_policy(seen, "certainty", 0.6), 0.4, seed=3)


@functools.cache
def dial() -> Dial:
    """Return a dial with two ends: everybody leaves at exit 0, nobody leaves early."""
    scorer = ConfidenceScorer("max_prob")
    ends = (ScorePolicy(scorer, np.full(3, LAST)), ScorePolicy(scorer, np.array([np.inf, np.inf, LAST])))
    return Dial(policies=ends, fit_costs=(1.0, 4.0), fit_utilities=(0.1, 0.2), costs=COSTS)


@functools.cache
def exported(engine: str) -> Exported:
    """Return the export, made once; the test is skipped where the engine is not installed."""
    need(engine)
    with mock.patch.object(sys.modules[export.__module__], "stage_programs", lambda *_: programs()):
        return export(
            model(),
            mixed(),
            digits().inputs(slice(0, 5)),
            Path(_folder.name, engine),
            engine=engine,
            costs=COSTS,
            classes=CLASSES,
            preparation=Preparation(mean=digits().mean, std=digits().std, size=(8, 8)),
            dial=dial(),
        )


@functools.cache
def programs() -> list[bytes]:
    """Return the model's stages as ONNX; making them takes most of the time."""
    return stage_programs(model(), digits().inputs(slice(0, 5)))


@functools.cache
def exported_by_name() -> Exported:
    """Return the export of `by_name`, made once."""
    need("onnxruntime")
    made, batch = by_name()
    policy = ScorePolicy(ConfidenceScorer("max_prob"), np.array([-0.5, LAST]))
    return export(made, policy, batch, Path(_folder.name, "by_name"))


class Joined(nn.Module):
    """Begins with two inputs by name and carries both on."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = inputs["mask"].float()
        return {"x": (self.embed(inputs["ids"]) * mask[..., None]).sum(dim=1), "mask": mask}


class Layer(nn.Module):
    """Changes one tensor of the state."""

    def __init__(self, *, masked: bool) -> None:
        super().__init__()
        self.linear, self.masked = nn.Linear(8, 8), masked

    def forward(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        x = torch.tanh(self.linear(state["x"]))
        return {"x": x * state["mask"].sum(dim=1, keepdim=True) if self.masked else x, "mask": state["mask"]}


class Read(nn.Module):
    """Reads one tensor of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 4)

    def forward(self, state: dict[str, Tensor]) -> Tensor:
        return self.linear(state["x"])


@functools.cache
def by_name() -> tuple[MultiExitModel, dict[str, Tensor]]:
    """Return a model of two inputs by name, and 40 samples."""
    torch.manual_seed(1)
    stages = [Layer(masked=False), Layer(masked=True)]
    made = MultiExitModel(stages, [Read() for _ in stages], start=Joined()).eval()
    ids, mask = torch.randint(20, (40, 6)), torch.ones(40, 6, dtype=torch.int64)
    mask[::3, 4:] = 0
    return made, {"ids": ids, "mask": mask}

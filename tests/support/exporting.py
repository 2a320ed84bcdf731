"""A small model with three exits, exported once for each engine, and the parts it was made of."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from eenet import CostTable, ScorePolicy
from eenet.core.combined import MixedPolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.data import load_digits
from eenet.data.dataset import ArrayDataset
from eenet.inference.engines.onnx import stage_programs
from eenet.inference.export import Exported, Preparation, export
from eenet.models.model import MultiExitModel
from eenet.recipes import RECIPES

COSTS = CostTable((1.0, 2.0, 4.0), "ms", 3.5)
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ENGINES = ("onnx", "openvino")
NEEDED = {"onnx": ("onnxscript", "onnxruntime"), "openvino": ("onnxscript", "openvino")}

_folder = tempfile.TemporaryDirectory(prefix="exports")


@functools.cache
def digits() -> ArrayDataset:
    """Return the embedded images."""
    return load_digits().test


@functools.cache
def model() -> MultiExitModel:
    """Return the model of the recipe ``digits_tiny``, its weights as drawn; nobody needs it to be good."""
    return RECIPES["digits_tiny"].build().eval()


def quantile_policy(logits: Tensor, confidence: str, share: float) -> ScorePolicy:
    """Return a policy that lets about a share of all samples go at each exit."""
    scorer, seen = ConfidenceScorer(confidence), torch.log_softmax(logits, dim=-1)
    scores = [scorer(seen[:, : k + 1]) for k in range(logits.shape[1] - 1)]
    return ScorePolicy(scorer, torch.tensor([*(score.quantile(1 - share).item() for score in scores), -torch.inf]))


@functools.cache
def mixed() -> MixedPolicy:
    """Return a policy that tosses a coin."""
    with torch.no_grad():
        logits = torch.stack(model()(digits().inputs(slice(None))), dim=1)
    return MixedPolicy(
        quantile_policy(logits, "max_prob", 0.25), quantile_policy(logits, "certainty", 0.6), 0.4, seed=3
    )


@functools.cache
def exported(engine: str) -> Exported:
    """Return the export, made once; the test is skipped where the engine is not installed."""
    for name in NEEDED[engine]:
        pytest.importorskip(name)
    with mock.patch("eenet.inference.export.stage_programs", lambda *_: programs()):
        return export(
            model(),
            mixed(),
            digits().inputs(slice(0, 5)),
            Path(_folder.name, engine),
            engine=engine,
            costs=COSTS,
            classes=CLASSES,
            preparation=Preparation(mean=digits().mean, std=digits().std, size=(8, 8)),
        )


@functools.cache
def programs() -> list[bytes]:
    """Return the model's stages as ONNX; making them takes most of the time."""
    return stage_programs(model(), digits().inputs(slice(0, 5)))


@functools.cache
def exported_by_name() -> Exported:
    """Return the export of `by_name`, made once."""
    for name in NEEDED["onnx"]:
        pytest.importorskip(name)
    made, batch = by_name()
    policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([-0.5, -torch.inf]))
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

"""Checkpoints of a training: everything a resumed run needs to end like an uninterrupted one.

``checkpoint.safetensors`` is the one truth (weights, the optimiser's tensors, running averages, losses so far and, by
their number, the step), written in one atomic move. ``checkpoint.json``, written once before it, says which training
it belongs to.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from eenet.errors import InputError
from eenet.models.weights import load_tensors, save_tensors
from eenet.tables.files import read_object, write_json
from eenet.training.schedule import Average

TENSORS, IDENTITY = "checkpoint.safetensors", "checkpoint.json"
PARTS, LOSSES = ("model", "optimizer", "average"), "losses"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a training after some steps.

    Args:
        model: the model's state dict.
        optimizer: the optimiser's tensors, as ``key:parameter``; absent for parameters not trained yet.
        average: running average of the parameters, by name; empty where none is kept.
        losses: cross-entropy of every exit at each step done.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    losses: Float[Tensor, "step exit"]

    @property
    def step(self) -> int:
        """Number of steps done."""
        return len(self.losses)


def capture(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    losses: Float[Tensor, "step exit"],
) -> Checkpoint:
    """Return the present state of a training, refusing an optimiser that keeps something besides tensors."""
    kept_by_optimizer = {
        f"{key}:{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
    for place, value in kept_by_optimizer.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"optimiser {type(optimizer).__name__} keeps {place.partition(':')[0]} as {type(value).__name__}: a "
                "checkpoint holds tensors. Make it a tensor of one number, or train without a folder."
            )
    kept = {} if average is None else average.weights
    return Checkpoint(model=model.state_dict(), optimizer=kept_by_optimizer, average=kept, losses=losses)


def restore(
    checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> None:
    """Bring a training to a checkpoint's state, in place and in the parameters' own memory order."""
    model.load_state_dict(checkpoint.model)
    parameters = dict(model.named_parameters())
    for place, value in checkpoint.optimizer.items():
        key, _, name = place.partition(":")
        parameter = parameters[name]
        buffer = torch.empty_like(parameter, requires_grad=False) if value.shape == parameter.shape else value.clone()
        optimizer.state[parameter][key] = buffer.copy_(value)
    if average is not None:
        average.restore(checkpoint.average)


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder belong to one training, or check that it does; it is free as long as it holds no checkpoint.

    Raises:
        InputError: the settings, data or model of the training in it differ; the first difference is named.
    """
    path = folder / IDENTITY
    for unfinished in folder.glob(f".{TENSORS}.*"):  # what a kill left
        shutil.rmtree(unfinished)
    if (folder / TENSORS).exists() and path.exists():
        found = read_object(path, "checkpoint")
        for key in [*identity, *(found.keys() - identity.keys())]:
            if unmoved(found.get(key)) != unmoved(identity.get(key)):
                raise InputError(
                    f"checkpoint {path} cannot be resumed: it was made with {key} {found.get(key)}, this training "
                    f"has {key} {identity.get(key)}. "
                    "Use the same settings, or another folder."
                )
        return
    write_json(path, dict(identity))


def unmoved(value: object) -> object:
    """Return a setting with the functions of eenet named without their modules: these may move between versions."""
    return re.sub(r"\beenet(?:\.\w+)*\.(\w+)", r"eenet.\1", value) if isinstance(value, str) else value


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, replacing the one before it in one step."""
    tensors = {f"{part}/{name}": tensor for part in PARTS for name, tensor in getattr(checkpoint, part).items()}
    save_tensors(folder / TENSORS, tensors | {LOSSES: checkpoint.losses})


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the folder's checkpoint, or None where there is none yet."""
    if not (folder / TENSORS).exists():
        return None
    tensors = load_tensors(folder / TENSORS, "checkpoint")
    if LOSSES not in tensors:
        raise InputError(
            f"checkpoint {folder / TENSORS} cannot be resumed: it holds no losses. Delete it to start anew."
        )
    named: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    losses = tensors.pop(LOSSES)
    for place, tensor in tensors.items():
        part, _, name = place.partition("/")
        named[part][name] = tensor
    return Checkpoint(**named, losses=losses)

"""Checkpoints of a training: everything a resumed run needs to end like an uninterrupted one.

``checkpoint.safetensors`` is the one truth (weights, the optimiser's tensors, running averages, losses so far and, by
their number, the step), written in one atomic move. ``checkpoint.json``, written once before it, says which training
it belongs to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
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


def write_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    losses: Float[Tensor, "step exit"],
) -> None:
    """Write the present state of a training, replacing the one before it in one step.

    Raises:
        InputError: the optimiser keeps something besides tensors.
    """
    by_optimizer = {
        f"{key}:{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if value is not None
    }
    for place, value in by_optimizer.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"optimiser {type(optimizer).__name__} keeps {place.partition(':')[0]} as {type(value).__name__}: a "
                "checkpoint holds tensors. Make it a tensor of one number, or train without a folder."
            )
    parts = model.state_dict(), by_optimizer, {} if average is None else average.weights
    tensors = {
        f"{part}/{name}": tensor for part, named in zip(PARTS, parts, strict=True) for name, tensor in named.items()
    }
    save_tensors(folder / TENSORS, tensors | {LOSSES: losses})


def restore_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None
) -> Float[Tensor, "step exit"] | None:
    """Bring a training to the state of the folder's checkpoint, in place and in the parameters' own memory order.

    Returns:
        The losses of the steps done; None where there is no checkpoint yet.
    """
    if not (folder / TENSORS).exists():
        return None
    tensors = load_tensors(folder / TENSORS, "checkpoint", sealed=True)
    if LOSSES not in tensors:
        raise InputError(
            f"checkpoint {folder / TENSORS} cannot be resumed: it holds no losses. Delete it to start anew."
        )
    losses = tensors.pop(LOSSES)
    named: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for place, tensor in tensors.items():
        part, _, name = place.partition("/")
        named[part][name] = tensor
    model.load_state_dict(named["model"])
    parameters = dict(model.named_parameters())
    for place, value in named["optimizer"].items():
        key, _, name = place.partition(":")
        parameter = parameters[name]
        buffer = torch.empty_like(parameter, requires_grad=False) if value.shape == parameter.shape else value.clone()
        optimizer.state[parameter][key] = buffer.copy_(value)
    if average is not None:
        average.restore(named["average"])
    return losses


def steps_done(folder: Path) -> int:
    """Return how many steps the checkpoint in a folder has done."""
    path = folder / TENSORS
    return len(load_tensors(path, "checkpoint", sealed=True)[LOSSES]) if path.exists() else 0


def claim_folder(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a folder belong to one training, or check that it does; it is free as long as it holds no checkpoint.

    Raises:
        InputError: the settings, data or model of the training in it differ; the first difference is named.
    """
    path = folder / IDENTITY
    if (folder / TENSORS).exists() and path.exists():
        found = read_object(path, "checkpoint")
        for key in [*identity, *(found.keys() - identity.keys())]:
            if unmoved(found.get(key)) != unmoved(identity.get(key)):
                raise InputError(
                    f"checkpoint {path} cannot be resumed: it was made with {key} {found.get(key)}, this training "
                    f"has {key} {identity.get(key)}. Use the same settings, or another folder."
                )
        return
    write_json(path, dict(identity))


def unmoved(value: object) -> object:
    """Return a setting with the functions of eenet named without their modules: these may move between versions."""
    return re.sub(r"\beenet(?:\.\w+)*\.(\w+)", r"eenet.\1", value) if isinstance(value, str) else value

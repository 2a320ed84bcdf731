"""Reading the weights that a model begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet.core.files import load_tensors
from eenet.errors import InputError
from eenet.recipes.sources import first_line

__all__ = ["load_weights"]


def load_weights(model: nn.Module, path: Path) -> None:
    """Load a state dict into a model: safetensors, or what ``torch.save`` wrote, read without running code from it.

    Raises:
        InputError: The file is missing, damaged, holds something else, or belongs to another model.
    """
    state = load_tensors(path, "weights") if path.suffix == ".safetensors" else _torch_file(path)
    own = model.state_dict()
    for what, names in (
        ("lacks", [name for name in own if name not in state]),
        ("has, and the model has not,", [name for name in state if name not in own]),
    ):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise InputError(
                f"weights {str(path)!r} do not fit: the file {what} {', '.join(names[:5])}{more}. Pass the state dict "
                "of this very model."
            )
    odd = [name for name in own if own[name].shape != state[name].shape]
    if odd:
        raise InputError(
            f"weights {str(path)!r} do not fit: {odd[0]} has shape {tuple(state[odd[0]].shape)}, the model's has "
            f"{tuple(own[odd[0]].shape)}. Pass the state dict of this very model, with as many classes."
        )
    model.load_state_dict(state)


def _torch_file(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise InputError(f"weights {str(path)!r} are missing: there is no such file. Check the path.")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"weights {str(path)!r} cannot be read: {first_line(error)}. Save the model's state_dict() again."
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(
            f"weights {str(path)!r} are no state dict: names and tensors are needed. Save model.state_dict()."
        )
    return state

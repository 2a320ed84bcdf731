"""States of PyTorch as plain arrays and values of JSON, and back, to the bit and in the same memory order."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eenet.errors import InputError
from eenet.models.inputs import State

_PLAIN = {
    name: getattr(torch, name)
    for name in ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
}
_HALF = "bfloat16"  # numpy knows no such numbers


def packed(state: State) -> tuple[list[np.ndarray], Any]:
    """Return the tensors of a state as arrays, and how they form it.

    Raises:
        InputError: It contains something else than tensors, plain values, tuples, lists and dictionaries.
    """
    arrays: list[np.ndarray] = []
    return arrays, _form(state, arrays)


def _form(state: State, arrays: list[np.ndarray]) -> Any:  # noqa: ANN401 - of JSON
    if isinstance(state, Tensor):
        name = str(state.dtype).removeprefix("torch.")
        if name not in (*_PLAIN, _HALF):
            raise InputError(f"state holds a tensor of {name}, which cannot be sent. Run the model in float32.")
        plain = state.detach().contiguous()
        arrays.append((plain.view(torch.int16) if name == _HALF else plain).numpy(force=True))
        return {"tensor": len(arrays) - 1, "dtype": name, "order": _order(state)}
    if type(state) in (tuple, list):
        return {type(state).__name__: [_form(one, arrays) for one in state]}
    if type(state) in (dict, OrderedDict) and all(type(name) is str for name in state):
        return {"dict": {name: _form(one, arrays) for name, one in state.items()}}
    if state is None or type(state) in (bool, int, float, str):
        return {"value": state}
    raise InputError(
        f"state holds a {type(state).__name__}, which cannot be sent: tensors, numbers, texts, tuples, lists and "
        "dictionaries by name can. Let the stages pass these."
    )


def unpacked(arrays: Sequence[np.ndarray], form: Any, device: torch.device) -> State:  # noqa: ANN401 - of JSON
    """Return the state that `packed` took apart.

    Raises:
        InputError: The form is no such thing.
    """
    try:
        [(kind, value)] = [(name, form[name]) for name in ("tensor", "tuple", "list", "dict", "value") if name in form]
        match kind:
            case "tensor":
                return _tensor(arrays[value], form["dtype"], form["order"]).to(device)
            case "tuple" | "list":
                parts = [unpacked(arrays, one, device) for one in value]
                return tuple(parts) if kind == "tuple" else parts
            case "dict":
                return {name: unpacked(arrays, one, device) for name, one in value.items()}
        return value
    except (TypeError, ValueError, LookupError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"state does not fit: it is not of the engine eager ({error}). Run all tiers of a model in engines of one "
            "kind."
        ) from error


def _tensor(array: np.ndarray, name: str, order: list[int]) -> Tensor:
    tensor = torch.from_numpy(np.array(array))
    if name == _HALF:
        tensor = tensor.view(torch.bfloat16)
    if tensor.dtype != (torch.bfloat16 if name == _HALF else _PLAIN[name]) or sorted(order) != [*range(tensor.dim())]:
        raise ValueError(f"a tensor of {tensor.dtype} is called {name}, its axes in memory {order}")
    placed = torch.empty([tensor.shape[axis] for axis in order], dtype=tensor.dtype)
    return placed.permute([order.index(axis) for axis in range(len(order))]).copy_(tensor)


def _order(tensor: Tensor) -> list[int]:
    """Return the axes as they lie in memory, the outermost first: kernels may round otherwise in another order."""
    strides, shape = tensor.stride(), tensor.shape
    return sorted(range(tensor.dim()), key=lambda axis: (-strides[axis], shape[axis] == 1, axis))

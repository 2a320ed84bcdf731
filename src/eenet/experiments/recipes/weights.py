"""Weights as other tools save them: found in a checkpoint, and given the names of a model's own tensors."""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eenet.errors import DataError, InputError
from eenet.experiments.zoo.parts import check_weights
from eenet.libraries import first_line
from eenet.models.weights import load_tensors

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # DDP, torch.compile, FSDP
_COUNTED = re.compile(r"(^|\.)(n_averaged|num_batches_tracked|position_ids)$")  # tensors that not all versions save
_DEPTH = 4
_ADVICE = "Save model.state_dict() by itself."


def load_weights(model: nn.Module, path: Path) -> None:
    """Load weights into a model, whatever tool saved them: safetensors, or what ``torch.save`` wrote.

    Taken are a state dict, and a checkpoint that has one at any name, such as ``state_dict`` or ``model``; its names
    may have in front what wrappers add (DDP, ``torch.compile``, FSDP, a Lightning module), and tensors that the model
    ties may stand there once, as ``save_model`` of safetensors leaves them. Code in a file is never run.

    Args:
        model: gets the weights in place.
        path: the file; one whose name ends in ``.safetensors`` is read as that.

    Raises:
        InputError: the file is missing, damaged, or has more than tensors and plain values in it.
        DataError: it has the weights of another model, of several that would fit, or such that are no numbers.
    """
    if path.suffix.lower() == ".safetensors":
        content: Any = load_tensors(path, "weights")
    else:
        content = _read(path)
    own = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    state = _chosen(own, content, path)
    check_weights(own, state, path)
    for name, tensor in state.items():
        if tensor.is_floating_point() != own[name].is_floating_point():
            types = " and the model's ".join(str(one.dtype).removeprefix("torch.") for one in (tensor, own[name]))
            raise DataError(
                f"weights {str(path)!r} do not fit: {name} is of type {types}. Save weights that are not quantised."
            )
        if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
            raise DataError(f"weights {str(path)!r} are of no use: {name} contains NaN or infinity. Pass others.")
    model.load_state_dict(state, strict=False)  # all tensors are there; what is no tensor stays


def _read(path: Path) -> object:
    """Return what ``torch.save`` wrote, without running code from it."""
    if not path.is_file():
        raise InputError(f"weights {str(path)!r} are missing: there is no such file. Check the path.")
    try:
        if zipfile.is_zipfile(path):  # torch does not look at its checksums
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ValueError(f"the checksum of {damaged} differs")
        with torch.serialization.safe_globals([argparse.Namespace]):  # plain values, as scripts save them
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch, pickle and zipfile raise
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named is not None:
            raise InputError(
                f"weights {str(path)!r} contain more than tensors ({named[1]}): such files run code when they are "
                f"opened, so they are not. {_ADVICE}"
            ) from error
        raise InputError(
            f"weights {str(path)!r} cannot be read: it is no whole file of torch.save ({first_line(error)}). {_ADVICE}"
        ) from error


def _chosen(own: Mapping[str, Tensor], content: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors of the one state dict that fits, by a model's own names; else those that come nearest."""
    states = list(_states(content, "", set()))
    if not states:
        raise InputError(f"weights {str(path)!r} are no state dict: names and tensors are needed. {_ADVICE}")
    named = [(place, state, found) for place, state in states for found in [list(_named(own, state))]]
    fitting = {
        f"{place}{prefix}": (found, left)
        for place, _, some in named
        for prefix, found, left in some
        if all(found[name].shape == own[name].shape for name in own)
    }
    if len(fitting) > 1:
        listed = " and ".join(repr(place) for place in list(fitting)[:3])
        raise DataError(
            f"weights {str(path)!r} fit more than once: {listed} both have them. Save those you mean alone."
        )
    if not fitting:
        near = [found for _, _, some in named for _, found, _ in some]  # other shapes
        closest = max((state for _, state, _ in named), key=lambda state: len(own.keys() & state.keys()))
        return near[0] if near else closest
    ((found, left),) = fitting.values()
    if left:
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        warnings.warn(
            f"weights {str(path)!r} have tensors of other modules, which are left out: {', '.join(left[:3])}{more}.",
            stacklevel=4,
        )
    return found


def _states(content: object, place: str, seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield all named tensors that stand together in a file, and where."""
    if not isinstance(content, Mapping) or id(content) in seen or place.count(".") > _DEPTH:
        return
    seen.add(id(content))
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield place, tensors
    for name, value in content.items():
        yield from _states(value, f"{place}{name}.", seen)


def _named(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor]
) -> Iterator[tuple[str, dict[str, Tensor], list[str]]]:
    """Yield every prefix under which a state dict has all tensors of a model, these, and the names of the others."""
    wanted = {bare: name for name, bare in _bare(own).items()}
    known = {bare: state[name] for name, bare in _bare(state).items()}
    prefixes = {""}
    for name in known:
        parts = name.split(".")
        prefixes |= {".".join([*parts[:place], ""]) for place in range(len(parts)) if ".".join(parts[place:]) in wanted}
    for prefix in [""] if wanted.keys() <= known.keys() else sorted(prefixes):
        found = {name: known[prefix + bare] for bare, name in wanted.items() if prefix + bare in known}
        for name in own.keys() - found.keys():
            tied = next((other for other in found if _tied(own[name], own[other])), None)
            if tied is not None or _COUNTED.search(name):
                found[name] = own[name] if tied is None else found[tied]
        left = [name for name in known if not name.startswith(prefix) or name.removeprefix(prefix) not in wanted]
        left = [name for name in left if not _COUNTED.search(name)]
        if found.keys() == own.keys() and not any(name.startswith(prefix) for name in left):
            yield prefix, found, left


def _bare(names: Set[str] | Mapping[str, Any]) -> dict[str, str]:
    """Return names without the parts that wrappers add, as long as they stay different."""
    bare = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    return bare if len(set(bare.values())) == len(bare) and "" not in bare.values() else {name: name for name in names}


def _tied(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same numbers in memory."""
    return one.shape == other.shape and one.stride() == other.stride() and one.data_ptr() == other.data_ptr() != 0

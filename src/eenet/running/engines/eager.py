"""The engine that is always there: PyTorch as it stands."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import InputError
from eenet.models.inputs import State, evaluating
from eenet.models.model import MultiExitModel
from eenet.models.processor import warn_of_emulation
from eenet.running.engines.base import Engine
from eenet.running.engines.fold import fold_batch_norms
from eenet.running.inputs import Inputs

_UNFIT = (AttributeError, KeyError, TypeError)  # what modules raise that are given other names than they take


@contextmanager
def _watching(model: nn.Module) -> Iterator[None]:
    """Run a model that belongs to somebody else: evaluation mode, flags restored, no gradients."""
    with evaluating(model), torch.inference_mode():
        yield


@final
class EagerEngine(Engine):
    """Runs a model's own modules.

    With ``optimise`` it works on a copy: batch norms folded into the convolutions before them, channels last
    where there are convolutions, evaluation mode for good. Outputs then agree with the model's up to rounding.
    Without, it runs the very model handed in, to the bit, and later changes of its weights are seen.

    Inputs may be arrays, or tensors on any device: they are moved to the model's device, and floating point numbers
    to its number format. Heads return logits, or a pair of features for the policy and the answer.

    Args:
        model: The multi-exit model.
        optimise: Trade bit equality for speed.
        dtype: The number format to compute in, for an optimised copy; default: the model's own. With ``bfloat16``
            outputs differ in the third digit: fit the policy on a table recorded from this engine.

    Raises:
        InputError: A number format without ``optimise``.
    """

    def __init__(self, model: MultiExitModel, *, optimise: bool = True, dtype: torch.dtype | None = None) -> None:
        if dtype is not None and not optimise:
            raise InputError(f"dtype {dtype} cannot be had: the model itself is run. Pass optimise=True.")
        weight = _first_weight(model)
        if dtype not in (None, weight.dtype) and dtype == torch.bfloat16:
            warn_of_emulation("dtype", weight.device)
        self.name, self.device, self.num_exits = "eager", str(weight.device), model.num_exits
        self.dtype = str(dtype or weight.dtype).removeprefix("torch.")
        self.optimised, self._original, self._dtype = optimise, model, dtype
        self._versions = _versions(model)
        self.channels_last = optimise and any(isinstance(module, nn.Conv2d) for module in model.modules())
        self.model = _optimised(model, dtype, channels_last=self.channels_last) if optimise else model
        self._stages, self._heads = list(self.model.stages), list(self.model.heads)
        self._weight = _first_weight(self.model) if optimise else weight  # says where inputs belong, and their format

    @cached_property
    def source(self) -> str:
        """Fingerprint of the model; empty where a copy is run and the model's weights were changed in the meantime."""
        if self.optimised and self._versions != _versions(self._original):
            return ""
        return fingerprint(self._original, self._dtype)

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called."""
        return torch.inference_mode() if self.optimised else _watching(self.model)

    def start(self, inputs: Inputs) -> State:
        """Turn a batch into the state that stage 0 takes.

        Raises:
            InputError: The model does not take inputs of these names.
        """
        placed = self.placed(inputs)
        try:
            return self.model.start(placed)
        except _UNFIT as error:
            _refuse_names(placed, error)
            raise

    def placed(self, inputs: Inputs) -> Inputs:
        """Return a batch as tensors on the model's device, floating point numbers in its format."""
        if isinstance(inputs, Tensor):  # the usual case, and the loop is a hot one
            weight = self._weight
            if inputs.device != weight.device or (inputs.dtype != weight.dtype and inputs.is_floating_point()):
                dtype = weight.dtype if inputs.is_floating_point() else inputs.dtype
                inputs = inputs.to(weight.device, dtype, non_blocking=True)
            if self.channels_last and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            return inputs
        if isinstance(inputs, Mapping):
            return {name: self.placed(value) for name, value in inputs.items()}
        if isinstance(inputs, tuple):
            return tuple(self.placed(value) for value in inputs)
        if isinstance(inputs, np.ndarray | list) and (array := np.asarray(inputs)).dtype.kind in "fiub":
            return self.placed(torch.from_numpy(np.require(array, requirements=["W", "A"])))
        return inputs

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index``."""
        if index:
            return self._stages[index](state)
        try:
            return self._stages[0](state)
        except _UNFIT as error:
            _refuse_names(state, error)
            raise

    def head(self, index: int, state: State) -> tuple[Any, Any]:
        """Return what exit ``index`` says; maps stay where they are."""
        return read(self._heads[index](state))

    def select(self, state: State, rows: Int[np.ndarray, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""
        kept = torch.from_numpy(rows).to(self._weight.device)
        if not self.channels_last:
            return self.model.select(state, kept)
        if isinstance(state, Tensor):  # the usual case, and walking a tree takes its time
            return _kept(state, kept)
        return pytree.tree_map_only(Tensor, lambda leaf: _kept(leaf, kept), state)

    def misfit(self, state: State, count: int) -> tuple[int, ...] | None:
        """Return the shape of a tensor in the state whose first axis is not that many samples."""
        leaves = [state] if isinstance(state, Tensor) else pytree.tree_leaves(state)
        shapes = (tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))
        return next((shape for shape in shapes if shape[:1] != (count,)), None)

    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one."""
        return self.model.join(states)

    def synchronise(self) -> None:
        """Wait until the device has finished."""
        device = self._weight.device
        if device.type != "cpu":
            getattr(torch, device.type).synchronize(device)


def fingerprint(model: nn.Module, dtype: torch.dtype | None = None) -> str:
    """Return what tells one set of weights from another: the SHA-256 of the state dict and the number format.

    Args:
        model: As it is now.
        dtype: The format it is run in; default: its own.
    """
    digest = hashlib.sha256(str(dtype or _first_weight(model).dtype).encode())
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _versions(model: nn.Module) -> list[int]:
    """Return how often every weight was changed, as far as PyTorch counts."""
    weights = [one for one in model.state_dict().values() if isinstance(one, Tensor)]
    return [0 if one.is_inference() else one._version for one in weights]


def read(said: Any) -> tuple[Any, Any]:  # noqa: ANN401 - logits, or a pair of features and an answer
    """Return what a head said as engines say it: what the policy reads on the CPU, maps and answers where they are."""
    if isinstance(said, tuple):
        features, answer = said
        return features.float().numpy(force=True), answer
    return (said if said.dim() == 4 else said.float().numpy(force=True)), None


def _first_weight(model: nn.Module) -> Tensor:
    """Return the first parameter of floating point numbers, which stands for all; an empty tensor if there is none."""
    return next((one for one in model.parameters() if one.is_floating_point()), torch.empty(0))


def _refuse_names(inputs: Inputs, error: Exception) -> None:
    """Say in one sentence that a model failed on inputs of these names.

    Raises:
        InputError: The inputs have names.
    """
    if isinstance(inputs, Mapping):
        raise InputError(
            f"inputs named {', '.join(map(str, inputs))} do not fit: the model cannot be run on them "
            f"({type(error).__name__}: {error}). Pass those that it was made for, under their names."
        ) from error


def _optimised(model: MultiExitModel, dtype: torch.dtype | None, *, channels_last: bool) -> MultiExitModel:
    """Return a frozen, faster copy of a model."""
    with torch.no_grad():
        stages = MultiExitModel(
            list(model.stages), list(model.heads), start=model.entry
        )  # what runs in one go is not needed
        frozen = copy.deepcopy(stages).eval().requires_grad_(False)
        if channels_last:
            frozen = frozen.to(memory_format=torch.channels_last)
        frozen.entry = fold_batch_norms(frozen.entry)
        frozen.stages = nn.ModuleList(fold_batch_norms(stage) for stage in frozen.stages)
        frozen.heads = nn.ModuleList(fold_batch_norms(head) for head in frozen.heads)
    return frozen if dtype is None else frozen.to(dtype)


def _kept(tensor: Tensor, rows: Int[Tensor, " kept"]) -> Tensor:
    """Return some rows of a tensor; those of images stay channels last."""
    if tensor.dim() == 4:
        # index_select answers in channels first: index the dense view, three times as fast as converting back
        return tensor.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    return tensor[rows]

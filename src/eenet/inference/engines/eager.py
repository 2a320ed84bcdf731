"""The engine that is always there: PyTorch as it stands."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.core.processor import warn_of_emulation
from eenet.errors import InputError
from eenet.inference.engines.base import Engine, full_in_stages
from eenet.inference.engines.fold import fold_batch_norms
from eenet.models.inputs import Inputs, State, evaluating
from eenet.models.model import MultiExitModel

__all__ = ["EagerEngine"]


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
        parameter = next(iter(model.parameters()), torch.empty(0))
        self.name = "eager"
        self.device = parameter.device
        self._cast = None if dtype in (None, parameter.dtype) else dtype
        if self._cast == torch.bfloat16:
            warn_of_emulation("dtype", self.device)
        self.dtype = str(self._cast or parameter.dtype).removeprefix("torch.")
        self.num_exits = model.num_exits
        self.optimised = optimise
        self.channels_last = optimise and any(isinstance(module, nn.Conv2d) for module in model.modules())
        self._model = _optimised(model, self._cast, channels_last=self.channels_last) if optimise else model
        self._stages, self._heads = list(self._model.stages), list(self._model.heads)

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called."""
        return torch.inference_mode() if self.optimised else _watching(self._model)

    def start(self, inputs: Inputs) -> State:
        """Turn a batch into the state that stage 0 takes."""
        if self.channels_last:
            if isinstance(inputs, Tensor):  # the usual case, and walking a tree takes its time
                inputs = _channels_last(inputs)
            else:
                inputs = pytree.tree_map_only(Tensor, _channels_last, inputs)
        if self._cast is not None:
            inputs = pytree.tree_map_only(Tensor, self._converted, inputs)
        return self._model.start(inputs)

    def _converted(self, tensor: Tensor) -> Tensor:
        """Return floating point numbers in the engine's format; token numbers and masks as they are."""
        return tensor.to(self._cast) if tensor.is_floating_point() else tensor

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index``."""
        return self._stages[index](state)

    def head(self, index: int, state: State) -> Float[Tensor, "sample class *pixel"]:
        """Return the logits of exit ``index``."""
        logits: Tensor = self._heads[index](state)
        return logits

    def full(self, inputs: Inputs) -> Float[Tensor, "sample class *pixel"]:
        """Run the original model without exits."""
        return full_in_stages(self, inputs)

    def select(self, state: State, rows: Int[Tensor, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""
        if not self.channels_last:
            return self._model.select(state, rows)
        if isinstance(state, Tensor):  # the usual case, and walking a tree takes its time
            return _kept(state, rows)
        return pytree.tree_map_only(Tensor, lambda leaf: _kept(leaf, rows), state)

    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one."""
        return self._model.join(states)


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


def _channels_last(tensor: Tensor) -> Tensor:
    """Lay an image batch out channels last; leave any other tensor alone."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _kept(tensor: Tensor, rows: Int[Tensor, " kept"]) -> Tensor:
    """Return some rows of a tensor; those of images stay channels last."""
    if tensor.dim() == 4:
        # index_select answers in channels first: index the dense view, three times as fast as converting back
        return tensor.permute(0, 2, 3, 1)[rows].permute(0, 3, 1, 2)
    return tensor[rows]

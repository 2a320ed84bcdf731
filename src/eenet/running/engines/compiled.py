"""The engine of torch.compile: every stage with its head as one compiled function."""

from __future__ import annotations

import inspect
import os
import shutil
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.errors import InputError
from eenet.models.inputs import State
from eenet.models.model import MultiExitModel
from eenet.running.engines.base import Carried, EngineAround
from eenet.running.engines.eager import EagerEngine, read
from eenet.running.inputs import Inputs, rows_of
from eenet.tables.arrays import batch_size

_WARM_SIZES = (1, 2, 3, 15, 16, 17, 64)  # kernels are chosen anew for 1, for 2 to 15 and from 16 samples on
_RECOMPILES = 64  # of one function, for batches laid out in ways not met before
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


@final
class CompiledEngine(EngineAround):
    """Runs a model through torch.compile: the faster copy of `EagerEngine`, a function per stage with its head.

    Everything is compiled when the engine is made, for one sample and for any number of them, which takes a minute or
    so; stages are never run uncompiled. Inputs of another shape (apart from the batch) or layout are compiled for when
    they first come.

    Args:
        model: The multi-exit model; a copy of it as it is now is compiled.
        example_inputs: What its inputs look like.

    Raises:
        InputError: There is no C++ compiler, or the model does something that cannot be compiled as a whole.
    """

    def __init__(self, model: MultiExitModel, example_inputs: Inputs) -> None:
        _require_compiler()
        self._eager = EagerEngine(model)
        super().__init__(self._eager)
        self.name = "compiled"
        self._parts = [_compiled(_part(self._eager, k), f"stage_{k}") for k in range(model.num_exits)]
        self._whole = _compiled(_whole(self._eager), "whole")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._warm_up(example_inputs)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise InputError(
                f"model cannot be compiled: {reason.rstrip('.')}. Use the engine eager, onnxruntime or openvino."
            ) from error

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called.

        No inference mode: tensors made in it are of a kind of their own, and would all be compiled for twice.
        """
        return torch.no_grad()

    def start(self, inputs: Inputs) -> Carried:
        """Turn a batch into the state that stage 0 takes."""
        return Carried(self._eager.placed(inputs))

    def stage(self, index: int, state: Carried) -> Carried:
        """Run stage ``index`` and its head, and carry what that says beside the state."""
        return Carried(*self._parts[index](state.state))

    def head(self, index: int, state: Carried) -> tuple[Any, Any]:
        """Return what exit ``index`` says, computed with its stage; maps stay where they are."""
        return read(state.extra)

    def full(self, inputs: Inputs) -> object:
        """Run the original model without exits, in one function."""
        with self.session():
            seen, answer = read(self._whole(self._eager.placed(inputs)))
            return seen if answer is None else answer

    def _warm_up(self, example_inputs: Inputs) -> None:
        """Compile for one sample and for many, the batch being free."""
        count = batch_size(example_inputs)
        for size in _WARM_SIZES:
            inputs = self._eager.placed(rows_of(example_inputs, np.arange(size) % count))
            self.full(_freed(inputs, size))
            with self.session():
                state = self.start(inputs)
                for k in range(self.num_exits):
                    state = self.stage(k, Carried(_freed(state.state, size)))


def _part(eager: EagerEngine, index: int) -> Callable[[State], tuple[State, Any]]:
    """Return what compiles to a stage and its head; the first one begins with the inputs."""
    if index == 0:
        return lambda inputs: ((state := eager.model.stages[0](eager.model.start(inputs))), eager.model.heads[0](state))
    return lambda state: ((state := eager.model.stages[index](state)), eager.model.heads[index](state))


def _whole(eager: EagerEngine) -> Callable[[Inputs], Any]:
    """Return what compiles to the original model without exits."""

    def run(inputs: Inputs) -> Any:  # noqa: ANN401
        state = eager.model.start(inputs)
        for stage in eager.model.stages:
            state = stage(state)
        return eager.model.heads[-1](state)

    return run


def _compiled(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function compiled without gaps, or not at all.

    What is compiled is remembered by code, and only so many versions of it: so each gets a code of its own.
    """
    assert isinstance(run, types.FunctionType)
    alone = types.FunctionType(run.__code__.replace(co_name=name), run.__globals__, name, None, run.__closure__)
    known = inspect.signature(torch.compile).parameters
    more: dict[str, Any] = {"recompile_limit": _RECOMPILES} if "recompile_limit" in known else {}
    if hasattr(torch.compiler, "keep_tensor_guards_unsafe"):  # as old as the option
        more["options"] = {"guard_filter_fn": _checked_on_each_call}
    compiled: Callable[..., Any] = torch.compile(alone, fullgraph=True, **more)
    return compiled


def _checked_on_each_call(facts: Sequence[Any]) -> list[bool]:
    """Return which facts that code was compiled for are checked again: not those of the copy, which never changes."""
    return [not fact.is_global and "eager" not in fact.name for fact in facts]


def _freed(state: State, size: int) -> State:
    """Say of every tensor that its batch may have any size, unless it is the special one of a single sample."""
    for leaf in pytree.tree_leaves(state) if size > 1 else []:
        if isinstance(leaf, Tensor) and leaf.dim():
            torch._dynamo.maybe_mark_dynamic(leaf, 0)
    return state


def _require_compiler() -> None:
    """Refuse a machine without the compiler that PyTorch calls."""
    name = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    if shutil.which(name) is None:
        raise InputError(
            f"compiler {name!r} is missing: the engine compiled needs a C++ compiler. Install one, or use another "
            "engine."
        )

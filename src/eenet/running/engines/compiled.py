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
from itertools import product, zip_longest
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.errors import InputError
from eenet.models.form import SameForm, moving_axes
from eenet.models.inputs import State
from eenet.running.engines import plain_model
from eenet.running.engines.base import Carried, EngineAround
from eenet.running.engines.eager import EagerEngine, read
from eenet.running.inputs import Inputs, rows_of
from eenet.tables.arrays import batch_size

_WARM_SIZES = (1, 2, 3, 15, 16, 17, 64)  # kernels are chosen separately for 1, 2 to 15, and 16 samples or more
_RECOMPILES = 64  # of one function, for batches in new memory layouts
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


@final
class CompiledEngine(EngineAround):
    """Runs a model through torch.compile: the faster copy of `EagerEngine`, a function per stage with its head.

    Everything is compiled when the engine is made, for one sample and for any number of them, which takes a minute or
    so; stages are never run uncompiled. Sizes that `attach` left free, such as the length of texts, are free here too;
    inputs of another shape or layout are compiled for at their first batch.

    Args:
        model: The multi-exit model; a copy of it as it is now is compiled.
        example_inputs: What its inputs look like.

    Raises:
        InputError: There is no C++ compiler, or the model does something that cannot be compiled as a whole.
    """

    def __init__(self, model: object, example_inputs: Inputs) -> None:
        _require_compiler()
        model = plain_model(model)
        self._eager = EagerEngine(model)
        with self._eager.session():
            self._eager.placed(example_inputs)  # what it finds out is compiled in
        super().__init__(self._eager)
        self.name = "compiled"
        self._parts = [_compiled(_part(self._eager, k, k), f"stage_{k}") for k in range(model.num_exits)]
        self._form = model.entry if isinstance(model.entry, SameForm) else None
        self._whole = _compiled(_part(self._eager, 0, model.num_exits - 1, state_too=False), "whole")
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
        # no inference mode: tensors made in it are of a kind of their own, and would all be compiled for twice
        return torch.no_grad()

    def start(self, inputs: Inputs) -> Carried:
        return Carried(self._placed(inputs))

    def _placed(self, inputs: Inputs) -> Inputs:
        placed = self._eager.placed(inputs)
        if self._form is not None:  # compiled code does not check sizes
            self._form.check(placed)
        return placed

    def stage(self, index: int, state: Carried) -> Carried:
        """Run stage ``index`` and its head, whose output is carried beside the state."""
        return Carried(*self._parts[index](state.state))

    def head(self, index: int, state: Carried) -> tuple[Any, Any]:
        return read(state.extra)

    def full(self, inputs: Inputs) -> object:
        with self.session():
            seen, answer = read(self._whole(self._placed(inputs)))
            return seen if answer is None else answer

    def _warm_up(self, example_inputs: Inputs) -> None:
        """Compile for one sample and for many, the batch being free, and every size that is."""
        count = batch_size(example_inputs)
        examples = self._eager.placed(example_inputs)
        moving = moving_axes(self._eager.model, examples) or [[]] * self.num_exits
        lengths = [examples, *(self._form.others(examples) if self._form is not None else ())]
        for size, given in product(_WARM_SIZES, lengths):
            inputs = rows_of(given, np.arange(size) % count)
            self.full(_freed(inputs, size, moving[0]))
            with self.session():
                state = self.start(inputs)
                for k in range(self.num_exits):
                    state = self.stage(k, Carried(_freed(state.state, size, moving[k])))


def _part(eager: EagerEngine, first: int, last: int, *, state_too: bool = True) -> Callable[[State], Any]:
    """Return what compiles to some stages and the head after them; stage 0 begins with the inputs."""

    def run(state: State) -> Any:  # noqa: ANN401 - the state and the head's output, or that alone
        if first == 0:
            state = eager.model.start(state)
        for k in range(first, last + 1):
            state = eager.model.stages[k](state)
        output = eager.model.heads[last](state)
        return (state, output) if state_too else output

    return run


def _compiled(run: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return a function that is compiled as a whole, or refused.

    PyTorch keeps a limited number of compiled versions per code object: so each function gets a code of its own.
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
    """Return which of the facts that code was compiled for are checked on each call: not those of the fixed copy."""
    return [not fact.is_global and "eager" not in fact.name for fact in facts]


def _freed(state: State, size: int, moving: Sequence[Sequence[int]]) -> State:
    """Mark the batch of every tensor as of any size, unless it is a single sample, which is compiled apart.

    Args:
        state: What a stage takes.
        size: Samples in it.
        moving: Further axes of any size, of every tensor; empty where there are none.
    """
    for leaf, axes in zip_longest(pytree.tree_leaves(state), moving, fillvalue=()):
        if isinstance(leaf, Tensor) and leaf.dim():
            for axis in (0, *axes) if size > 1 else axes:
                torch._dynamo.maybe_mark_dynamic(leaf, axis)
    return state


def _require_compiler() -> None:
    """Refuse a machine without the compiler that PyTorch calls."""
    name = os.environ.get("CXX") or _COMPILERS.get(sys.platform, "g++")
    if shutil.which(name) is None:
        raise InputError(
            f"compiler {name!r} is missing: the engine compiled needs a C++ compiler. Install one, or use another "
            "engine."
        )

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
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from eenet.errors import InputError
from eenet.inference.engines.base import Engine
from eenet.inference.engines.eager import EagerEngine
from eenet.models.inputs import Inputs, State, batch_size
from eenet.models.model import MultiExitModel

__all__ = ["CompiledEngine"]

_WARM_SIZES = (1, 2, 3, 15, 16, 17, 64)  # kernels are chosen anew for 1, for 2 to 15 and from 16 samples on
_RECOMPILES = 64  # of one function, for batches laid out in ways not met before
_COMPILERS = {"darwin": "clang++", "win32": "cl"}


class _Held(NamedTuple):
    """What a stage returned, and what the head compiled with it says."""

    state: State
    logits: Tensor | None = None


@final
class CompiledEngine(Engine):
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
        self.name, self.dtype = "compiled", self._eager.dtype
        self.device = self._eager.device
        self.num_exits = model.num_exits
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

    def start(self, inputs: Inputs) -> State:
        """Turn a batch into the state that stage 0 takes."""
        return _Held(inputs)

    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` and the head behind it."""
        return _Held(*self._parts[index](state.state))

    def head(self, index: int, state: State) -> Float[Tensor, "sample class *pixel"]:
        """Return the logits of exit ``index``, worked out with its stage."""
        logits: Tensor = state.logits
        return logits

    def select(self, state: State, rows: Int[Tensor, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""
        return _Held(self._eager.select(state.state, rows))

    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one."""
        return _Held(self._eager.join([state.state for state in states]))

    def full(self, inputs: Inputs) -> Float[Tensor, "sample class *pixel"]:
        """Run the original model without exits, in one function."""
        with self.session():
            logits: Tensor = self._whole(inputs)
            return logits

    def _warm_up(self, example_inputs: Inputs) -> None:
        """Compile for one sample and for many, the batch being free."""
        count = batch_size(example_inputs)
        for size in _WARM_SIZES:
            rows = torch.arange(size, device=self.device) % count
            inputs = pytree.tree_map_only(Tensor, lambda leaf, rows=rows: leaf[rows], example_inputs)
            self.full(_freed(inputs, size))
            with self.session():
                state = self.start(inputs)
                for k in range(self.num_exits):
                    state = self.stage(k, _Held(_freed(state.state, size)))


def _part(eager: EagerEngine, index: int) -> Callable[[State], tuple[State, Tensor]]:
    """Return what compiles to a stage and its head; the first one begins with the inputs."""
    if index == 0:
        return lambda inputs: ((state := eager.stage(0, eager.start(inputs))), eager.head(0, state))
    return lambda state: ((state := eager.stage(index, state)), eager.head(index, state))


def _whole(eager: EagerEngine) -> Callable[[Inputs], Tensor]:
    """Return what compiles to the original model without exits."""
    last = eager.num_exits - 1

    def stages(state: Any) -> Any:  # noqa: ANN401
        for k in range(last + 1):
            state = eager.stage(k, state)
        return state

    return lambda inputs: eager.head(last, stages(eager.start(inputs)))


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

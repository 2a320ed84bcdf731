"""What the engines of other runtimes share: one compiled graph per stage, its head fused in, states as arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.errors import InputError, ShapeError
from eenet.inference.engines.base import Engine
from eenet.inference.engines.programs import stage_programs, whole_program
from eenet.models.inputs import Inputs, State
from eenet.models.model import MultiExitModel

__all__ = ["Graph", "GraphEngine", "named_inputs", "require_float32"]

Graph = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""A compiled part of a model: from the leaves of a state to the logits and the leaves of the next state."""


def require_float32(model: MultiExitModel) -> None:
    """Refuse number formats and devices that the graphs have no place for.

    Raises:
        InputError: The model is not in float32 on the CPU.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.dtype, parameter.device.type) != (torch.float32, "cpu"):
            raise InputError(
                f"model of {parameter.dtype} on {parameter.device} cannot be exported: graphs are made in float32 on "
                "the CPU. Call model.float().cpu() first."
            )


class _Held(NamedTuple):
    """What a graph returned: the leaves of the next state, and what the head fused into it says."""

    leaves: Sequence[np.ndarray]
    logits: np.ndarray | None = None


class GraphEngine(Engine):
    """Runs a model as compiled graphs on the CPU; a runtime joins in by saying how a graph is `opened`.

    Args:
        model: The multi-exit model; it is exported as it is now, in evaluation mode, its flags restored.
        example_inputs: What its inputs look like, at least 2 samples.
        name: Of the engine.
        dtype: The number format it computes in.

    Raises:
        InputError: The model is not in float32 on the CPU.
    """

    def __init__(self, model: MultiExitModel, example_inputs: Inputs, *, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self.device = torch.device("cpu")
        self.threads: int = torch.get_num_threads()
        self.num_exits = model.num_exits
        require_float32(model)
        self._taken = {name: (leaf.dtype, leaf.shape[1:]) for name, leaf in named_inputs(example_inputs).items()}
        self._parts = [self.opened(program) for program in stage_programs(model, example_inputs)]
        self._whole = self.opened(whole_program(model, example_inputs))

    @abstractmethod
    def opened(self, program: bytes) -> Graph:
        """Return an ONNX file as a graph that is ready to run; what it returns must stay as it is when it runs again.

        Raises:
            MissingExtraError: The runtime is not installed.
        """

    @final
    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called."""
        return torch.inference_mode()

    @final
    def start(self, inputs: Inputs) -> State:
        """Turn a batch into the state that stage 0 takes.

        Raises:
            InputError: Inputs of other names or types than those of the example.
            ShapeError: Inputs of another shape, the number of samples apart.
        """
        return _Held(self._leaves(inputs))

    @final
    def stage(self, index: int, state: State) -> State:
        """Run stage ``index`` and the head behind it."""
        logits, *leaves = self._parts[index](state.leaves)
        return _Held(leaves, logits)

    @final
    def head(self, index: int, state: State) -> Float[Tensor, "sample class *pixel"]:
        """Return the logits of exit ``index``, worked out with its stage."""
        return torch.from_numpy(state.logits)

    @final
    def select(self, state: State, rows: Int[Tensor, " kept"]) -> State:
        """Keep some rows of everything in the state."""
        kept = rows.numpy()
        return _Held([leaf.take(kept, axis=0) for leaf in state.leaves])

    @final
    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one."""
        return _Held([np.concatenate(parts) for parts in zip(*(state.leaves for state in states), strict=True)])

    @final
    def full(self, inputs: Inputs) -> Float[Tensor, "sample class *pixel"]:
        """Run the original model without exits, in one graph."""
        return torch.from_numpy(self._whole(self._leaves(inputs))[0])

    def _leaves(self, inputs: Inputs) -> list[np.ndarray]:
        """Return a batch as arrays, in the order in which the first graph takes them."""
        named = named_inputs(inputs)
        if named.keys() != self._taken.keys():
            raise InputError(
                f"inputs {list(named)} do not fit: the graphs were made for {list(self._taken)}. Pass just these."
            )
        for name, (dtype, shape) in self._taken.items():
            leaf = named[name]
            if leaf.dtype != dtype:
                raise InputError(
                    f"input {name!r} of {leaf.dtype} does not fit: the graphs were made for {dtype}. Convert it with "
                    f".to({dtype})."
                )
            if leaf.shape[1:] != shape:
                raise ShapeError(
                    f"input {name!r} of shape {tuple(leaf.shape)} does not fit: the graphs were made for samples of "
                    f"shape {tuple(shape)}. Pass such samples, or make an engine for these."
                )
        return [named[name].numpy() for name in self._taken]


def named_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """Return inputs by name; a single tensor is called ``input``."""
    return inputs if isinstance(inputs, dict) else {"input": inputs}

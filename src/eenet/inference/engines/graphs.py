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
from torch.utils import _pytree as pytree

from eenet.inference.engines.base import Engine
from eenet.inference.engines.programs import stage_programs, whole_program
from eenet.models.inputs import Inputs, State
from eenet.models.model import MultiExitModel

__all__ = ["Graph", "GraphEngine"]

Graph = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""A compiled part of a model: from the leaves of a state to the logits and the leaves of the next state."""


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
    """

    def __init__(self, model: MultiExitModel, example_inputs: Inputs, *, name: str, dtype: str) -> None:
        self.name, self.dtype = name, dtype
        self.device = torch.device("cpu")
        self.threads: int = torch.get_num_threads()
        self.num_exits = model.num_exits
        self._keys = list(example_inputs) if isinstance(example_inputs, dict) else None
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
        """Turn a batch into the state that stage 0 takes."""
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
        if isinstance(inputs, Tensor):
            return [inputs.numpy()]
        leaves = pytree.tree_leaves(inputs) if self._keys is None else [inputs[key] for key in self._keys]
        return [leaf.numpy() for leaf in leaves]

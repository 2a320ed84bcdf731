"""What an engine is: a model cut into stages, run by a loop outside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import ShapeError

State: TypeAlias = Any
"""What travels between stages, in a form of the engine's own; batch first."""

ExitOutput: TypeAlias = tuple[Float32[np.ndarray, "sample column"], Any]
"""What an exit returns: what the policy reads, and the answer of the samples that leave there.

Heads of classes return their logits, and None: the policy answers. Others return features (the summary of a map, a
regressor's hidden features) and an answer, batch first, whose rows are taken with ``answer[rows]`` when samples leave.
Heads of maps may return ``[sample, class, height, width]``, as an array or tensor, and None: `DenseEngine` makes of
them what a policy reads.
"""


class Engine(ABC):
    """Runs the stages and heads of a multi-exit model, one call each.

    The loop is outside: it runs a stage, reads that exit, and drops the samples that leave with `select`. All calls
    happen inside `session`.

    Attributes:
        name: As printed and as named in a profile, for example ``eager``.
        dtype: The number format it computes in, for example ``float32``.
        device: Where states are, as PyTorch would write it.
        num_exits: Number of exits, the original output included.
        threads: Of the CPU, where they were fixed when it was made; None: as many as its runtime chooses.
    """

    name: str
    dtype: str = "float32"
    device: str = "cpu"
    num_exits: int
    threads: int | None = None

    @cached_property
    def source(self) -> str:
        """Fingerprint of the model it was made from, stored in the tables recorded from it; empty: not known."""
        return ""

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called: no gradients, inference behaviour."""
        return nullcontext()

    @abstractmethod
    def start(self, inputs: Any) -> State:  # noqa: ANN401 - arrays, tensors, mappings of these, lists
        """Turn a batch into the state that stage 0 takes.

        Raises:
            InputError: The model does not take such inputs.
        """

    @abstractmethod
    def stage(self, index: int, state: State) -> State:
        """Run stage ``index``.

        Raises:
            RunError: A runtime outside PyTorch failed.
        """

    @abstractmethod
    def head(self, index: int, state: State) -> ExitOutput:
        """Return the output of exit ``index``, from the state after its stage."""

    @abstractmethod
    def select(self, state: State, rows: Int[np.ndarray, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""

    def misfit(self, state: State, count: int) -> tuple[int, ...] | None:
        """Return the shape of a tensor in the state whose first axis is not that many samples; None: there is none.

        Called before samples are dropped: `select` would pick rows of something else. Engines whose states are always
        batch first need not look.
        """
        return None

    @abstractmethod
    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches, all before the same stage, as one, in that order."""

    def full(self, inputs: Any) -> object:  # noqa: ANN401 - as of `start`
        """Run the original model without exits: every stage, the last head only. Opens a `session` of its own."""
        with self.session():
            state = self.start(inputs)
            for k in range(self.num_exits):
                state = self.stage(k, state)
            seen, answer = self.head(self.num_exits - 1, state)
            return seen if answer is None else answer

    def synchronise(self) -> None:
        """Wait until the device has finished, so that a clock measures all of the work."""
        return


def each_exit(engine: Engine, inputs: Any) -> Iterator[ExitOutput]:  # noqa: ANN401 - as of `Engine.start`
    """Yield the output of every exit for one batch, nobody leaving; to be called inside a `session`."""
    state = engine.start(inputs)
    for k in range(engine.num_exits):
        state = engine.stage(k, state)
        yield engine.head(k, state)


def check_states(engine: Engine, inputs: Any) -> None:  # noqa: ANN401 - as of `Engine.start`
    """Refuse an engine whose states hold tensors without the samples in their first axis, of which rows cannot be kept.

    Args:
        engine: Runs its stages.
        inputs: A batch of one sample: as many rows as a larger batch has are then no coincidence.

    Raises:
        ShapeError: As of `require_samples_first`.
    """
    with engine.session():
        state = engine.start(inputs)
        for k in range(engine.num_exits - 1):
            state = engine.stage(k, state)
            require_samples_first(engine, state, k, 1)


def require_samples_first(engine: Engine, state: State, index: int, count: int) -> None:
    """Refuse a state after stage ``index`` that holds anything else than ``count`` samples in the first axis.

    Raises:
        ShapeError: With the stage, and the shape of the tensor.
    """
    shape = engine.misfit(state, count)
    if shape is not None:
        raise ShapeError(
            f"state after stage {index} holds a tensor of shape {shape}: samples are dropped along the first axis, and "
            f"the batch holds {count}. Let the stages pass tensors with the samples first, and keep others in the "
            "modules."
        )


class Carried(NamedTuple):
    """A state, and what an engine carries beside it."""

    state: State
    extra: Any = None


class EngineAround(Engine):
    """What engines have in common that run another one and carry something beside its states.

    Args:
        inner: The other one.
    """

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.name, self.dtype, self.device = inner.name, inner.dtype, inner.device
        self.num_exits, self.threads = inner.num_exits, inner.threads

    @cached_property
    def source(self) -> str:
        return self.inner.source

    def session(self) -> AbstractContextManager[object]:
        return self.inner.session()

    def select(self, state: Carried, rows: Int[np.ndarray, " kept"]) -> Carried:
        return Carried(self.inner.select(state.state, rows), state.extra)

    def misfit(self, state: Carried, count: int) -> tuple[int, ...] | None:
        return self.inner.misfit(state.state, count)

    def join(self, states: Sequence[Carried]) -> Carried:
        return Carried(self.inner.join([state.state for state in states]), states[0].extra)

    def synchronise(self) -> None:
        self.inner.synchronise()

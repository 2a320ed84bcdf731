"""What an engine is: a model cut into stages that somebody else's loop runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float32, Int

State: TypeAlias = Any
"""What travels between stages, as the engine likes it; batch first."""

Said: TypeAlias = tuple[Float32[np.ndarray, "sample column"], Any]
"""What an exit says: what the policy reads, and the answer of who leaves there.

Heads of classes say their logits, and None: the policy answers. Others say features (the summary of a map, a
regressor's hidden features) and an answer, batch first, whose rows are taken with ``answer[rows]`` when samples leave.
Heads of maps may say ``[sample, class, height, width]``, as an array or tensor, and None: `DenseEngine` makes of them
what a policy reads.
"""


class Engine(ABC):
    """Runs the stages and heads of a multi-exit model, one call each.

    The loop stays outside: it asks for a stage, asks what that exit says, and drops the samples that leave with
    `select`. All calls happen inside `session`.

    Attributes:
        name: As printed and as named in a profile, for example ``eager``.
        dtype: The number format it computes in, for example ``float32``.
        device: Where states live, as PyTorch would write it.
        num_exits: Number of exits, the original output included.
        threads: Of the CPU, where they were fixed when it was made; None: as many as its runtime likes.
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
        """Turn a batch into the state that stage 0 takes."""

    @abstractmethod
    def stage(self, index: int, state: State) -> State:
        """Run stage ``index``."""

    @abstractmethod
    def head(self, index: int, state: State) -> Said:
        """Return what exit ``index`` says, from the state after its stage."""

    @abstractmethod
    def select(self, state: State, rows: Int[np.ndarray, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""

    def misfit(self, state: State, count: int) -> tuple[int, ...] | None:
        """Return the shape of a tensor in the state whose first axis is not that many samples; None: there is none.

        Asked before samples are dropped: `select` would pick rows of something else. Engines that know their states to
        be batch first need not look.
        """
        return None

    @abstractmethod
    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one, in that order; they stand before the same stage."""

    def full(self, inputs: Any) -> object:  # noqa: ANN401 - as of `start`
        """Run the original model without exits: every stage, the last head only. Opens a `session` of its own."""
        with self.session():
            state = self.start(inputs)
            for k in range(self.num_exits):
                state = self.stage(k, state)
            seen, answer = self.head(self.num_exits - 1, state)
            return seen if answer is None else answer

    def synchronise(self) -> None:
        """Wait until the device has finished, so that a clock shows the truth."""
        return


def each_exit(engine: Engine, inputs: Any) -> Iterator[Said]:  # noqa: ANN401 - as of `Engine.start`
    """Yield what every exit says of one batch, nobody leaving; to be called inside a `session`."""
    state = engine.start(inputs)
    for k in range(engine.num_exits):
        state = engine.stage(k, state)
        yield engine.head(k, state)


class Carried(NamedTuple):
    """A state of the engine inside, and what an `EngineAround` it carries beside it."""

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
        """Fingerprint of the model that the engine inside was made from."""
        return self.inner.source

    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called."""
        return self.inner.session()

    def select(self, state: Carried, rows: Int[np.ndarray, " kept"]) -> Carried:
        """Keep some rows of everything in the state that carries the batch."""
        return Carried(self.inner.select(state.state, rows), state.extra)

    def misfit(self, state: Carried, count: int) -> tuple[int, ...] | None:
        """Return the shape of a tensor in the state whose first axis is not that many samples."""
        return self.inner.misfit(state.state, count)

    def join(self, states: Sequence[Carried]) -> Carried:
        """Return the states of several batches as one; what is carried beside them is the same for all."""
        return Carried(self.inner.join([state.state for state in states]), states[0].extra)

    def synchronise(self) -> None:
        """Wait until the device has finished."""
        self.inner.synchronise()

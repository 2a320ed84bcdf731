"""What an engine is: a model cut into stages that somebody else's loop runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from eenet.models.inputs import Inputs, State

__all__ = ["Engine", "full_in_stages"]


class Engine(ABC):
    """Runs the stages and heads of a multi-exit model, one call each.

    The loop stays outside: it asks for a stage, asks for that exit's logits, and drops the samples that leave
    with `select`. All calls happen inside `session`.

    Attributes:
        name: As printed and as named in a profile, for example ``eager``.
        dtype: The number format it computes in, for example ``float32``.
        device: Where states and logits live.
        num_exits: Number of exits, the original output included.
        threads: Of the CPU, where they were fixed when it was made; None: as many as torch uses.
    """

    name: str
    dtype: str
    device: torch.device
    num_exits: int
    threads: int | None = None

    @abstractmethod
    def session(self) -> AbstractContextManager[object]:
        """Return the context in which every other method is called: no gradients, inference behaviour."""

    @abstractmethod
    def start(self, inputs: Inputs) -> State:
        """Turn a batch into the state that stage 0 takes."""

    @abstractmethod
    def stage(self, index: int, state: State) -> State:
        """Run stage ``index``."""

    @abstractmethod
    def head(self, index: int, state: State) -> Float[Tensor, "sample class *pixel"]:
        """Return the logits of exit ``index`` from the state behind its stage."""

    @abstractmethod
    def select(self, state: State, rows: Int[Tensor, " kept"]) -> State:
        """Keep some rows of everything in the state that carries the batch."""

    @abstractmethod
    def join(self, states: Sequence[State]) -> State:
        """Return the states of several batches as one, in that order; they stand before the same stage."""

    @abstractmethod
    def full(self, inputs: Inputs) -> Float[Tensor, "sample class *pixel"]:
        """Run the original model without exits: every stage, the last head only. Opens a `session` of its own.

        `full_in_stages` does, where an engine knows nothing faster.
        """

    @final
    def synchronise(self) -> None:
        """Wait until the device has finished, so that a clock shows the truth."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()


def full_in_stages(engine: Engine, inputs: Inputs) -> Float[Tensor, "sample class *pixel"]:
    """Return what the original model says, its stages run one after the other."""
    with engine.session():
        state = engine.start(inputs)
        for k in range(engine.num_exits):
            state = engine.stage(k, state)
        return engine.head(engine.num_exits - 1, state)

"""Engines of models whose heads return numbers that are no logits, such as predictions of a regressor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float32, Int

from eenet.running.engines.base import Engine, EngineAround, State
from eenet.running.inputs import Inputs


@final
class FeatureEngine(EngineAround):
    """An engine whose exits return features: policies read them, and samples that leave are answered with them.

    Everything else is left to the inner engine.

    Args:
        engine: Runs a model whose heads return ``[sample, column]``.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)

    def start(self, inputs: Inputs) -> State:
        return self.inner.start(inputs)

    def stage(self, index: int, state: State) -> State:
        return self.inner.stage(index, state)

    def head(
        self, index: int, state: State
    ) -> tuple[Float32[np.ndarray, "sample column"], Float32[np.ndarray, "sample column"]]:
        seen, _ = self.inner.head(index, state)
        return seen, seen

    def select(self, state: State, rows: Int[np.ndarray, " kept"]) -> State:
        return self.inner.select(state, rows)

    def misfit(self, state: State, count: int) -> tuple[int, ...] | None:
        return self.inner.misfit(state, count)

    def constants(self, state: State) -> Mapping[str, object]:
        return self.inner.constants(state)

    def pack(self, state: State) -> tuple[list[np.ndarray], Any]:
        return self.inner.pack(state)

    def unpack(self, arrays: Sequence[np.ndarray], form: Any, index: int) -> State:  # noqa: ANN401 - of JSON
        return self.inner.unpack(arrays, form, index)

    def join(self, states: Sequence[State]) -> State:
        return self.inner.join(states)

    def full(self, inputs: Inputs) -> Any:  # noqa: ANN401 - as of `Engine.full`
        return self.inner.full(inputs)

"""The engine of a function that returns probabilities, such as ``predict_proba`` of an estimator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import numpy as np
from jaxtyping import Float32, Int

from eenet.errors import ShapeError
from eenet.running.engines.base import Engine, ExitOutput
from eenet.running.inputs import Inputs, copy_of, joined, rows_of
from eenet.tables.arrays import as_array
from eenet.tables.checks import logits_of


@final
class FunctionEngine(Engine):
    """An engine of one exit: a function from a batch to probabilities ``[sample, class]``.

    Args:
        function: Is called with a copy of the inputs, whatever their form: what it writes there, no other member sees.
    """

    name, num_exits = "function", 1

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def start(self, inputs: Inputs) -> Inputs:
        return inputs

    def stage(self, index: int, state: Inputs) -> Float32[np.ndarray, "sample class"]:
        """Return the logarithms of the probabilities.

        Raises:
            ShapeError: The function returns something else than one row per sample.
            TableError: A row is negative or does not sum to 1, or is no number.
        """
        probs = as_array(self._function(copy_of(state)))
        if probs.ndim != 2 or probs.dtype.kind not in "fiub":
            raise ShapeError(
                f"probabilities of shape {probs.shape} and type {probs.dtype} do not fit: one row of classes per "
                "sample is needed. Return [sample, class]."
            )
        if probs.shape[1] < 2:
            raise ShapeError(
                f"probabilities of shape {probs.shape} do not fit: a choice of classes has at least 2. Return "
                "[1 - p, p] of a single probability p."
            )
        return logits_of(probs[:, None])[:, 0]

    def head(self, index: int, state: Float32[np.ndarray, "sample class"]) -> ExitOutput:
        return state, None

    def select(self, state: Any, rows: Int[np.ndarray, " kept"]) -> Any:  # noqa: ANN401
        return rows_of(state, rows)

    def join(self, states: Sequence[Any]) -> Any:  # noqa: ANN401
        return joined(states)

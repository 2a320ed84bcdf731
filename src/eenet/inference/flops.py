"""Counting floating point operations, exit by exit, and saying what was not counted."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import Any

import torch

from eenet.core.costs import CostTable
from eenet.models.counting import counted, plain_attention
from eenet.models.inputs import Inputs, batch_size, evaluating
from eenet.models.model import MultiExitModel

__all__ = ["FlopReport", "measure_flops"]


@dataclass(frozen=True, kw_only=True)
class FlopReport:
    """Floating point operations per sample; one multiply-accumulate is two.

    Attributes:
        start: Of making the first state.
        stages: Of each stage.
        heads: Of each head.
        uncounted: Operators that ran and have no formula; they count as zero, so the truth is larger. Element-wise
            operations, normalisation and pooling count as zero by convention and are not listed.
    """

    start: float
    stages: tuple[float, ...]
    heads: tuple[float, ...]
    uncounted: tuple[str, ...]

    @property
    def cumulative(self) -> tuple[float, ...]:
        """Of leaving at each exit: every stage and head on the way. Decisions are too few operations to count."""
        steps = [stage + head for stage, head in zip(self.stages, self.heads, strict=True)]
        return tuple(accumulate(steps, initial=self.start))[1:]

    @property
    def reference(self) -> float:
        """Of the original model without exits: every stage, the last head only."""
        return self.start + sum(self.stages) + self.heads[-1]

    def costs(self) -> CostTable:
        """Return the costs of leaving at each exit."""
        return CostTable(self.cumulative, "FLOPs", self.reference)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: the costs and what they are made of."""
        return self.costs().to_dict() | asdict(self)


def measure_flops(model: MultiExitModel, example_inputs: Inputs) -> FlopReport:
    """Count the floating point operations of every stage and head.

    Args:
        model: Runs once, in evaluation mode; its flags are restored.
        example_inputs: A batch of any size.

    Raises:
        InputError: An empty batch.
    """
    count = batch_size(example_inputs)
    uncounted: set[str] = set()
    stages: list[float] = []
    heads: list[float] = []
    with evaluating(model), torch.no_grad(), plain_attention():
        state, start = counted(model.start, example_inputs, uncounted)
        for stage, head in zip(model.stages, model.heads, strict=True):
            state, flops = counted(stage, state, uncounted)
            stages.append(flops / count)
            heads.append(counted(head, state, uncounted)[1] / count)
    return FlopReport(start=start / count, stages=tuple(stages), heads=tuple(heads), uncounted=tuple(sorted(uncounted)))

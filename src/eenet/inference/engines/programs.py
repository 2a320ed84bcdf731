"""A model as ONNX graphs, one per stage with its head: what other runtimes are given."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import MissingExtraError, ShapeError
from eenet.models.inputs import Inputs, State, evaluating
from eenet.models.model import MultiExitModel

__all__ = ["input_names", "stage_programs", "whole_program"]

_MOST = 1 << 20  # samples a graph is asked to allow
_INPUT = "state_"


class _Part(nn.Module):
    """Stages in a row and the head behind them, from the leaves of a state to logits and the leaves of the next."""

    def __init__(self, stages: Sequence[nn.Module], head: nn.Module, spec: pytree.TreeSpec, *, last: bool) -> None:
        super().__init__()
        self.stages, self.head = nn.ModuleList(stages), head
        self.spec, self.last = spec, last

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        state = pytree.tree_unflatten(list(leaves), self.spec)
        for stage in self.stages:
            state = stage(state)
        logits = self.head(state)
        return (logits,) if self.last else (logits, *pytree.tree_leaves(state))


def stage_programs(model: MultiExitModel, example_inputs: Inputs) -> list[bytes]:
    """Return a model as ONNX, one file per stage with its head, for any number of samples.

    Inputs are called ``state_0``, ``state_1``, ...; the first stage takes the model's inputs in their order. Outputs
    are ``logits`` and, but for the last stage, ``next_0``, ``next_1``, ...

    Args:
        model: The multi-exit model; its flags are restored.
        example_inputs: What its inputs look like, at least 2 samples.

    Raises:
        MissingExtraError: ONNX or its exporter is not installed.
        ShapeError: Fewer than 2 samples.
    """
    programs, state = [], example_inputs
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        last = k == model.num_exits - 1
        programs.append(_program(model, [stage], head, state, start=k == 0, last=last))
        with evaluating(model), torch.no_grad():
            state = stage(model.start(state) if k == 0 else state)
    return programs


def whole_program(model: MultiExitModel, example_inputs: Inputs) -> bytes:
    """Return the original model without exits as one ONNX file; names, arguments and errors as of `stage_programs`."""
    return _program(model, list(model.stages), model.heads[-1], example_inputs, start=True, last=True)


def input_names(names: Iterable[str]) -> list[tuple[str, int]]:
    """Return those names that are inputs, each with the leaf of the state it is fed.

    A graph lacks the inputs that it has no use for, and a tensor that it only passes on has an output's name too.
    """
    return [(name, int(name.removeprefix(_INPUT))) for name in names if name.startswith(_INPUT)]


def _program(
    model: MultiExitModel, stages: list[nn.Module], head: nn.Module, state: State, *, start: bool, last: bool
) -> bytes:
    """Return one part of a model as ONNX."""
    leaves, spec = pytree.tree_flatten(state)
    if len(leaves[0]) < 2:
        raise ShapeError("example_inputs of 1 sample are too few: the batch must be told from the rest. Pass 2.")
    part = _Part([model.entry, *stages] if start else stages, head, spec, last=last)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    with evaluating(model), torch.no_grad(), _quietly():
        outputs = ["logits", *(f"next_{i}" for i in range(len(part(*leaves)) - 1))]
        part.training = False
        try:
            program: Any = torch.onnx.export(
                part,
                tuple(leaves),
                dynamo=True,
                dynamic_shapes=(tuple({0: batch} for _ in leaves),),
                input_names=[f"{_INPUT}{i}" for i in range(len(leaves))],
                output_names=outputs,
                verbose=False,
            )
        except ImportError as error:
            raise MissingExtraError(
                "onnx is missing: this engine is handed its graphs as ONNX, which needs onnx and onnxscript. "
                'Run pip install "eenet[onnx]".'
            ) from error
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep the exporter from telling what it does; what goes wrong is raised all the same."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

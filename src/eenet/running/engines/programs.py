"""A model as ONNX graphs, one per stage with its head, and the engines that run it so; needs torch."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import InputError, ShapeError
from eenet.models.inputs import Inputs, State, evaluating
from eenet.models.model import MultiExitModel
from eenet.running.engines.eager import fingerprint
from eenet.running.engines.graphs import (
    LOGITS,
    NEXT,
    STATE,
    GraphEngine,
    GraphEngineName,
    input_specs,
    opener,
    require_engine,
)

_MOST = 1 << 20  # samples a graph is asked to allow


class _ProgramEngine(GraphEngine):
    """Makes graphs of a model and runs them."""

    def __init__(self, model: MultiExitModel, example_inputs: Any, name: GraphEngineName, dtype: str) -> None:  # noqa: ANN401
        require_exporter(name)
        threads = torch.get_num_threads()
        opened = opener(name, threads, dtype)
        require_float32(model)
        super().__init__(
            [opened(program) for program in stage_programs(model, example_inputs)],
            input_specs(example_inputs),
            name=name,
            dtype=dtype,
            threads=threads,
            source=fingerprint(model, getattr(torch, dtype)),
            whole=opened(whole_program(model, example_inputs)),
        )


@final
class OnnxEngine(_ProgramEngine):
    """Runs a model in ONNX Runtime on the CPU, in float32, with as many threads as torch uses when it is made.

    Args:
        model: The multi-exit model; it is exported as it is now, in evaluation mode, its flags restored.
        example_inputs: What its inputs look like, at least 2 samples.

    Raises:
        InputError: The model is not in float32 on the CPU.
        MissingExtraError: ONNX, its exporter or its runtime is not installed.
        ShapeError: Fewer than 2 samples.
    """

    def __init__(self, model: MultiExitModel, example_inputs: Any) -> None:  # noqa: ANN401 - as of `input_specs`
        super().__init__(model, example_inputs, "onnxruntime", "float32")


@final
class OpenVinoEngine(_ProgramEngine):
    """Runs a model in OpenVINO on the CPU, with as many threads as torch uses when it is made.

    Left to itself, OpenVINO computes in bfloat16 wherever the processor can. Here it does so on request only: outputs
    then differ in the third digit, so a policy should be fitted on a table recorded with this engine. One caller at a
    time.

    Args:
        model: The multi-exit model; it is exported as it is now, in evaluation mode, its flags restored.
        example_inputs: What its inputs look like, at least 2 samples.
        dtype: The number format it computes in; states and logits are float32 in either case.

    Raises:
        InputError: An unknown ``dtype``, the processor does not compute in it, or the model is not in float32 on the
            CPU.
        MissingExtraError: OpenVINO, ONNX or its exporter is not installed.
        ShapeError: Fewer than 2 samples.
    """

    def __init__(
        self,
        model: MultiExitModel,
        example_inputs: Any,  # noqa: ANN401 - as of `input_specs`
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(model, example_inputs, "openvino", dtype)


def require_exporter(engine: str) -> None:
    """Refuse to make graphs where the engine, ONNX or its exporter is missing.

    Raises:
        InputError: The engine is unknown.
        MissingExtraError: A package is not installed.
    """
    require_engine(engine, "onnx", "onnxscript")


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


class _Part(nn.Module):
    """Stages in a row and the head after them, from the leaves of a state to logits and the leaves of the next."""

    def __init__(self, stages: Sequence[nn.Module], head: nn.Module, spec: pytree.TreeSpec, *, last: bool) -> None:
        super().__init__()
        self.stages, self.head = nn.ModuleList(stages), head
        self.spec, self.last = spec, last

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        state = pytree.tree_unflatten(list(leaves), self.spec)
        for stage in self.stages:
            state = stage(state)
        logits = self.head(state)
        if not isinstance(logits, Tensor):
            raise InputError(
                f"head returns {type(logits).__name__}: graphs are made of heads that return logits. Run this model "
                "with EagerEngine."
            )
        return (logits,) if self.last else (logits, *pytree.tree_leaves(state))


def stage_programs(model: MultiExitModel, example_inputs: Any) -> list[bytes]:  # noqa: ANN401 - as of `input_specs`
    """Return a model as ONNX, one file per stage with its head, for any number of samples.

    Inputs are called ``state_0``, ``state_1``, ...; the first stage takes the model's inputs in their order. Outputs
    are ``logits`` and, but for the last stage, ``next_0``, ``next_1``, ...

    Args:
        model: The multi-exit model; its flags are restored.
        example_inputs: What its inputs look like, at least 2 samples.

    Raises:
        InputError: A head returns something else than logits.
        ShapeError: Fewer than 2 samples.
    """
    programs: list[bytes] = []
    state: State = example_tensors(example_inputs)
    for k, (stage, head) in enumerate(zip(model.stages, model.heads, strict=True)):
        last = k == model.num_exits - 1
        programs.append(_program(model, [stage], head, state, start=k == 0, last=last))
        with evaluating(model), torch.no_grad():
            state = stage(model.start(state) if k == 0 else state)
    return programs


def whole_program(model: MultiExitModel, example_inputs: Any) -> bytes:  # noqa: ANN401 - as of `input_specs`
    """Return the original model without exits as one ONNX file; names, arguments and errors as of `stage_programs`."""
    inputs = example_tensors(example_inputs)
    return _program(model, list(model.stages), model.heads[-1], inputs, start=True, last=True)


def example_tensors(inputs: Any) -> Inputs:  # noqa: ANN401 - as of `input_specs`
    """Return example inputs as a tensor, or a plain dictionary of tensors, on the CPU."""
    if isinstance(inputs, Mapping):
        return {str(name): _tensor(value) for name, value in inputs.items()}
    return _tensor(inputs)


def _tensor(value: Any) -> Tensor:  # noqa: ANN401
    return value.detach().cpu() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def _program(
    model: MultiExitModel, stages: list[nn.Module], head: nn.Module, state: State, *, start: bool, last: bool
) -> bytes:
    """Return one part of a model as ONNX."""
    leaves, spec = pytree.tree_flatten(state)
    if not leaves or len(leaves[0]) < 2:
        raise ShapeError(
            f"example_inputs of {len(leaves[0]) if leaves else 0} samples are not enough: the batch must differ from "
            "the other sizes. Pass at least 2."
        )
    part = _Part([model.entry, *stages] if start else stages, head, spec, last=last)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    with evaluating(model), torch.no_grad(), _silently():
        outputs = [LOGITS, *(f"{NEXT}{i}" for i in range(len(part(*leaves)) - 1))]
        part.training = False
        program: Any = torch.onnx.export(
            part,
            tuple(leaves),
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in leaves),),
            input_names=[f"{STATE}{i}" for i in range(len(leaves))],
            output_names=outputs,
            verbose=False,
        )
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


@contextmanager
def _silently() -> Iterator[None]:
    """Keep the exporter from reporting its steps; what goes wrong is raised all the same."""
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

"""A model as ONNX graphs, one per stage with its head, and the engines that run it so; needs torch."""

from __future__ import annotations

import importlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from eenet.errors import InputError, ShapeError
from eenet.models.form import Moving, SameForm, moving_axes
from eenet.models.inputs import Inputs, State, evaluating
from eenet.models.model import MultiExitModel
from eenet.running.engines import plain_model
from eenet.running.engines.eager import fingerprint
from eenet.running.engines.graphs import (
    LOGITS,
    NEXT,
    STATE,
    FreeSize,
    GraphEngine,
    GraphEngineName,
    TensorSpec,
    input_specs,
    opener,
    reason,
    require_engine,
)
from eenet.tables.arrays import batch_size

_MOST = 1 << 20  # samples a graph is asked to allow


class _ProgramEngine(GraphEngine):
    """Makes graphs of a model and runs them."""

    def __init__(self, model: object, example_inputs: Any, name: GraphEngineName, dtype: str) -> None:  # noqa: ANN401
        require_exporter(name)
        model = plain_model(model)
        threads = torch.get_num_threads()
        opened = opener(name, threads, dtype)
        require_float32(model)
        inputs = example_tensors(example_inputs)
        *programs, whole = _programs(model, inputs, whole=True)
        super().__init__(
            [opened(program) for program in programs],
            specs_of(model, inputs, programs[0]),
            name=name,
            dtype=dtype,
            threads=threads,
            source=fingerprint(model, getattr(torch, dtype)),
            whole=opened(whole),
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

    def __init__(self, model: object, example_inputs: Any) -> None:  # noqa: ANN401 - as of `input_specs`
        super().__init__(model, example_inputs, "onnxruntime", "float32")


@final
class OpenVinoEngine(_ProgramEngine):
    """Runs a model in OpenVINO on the CPU, with as many threads as torch uses when it is made.

    By default OpenVINO computes in bfloat16 wherever the processor can. Here it does so on request only: outputs then
    differ in the third digit, so a policy should be fitted on a table recorded with this engine. One caller at a time.

    Args:
        model: As of `OnnxEngine`.
        example_inputs: As of `OnnxEngine`.
        dtype: The number format it computes in; states and logits are float32 in either case.

    Raises:
        InputError: As of `OnnxEngine`; an unknown ``dtype``, or the processor does not compute in it.
        MissingExtraError: OpenVINO, ONNX or its exporter is not installed.
        ShapeError: As of `OnnxEngine`.
    """

    def __init__(
        self,
        model: object,
        example_inputs: Any,  # noqa: ANN401 - as of `input_specs`
        *,
        dtype: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__(model, example_inputs, "openvino", dtype)


def require_exporter(engine: str) -> None:
    """Refuse to make graphs where the engine is unknown, or it, ONNX or its exporter is not installed."""
    require_engine(engine, "onnx", "onnxscript")


def require_float32(model: MultiExitModel) -> None:
    """Refuse a model in a number format or on a device that graphs are not made from."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and (parameter.dtype, parameter.device.type) != (torch.float32, "cpu"):
            raise InputError(
                f"model of {parameter.dtype} on {parameter.device} cannot be exported: graphs are made in float32 on "
                "the CPU. Call model.float().cpu() first."
            )


class _Part(nn.Module):
    """Some stages and the head after them, from the leaves of a state to logits and the leaves of the next.

    Args:
        model: The whole.
        first: Its first stage; 0 begins with the inputs.
        last: Its last stage.
        spec: How the leaves form a state.
    """

    def __init__(self, model: MultiExitModel, first: int, last: int, spec: pytree.TreeSpec) -> None:
        super().__init__()
        entry = [model.entry] if first == 0 else []
        self.stages, self.head = nn.ModuleList([*entry, *list(model.stages)[first : last + 1]]), model.heads[last]
        self.spec, self.ends = spec, last == model.num_exits - 1

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
        return (logits,) if self.ends else (logits, *pytree.tree_leaves(state))


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
    return _programs(model, example_tensors(example_inputs))


def _programs(model: MultiExitModel, inputs: Inputs, *, whole: bool = False) -> list[bytes]:
    """Return the programs of all stages and, if asked for, that of the model without exits."""
    if moving := moving_axes(model, inputs):
        try:
            return _made(model, inputs, moving, whole=whole)
        except (RuntimeError, ValueError, TypeError) as error:
            warnings.warn(
                f"graphs take inputs of the example's sizes only, although exits were attached for others too: "
                f"{reason(error)} Pad inputs to these sizes.",
                stacklevel=3,
            )
    return _made(model, inputs, [], whole=whole)


def _made(model: MultiExitModel, inputs: Inputs, moving: Moving, *, whole: bool) -> list[bytes]:
    """Return the programs, with the free axes of what each stage takes, none where that is not given."""
    programs: list[bytes] = []
    state: State = inputs
    last = model.num_exits - 1
    for k, stage in enumerate(model.stages):
        state = model.start(inputs) if k and k in model.begins else state  # nothing else of the one before is read
        programs.append(_program(model, k, k, state, moving[k] if moving else None))
        with evaluating(model), torch.no_grad():
            state = stage(model.start(state) if k == 0 else state)
    return [*programs, _program(model, 0, last, inputs, moving[0] if moving else None)] if whole else programs


def specs_of(model: MultiExitModel, inputs: Inputs, first: bytes) -> tuple[TensorSpec, ...]:
    """Return what a model takes; sizes are free where exits were attached so and the first program leaves them open."""
    specs = input_specs(inputs)
    form = model.entry
    if not isinstance(form, SameForm) or not form.limits:
        return specs
    graph = importlib.import_module("onnx").load_model_from_string(first).graph
    shapes = {one.name: one.type.tensor_type.shape.dim for one in graph.input}
    found = []
    for i, (spec, axes) in enumerate(zip(specs, form.axes.values(), strict=True)):
        dims = shapes.get(f"{STATE}{i}")
        if dims is not None and any(dims[axis].HasField("dim_value") for axis in axes):
            return specs
        shape = (None if axis in axes else size for axis, size in enumerate(spec.shape, 1))
        free = (FreeSize(axis, name, *form.limits[name]) for axis, name in axes.items())
        found.append(replace(spec, shape=tuple(shape), free=tuple(free)))
    return tuple(found)


def example_tensors(inputs: Any) -> Inputs:  # noqa: ANN401 - as of `input_specs`
    """Return copies of example inputs as a tensor, or a plain dictionary of tensors, on the CPU; refuse one sample."""

    def tensor(value: Any) -> Tensor:  # noqa: ANN401
        return value.detach().cpu().clone() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))

    if isinstance(inputs, Mapping):
        found: Inputs = {str(name): tensor(value) for name, value in inputs.items()}
    else:
        found = tensor(inputs)
    if batch_size(found) < 2:
        raise ShapeError(
            "example_inputs of 1 sample are not enough: the batch must differ from the other sizes. Pass at least 2."
        )
    return found


def _program(
    model: MultiExitModel, first: int, last: int, state: State, moving: Sequence[tuple[int, ...]] | None = None
) -> bytes:
    """Return some stages of a model and the head after them as ONNX; ``moving`` are the free axes of every tensor."""
    leaves, spec = pytree.tree_flatten(state)
    part = _Part(model, first, last, spec)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    free = moving or [()] * len(leaves)
    shapes = tuple({0: batch} | dict.fromkeys(axes, torch.export.Dim.AUTO) for axes in free)
    with evaluating(model), torch.no_grad(), _silently():
        outputs = [LOGITS, *(f"{NEXT}{i}" for i in range(len(part(*leaves)) - 1))]
        part.training = False
        program: Any = torch.onnx.export(
            part,
            tuple(leaves),
            dynamo=True,
            dynamic_shapes=(shapes,),
            input_names=[f"{STATE}{i}" for i in range(len(leaves))],
            output_names=outputs,
            verbose=False,
        )
    taken = {one.name: one.shape for one in program.model.graph.inputs}
    for i, axes in enumerate(free):
        if any(isinstance(taken[f"{STATE}{i}"][axis], int) for axis in axes if f"{STATE}{i}" in taken):
            raise ValueError(f"stage {first} was recorded for one size")
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


@contextmanager
def _silently() -> Iterator[None]:
    """Keep the exporter from reporting its steps; errors are raised as always."""
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

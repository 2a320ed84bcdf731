"""Recording a model as one graph of operators, its taps marked, with any number of samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from eenet.errors import AttachError
from eenet.models.inputs import Inputs, evaluating, renew
from eenet.models.taps import call, tapping
from eenet.tables.arrays import batch_size

_MOST = 1 << 20  # the largest number of samples a recording allows


@torch.library.custom_op("eenet::tap", mutates_args=(), schema="(Tensor x, int index) -> Tensor")
def _tap(x: Tensor, index: int) -> Tensor:
    """Mark a tensor in a recording."""
    return x.clone()


@_tap.register_fake
def _(x: Tensor, index: int) -> Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True)
class Recording:
    """A model's operators, free of in-place changes.

    Attributes:
        nodes: In order; without weights and inputs.
        inputs: The node of every input, by its name; under the name ``""`` for a model that takes one tensor.
        weights: The tensor of every node that stands for a parameter, a buffer or a constant.
        names: The path in the model of every such node.
        taps: The tapped values, in the order asked for.
        answer: The model's output.
        batch: The symbol of the number of samples.
    """

    nodes: tuple[fx.Node, ...]
    inputs: dict[str, fx.Node]
    weights: dict[fx.Node, Tensor]
    names: dict[fx.Node, str]
    taps: tuple[fx.Node, ...]
    answer: fx.Node
    batch: Any


class _Marked(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Inputs) -> Tensor:
        return call(self.model, inputs)


def recorded(model: nn.Module, example_inputs: Inputs, names: Sequence[str]) -> Recording:
    """Record a model in evaluation mode on at least 2 samples; its flags and hooks are as before afterwards.

    ``names`` are the modules whose outputs are tapped.

    Raises:
        AttachError: The model cannot be recorded, or only for one number of samples; or a tap is never reached.
    """
    count = batch_size(example_inputs)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    shapes = pytree.tree_map_only(Tensor, lambda leaf: {0: batch}, example_inputs)
    with evaluating(model), torch.no_grad(), _naming_module(model, count):
        renew(model)  # what was cached would be recorded as a constant
        try:
            # what a model caches for evaluation, and warns of, is discarded when the recording ends
            with warnings.catch_warnings(), tapping(model, names, lambda index, out: torch.ops.eenet.tap(out, index)):
                warnings.filterwarnings("ignore", message=".* assigned during export")
                program = torch.export.export(_Marked(model), (example_inputs,), dynamic_shapes=(shapes,), strict=False)
        finally:
            renew(model)  # what is cached now belongs to the recording
        program = program.run_decompositions({})
    return _read(program, example_inputs, names)


@contextmanager
def _naming_module(model: nn.Module, count: int) -> Iterator[None]:
    """Turn an error into one sentence that names the module it happened in."""
    running: list[str] = []

    def enter(name: str) -> Callable[..., None]:
        return lambda *_: running.append(name)

    def leave(*_: Any) -> None:  # noqa: ANN401
        running.pop()

    try:
        with ExitStack() as hooks:
            for name, module in model.named_modules():
                hooks.enter_context(module.register_forward_pre_hook(enter(name)))
                hooks.enter_context(module.register_forward_hook(leave))
            yield
    except AttachError:
        raise
    except Exception as error:  # whatever a foreign model or the exporter raises
        place = f"module {running[-1]!r}" if running and running[-1] else "the model itself"
        raise AttachError(
            f"model cannot be cut: in {place}, {_why(error, count)} Change it, or pass stages of your own."
        ) from error


def _why(error: Exception, count: int) -> str:
    text = " ".join(str(error).split())
    if "data-dependent" in text.lower() or "DataDependent" in type(error).__name__:
        return "a decision depends on the values of the inputs, so there is no one order of operations."
    if "specialized" in text or "Constraints violated" in text or ("constant" in text and "batch" in text):
        return f"the number of samples is fixed ({count} in the example), so samples cannot be dropped."
    return f"recording its operations failed ({type(error).__name__}: {text[:200]})."


def _read(program: torch.export.ExportedProgram, example_inputs: Inputs, names: Sequence[str]) -> Recording:
    """Sort the nodes of a program."""
    graph, signature = program.graph, program.graph_signature
    specs = {spec.arg.name: spec for spec in signature.input_specs}
    tensors = {**program.state_dict, **program.constants}
    given = {node: specs[node.name] for node in graph.nodes if node.op == "placeholder"}
    inputs = [node for node, spec in given.items() if spec.kind is InputKind.USER_INPUT]
    paths = {node: str(spec.target) for node, spec in given.items() if spec.kind is not InputKind.USER_INPUT}
    taps = _taps(graph, names)
    keys = list(example_inputs) if isinstance(example_inputs, dict) else [""]
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    return Recording(
        nodes=tuple(
            node
            for node in graph.nodes
            if node.op in ("call_function", "get_attr") and node.target is not torch.ops.eenet.tap.default
        ),
        inputs=dict(zip(keys, inputs, strict=True)),
        weights={node: tensors[path] for node, path in paths.items()},
        names={node: path.removeprefix("model.") for node, path in paths.items()},
        taps=taps,
        answer=output.args[0][-1],
        batch=inputs[0].meta["val"].shape[0].node.expr,
    )


def _taps(graph: fx.Graph, names: Sequence[str]) -> tuple[fx.Node, ...]:
    """Return the tapped values in the order asked for, and take the marks out of the graph."""
    taps: dict[int, fx.Node] = {}
    for node in list(graph.nodes):
        if node.target is torch.ops.eenet.tap.default:
            taps.setdefault(int(node.args[1]), node.args[0])
            node.replace_all_uses_with(node.args[0])
    for index, name in enumerate(names):
        if index not in taps:
            raise AttachError(f"exits name the module {name!r}, which never runs. Name a module that does.")
    order = {node: place for place, node in enumerate(graph.nodes)}
    for one, following in pairwise(range(len(names))):
        if order[taps[following]] < order[taps[one]]:
            raise AttachError(
                f"exits are out of order: module {names[following]!r} returns before module {names[one]!r} does. Name "
                "modules in the order in which they run."
            )
    return tuple(taps[index] for index in range(len(names)))


def module_of(node: fx.Node) -> str:
    """Return the path of the module a node was recorded in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return str(path).removeprefix("model").removeprefix(".")

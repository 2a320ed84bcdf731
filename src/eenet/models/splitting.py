"""Cutting a recorded model into stages: who needs what, and what has to travel from one stage to the next."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx, nn
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from eenet.errors import AttachError
from eenet.models.tracing import Recording, module_of

__all__ = ["batch_axis", "cut", "varying"]

_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    sympy.Add: operator.add,
    sympy.Mul: operator.mul,
    FloorDiv: operator.floordiv,
    Mod: operator.mod,
    PythonMod: operator.mod,
    sympy.Max: max,
    sympy.Min: min,
}


def varying(recording: Recording) -> set[fx.Node]:
    """Return the nodes whose values depend on the inputs' values; numbers made of sizes do not count."""
    found = set(recording.inputs.values())
    for node in recording.nodes:
        if _is_tensor(node) and any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found


def batch_axis(node: fx.Node, batch: sympy.Symbol) -> tuple[int, int] | None:
    """Return the axis of a value along which its samples lie and how many entries each has, None without such an axis.

    Raises:
        AttachError: The number of samples shows in more than one axis, or in a way that does not divide.
    """
    axes = []
    for axis, size in enumerate(node.meta["val"].shape):
        if isinstance(size, torch.SymInt) and batch in size.node.expr.free_symbols:
            each = sympy.simplify(size.node.expr / batch)
            axes.append((axis, int(each) if each.is_Integer else 0))
    if not axes:
        return None
    if len(axes) > 1 or not axes[0][1]:
        raise AttachError(
            f"model cannot be cut: module {module_of(node)!r} makes a tensor of shape "
            f"{tuple(map(str, node.meta['val'].shape))} in which samples cannot be told apart. Tap another module."
        )
    return axes[0]


def cut(recording: Recording) -> list[nn.Module]:
    """Return the stages: one per tap and one for the rest, each from state to state, the last to the answer.

    A state is the tapped tensor if later stages need nothing else, or a tuple that begins with it. Every tensor in it
    has the samples in its first axis. What does not depend on the inputs' values is worked out anew where it is needed.

    Raises:
        AttachError: Something that travels between stages has no samples in it: an operation across samples.
    """
    dynamic = varying(recording)
    stage_of = _stages(recording, dynamic)
    ends: list[list[fx.Node]] = []
    for k, tap in enumerate(recording.taps):
        ends.append([tap, *(node for node in _alive(recording, stage_of, k) if node is not tap)])
        for node in ends[-1]:
            if batch_axis(node, recording.batch) is None:
                raise AttachError(
                    f"model cannot be cut: module {module_of(node)!r} mixes the samples of a batch, so none can be "
                    "dropped. Tap modules before it only, or change it."
                )
    ends.append([recording.answer])
    order = {node: place for place, node in enumerate((*recording.inputs.values(), *recording.nodes))}
    stages: list[nn.Module] = []
    for k, wanted in enumerate(ends):
        given = ends[k - 1] if k else list(recording.inputs.values())
        stages.append(_Builder(recording, dynamic, order, given, by_name=not k).build(wanted))
    return stages


def _stages(recording: Recording, dynamic: set[fx.Node]) -> dict[fx.Node, int]:
    """Return in which stage each value that depends on the inputs is worked out: as late as the taps allow."""
    stage_of = dict.fromkeys(recording.inputs.values(), 0)
    for k, tap in enumerate(recording.taps):
        waiting = [tap]
        while waiting:
            node = waiting.pop()
            if node in dynamic and node not in stage_of:
                stage_of[node] = k
                waiting += node.all_input_nodes
    for node in recording.nodes:
        if node in dynamic:
            stage_of.setdefault(node, len(recording.taps))
            source = node.args[0] if node.args else None
            if node.target is operator.getitem and isinstance(source, fx.Node):
                stage_of[node] = stage_of[source]  # a part of what an operator returned is taken where that ran
    return stage_of


def _alive(recording: Recording, stage_of: dict[fx.Node, int], k: int) -> list[fx.Node]:
    """Return the values known after stage ``k`` that later stages need."""
    return [
        node
        for node in (*recording.inputs.values(), *recording.nodes)
        if stage_of.get(node, len(stage_of)) <= k
        and _one_tensor(node)
        and any(stage_of.get(user, -1) > k for user in node.users)
    ]


class _Builder:
    """Writes the graph of one stage.

    Args:
        recording: The whole model.
        dynamic: Nodes that depend on the inputs' values.
        order: The place of every node.
        given: What the state holds.
        by_name: Whether the state is the model's inputs, by name where they have names.
    """

    def __init__(
        self,
        recording: Recording,
        dynamic: set[fx.Node],
        order: dict[fx.Node, int],
        given: Sequence[fx.Node],
        *,
        by_name: bool,
    ) -> None:
        self.recording, self.dynamic, self.order = recording, dynamic, order
        self.graph = fx.Graph()
        self.tensors: dict[str, Tensor] = {}
        self.copies: dict[fx.Node, fx.Node] = {}
        state = self.graph.placeholder("state")
        keys: list[Any] = [name for name in recording.inputs if name] if by_name else list(range(len(given)))
        alone = len(given) == 1 and not (by_name and keys)
        parts = [state] if alone else [self.graph.call_function(operator.getitem, (state, key)) for key in keys]
        self.batch = self.graph.call_function(torch.ops.aten.sym_size.int, (parts[0], 0))
        for node, part in zip(given, parts, strict=True):
            self.copies[node] = part if by_name else self._restored(node, part)

    def build(self, wanted: Sequence[fx.Node]) -> nn.Module:
        """Return the module that makes some values of the state."""
        for node in sorted(self._needed(wanted), key=self.order.__getitem__):
            self.copies[node] = self.graph.node_copy(node, self._argument)
            if node.target is torch.ops.aten.view.default:  # engines lay tensors out in another memory order
                self.copies[node].target = torch.ops.aten.reshape.default
        last = wanted[0] is self.recording.answer
        outputs = [self._argument(node) if last else self._batch_first(node) for node in wanted]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        self.graph.eliminate_dead_code()
        self.graph.lint()
        module = fx.GraphModule(self.tensors, self.graph, "Stage")
        for node in module.graph.nodes:
            node.meta = {key: node.meta[key] for key in ("nn_module_stack",) if key in node.meta}
        return module.eval()

    def _needed(self, wanted: Sequence[fx.Node]) -> set[fx.Node]:
        """Return the operators to be run for some values: what the state does not hold."""
        found: set[fx.Node] = set()
        waiting = list(wanted)
        while waiting:
            node = waiting.pop()
            if node in found or node in self.copies or node in self.recording.weights or _is_number(node):
                continue
            found.add(node)
            waiting += node.all_input_nodes
        return found

    def _argument(self, node: fx.Node) -> Any:  # noqa: ANN401
        """Return what stands for a value in this stage."""
        if node in self.copies:
            return self.copies[node]
        if node in self.recording.weights:
            name = f"weights.{self.recording.names[node]}"  # apart from the names of the graph's own parts
            self.tensors[name] = self.recording.weights[node]
            self.copies[node] = self.graph.get_attr(name)
            return self.copies[node]
        if _is_number(node):
            value = node.meta["val"]
            return self._number(value.node.expr if hasattr(value, "node") else value)
        raise AttachError(f"model cannot be cut: {node.name} of module {module_of(node)!r} is lost between stages.")

    def _number(self, expression: Any) -> Any:  # noqa: ANN401
        """Return a number made of the number of samples."""
        if not isinstance(expression, sympy.Basic):
            return expression
        if expression == self.recording.batch:
            return self.batch
        if expression.is_Integer:
            return int(expression)
        function = _ARITHMETIC.get(expression.func)
        if function is None:
            raise AttachError(f"model cannot be cut: it computes {expression} of the number of samples.")
        parts = [self._number(part) for part in expression.args]
        total = parts[0]
        for part in parts[1:]:
            total = self.graph.call_function(function, (total, part))
        return total

    def _batch_first(self, node: fx.Node) -> Any:  # noqa: ANN401
        """Return a value with its samples in the first axis."""
        value, where = self._argument(node), batch_axis(node, self.recording.batch)
        assert where is not None
        axis, each = where
        if each > 1:
            value = self.graph.call_function(torch.ops.aten.unflatten.int, (value, axis, [self.batch, each]))
        if axis:
            value = self.graph.call_function(torch.ops.aten.movedim.int, (value, axis, 0))
        return value

    def _restored(self, node: fx.Node, value: Any) -> Any:  # noqa: ANN401
        """Undo `_batch_first`."""
        where = batch_axis(node, self.recording.batch)
        assert where is not None
        axis, each = where
        if axis:
            value = self.graph.call_function(torch.ops.aten.movedim.int, (value, 0, axis))
        if each > 1:
            value = self.graph.call_function(torch.ops.aten.flatten.using_ints, (value, axis, axis + 1))
        return value


def _is_tensor(node: fx.Node) -> bool:
    """Tell whether a node yields tensors, one or several."""
    value = node.meta.get("val")
    return isinstance(value, Tensor | tuple | list)


def _one_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _is_number(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool | int | float | bool)

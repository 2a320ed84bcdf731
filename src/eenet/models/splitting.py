"""Cutting a recorded model into stages, and the check that samples do not influence each other.

A cut must know which values each stage needs, and which have to travel from one stage to the next.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

from eenet.errors import AttachError
from eenet.models.inputs import Inputs
from eenet.models.model import CUT
from eenet.models.tracing import Recording, module_of
from eenet.tables.arrays import batch_size

_TOLERANCE = 1e-4  # of the largest number in a value

_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    sympy.Add: operator.add,
    sympy.Mul: operator.mul,
    FloorDiv: operator.floordiv,
    Mod: operator.mod,
    PythonMod: operator.mod,
    sympy.Pow: operator.pow,
    Max: max,
    Min: min,
}
_NUMBERS = (torch.SymInt, torch.SymFloat, torch.SymBool, int, float, bool)


def _varying(recording: Recording) -> set[fx.Node]:
    """Return the nodes whose values depend on the inputs' values; numbers made of sizes do not count."""
    found = set(recording.inputs.values())
    for node in recording.nodes:
        if isinstance(node.meta.get("val"), Tensor | tuple | list) and not found.isdisjoint(node.all_input_nodes):
            found.add(node)
    return found


def _batch_axis(node: fx.Node, recording: Recording) -> tuple[int, Any] | None:
    """Return the axis of a value along which its samples lie and how many entries each has, None without such an axis.

    How many is a number, or a formula of free sizes.

    Raises:
        AttachError: The number of samples shows in more than one axis, or in a way that does not divide.
    """
    batch, sizes = recording.batch, recording.sizes(node)
    axes = [
        (axis, sympy.Integer(1) if size == batch else sympy.simplify(size / batch))
        for axis, size in enumerate(sizes)
        if isinstance(size, sympy.Basic) and batch in size.free_symbols
    ]
    if not axes:
        return None
    if len(axes) > 1 or batch in axes[0][1].free_symbols:
        raise AttachError(
            f"model cannot be cut: module {module_of(node)!r} makes a tensor of shape {tuple(map(str, sizes))} in "
            "which the samples cannot be separated. Tap another module."
        )
    return axes[0]


def cut(recording: Recording) -> list[nn.Module]:
    """Return the stages: one per tap and one for the rest, each from state to state, the last to the answer.

    A state is the tapped tensor if later stages need nothing else, or a tuple that begins with it. Every tensor in it
    has the samples in its first axis. What does not depend on the inputs' values is computed again where it is needed.

    Raises:
        AttachError: Something that travels between stages has no samples in it: an operation across samples.
    """
    dynamic = _varying(recording)
    stage_of = _stages(recording, dynamic)
    ends: list[list[fx.Node]] = []
    for k, tap in enumerate(recording.taps):
        ends.append([tap, *(node for node in _alive(recording, stage_of, k) if node is not tap)])
        for node in ends[-1]:
            if _batch_axis(node, recording) is None:
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
    """Return in which stage each value that depends on the inputs is computed: as late as the taps allow."""
    stage_of = dict.fromkeys(recording.inputs.values(), 0)
    for k, tap in enumerate(recording.taps):
        stage_of |= dict.fromkeys(_reached([tap], (dynamic - stage_of.keys()).__contains__), k)
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
        and isinstance(node.meta.get("val"), Tensor)
        and any(stage_of.get(user, -1) > k for user in node.users)
    ]


def _reached(ends: Sequence[fx.Node], counts: Callable[[fx.Node], bool]) -> set[fx.Node]:
    """Return the nodes that count among some nodes and what they are computed from, through such nodes alone."""
    found: set[fx.Node] = set()
    waiting = list(ends)
    while waiting:
        node = waiting.pop()
        if node not in found and counts(node):
            found.add(node)
            waiting += node.all_input_nodes
    return found


class _Builder:
    """Writes the graph of one stage.

    ``dynamic`` are the nodes that depend on the inputs' values, ``order`` has the place of every node, ``given`` is
    what the state contains; ``by_name``: the state is the model's inputs, by name where they have names.
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
        self.numbers: dict[Any, fx.Node] = {recording.batch: self._size(parts[0], 0)}
        self.sizes: dict[Any, tuple[fx.Node, int]] = {}  # where a size can be read
        for node, part in zip(given, parts, strict=True):
            self.copies[node] = part if by_name else self._restored(node, part)
            for axis, size in enumerate(recording.sizes(node)):
                if isinstance(size, sympy.Basic):
                    self.sizes.setdefault(size, (self.copies[node], axis))

    def build(self, wanted: Sequence[fx.Node]) -> nn.Module:
        """Return the module that makes some values of the state."""
        for node in sorted(self._needed(wanted), key=self.order.__getitem__):
            if node.op == "placeholder":
                raise AttachError(f"model cannot be cut: {node.name}, which gives a size, is lost between stages.")
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
        module.meta[CUT] = True
        return module.eval()

    def _needed(self, wanted: Sequence[fx.Node]) -> set[fx.Node]:
        """Return the operators to be run for some values: what the state does not contain."""
        present = {*self.copies, *self.recording.weights}
        return _reached(wanted, lambda node: node not in present and not self._is_known(node))

    def _argument(self, node: fx.Node) -> Any:  # noqa: ANN401
        """Return what stands for a value in this stage."""
        if node in self.copies:
            return self.copies[node]
        if node in self.recording.weights:
            name = f"weights.{self.recording.names[node]}"  # apart from the names of the graph's own parts
            self.tensors[name] = self.recording.weights[node]
            self.copies[node] = self.graph.get_attr(name)
            return self.copies[node]
        if self._is_known(node):
            return self._number(self.recording.expression(node.meta["val"]))
        raise AttachError(f"model cannot be cut: {node.name} of module {module_of(node)!r} is lost between stages.")

    def _is_known(self, node: fx.Node) -> bool:
        """Return whether a value is a number that follows from the sizes in this stage."""
        value = node.meta.get("val")
        return isinstance(value, _NUMBERS) and self._is_readable(self.recording.expression(value))

    def _is_readable(self, formula: Any) -> bool:  # noqa: ANN401 - of sympy, or a number
        if not isinstance(formula, sympy.Basic) or formula.is_Integer:
            return True
        if formula in self.numbers or formula in self.sizes:
            return True
        if isinstance(formula, sympy.Symbol):
            return self._line(formula) is not None
        return formula.func in _ARITHMETIC and all(map(self._is_readable, formula.args))

    def _line(self, symbol: sympy.Symbol) -> tuple[Any, int, int] | None:
        """Return a size that can be read and is so many times a symbol plus a number."""
        for size in self.sizes:
            times = size.coeff(symbol)
            more = sympy.expand(size - times * symbol)
            if times.is_Integer and more.is_Integer and times != 0:
                return size, int(times), int(more)
        return None

    def _number(self, formula: Any) -> Any:  # noqa: ANN401
        """Return a number made of the number of samples and of free sizes."""
        if not isinstance(formula, sympy.Basic) or formula.is_Integer:
            return int(formula) if isinstance(formula, sympy.Basic) else formula
        if formula not in self.numbers:
            self.numbers[formula] = self._computed(formula)
        return self.numbers[formula]

    def _computed(self, formula: Any) -> fx.Node:  # noqa: ANN401
        if formula in self.sizes:
            return self._size(*self.sizes[formula])
        if isinstance(formula, sympy.Symbol):
            size, times, more = self._line(formula) or (formula, 1, 0)
            rest = self.graph.call_function(operator.sub, (self._number(size), more))
            return self.graph.call_function(operator.floordiv, (rest, times))
        function = _ARITHMETIC[formula.func]
        found: fx.Node = reduce(lambda *pair: self.graph.call_function(function, pair), map(self._number, formula.args))
        return found

    def _size(self, node: fx.Node, axis: int) -> fx.Node:
        return self.graph.call_function(torch.ops.aten.sym_size.int, (node, axis))

    def _batch_first(self, node: fx.Node) -> Any:  # noqa: ANN401
        """Return a value with its samples in the first axis."""
        value, (axis, each) = self._argument(node), _batch_axis(node, self.recording) or (0, 1)
        if each != 1:
            sizes = [self.numbers[self.recording.batch], self._number(each)]
            value = self.graph.call_function(torch.ops.aten.unflatten.int, (value, axis, sizes))
        if axis:
            value = self.graph.call_function(torch.ops.aten.movedim.int, (value, axis, 0))
        return value

    def _restored(self, node: fx.Node, value: Any) -> Any:  # noqa: ANN401
        """Undo `_batch_first`."""
        axis, each = _batch_axis(node, self.recording) or (0, 1)
        if axis:
            value = self.graph.call_function(torch.ops.aten.movedim.int, (value, 0, axis))
        if each != 1:
            value = self.graph.call_function(torch.ops.aten.flatten.using_ints, (value, axis, axis + 1))
        return value


# --- samples apart ---------------------------------------------------------------------------------------------------


def check_samples_apart(recording: Recording, example_inputs: Inputs, seed: int) -> None:
    """Refuse a model in which the result of a sample depends on the others.

    The recording is run on random inputs like the examples and on some of their rows; every value must come out the
    same.

    Raises:
        AttachError: A value differs; the message names the module that made it.
    """
    inputs = _random_like(example_inputs, seed)
    count, whole, depend = batch_size(inputs), _run(recording, inputs), _varying(recording)
    compared = [node for node in recording.nodes if node in depend and isinstance(node.meta["val"], Tensor)]
    for rows in (torch.arange(1, count, 2), torch.tensor([0])):  # every other sample, and one alone
        part = _run(recording, pytree.tree_map_only(Tensor, lambda leaf, rows=rows: leaf[rows.to(leaf.device)], inputs))
        for node in compared:  # in order: the first that differs is the cause
            if not _alike(part[node], whole[node], _batch_axis(node, recording), count, rows):
                raise AttachError(
                    f"model cannot be cut: in module {module_of(node)!r} samples of a batch influence each other "
                    f"({node.target}), so none can be dropped. Early exit would change its answers."
                )


def _random_like(inputs: Inputs, seed: int) -> Inputs:
    """Return inputs of the same shapes whose samples differ; masks stay what they are."""
    generator = torch.Generator().manual_seed(seed)

    def random(leaf: Tensor) -> Tensor:
        if leaf.is_floating_point():
            scale = leaf.float().std().item() or 1.0
            noise = torch.randn(leaf.shape, generator=generator) * scale + leaf.float().mean().cpu()
            return noise.to(leaf)
        low, high = int(leaf.min()), int(leaf.max())
        if leaf.dtype is torch.bool or high <= 1:
            return leaf
        return torch.randint(low, high + 1, leaf.shape, generator=generator).to(leaf)

    changed: Inputs = pytree.tree_map_only(Tensor, random, inputs)
    return changed


@torch.no_grad()
def _run(recording: Recording, inputs: Inputs) -> dict[fx.Node, Any]:
    """Return every value of a run."""
    given = {node: inputs[name] if isinstance(inputs, dict) else inputs for name, node in recording.inputs.items()}
    values: dict[fx.Node, Any] = {**recording.weights, **given}
    for node in recording.nodes:
        arguments, keywords = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        values[node] = node.target(*arguments, **keywords)  # type: ignore[operator]
    return values


def _alike(part: Tensor, whole: Tensor, where: tuple[int, Any] | None, count: int, rows: Tensor) -> bool:
    """Return whether a value of some rows is that part of the value of all ``count`` rows."""
    if where is None:
        return _close(part, whole)
    axis, rows = where[0], rows.to(whole.device)
    each = whole.shape[axis] // count
    # samples may lie anywhere in a merged axis
    for before in (size for size in range(1, each + 1) if each % size == 0):
        places = whole.unflatten(axis, (before, count, each // before)).index_select(axis + 1, rows)  # type: ignore[no-untyped-call]
        if _close(part, places.flatten(axis, axis + 2)):
            return True
    return False


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if not a.is_floating_point():
        return bool((a == b).all())
    scale = float(b.float().abs().nan_to_num(posinf=0, neginf=0).max()) if b.numel() else 0.0
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=_TOLERANCE * max(scale, 1e-3), equal_nan=True)

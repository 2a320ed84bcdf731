"""Recording a model as one graph of operators, its taps marked, with any number of samples."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import Any

import sympy  # type: ignore[import-untyped]
import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import InputKind

from eenet.errors import AttachError
from eenet.models.form import Axes, Limits, by_name
from eenet.models.inputs import Inputs, evaluating, renew
from eenet.models.taps import Run, Whole, tapping
from eenet.tables.arrays import batch_size

_MOST = 1 << 20  # the largest number of samples a recording allows
_COUNT = 5  # samples for which that is done: of one, operators find more than they need
_TRIED = 1024  # sizes up to this one, or twice the example's, are compared with what the operators demand


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
        limits: Of the free sizes, by their names.
        same: Symbols that stand for a size which another symbol stands for already.
    """

    nodes: tuple[fx.Node, ...]
    inputs: dict[str, fx.Node]
    weights: dict[fx.Node, Tensor]
    names: dict[fx.Node, str]
    taps: tuple[fx.Node, ...]
    answer: fx.Node
    batch: Any
    limits: Mapping[str, Limits]
    same: Mapping[Any, Any] = field(default_factory=dict)

    def expression(self, number: Any) -> Any:  # noqa: ANN401 - a number, or one with symbols
        """Return a size as a formula of the number of samples and of free sizes; plain numbers as they are."""
        node = getattr(number, "node", None)
        return number if node is None else node.expr.xreplace(self.same)

    def sizes(self, node: fx.Node) -> list[Any]:
        """Return the sizes of a value, each as `expression` does."""
        return [self.expression(size) for size in node.meta["val"].shape]


class _Answering(nn.Module):
    def __init__(self, model: nn.Module, run: Run) -> None:
        super().__init__()
        self.model, self.run = model, run

    def forward(self, inputs: Inputs) -> Tensor:
        return self.run(self.model, inputs)


def recorded(whole: Whole, example_inputs: Inputs, axes: Axes) -> Recording:
    """Record a model in evaluation mode on at least 2 samples; its flags and hooks are as before afterwards.

    Args:
        whole: The model.
        example_inputs: What it takes.
        axes: Axes of the inputs that shall be of any size.

    Raises:
        AttachError: The model cannot be recorded, or only for one number of samples, or for one size of an axis that
            shall be free; or a tap is never reached.
    """
    model, names, count = whole.model, whole.names, batch_size(example_inputs)
    if axes and not hasattr(torch.export.Dim, "AUTO"):
        raise AttachError(f"PyTorch {torch.__version__} cannot record free sizes, 2.6 can")
    answering = _Answering(model, whole.run)
    batch = torch.export.Dim("batch", min=1, max=_MOST)
    free: dict[str, Any] = {name: {0: batch} for name in by_name(example_inputs)}
    for name, named in axes.items():
        free[name] |= dict.fromkeys(named, torch.export.Dim.AUTO)
    shapes = free[""] if isinstance(example_inputs, Tensor) else free
    with evaluating(model), torch.no_grad(), _naming_module(model, count):
        renew(model)  # what was cached would be recorded as a constant
        try:
            # what a model caches for evaluation, and warns of, is discarded when the recording ends
            with warnings.catch_warnings(), tapping(model, names, lambda index, out: torch.ops.eenet.tap(out, index)):
                warnings.filterwarnings("ignore", message=".* assigned during export")
                program = torch.export.export(answering, (example_inputs,), dynamic_shapes=(shapes,), strict=False)
        finally:
            renew(model)  # what is cached now belongs to the recording
        program = program.run_decompositions({})
    return _read(program, example_inputs, names, axes)


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


def _read(program: torch.export.ExportedProgram, example_inputs: Inputs, names: Sequence[str], axes: Axes) -> Recording:
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
    named = dict(zip(keys, inputs, strict=True))
    batch, limits, same = _symbols(program, named, by_name(example_inputs), axes)
    return Recording(
        nodes=tuple(
            node
            for node in graph.nodes
            if node.op in ("call_function", "get_attr") and node.target is not torch.ops.eenet.tap.default
        ),
        inputs=named,
        weights={node: tensors[path] for node, path in paths.items()},
        names={node: path.removeprefix("model.") for node, path in paths.items()},
        taps=taps,
        answer=output.args[0][-1],
        batch=batch,
        limits=limits,
        same=same,
    )


def _symbols(
    program: torch.export.ExportedProgram, nodes: Mapping[str, fx.Node], examples: Mapping[str, Tensor], axes: Axes
) -> tuple[Any, dict[str, Limits], dict[Any, Any]]:
    """Return the symbol of the number of samples, the limits of the free sizes, and symbols that are equal to others.

    Raises:
        AttachError: A size that shall be free is fixed, or sizes depend on each other.
    """
    counts = [node.meta["val"].shape[0].node for node in nodes.values()]
    batch, environment = counts[0].expr, counts[0].shape_env
    same = {count.expr: batch for count in counts if count.expr != batch}
    symbols: dict[str, list[Any]] = {}
    sizes: dict[str, int] = {}
    for name, free in axes.items():
        for axis, label in free.items():
            size = nodes[name].meta["val"].shape[axis]
            symbol = size.node.expr if isinstance(size, torch.SymInt) else None
            sizes[label] = examples[name].shape[axis]
            if not isinstance(symbol, sympy.Symbol):
                raise AttachError(f"its operations take {label} {sizes[label]} only, or need the number itself")
            if twin := next((other for other, known in symbols.items() if other != label and symbol in known), None):
                raise AttachError(f"its operations take {twin} and {label} of one size: give these axes one name")
            symbols.setdefault(label, []).append(symbol)
            if symbol != symbols[label][0]:
                same[symbol] = symbols[label][0]
    facts = [environment.replace(guard.expr).xreplace(same).subs(batch, _COUNT) for guard in environment.guards]
    limits = _limits(
        {label: (known, sizes[label]) for label, known in symbols.items()}, program.range_constraints, facts
    )
    return batch, limits, same


def _limits(
    symbols: Mapping[str, tuple[Sequence[Any], int]], ranges: Mapping[Any, Any], found: Iterable[Any]
) -> dict[str, Limits]:
    """Return the limits of free sizes, given the symbols of each and its size in the example."""
    example = {known[0]: size for known, size in symbols.values()}
    facts = {fact for fact in found if not example.keys().isdisjoint(fact.free_symbols)}
    limits: dict[str, Limits] = {}
    for label, ((symbol, *others), size) in symbols.items():
        known = [ranges[one] for one in (symbol, *others)]
        low = max(2, *(int(one.lower) for one in known))
        most = min((int(one.upper) for one in known if one.upper.is_Integer), default=None)
        elsewhere = {one: size for one, size in example.items() if one != symbol}
        mine = {fact.subs(elsewhere) for fact in facts if symbol in fact.free_symbols}
        limits[label] = _around(symbol, size, (low, most), mine)
        if limits[label][0] == limits[label][1]:
            raise AttachError(f"its operations take {label} {size}, and no size next to it")
    ends = [(low, high or max(_TRIED, low)) for low, high in limits.values()]
    for corner in product(*ends):  # what depends on several sizes
        if not _hold(facts, dict(zip(example, corner, strict=True))):
            raise AttachError(f"its operations need {', '.join(limits)} that go together")
    return limits


def _around(symbol: Any, size: int, known: Limits, facts: Iterable[Any]) -> Limits:  # noqa: ANN401 - of sympy
    """Return the sizes around the example's for which everything holds that was found to hold while recording."""
    (least, most), low, high = known, size, size
    last = min(max(_TRIED, 2 * size), _MOST if most is None else most)
    while low > least and _hold(facts, {symbol: low - 1}):
        low -= 1
    while high < last and _hold(facts, {symbol: high + 1}):
        high += 1
    return low, (most if high == last else high)


def _hold(facts: Iterable[Any], values: Mapping[Any, int]) -> bool:
    """Return whether all facts are true where symbols have such values; what cannot be said is not."""
    return all(fact.subs(values) in (True, sympy.true) for fact in facts)


def _taps(graph: fx.Graph, names: Sequence[str]) -> tuple[fx.Node, ...]:
    """Return the tapped values in the order asked for, and take the marks out of the graph."""
    found: dict[int, list[fx.Node]] = {index: [] for index in range(len(names))}
    for node in list(graph.nodes):
        if node.target is torch.ops.eenet.tap.default:
            found[int(node.args[1])].append(node.args[0])
            node.replace_all_uses_with(node.args[0])
    for index, name in enumerate(names):
        if len(found[index]) != 1:
            often = f"runs {len(found[index])} times for a batch" if found[index] else "never runs"
            raise AttachError(f"exits name the module {name!r}, which {often}. Name modules that run once.")
    taps = [nodes[0] for nodes in found.values()]
    order = {node: place for place, node in enumerate(graph.nodes)}
    for one, following in pairwise(range(len(names))):
        if order[taps[following]] < order[taps[one]]:
            raise AttachError(
                f"exits are out of order: module {names[following]!r} returns before module {names[one]!r} does. Name "
                "modules in the order in which they run."
            )
    return tuple(taps)


def module_of(node: fx.Node) -> str:
    """Return the path of the module a node was recorded in."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = stack[-1][0] if stack else ""
    return str(path).removeprefix("model").removeprefix(".")

"""The engine that runs a model as one compiled graph per stage, in ONNX Runtime or OpenVINO; knows no torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float32, Int

from eenet import environment
from eenet.errors import InputError, RunError, ShapeError, require
from eenet.running.engines.base import Carried, Engine
from eenet.tables.arrays import as_array

GraphEngineName = Literal["onnxruntime", "openvino"]
GRAPH_ENGINES: tuple[GraphEngineName, ...] = get_args(GraphEngineName)
"""What graphs can be run by."""

STATE, NEXT, LOGITS = "state_", "next_", "logits"
"""How graphs name their tensors: ``state_i`` are inputs, ``logits`` and ``next_i`` outputs.

``state_i`` of the first stage is the model's input number ``i``; of a later one it is ``next_i`` of the stage before.
"""

_PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}
_DTYPES = {"float": "float32", "double": "float64"}  # names of ONNX Runtime that are not numpy's

Run: TypeAlias = Callable[[Sequence[np.ndarray]], Sequence[np.ndarray]]
"""A graph ready to run, from C-contiguous, writable arrays to arrays that stay as they are when it runs again."""


@dataclass(frozen=True)
class FreeSize:
    """A size of a model's input that is left open.

    Attributes:
        axis: Which, counted from 1; 0 is the batch.
        name: Sizes of one name are the same in all inputs.
        low: The smallest.
        high: The largest, None where none is known.
    """

    axis: int
    name: str
    low: int
    high: int | None


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that a model or a graph takes or returns.

    Attributes:
        name: Of a model's input: as the model calls it; of a graph's tensor: see `STATE`.
        dtype: Type of its numbers.
        shape: Of one sample; None where a size is left open.
        free: Of a model's input: what is known of the sizes that are left open.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    free: tuple[FreeSize, ...] = ()


@dataclass(frozen=True)
class Graph:
    """One graph, opened by the runtime that will run it.

    Attributes:
        inputs: What it takes. A graph lacks the inputs that it has no use for.
        outputs: What it can return.
        bind: Given names of outputs, returns what runs the graph: from its inputs, in order, to these outputs.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bind: Callable[[Sequence[str]], Run]

    @property
    def takes(self) -> list[int]:
        """Numbers of the tensors it takes, in order."""
        return _numbers(self.inputs)


class GraphEngine(Engine):
    """Runs a model as compiled graphs on the CPU. One caller at a time.

    States are what the next stage takes, in the order of its inputs; the logits of the last stage are carried beside.

    Args:
        graphs: One per stage, its head fused in.
        inputs: What the model takes, in order.
        name: Of the engine.
        dtype: The number format it computes in; states and logits are float32 in any case.
        threads: That the graphs were opened with.
        source: Fingerprint of the model that they were made from.
        whole: The original model without exits as one graph; without it, `full` runs the stages one after the other.
        first: The stage that the first graph is; before it the model runs elsewhere.
        num_exits: Of the whole model; default: the graphs are the rest of it.
        sends: Numbers of the tensors that the stage after the last graph takes, where that is elsewhere.
        original: The first stage that the original model needs; it takes the model's inputs.

    Attributes:
        inputs: As handed in.
        sends: For each of the graphs the numbers of the tensors that the stage after it takes.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        inputs: Sequence[TensorSpec],
        *,
        name: GraphEngineName,
        dtype: str = "float32",
        threads: int | None = None,
        source: str = "",
        whole: Graph | None = None,
        first: int = 0,
        num_exits: int | None = None,
        sends: Sequence[int] = (),
        original: int = 0,
    ) -> None:
        self.name, self.dtype, self.threads, self.source = name, dtype, threads, source
        self.num_exits, self.inputs, self.original = num_exits or first + len(graphs), tuple(inputs), original
        if len(graphs) < self.num_exits:
            self.held = range(first, first + len(graphs))
        self._first, self._takes = first, [graph.inputs for graph in graphs]
        self.sends = (*(tuple(graph.takes) for graph in graphs[1:]), tuple(sends))
        read = [[LOGITS, *(f"{NEXT}{i}" for i in sent)] for sent in self.sends]
        self._stages = [graph.bind(names) for graph, names in zip(graphs, read, strict=True)]
        self._whole = None if whole is None else (whole.takes, whole.bind([LOGITS]))

    def start(self, inputs: Any) -> Carried:  # noqa: ANN401 - as of `checked_inputs`
        if self._first:
            raise InputError(
                f"inputs cannot be taken: stages 0 to {self._first - 1} are elsewhere. Pass the state that their tier "
                "sent to Tier.resume."
            )
        return self._begun(inputs, 0)

    def _begun(self, inputs: Any, index: int) -> Carried:  # noqa: ANN401
        """Return the state before a stage that takes the model's inputs."""
        arrays = checked_inputs(inputs, self.inputs)
        return Carried([arrays[i] for i in _numbers(self._takes[index])])

    def stage(self, index: int, state: Carried) -> Carried:
        logits, *leaves = self._run(self._stages[index - self._first], state.state, f"stage {index}")
        return Carried(leaves, logits)

    def head(self, index: int, state: Carried) -> tuple[Float32[np.ndarray, "sample class *pixel"], None]:
        return state.extra.astype(np.float32, copy=False), None

    def select(self, state: Carried, rows: Int[np.ndarray, " kept"]) -> Carried:
        return Carried([leaf.take(rows, axis=0) for leaf in state.state])

    def misfit(self, state: Carried, count: int) -> tuple[int, ...] | None:
        return next((leaf.shape for leaf in state.state if leaf.shape[:1] != (count,)), None)

    def pack(self, state: Carried) -> tuple[list[np.ndarray], Any]:
        return list(state.state), None

    def unpack(self, arrays: Sequence[np.ndarray], form: Any, index: int) -> Carried:  # noqa: ANN401 - of JSON
        wanted = self._takes[index + 1 - self._first]
        fits = len(arrays) == len(wanted) and all(
            array.dtype == one.dtype and array.ndim and alike(array.shape[1:], one.shape)
            for array, one in zip(arrays, wanted, strict=True)
        )
        if form is not None or not fits:
            found = [f"{array.dtype} {array.shape}" for array in arrays]
            raise InputError(
                f"state of {found} does not fit: stage {index + 1} takes "
                f"{[f'{one.dtype} {one.shape} per sample' for one in wanted]}. Send that of the same export's stages."
            )
        return Carried([np.require(array, requirements=["C", "W"]) for array in arrays])

    def join(self, states: Sequence[Carried]) -> Carried:
        return Carried([np.concatenate(parts) for parts in zip(*(state.state for state in states), strict=True)])

    def full(self, inputs: Any) -> object:  # noqa: ANN401 - as of `checked_inputs`
        if self._whole is None:
            state = self._begun(inputs, self.original) if self.original else self.start(inputs)
            for k in range(self.original, self.num_exits):
                state = self.stage(k, state)
            return self.head(self.num_exits - 1, state)[0]
        arrays, (taken, run) = checked_inputs(inputs, self.inputs), self._whole
        return self._run(run, [arrays[i] for i in taken], "the original model")[0]

    def _run(self, run: Run, leaves: Sequence[np.ndarray], what: str) -> Sequence[np.ndarray]:
        try:
            return run(leaves)
        except Exception as error:
            raise RunError(
                f"{what} failed in {self.name}: {reason(error)} Check the values of the inputs; they are of the right "
                "types and shapes."
            ) from error


def _numbers(tensors: Sequence[TensorSpec]) -> list[int]:
    return [int(one.name.removeprefix(STATE)) for one in tensors]


def input_specs(inputs: Any) -> tuple[TensorSpec, ...]:  # noqa: ANN401 - as of `checked_inputs`
    """Return the names, types and shapes of a batch; a single array is called ``input``."""
    named = inputs if isinstance(inputs, Mapping) else {"input": inputs}
    arrays = {str(name): as_array(value) for name, value in named.items()}
    return tuple(TensorSpec(name, array.dtype, array.shape[1:]) for name, array in arrays.items())


def checked_inputs(inputs: Any, specs: Sequence[TensorSpec]) -> list[np.ndarray]:  # noqa: ANN401 - as of `input_specs`
    """Return a batch as C-contiguous, writable arrays in the model's order; nothing is converted silently.

    Args:
        inputs: An array-like where the model takes one input, else array-likes by name (a dict, a BatchEncoding);
            batch first.
        specs: What the model takes.

    Raises:
        InputError: A name or a type does not fit, or the arrays are of different numbers of samples, or empty.
        ShapeError: A shape does not fit.
    """
    names = [spec.name for spec in specs]
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise InputError(
                f"inputs of type {type(inputs).__name__} do not fit: the model takes {names}. Pass them by name."
            )
        inputs = {names[0]: inputs}
    if set(inputs) != set(names):
        raise InputError(f"inputs {sorted(map(str, inputs))} do not fit: the model takes {names}. Pass just these.")
    arrays = {spec.name: _fitting(inputs[spec.name], spec) for spec in specs}
    require_samples(arrays, "inputs")
    _require_sizes(arrays, specs)
    return list(arrays.values())


def _require_sizes(arrays: Mapping[str, np.ndarray], specs: Sequence[TensorSpec]) -> None:
    """Refuse free sizes out of their limits, or that differ from input to input."""
    found: dict[str, int] = {}
    for spec in specs:
        for free in spec.free:
            size = arrays[spec.name].shape[free.axis]
            if size < free.low or (free.high is not None and size > free.high):
                limits = f"{free.low} and more" if free.high is None else f"{free.low} to {free.high}"
                raise ShapeError(
                    f"input {spec.name!r} of {free.name} {size} does not fit: the model takes {limits}. Pad or cut it."
                )
            if found.setdefault(free.name, size) != size:
                raise ShapeError(
                    f"inputs of {free.name} {found[free.name]} and {size} do not fit together: it is one in all inputs "
                    "of a batch. Pad them alike."
                )


def require_samples(arrays: Mapping[str, np.ndarray], what: str) -> None:
    """Refuse arrays that are not of one number of samples, at least 1."""
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        found = ", ".join(f"{count} in {name!r}" for name, count in counts.items())
        raise InputError(f"{what} do not fit together: samples are {found}; one number, at least 1, is needed.")


def _fitting(value: Any, spec: TensorSpec) -> np.ndarray:  # noqa: ANN401
    """Return one input as an array, if it is what the model takes."""
    array = as_array(value)
    if not array.ndim or not alike(array.shape[1:], spec.shape):
        names = {free.axis: free.name for free in spec.free}
        wanted = ", ".join(("sample", *(names.get(axis, str(size)) for axis, size in enumerate(spec.shape, 1))))
        raise ShapeError(
            f"input {spec.name!r} of shape {array.shape} does not fit: the model takes ({wanted}). Pass such a batch."
        )
    # by the value's own type: bfloat16 has become float32 in the array
    dtype = str(getattr(value, "dtype", array.dtype)).removeprefix("torch.")
    if dtype != str(spec.dtype):
        raise InputError(
            f"input {spec.name!r} of {dtype} does not fit: the model takes {spec.dtype}. Convert it to {spec.dtype}, "
            "on the right scale."
        )
    return np.require(array, requirements=["C", "W"])  # OpenVINO shares no memory that is read-only


def alike(a: Sequence[int | None], b: Sequence[int | None]) -> bool:
    """Return whether two shapes can be the same, as far as their sizes are known."""
    return len(a) == len(b) and all(None in (x, y) or x == y for x, y in zip(a, b, strict=True))


def require_engine(engine: str, *more: str) -> None:
    """Refuse an engine that is unknown, or not installed with the other packages named."""
    if engine not in GRAPH_ENGINES:
        raise InputError(f"engine {engine!r} is unknown: graphs are run by {' and '.join(GRAPH_ENGINES)}. Use one.")
    require(engine, *more, reason=f"the engine {engine} needs it here")


def opener(engine: GraphEngineName, threads: int | None, dtype: str = "float32") -> Callable[[bytes | Path], Graph]:
    """Return what opens graphs to run on so many threads, from a file or from the bytes of an ONNX file.

    Refuses an engine that is unknown, is not installed, or does not compute in this format here.
    """
    require_engine(engine)
    threads = environment.threads() if threads is None else threads
    if engine == "openvino":
        return _openvino(threads, dtype)
    if dtype != "float32":
        raise InputError(f"dtype {dtype!r} is not offered by the engine {engine}: it computes in float32. Use that.")
    return _onnxruntime(threads)


def reason(error: Exception) -> str:
    """Return what a runtime complains about, in one line that ends with a full stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if text.endswith(".") else f"{text}."


def _spec(name: str, dtype: Any, sizes: Sequence[int | None]) -> TensorSpec:  # noqa: ANN401 - as of `numpy.dtype`
    """Return a tensor of a graph, which must be free to take any number of samples."""
    if not name.startswith(NEXT) and (not sizes or sizes[0] is not None):
        raise ShapeError(
            f"tensor {name!r} of shape {list(sizes)} does not fit: its first axis must be the batch, of any size."
        )
    return TensorSpec(name, np.dtype(dtype), tuple(sizes[1:]))


def _onnxruntime(threads: int | None) -> Callable[[bytes | Path], Graph]:
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads or 0, 1
    options.log_severity_level = 4  # errors are raised

    def spec(one: Any) -> TensorSpec:  # noqa: ANN401
        kind = one.type.removeprefix("tensor(").removesuffix(")")
        return _spec(one.name, _DTYPES.get(kind, kind), [size if isinstance(size, int) else None for size in one.shape])

    def opened(source: bytes | Path) -> Graph:
        program = source if isinstance(source, bytes) else str(source)
        session = runtime.InferenceSession(program, options, providers=["CPUExecutionProvider"], enable_fallback=0)
        names = [one.name for one in session.get_inputs()]

        def bind(wanted: Sequence[str]) -> Run:
            outputs = list(wanted)
            return lambda leaves: session.run(outputs, dict(zip(names, leaves, strict=True)))

        return Graph(tuple(map(spec, session.get_inputs())), tuple(map(spec, session.get_outputs())), bind)

    return opened


def _openvino(threads: int | None, dtype: str) -> Callable[[bytes | Path], Graph]:
    runtime = importlib.import_module("openvino")
    core = runtime.Core()
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if dtype not in _PRECISIONS or (dtype == "bfloat16" and "BF16" not in able):
        raise InputError(
            f"dtype {dtype!r} is not offered by the engine openvino here: this processor computes in "
            f"{', '.join(able)}. Use float32."
        )
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": _PRECISIONS[dtype],  # by default it is bfloat16 where the processor can
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads

    def opened(source: bytes | Path) -> Graph:
        # read directly: the converter of files would do no more, and report its use to its authors
        model = core.read_model(source if isinstance(source, bytes) else str(source))
        return _openvino_graph(core.compile_model(model, "CPU", settings), runtime.Tensor)

    return opened


def _openvino_graph(compiled: Any, tensor: Any) -> Graph:  # noqa: ANN401
    """Return a compiled model as a graph; a tensor passed on unchanged has the names of an input and of outputs."""
    inputs = {name: one for one in compiled.inputs for name in one.get_names() if name.startswith(STATE)}
    outputs = {name: one for one in compiled.outputs for name in one.get_names() if name.startswith((LOGITS, NEXT))}
    places = {name: place for place, one in enumerate(compiled.outputs) for name in one.get_names()}
    request = compiled.create_infer_request()

    def spec(name: str, one: Any) -> TensorSpec:  # noqa: ANN401
        sizes = [None if size.is_dynamic else size.get_length() for size in one.get_partial_shape()]
        return _spec(name, one.get_element_type().to_dtype(), sizes)

    def bind(wanted: Sequence[str]) -> Run:
        asked = [places[name] for name in wanted]

        def run(leaves: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
            for place, leaf in enumerate(leaves):  # the request only borrows them
                request.set_input_tensor(place, tensor(leaf, shared_memory=True))
            request.infer()
            return [request.get_output_tensor(place).data.copy() for place in asked]  # the next run overwrites them

        return run

    taken, returned = (tuple(spec(name, one) for name, one in named.items()) for named in (inputs, outputs))
    return Graph(taken, returned, bind)

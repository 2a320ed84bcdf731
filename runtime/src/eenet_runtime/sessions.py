"""Engines: what runs the graph of one stage. Each is imported when it is first needed."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from eenet_runtime.confidence import Array
from eenet_runtime.errors import ExportError, MissingExtraError
from eenet_runtime.manifest import StageSpec

__all__ = ["OnnxSession", "OpenVinoSession", "Session", "opener"]


class Session(ABC):
    """One stage, its head fused in, ready to run. Not to be shared by threads.

    Attributes:
        wanted: Names of the outputs that `run` returns.
    """

    wanted: tuple[str, ...]

    @abstractmethod
    def run(self, state: Sequence[Array]) -> list[Array]:
        """Run the stage.

        Args:
            state: What the stage reads, in the order of its inputs, C-contiguous and writable.

        Returns:
            The outputs wanted. They may be overwritten by the next call.
        """


@final
class OnnxSession(Session):
    """A stage in ONNX Runtime, on the CPU.

    Args:
        path: The graph.
        stage: What it reads and returns.
        wanted: The outputs to return.
        threads: How many threads to use, None for as many as there are cores.
    """

    def __init__(self, path: Path, stage: StageSpec, wanted: tuple[str, ...], threads: int | None) -> None:
        runtime = _imported("onnxruntime", "onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads or 0, 1
        options.log_severity_level = 3
        self.wanted = wanted
        with _opening(path):
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._inputs, self._outputs = list(stage.inputs), list(wanted)
        found = {one.name for one in self._session.get_inputs()}, {one.name for one in self._session.get_outputs()}
        _require_names(path, stage, *found)

    def run(self, state: Sequence[Array]) -> list[Array]:
        """Run the stage."""
        found: list[Array] = self._session.run(self._outputs, dict(zip(self._inputs, state, strict=True)))
        return found


@final
class OpenVinoSession(Session):
    """A stage in OpenVINO, on the CPU, in float32.

    Args:
        path: The graph.
        stage: What it reads and returns.
        wanted: The outputs to return.
        threads: How many threads to use, None for as many as OpenVINO thinks best.
        core: The `openvino.Core` that compiles it.
    """

    def __init__(
        self,
        path: Path,
        stage: StageSpec,
        wanted: tuple[str, ...],
        threads: int | None,
        core: Any,  # noqa: ANN401
    ) -> None:
        self.wanted = wanted
        self._tensor = _imported("openvino", "openvino").Tensor
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",  # its own choice is bfloat16 where the processor can
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
        }
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        with _opening(path):
            compiled = core.compile_model(str(path), "CPU", settings)
        inputs = {name: i for i, port in enumerate(compiled.inputs) for name in port.get_names()}
        outputs = {name: i for i, port in enumerate(compiled.outputs) for name in port.get_names()}
        _require_names(path, stage, set(inputs), set(outputs))
        self._inputs, self._outputs = [inputs[name] for name in stage.inputs], [outputs[name] for name in wanted]
        self._request = compiled.create_infer_request()

    def run(self, state: Sequence[Array]) -> list[Array]:
        """Run the stage."""
        request = self._request
        for place, array in zip(self._inputs, state, strict=True):
            request.set_input_tensor(place, self._tensor(array, shared_memory=True))
        request.infer()
        return [request.get_output_tensor(place).data for place in self._outputs]


def opener(engine: str, threads: int | None) -> Callable[[Path, StageSpec, tuple[str, ...]], Session]:
    """Return what opens the stages of an export.

    Args:
        engine: ``onnx`` or ``openvino``.
        threads: How many threads each may use, None for the engine's own choice.

    Raises:
        MissingExtraError: The engine is not installed.
    """
    if engine == "onnx":
        _imported("onnxruntime", "onnxruntime")
        return lambda path, stage, wanted: OnnxSession(path, stage, wanted, threads)
    core = _imported("openvino", "openvino").Core()
    return lambda path, stage, wanted: OpenVinoSession(path, stage, wanted, threads, core)


def _imported(name: str, extra: str) -> Any:  # noqa: ANN401
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingExtraError(
            f'{name} is missing: the export was made for it. Run pip install "eenet-runtime[{extra}]".'
        ) from error


@contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Say which graph an engine could not open."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ExportError(
            f"graph {path} cannot be opened: {reason} Update the engine, or export the model again."
        ) from error


def _require_names(path: Path, stage: StageSpec, inputs: set[str], outputs: set[str]) -> None:
    """Refuse a graph that is not the one its manifest describes."""
    if set(stage.inputs) != {name for name in inputs if name.startswith("state_")} or not set(stage.outputs) <= outputs:
        raise ExportError(
            f"graph {path} does not fit its manifest: it takes {sorted(inputs)} and returns {sorted(outputs)}. "
            "Export the model again."
        )

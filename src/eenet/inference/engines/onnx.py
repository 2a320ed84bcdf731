"""The engine of ONNX Runtime: one session per stage, its head fused in."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import final

import numpy as np

from eenet.errors import MissingExtraError
from eenet.inference.engines.graphs import Graph, GraphEngine
from eenet.inference.engines.programs import input_names, stage_programs
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel

__all__ = ["OnnxEngine", "stage_programs"]


def check_onnx() -> None:
    """Refuse to go on where the engine's libraries are not installed; they are not loaded yet.

    Raises:
        MissingExtraError: ONNX, its exporter or its runtime is not installed.
    """
    for name in ("onnxruntime", "onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"{name} is missing: the engine onnxruntime needs onnx, onnxscript and onnxruntime. "
                'Run pip install "eenet[onnx]".'
            )


@final
class OnnxEngine(GraphEngine):
    """Runs a model in ONNX Runtime on the CPU, in float32, with as many threads as torch uses when it is made.

    Args:
        model: The multi-exit model; it is exported as it is now, in evaluation mode, its flags restored.
        example_inputs: What its inputs look like, at least 2 samples.

    Raises:
        InputError: The model is not in float32 on the CPU.
        MissingExtraError: ONNX, its exporter or its runtime is not installed.
        ShapeError: Fewer than 2 samples.
    """

    def __init__(self, model: MultiExitModel, example_inputs: Inputs) -> None:
        check_onnx()
        import onnxruntime  # type: ignore[import-untyped]

        self._runtime = onnxruntime
        super().__init__(model, example_inputs, name="onnxruntime", dtype="float32")

    def opened(self, program: bytes) -> Graph:
        """Return an ONNX file as a session that is ready to run."""
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = self.threads, 1
        options.log_severity_level = 3
        session = self._runtime.InferenceSession(program, options, providers=["CPUExecutionProvider"])
        wanted = input_names([one.name for one in session.get_inputs()])
        outputs = [one.name for one in session.get_outputs()]

        def run(leaves: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
            found: Sequence[np.ndarray] = session.run(outputs, {name: leaves[i] for name, i in wanted})
            return found

        return run

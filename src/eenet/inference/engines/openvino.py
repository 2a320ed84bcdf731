"""The engine of OpenVINO: one compiled model per stage, its head fused in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, final

import numpy as np

from eenet.errors import InputError, MissingExtraError
from eenet.inference.engines.graphs import Graph, GraphEngine
from eenet.inference.engines.programs import input_names
from eenet.models.inputs import Inputs
from eenet.models.model import MultiExitModel

__all__ = ["OpenVinoEngine"]

_HINTS = {"float32": "f32", "bfloat16": "bf16"}


@final
class OpenVinoEngine(GraphEngine):
    """Runs a model in OpenVINO on the CPU, with as many threads as torch uses when it is made.

    Left to itself, OpenVINO computes in bfloat16 wherever the processor can. Here it does so on request only: outputs
    then differ in the third digit, so a policy should be fitted on a table recorded with this engine. One caller at a
    time.

    Args:
        model: The multi-exit model; it is exported as it is now, in evaluation mode, its flags restored.
        example_inputs: What its inputs look like, at least 2 samples.
        dtype: The number format it computes in; states and logits are float32 in either case.

    Raises:
        InputError: An unknown ``dtype``, or the processor does not compute in it.
        MissingExtraError: OpenVINO, ONNX or its exporter is not installed.
        ShapeError: Fewer than 2 samples.
    """

    def __init__(
        self, model: MultiExitModel, example_inputs: Inputs, *, dtype: Literal["float32", "bfloat16"] = "float32"
    ) -> None:
        try:
            import openvino  # type: ignore[import-untyped]
        except ImportError as error:
            raise MissingExtraError(
                "openvino is missing: the engine openvino needs openvino, onnx and onnxscript. "
                'Run pip install "eenet[openvino]".'
            ) from error
        self._runtime, self._core = openvino, openvino.Core()
        able = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if dtype not in _HINTS or (dtype == "bfloat16" and "BF16" not in able):
            raise InputError(
                f"dtype {dtype!r} is not offered by the engine openvino here: this processor computes in "
                f"{', '.join(able)}. Use float32."
            )
        super().__init__(model, example_inputs, name="openvino", dtype=dtype)

    def opened(self, program: bytes) -> Graph:
        """Return an ONNX file as a compiled model that is ready to run."""
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self.dtype],
            "INFERENCE_NUM_THREADS": self.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
        }
        # read as it is: the converter of files would do no more, and report its use to its makers
        compiled = self._core.compile_model(self._core.read_model(program), "CPU", settings)
        wanted = [input_names(port.names)[0][1] for port in compiled.inputs]
        request, tensor, outputs = compiled.create_infer_request(), self._runtime.Tensor, range(len(compiled.outputs))

        def run(leaves: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
            fed = [np.ascontiguousarray(leaves[i]) for i in wanted]  # kept alive: the request only borrows them
            for port, leaf in enumerate(fed):
                request.set_input_tensor(port, tensor(leaf, shared_memory=True))
            request.infer()
            return [request.get_output_tensor(i).data.copy() for i in outputs]  # the next run overwrites the request's

        return run

"""Ways to run a multi-exit model stage by stage; one loop in `eenet.inference.adaptive` drives them all."""

from __future__ import annotations

from eenet.inference.engines.base import Engine, full_in_stages
from eenet.inference.engines.compiled import CompiledEngine
from eenet.inference.engines.dense import DenseEngine, suited
from eenet.inference.engines.eager import EagerEngine
from eenet.inference.engines.onnx import OnnxEngine
from eenet.inference.engines.openvino import OpenVinoEngine

__all__ = [
    "Engine",
    "EagerEngine",
    "CompiledEngine",
    "DenseEngine",
    "OnnxEngine",
    "OpenVinoEngine",
    "full_in_stages",
    "suited",
]

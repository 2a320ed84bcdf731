"""Models that stop early, run without torch: reads what `eenet.export` and `eenet.save_policy` wrote."""

from eenet_runtime.errors import EenetRuntimeError, ExportError, InputError, MissingExtraError, PolicyError
from eenet_runtime.load import load_policy
from eenet_runtime.model import Model, Prediction, load
from eenet_runtime.policy import Policy

__version__ = "0.1.0"

__all__ = [
    "EenetRuntimeError",
    "ExportError",
    "InputError",
    "MissingExtraError",
    "Model",
    "Policy",
    "PolicyError",
    "Prediction",
    "load",
    "load_policy",
]

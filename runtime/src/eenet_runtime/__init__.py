"""Where to leave a multi-exit network, decided by numpy alone: reads what `eenet.save_policy` wrote."""

from eenet_runtime.errors import EenetRuntimeError, InputError, PolicyError
from eenet_runtime.load import load_policy
from eenet_runtime.policy import Policy

__version__ = "0.1.0"

__all__ = ["EenetRuntimeError", "InputError", "Policy", "PolicyError", "load_policy"]

"""Every error that is raised on purpose.

A message reads ``<argument> <value> <what is wrong>: <the fact that limits it>. <what to do instead>.``
"""

from __future__ import annotations

__all__ = ["EenetRuntimeError", "ExportError", "InputError", "MissingExtraError", "PolicyError"]


class EenetRuntimeError(Exception):
    """Root of all errors raised on purpose."""


class PolicyError(EenetRuntimeError, ValueError):
    """A policy's folder that is missing, incomplete, changed, or holds what this version cannot serve."""


class ExportError(EenetRuntimeError, ValueError):
    """An exported model's folder that is missing, incomplete, changed, or holds what this version cannot serve."""


class InputError(EenetRuntimeError, ValueError):
    """Inputs, outputs or sample ids that do not fit the model or the policy."""


class MissingExtraError(EenetRuntimeError, ImportError):
    """An engine that is not installed."""

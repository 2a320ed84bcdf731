"""Every error eenet raises on purpose.

The tree::

    EenetError
    ├── InputError (ValueError)     something handed in is wrong; found before any work starts
    │   ├── ShapeError              tensors whose shapes disagree
    │   ├── TableError              an exit table that cannot be used
    │   ├── BudgetError             a budget that is malformed or out of reach
    │   ├── DataError               a data set that is missing, incomplete or damaged
    │   ├── AttachError             a model that cannot be given exits
    │   ├── BundleError             a saved artefact that is incomplete or was changed
    │   └── MissingExtraError       an optional dependency that is not installed
    └── RunError                    work that started and could not be finished

A message reads ``<argument> <value with unit> <what is wrong>: <the fact that limits it>. <what to do instead>.`` It is
one line of plain text, whatever the names and values that it quotes contain.
"""

from __future__ import annotations

import importlib

EXTRAS = {
    "PIL": "vision",
    "accelerate": "train",
    "fastapi": "serve",
    "httptools": "serve",
    "huggingface_hub": "hub",
    "matplotlib": "report",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "orjson": "serve",
    "pandas": "frames",
    "prometheus_client": "serve",
    "pyarrow": "frames",
    "python_multipart": "serve",
    "ray": "ray",
    "sklearn": "sklearn",
    "timm": "vision",
    "torch": "torch",
    "torchvision": "vision",
    "transformers": "text",
    "uvicorn": "serve",
}
"""Optional packages, each with the extra of eenet that installs it."""


_LONGEST = 590  # characters of a message; of a longer one the middle is left out


def visible(text: str) -> str:
    r"""Return a text in which characters that are not printed, or steer a terminal, are escapes, such as ``\x1b``."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class EenetError(Exception):
    """Root of all errors raised on purpose."""

    def __init__(self, message: str = "") -> None:
        text = visible(" ".join(message.split()))
        if len(text) > _LONGEST:
            text = f"{text[: _LONGEST * 2 // 3]} ... {text[-_LONGEST // 3 + 5 :]}"
        super().__init__(text)


class InputError(EenetError, ValueError):
    """An argument, a file or a setting is wrong; nothing was started."""


class ShapeError(InputError):
    """Tensors whose shapes disagree."""


class TableError(InputError):
    """An exit table that is malformed, or lacks what was asked of it."""


class BudgetError(InputError):
    """A budget that is no number, has a foreign unit, or is out of reach."""


class DataError(InputError):
    """A data set that is missing, incomplete or damaged."""


class AttachError(InputError):
    """A model that cannot be given exits."""


class BundleError(InputError):
    """A saved artefact that is incomplete, damaged or was changed since it was written."""


class MissingExtraError(InputError):
    """An optional dependency that is not installed."""


class RunError(EenetError):
    """Work that started and could not be finished."""


def require(*packages: str, reason: str = "it is needed here") -> None:
    """Import optional packages before any work starts.

    Args:
        packages: Names as imported.
        reason: What needs them, for the message.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    for package in packages:
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise missing_extra(error, reason) or error from error


def missing_extra(error: ModuleNotFoundError, reason: str = "it is needed here") -> MissingExtraError | None:
    """Return the error that names the extra to install; None where no extra contains the module."""
    package = (error.name or "").partition(".")[0]
    if package not in EXTRAS:
        return None
    return MissingExtraError(f'{package} is not installed: {reason}. Run pip install "eenet[{EXTRAS[package]}]".')

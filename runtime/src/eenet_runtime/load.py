"""Reading what `eenet.save_policy` wrote: a folder of ``policy.json`` and ``policy.safetensors``. No code is run."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.numpy
from safetensors import SafetensorError

from eenet_runtime.confidence import Array
from eenet_runtime.errors import EenetRuntimeError, PolicyError
from eenet_runtime.policy import MixedPolicy, Policy, ScorePolicy, TransformedPolicy
from eenet_runtime.scores import (
    ConfidenceScorer,
    EENetScorer,
    Ensemble,
    PceeScorer,
    Scorer,
    StoppingScorer,
    VoteScorer,
)

__all__ = ["load_policy"]

_FORMAT = 2
_PARTS: dict[str, Callable[..., Scorer | Ensemble]] = {
    part.__name__: part for part in (ConfidenceScorer, EENetScorer, Ensemble, PceeScorer, StoppingScorer, VoteScorer)
}


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy.

    Args:
        path: The folder that `eenet.save_policy` or ``eenet fit --out`` wrote.

    Raises:
        PolicyError: It is missing, incomplete, damaged, was changed since it was written, or is of a class or a format
            that this version does not know.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise PolicyError(f"policy {path} is missing: there is no such folder. Pass what 'eenet fit --out' wrote.")
    stored = _json(folder / "policy.json")
    content = _bytes(folder / "policy.safetensors")
    if not isinstance(stored, dict) or stored.get("sha256") != hashlib.sha256(content).hexdigest():
        raise PolicyError(
            f"policy {path} was changed since it was written: the checksum of its tensors differs. Fit it again."
        )
    if stored.get("format") != _FORMAT:
        raise PolicyError(
            f"policy {path} is of format {stored.get('format')!r}: this version of eenet-runtime reads format "
            f"{_FORMAT}. Save it with a version of eenet that fits."
        )
    try:
        tensors = safetensors.numpy.load(content)
        parts = [_part(i, described, tensors) for i, described in enumerate(stored["parts"])]
        return _rebuild(stored["rule"], parts, tensors)
    except EenetRuntimeError:
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise PolicyError(
            f"policy {path} cannot be rebuilt: {type(error).__name__} {error}. It is incomplete or damaged; fit it "
            f"again."
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise PolicyError(f"policy {path} is missing: there is no such file. Check the path.") from error


def _json(path: Path) -> Any:  # noqa: ANN401
    try:
        return json.loads(_bytes(path).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise PolicyError(f"policy {path} cannot be read: it is not JSON ({error}). Fit it again.") from error


def _part(i: int, described: dict[str, Any], tensors: dict[str, Array]) -> Scorer | Ensemble:
    """Return a scorer or transform with its tensors."""
    name, prefix = described["class"], f"part{i}."
    if name not in _PARTS:
        raise PolicyError(
            f"class {name!r} is unknown: eenet-runtime serves {', '.join(_PARTS)}. Update it to the version of eenet "
            f"that fitted the policy."
        )
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return _PARTS[name](**described["settings"], **own)


def _rebuild(rule: dict[str, Any], parts: list[Scorer | Ensemble], tensors: dict[str, Array]) -> Policy:
    if "mixed" in rule:
        a, b = (_rebuild(rule["mixed"][side], parts, tensors) for side in ("a", "b"))
        return MixedPolicy(a, b, rule["weight"], rule["seed"])
    if "transformed" in rule:
        transform = parts[rule["transform"]]
        if not isinstance(transform, Ensemble):
            raise TypeError(f"{type(transform).__name__} is no transform")
        return TransformedPolicy(transform, _rebuild(rule["transformed"], parts, tensors))
    scorer = parts[rule["scorer"]]
    if not isinstance(scorer, Scorer):
        raise TypeError(f"{type(scorer).__name__} is no scorer")
    return ScorePolicy(scorer, tensors[rule["thresholds"]])

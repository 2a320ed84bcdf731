"""Inputs of a model: checked against what it takes before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from eenet_runtime.confidence import Array
from eenet_runtime.errors import InputError
from eenet_runtime.manifest import InputSpec
from eenet_runtime.policy import Ids

__all__ = ["check_ids", "checked"]


def checked(inputs: ArrayLike | Mapping[str, ArrayLike], specs: tuple[InputSpec, ...]) -> list[Array]:
    """Return a batch as contiguous, writable arrays in the model's order.

    Args:
        inputs: One array where the model takes one input, else arrays by name; batch first.
        specs: What the model takes.

    Raises:
        InputError: A name, a type or a shape does not fit, the arrays hold different numbers of samples, or none.
    """
    arrays = [_fitting(value, spec) for value, spec in zip(_by_name(inputs, specs), specs, strict=True)]
    counts = {spec.name: len(array) for array, spec in zip(arrays, specs, strict=True)}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        found = ", ".join(f"{count} in {name!r}" for name, count in counts.items())
        raise InputError(f"inputs do not fit together: samples are {found}; one number, at least 1, is needed.")
    return arrays


def _by_name(inputs: Any, specs: tuple[InputSpec, ...]) -> list[Any]:  # noqa: ANN401
    """Return what was handed in for each input."""
    names = [spec.name for spec in specs]
    if not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise InputError(
                f"inputs of type {type(inputs).__name__} do not fit: the model takes {names}. Pass a dict."
            )
        return [inputs]
    if set(inputs) != set(names):
        raise InputError(f"inputs {sorted(map(str, inputs))} do not fit: the model takes {names}. Pass just these.")
    return [inputs[name] for name in names]


def _fitting(value: Any, spec: InputSpec) -> Array:  # noqa: ANN401
    """Return one input as an array, if it is what the model takes."""
    array = np.asarray(value)
    if array.shape[1:] != spec.shape or not array.ndim:
        shown = ", ".join(("sample", *map(str, spec.shape)))
        raise InputError(
            f"input {spec.name!r} of shape {array.shape} does not fit: the model takes ({shown}). Pass such a batch."
        )
    if array.dtype != spec.dtype:
        raise InputError(
            f"input {spec.name!r} of {array.dtype} does not fit: the model takes {spec.dtype}. Convert it with "
            f".astype({str(spec.dtype)!r}), on the right scale."
        )
    return np.require(array, requirements=["C", "W"])  # OpenVINO shares no memory that is read-only


def check_ids(sample_ids: ArrayLike, count: int) -> Ids:
    """Return the ids of a batch.

    Raises:
        InputError: They are not one whole number per sample.
    """
    ids = np.asarray(sample_ids)
    if ids.shape != (count,) or ids.dtype.kind not in "iu":
        raise InputError(
            f"sample_ids of shape {ids.shape} and type {ids.dtype} do not fit: the batch holds {count} samples. Pass "
            "one whole number per sample."
        )
    return ids.astype(np.int64, copy=False)

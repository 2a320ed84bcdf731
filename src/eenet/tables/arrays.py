"""Arrays as they come from anywhere, and the one softmax that recorded and running models share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Float32

from eenet.errors import InputError

FLOOR = np.float32(-1000.0)
"""Least log-probability there is: its exponential is 0 even in double, and products with it stay finite."""

CHUNK = 1 << 18
"""Numbers of a table's outputs worked on at a time."""

_BLOCK = 1 << 16  # numbers worked on at a time: they stay in the processor's cache


def as_array(value: object) -> np.ndarray:
    """Return anything array-like as a numpy array, without a copy where that is possible.

    Tensors of PyTorch are detached and fetched from their device; bfloat16, which numpy lacks, becomes float32. What is
    in another byte order, or wider than double, is converted.
    """
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        tensor: Any = value.detach().cpu()
        if str(tensor.dtype) in ("torch.bfloat16", "torch.float8_e4m3fn", "torch.float8_e5m2"):
            tensor = tensor.float()
        value = tensor.resolve_conj().resolve_neg().numpy()
    array = np.asarray(value)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array.astype(np.float64) if array.dtype.kind == "f" and array.dtype.itemsize > 8 else array


def is_samples(inputs: object) -> bool:
    """Return whether a batch is a list of samples by themselves, such as texts, and not of arrays of many."""
    return isinstance(inputs, list) and not (inputs and (hasattr(inputs[0], "shape") or isinstance(inputs[0], Mapping)))


def arrays_of(inputs: object) -> Iterator[Any]:
    """Yield every array or tensor of a batch."""
    if hasattr(inputs, "shape"):
        yield inputs
    elif isinstance(inputs, Mapping | tuple | list):
        for value in inputs.values() if isinstance(inputs, Mapping) else inputs:
            yield from arrays_of(value)


def batch_size(inputs: object) -> int:
    """Return the number of samples in a batch: an array or tensor, a mapping of these, or a list of samples.

    Raises:
        InputError: No array, no sample, or arrays that disagree on the number of samples.
    """
    if (shape := getattr(inputs, "shape", None)) and shape[0]:  # the usual case, in a loop that must be fast
        return int(shape[0])
    shapes = (
        [(len(inputs),)] if isinstance(inputs, list) and is_samples(inputs) else [a.shape for a in arrays_of(inputs)]
    )
    sizes = {int(shape[0]) if len(shape) else 0 for shape in shapes}
    if len(sizes) != 1 or 0 in sizes:
        found = f"{sorted(sizes)} samples" if sizes else "no array"
        raise InputError(
            f"inputs contain {found}: a batch needs one number of samples, at least 1. Pass arrays or tensors, batch "
            "first."
        )
    return sizes.pop()


def log_softmax(logits: Float[np.ndarray, "*batch class"]) -> Float32[np.ndarray, "*batch class"]:
    """Return float32 log-probabilities, never below `FLOOR`: the only form in which policies see logits.

    A row's result depends on that row alone, to the bit. A row that contains NaN or positive infinity becomes NaN;
    negative infinity is an impossible class.
    """
    shape = logits.shape
    rows = logits.reshape(-1, shape[-1])
    step = max(1, _BLOCK // shape[-1])
    if len(rows) <= step:
        return _log_softmax(rows).reshape(shape)
    result = np.empty(rows.shape, dtype=np.float32)
    for start in range(0, len(rows), step):
        result[start : start + step] = _log_softmax(rows[start : start + step])
    return result.reshape(shape)


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows.astype(np.float32, order="C")  # a copy, each row in one piece: sums depend on how numbers lie
    largest = np.maximum.reduce(shifted, axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        # a row without any finite number says nothing
        largest[~np.isfinite(largest)] = np.nan
    shifted -= largest
    total = np.add.reduce(np.exp(shifted), axis=1, keepdims=True)
    shifted -= np.log(total, out=total)
    return np.maximum(shifted, FLOOR, out=shifted)

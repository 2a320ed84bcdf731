"""Tensors of the Open Inference Protocol: from JSON or bytes to arrays and back."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from jaxtyping import Shaped

from eenet.errors import InputError, ShapeError
from eenet.imports import known

_DTYPES = {
    "BOOL": "?",
    **{f"UINT{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"INT{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"FP{8 * size}": f"<f{size}" for size in (2, 4, 8)},
}
_BF16, _BYTES = "BF16", "BYTES"
_SIZES = {name: np.dtype(kind).itemsize for name, kind in _DTYPES.items()} | {_BF16: 2}
_JSON_TYPES: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "U": {str}}
_MOST_AXES = 16
LARGEST = 2**31 - 1
"""No size is larger, and no number of an exit."""


@dataclass
class Following:
    """What follows the JSON, taken piece by piece."""

    rest: memoryview

    @property
    def left(self) -> int:
        """How many bytes nobody has taken."""
        return len(self.rest)

    def take(self, size: int, name: str) -> memoryview:
        """Return the next bytes."""
        if size > len(self.rest):
            raise InputError(
                f"input {name!r} is cut short: it has {size} bytes by its binary_data_size, and {self.left} follow. "
                "Send all of them, after the JSON."
            )
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken


def read_tensor(name: str, tensor: Mapping[str, Any], rest: Following) -> Shaped[np.ndarray, "*shape"]:
    """Return a tensor from what JSON says of it, and from the bytes that follow where it says so.

    Args:
        name: Of the tensor.
        tensor: Its object in the JSON.
        rest: The bytes after the JSON; those of the tensor are taken.

    Raises:
        InputError: A value is of another type, out of its range, NaN or infinite; or the description is malformed.
        ShapeError: There are more or fewer numbers than the shape says.
    """
    shape, datatype = _shape(name, tensor), text_of(tensor, "datatype", f"datatype of input {name!r}")
    if datatype not in (*_SIZES, _BYTES):
        known(f"datatype of input {name!r},", datatype, (*_SIZES, _BYTES))
    parameters = object_of(tensor, "parameters", f"parameters of input {name!r}")
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in tensor):
        raise InputError(
            f"input {name!r} has {'no data' if size is None else 'data in both forms'}: a tensor's numbers are in JSON "
            "under 'data', or follow it as bytes. Send one of them."
        )
    count = math.prod(shape)
    if size is None:
        values = _from_json(name, tensor["data"], datatype, shape)
    elif type(size) is not int or size < 0 or (datatype != _BYTES and size != count * _SIZES[datatype]):
        wanted = "a whole number" if datatype == _BYTES else f"{count * _SIZES[datatype]}"
        raise InputError(
            f"binary_data_size {str(size)[:40]} of input {name!r} does not fit: {count} values of {datatype} take "
            f"{wanted} bytes. Send as many."
        )
    else:
        values = _from_bytes(name, rest.take(size, name), datatype, count)
    array = values.reshape(shape)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array.reshape(shape[0], -1)).all(axis=1)))
        raise InputError(
            f"input {name!r} has NaN or infinity in sample {row}: a model answers to finite numbers of {datatype}. "
            "Correct the sample."
        )
    return array


def _shape(name: str, tensor: Mapping[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not 1 <= len(shape) <= _MOST_AXES:
        raise InputError(f"shape of input {name!r} is no list of 1 to {_MOST_AXES} sizes. Send one, the samples first.")
    wrong = [size for size in shape if type(size) is not int or not 1 <= size <= LARGEST]
    if wrong:
        raise InputError(
            f"shape of input {name!r} has {str(wrong[0])[:40]}: sizes are whole numbers from 1 to {LARGEST}. Send such."
        )
    return shape


def _from_bytes(name: str, data: memoryview, datatype: str, count: int) -> Shaped[np.ndarray, " value"]:
    """Return the values that bytes stand for, as a copy: arrays that are aligned, and can be written to."""
    if datatype == _BYTES:
        return _texts(name, data, count)
    if datatype == _BF16:  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    if datatype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise InputError(f"input {name!r} has bytes that are no BOOL: these are 0 or 1. Convert them.")
    return np.frombuffer(data, _DTYPES[datatype]).copy()


def _texts(name: str, data: memoryview, count: int) -> Shaped[np.ndarray, " value"]:
    """Return texts, each of which has its length, in four bytes, before it."""
    found: list[str] = []
    place = 0
    while place < len(data) and len(found) < count:
        length = struct.unpack_from("<I", data, place)[0] if place + 4 <= len(data) else len(data)
        if place + 4 + length > len(data):
            raise InputError(
                f"input {name!r} is cut short: text {len(found)} is longer than the bytes that follow. Send the length "
                "of each text in 4 bytes, little-endian, before it."
            )
        found.append(_decoded(name, data[place + 4 : place + 4 + length], len(found)))
        place += 4 + length
    if place < len(data) or len(found) < count:
        raise ShapeError(
            f"input {name!r} does not fit its shape: that has {count} texts, and the bytes have "
            f"{'more' if place < len(data) else len(found)}. Send as many as the shape says."
        )
    return np.array(found, dtype=object)


def _decoded(name: str, data: memoryview, place: int) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"input {name!r} has no UTF-8 in text {place}: {error.reason}. Encode texts so.") from error


def _from_json(name: str, data: Any, datatype: str, shape: Sequence[int]) -> Shaped[np.ndarray, " value"]:  # noqa: ANN401
    """Return the values of a list, or of lists nested as the shape says."""
    flat = _flat(name, data, shape)
    kind = np.dtype("U" if datatype == _BYTES else _DTYPES.get(datatype, "<f4"))
    if strange := set(map(type, flat)) - _JSON_TYPES[kind.kind]:
        found = kind_of(next(one for one in flat if type(one) in strange))
        raise InputError(f"input {name!r} has {found} in it: its values are {datatype}. Send such, in flat lists.")
    if datatype == _BYTES:
        return np.array(flat, dtype=object)
    if kind.kind in "iu":
        limits, low, high = np.iinfo(kind), min(flat), max(flat)
        if low < limits.min or high > limits.max:
            raise InputError(
                f"input {name!r} has {low if low < limits.min else high:.6g}: {datatype} goes from {limits.min} to "
                f"{limits.max}. Send such numbers."
            )
    with np.errstate(over="ignore"):  # what becomes infinite is refused with all that is
        return np.array(flat, dtype=np.float64 if kind.kind == "f" else kind).astype(kind, copy=False)


def _flat(name: str, data: Any, shape: Sequence[int]) -> list[Any]:  # noqa: ANN401
    """Return what lists contain; how they are nested, if they are, must be as the shape says."""
    if not isinstance(data, list):
        raise InputError(f"data of input {name!r} are {kind_of(data)}: they are a list of values. Send one.")
    sizes, values = [len(data)], data
    while values and type(values[0]) is list:
        lengths = set(map(len, values)) if set(map(type, values)) == {list} else set()
        if len(lengths) != 1 or len(sizes) == len(shape):
            raise ShapeError(
                f"data of input {name!r} do not fit: they are nested otherwise than the shape {list(shape)} says. Send "
                "one flat list, or lists nested so."
            )
        sizes += lengths
        values = list(chain.from_iterable(values))
    if sizes not in ([math.prod(shape)], list(shape)):
        raise ShapeError(
            f"data of input {name!r} do not fit: they have the shape {sizes}, the tensor has {list(shape)}. Send as "
            "many values as the shape says."
        )
    return values


def object_of(of: Mapping[str, Any], name: str, what: str) -> dict[str, Any]:
    """Return the object under a key, an empty one where there is none; ``what`` it is, for messages."""
    found = of.get(name)
    if found is not None and not isinstance(found, dict):
        raise InputError(f"{what} are {kind_of(found)}: they are an object. Send one, in braces.")
    return found or {}


def text_of(of: Mapping[str, Any], key: str, what: str) -> str:
    """Return the text under a key; ``what`` should have it, for messages."""
    found = of.get(key)
    if type(found) is not str or not 1 <= len(found) <= 200:
        raise InputError(f"{what} has no {key!r} that is a text of 1 to 200 characters. Send one.")
    return found


def kind_of(value: Any) -> str:  # noqa: ANN401 - of JSON
    """Return what a value of JSON is, in words."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


# --- writing ----------------------------------------------------------------------------------------------------------


def to_bytes(array: np.ndarray) -> bytes:
    """Return the values row by row, little-endian; each text after its length."""
    if array.dtype.kind in "OU":
        encoded = [str(text).encode() for text in array.ravel().tolist()]
        return b"".join(struct.pack("<I", len(text)) + text for text in encoded)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def datatype_of(dtype: np.dtype[Any]) -> str:
    """Return what the protocol calls a type of numbers, or of texts."""
    if dtype.kind in "OU":
        return _BYTES
    if dtype.kind == "b":
        return "BOOL"
    return f"{ {'f': 'FP', 'i': 'INT', 'u': 'UINT'}[dtype.kind] }{8 * dtype.itemsize}"

"""Two file formats that pack many images: pickled batches, read without executing them, and JPEG files in ``.npz``.

A pickled file is a program; here its instructions are carried out one by one, and everything but plain values and
arrays of bytes is refused.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Sequence
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from eenet.experiments.data.files import bad_file, read_arrays
from eenet.running.pictures import read_picture


def known_labels(labels: Sequence[object], classes: int, path: Path) -> Int[Tensor, " sample"]:
    """Return the labels of a file, refusing those that are no whole number from 0 to ``classes - 1``."""
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            expected = f"classes are the whole numbers 0 to {classes - 1}"
            raise bad_file(path, f"has the label {label!r} in row {row}: {expected}")
    return torch.tensor(labels, dtype=torch.int64)


def read_packed_jpeg(
    path: Path, *, size: int, classes: int, rows: int | None = None
) -> tuple[UInt8[Tensor, "sample 3 size size"], Int[Tensor, " sample"]]:
    """Return the images and labels of a packed archive.

    Args:
        path: ``.npz`` with ``jpeg`` (the files joined together, uint8), ``offsets`` (int64, one more than images) and
            ``labels`` (int64).
        size: height and width of every image, in pixels.
        classes: how many there are.
        rows: how many images there must be; default: as many as labels.

    Raises:
        DataError: the archive is unreadable or truncated, or contains something else than expected.
    """
    arrays = read_arrays(path, ("jpeg", "offsets", "labels"))
    jpeg, offsets, labels = (arrays[name] for name in ("jpeg", "offsets", "labels"))
    if jpeg.dtype != np.uint8 or offsets.dtype != np.int64 or any(array.ndim != 1 for array in arrays.values()):
        raise bad_file(path, "is not as expected: jpeg is one row of uint8, offsets one of int64")
    rows = len(labels) if rows is None else rows
    if len(offsets) != rows + 1 or len(labels) != rows:
        found = f"{len(offsets) - 1} images and {len(labels)} labels"
        raise bad_file(path, f"is not complete: {rows} images were expected, found {found}")
    if offsets[0] != 0 or offsets[-1] != len(jpeg) or bool((np.diff(offsets) <= 0).any()):
        raise bad_file(path, f"is truncated: the offsets ask for {offsets[-1]} bytes of JPEG, found {len(jpeg)}")
    known = known_labels(labels.tolist(), classes, path)
    images = np.empty((rows, size, size, 3), dtype=np.uint8)
    raw = jpeg.tobytes()
    for row in range(rows):
        images[row] = _decode(raw[offsets[row] : offsets[row + 1]], size, path, row)
    return torch.from_numpy(images).permute(0, 3, 1, 2), known


def _decode(data: bytes, size: int, path: Path, row: int) -> np.ndarray:
    image = read_picture(BytesIO(data), name=f"{row} in {path}")
    if image.shape != (size, size, 3):
        raise bad_file(path, f"is not as expected: image {row} has shape {image.shape}, expected {(size, size, 3)}")
    return image


# --- pickled batches --------------------------------------------------------------------------------------------------

_MARK = object()
_MOST = 1 << 20  # instructions; the largest official file has 300,000
_Name = Enum("_Name", ["ARRAY", "NUMBER", "KIND"])  # what a file may mention; nothing of it could be called
_NAMES = {  # what an array of numpy is made with, by old and new versions of it
    "numpy.core.multiarray _reconstruct": _Name.ARRAY,
    "numpy._core.multiarray _reconstruct": _Name.ARRAY,
    "numpy dtype": _Name.NUMBER,
    "numpy ndarray": _Name.KIND,
}


class _RefusedError(Exception):
    """The file asks for something that is not carried out."""


class _Described(NamedTuple):
    """An object as the file describes it: what is called or changed, and with which arguments. It is never made."""

    of: Any
    arguments: Any


def read_pickled(path: Path) -> dict[str, Any]:
    """Return the dictionary in a pickled file of CIFAR: keys as text; strings as bytes; arrays of ``uint8``.

    Args:
        path: the file, as Python 2 or 3 has written it.

    Raises:
        DataError: the file is missing, truncated, or asks for anything but plain values and arrays.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd characters in instructions that are refused in a moment
            found = _followed(path.read_bytes())
        return {_text(key): _plain(value) for key, value in found.items()}
    except FileNotFoundError as error:
        raise bad_file(path, "is missing: there is no such file", "Check the path.") from error
    except _RefusedError as error:
        fact = f"is refused: it asks for {error}, where plain values and arrays of bytes were expected. It was not run"
        raise bad_file(path, fact, "Get the official file.") from error
    except Exception as error:  # a damaged program can fail anywhere
        raise bad_file(path, f"is damaged: it is no complete pickled file ({type(error).__name__})") from error


def _followed(program: bytes) -> dict[Any, Any]:
    """Return the dictionary that a pickled program describes."""
    stack: list[Any] = []
    memory: dict[Any, Any] = {}
    for count, (instruction, argument, _) in enumerate(pickletools.genops(program)):
        if count > _MOST:
            raise _RefusedError(f"more than {_MOST} instructions")
        match instruction.name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                memory[len(memory) if argument is None else argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memory[argument])
            case name if name in _PUSHED:
                stack.append(_PUSHED[name](argument))
            case name if name in _COMPUTED:
                stack.append(_COMPUTED[name](*_operands(stack, instruction)))
            case name:
                raise _RefusedError(f"the instruction {name}")
    (found,) = stack
    if not isinstance(found, dict):
        raise _RefusedError("no dictionary")
    return found


def _operands(stack: list[Any], instruction: pickletools.OpcodeInfo) -> list[Any]:
    """Take off the stack what an instruction works on; where it asks for that, all since the last mark."""
    wanted, many = instruction.stack_before, []
    if pickletools.stackslice in wanted:
        place = next(index for index in range(len(stack) - 1, -1, -1) if stack[index] is _MARK)
        many = stack[place + 1 :]
        del stack[place:]
        wanted = wanted[:-2]
    return [stack.pop() for _ in wanted][::-1] + many


def _named(words: str) -> _Name:
    if words not in _NAMES:
        raise _RefusedError(f"the function {words.replace(' ', '.')[:80]!r}")
    return _NAMES[words]


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a value as it is, an array of bytes if one is described."""
    match value:
        case _Described(
            _Described(_Name.ARRAY), (_, shape, _Described(_Described(_Name.NUMBER, (kind, *_))), by_column, raw)
        ):
            if _text(kind) != "u1":
                raise _RefusedError("an array of other numbers than bytes")
            return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if by_column else "C")
        case _Described() | _Name():
            raise _RefusedError("another object than an array")
        case dict():
            raise _RefusedError("a dictionary in a dictionary")
        case list() | tuple() if not all(value is None or isinstance(value, int | str | bytes) for value in value):
            raise _RefusedError("a list of other things than numbers and texts")
    return value


def _text(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str | bytes):
        raise TypeError(f"{type(value).__name__} where a text was expected")
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _with_items(target: dict[str | bytes, Any], *values: Any) -> dict[str | bytes, Any]:  # noqa: ANN401
    """Return a dictionary with more keys and values in turns; keys are texts, the only ones that are safe to hash."""
    if not all(isinstance(key, str | bytes) for key in values[::2]):
        raise _RefusedError("a key that is no text")
    target.update(zip(values[::2], values[1::2], strict=True))
    return target


def _with_elements(target: list[Any], *values: Any) -> list[Any]:  # noqa: ANN401
    target += values
    return target


_PUSHED: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1"), lambda value: value),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"), lambda value: value),
    **dict.fromkeys(("BINSTRING", "SHORT_BINSTRING"), lambda value: str(value).encode("latin-1")),
    "GLOBAL": _named,
    "MARK": lambda _: _MARK,
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
}
_COMPUTED: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), lambda *values: values),
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict},
    **dict.fromkeys(("APPEND", "APPENDS"), _with_elements),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _with_items),
    "STACK_GLOBAL": lambda module, name: _named(f"{_text(module)} {_text(name)}"),
    **dict.fromkeys(("REDUCE", "BUILD"), _Described),
}

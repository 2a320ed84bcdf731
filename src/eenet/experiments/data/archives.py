"""Two file formats that pack many images: pickled batches, read without executing them, and JPEG files in ``.npz``.

A pickled file is a program; here its instructions are carried out one by one, and everything but plain values and
arrays of bytes is refused.
"""

from __future__ import annotations

import pickletools
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from eenet.errors import DataError

# --- labels -----------------------------------------------------------------------------------------------------------


def known_labels(labels: Sequence[object], classes: int, path: Path) -> list[int]:
    """Return the labels of a file, refusing those that are no whole number from 0 to ``classes - 1``."""
    known: list[int] = []
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < classes:
            raise DataError(
                f"data file {path} has the label {label!r} in row {row}: classes are the whole numbers 0 to "
                f"{classes - 1}. Get it again."
            )
        known.append(label)
    return known


# --- JPEG files in an .npz archive ------------------------------------------------------------------------------------


def read_packed_jpeg(
    path: Path, *, size: int, classes: int, rows: int | None = None
) -> tuple[UInt8[Tensor, "sample 3 size size"], Tensor]:
    """Return the images and labels of a packed archive.

    Args:
        path: ``.npz`` with ``jpeg`` (the files joined together, uint8), ``offsets`` (int64, one more than images) and
            ``labels`` (int64).
        size: height and width of every image, in pixels.
        classes: how many there are.
        rows: how many images there must be; default: as many as labels.

    Raises:
        DataError: the archive is unreadable or truncated, or holds something else than expected.
    """
    jpeg, offsets, labels = _read_packed(path)
    rows = len(labels) if rows is None else rows
    if len(offsets) != rows + 1 or len(labels) != rows:
        raise DataError(
            f"data file {path} is not complete: {rows} images were expected, found {len(offsets) - 1} images and "
            f"{len(labels)} labels. Get it again."
        )
    if offsets[0] != 0 or offsets[-1] != len(jpeg) or bool((np.diff(offsets) <= 0).any()):
        raise DataError(
            f"data file {path} is truncated: the offsets say {offsets[-1]} bytes of JPEG, found {len(jpeg)}. Get it "
            "again."
        )
    known = torch.tensor(known_labels(labels.tolist(), classes, path), dtype=torch.int64)
    images = np.empty((rows, size, size, 3), dtype=np.uint8)
    raw = jpeg.tobytes()
    for row in range(rows):
        images[row] = _decode(raw[offsets[row] : offsets[row + 1]], size, path, row)
    return torch.from_numpy(images).permute(0, 3, 1, 2), known


def _read_packed(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as archive:
            return archive["jpeg"], archive["offsets"], archive["labels"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(
            f"data file {path} cannot be read: an .npz archive with jpeg, offsets and labels was expected, found: "
            f"{str(error) or type(error).__name__}. "
            "Get it again."
        ) from error


def _decode(data: bytes, size: int, path: Path, row: int) -> np.ndarray:
    from PIL import Image

    try:
        image = np.asarray(Image.open(BytesIO(data)).convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"data file {path} is damaged: image {row} cannot be decoded ({error}). Get the file again."
        ) from error
    if image.shape != (size, size, 3):
        raise DataError(
            f"data file {path} is not as expected: image {row} has shape {image.shape}, expected {(size, size, 3)}. "
            "Get the file again."
        )
    return image


# --- pickled batches --------------------------------------------------------------------------------------------------

_MARK = object()
_NAMES = {  # what an array of numpy is made with, by old and new versions of it
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy dtype": "number",
    "numpy ndarray": "kind",
}


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
        return {_text(key): value.filled() if isinstance(value, _Object) else value for key, value in found.items()}
    except FileNotFoundError as error:
        raise DataError(f"data file {path} is missing: there is no such file. Check the path.") from error
    except _RefusedError as error:
        raise DataError(
            f"data file {path} is refused: it asks for {error}, where plain values and arrays of bytes were expected. "
            "It was not run. Get the official file."
        ) from error
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"data file {path} is damaged: it is no complete pickled file ({error}). Get it again."
        ) from error


class _RefusedError(Exception):
    """The file asks for something that is not carried out."""


@dataclass(frozen=True)
class _Name:
    """One of the names that a file may mention; it stands for nothing that could be called."""

    what: str


@dataclass
class _Object:
    """What a file makes with one of the names, as it is described there: an array, or its number type."""

    name: _Name
    arguments: tuple[Any, ...]
    state: Any = None

    def filled(self) -> np.ndarray:
        """Return the array."""
        _, shape, number, by_column, raw = self.state
        if number.name != _Name("number") or _text(number.arguments[0]) != "u1":
            raise _RefusedError("an array of other numbers than bytes")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if by_column else "C")


def _followed(program: bytes) -> dict[Any, Any]:
    """Return the dictionary that a pickled program describes."""
    stack: list[Any] = []
    memory: dict[Any, Any] = {}
    for instruction, argument, _ in pickletools.genops(program):
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
        place = max(index for index, value in enumerate(stack) if value is _MARK)
        many = stack[place + 1 :]
        del stack[place:]
        wanted = wanted[:-2]
    return [stack.pop() for _ in wanted][::-1] + many


def _appended(target: Any, *values: Any) -> list[Any]:  # noqa: ANN401
    _expect(target, list).extend(values)
    return target


def _updated(target: Any, *values: Any) -> dict[Any, Any]:  # noqa: ANN401
    _expect(target, dict).update(zip(values[::2], values[1::2], strict=True))
    return target


def _expect(value: Any, kind: type[Any]) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise _RefusedError(f"a change of {type(value).__name__}")
    return value


def _named(words: str) -> _Name:
    if words not in _NAMES:
        raise _RefusedError(f"the function {words.replace(' ', '.')}")
    return _Name(_NAMES[words])


def _called(maker: Any, arguments: Any) -> _Object:  # noqa: ANN401
    if maker not in (_Name("array"), _Name("number")):
        raise _RefusedError(f"a call of {type(maker).__name__}")
    return _Object(maker, tuple(arguments))


def _built(target: Any, state: Any) -> _Object:  # noqa: ANN401
    if not isinstance(target, _Object):
        raise _RefusedError("the state of an object")
    target.state = state
    return target


def _text(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str | bytes):
        raise TypeError(f"{type(value).__name__} where a text was expected")
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _tuple(*values: Any) -> tuple[Any, ...]:  # noqa: ANN401
    return values


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
    **dict.fromkeys(("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"), _tuple),
    **{"EMPTY_LIST": list, "EMPTY_DICT": dict},
    **dict.fromkeys(("APPEND", "APPENDS"), _appended),
    **dict.fromkeys(("SETITEM", "SETITEMS"), _updated),
    "STACK_GLOBAL": lambda module, name: _named(f"{_text(module)} {_text(name)}"),
    "REDUCE": _called,
    "BUILD": _built,
}

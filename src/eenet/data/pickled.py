"""Reading the pickled files of CIFAR without running them.

A pickle is a program: Python's own reader calls whatever functions the file names. Here the few instructions that those
files are made of are carried out by ourselves, on plain values alone. Nothing is imported and nothing is called;
whatever else a file asks for is refused.
"""

from __future__ import annotations

import pickletools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from eenet.errors import DataError

__all__ = ["read_pickled"]

_MARK = object()
_NAMES = {  # what an array of numpy is made with, by old and new versions of it
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy ndarray": "kind",
    "numpy dtype": "number",
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
            found = _Reader().run(path.read_bytes())
        return {_text(key): value.filled() if isinstance(value, _Array) else value for key, value in found.items()}
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
    """One of the few names that a file may mention; it stands for nothing that could be called."""

    what: str


@dataclass
class _Array:
    """An array before and after its content is known."""

    state: tuple[Any, ...] = ()

    def filled(self) -> np.ndarray:
        """Return the array."""
        _, shape, number, by_column, raw = self.state
        if number != _Number(("u1",)):
            raise _RefusedError("an array of other numbers than bytes")
        return np.frombuffer(raw, dtype=np.uint8).reshape(shape, order="F" if by_column else "C")


@dataclass(frozen=True)
class _Number:
    """A number type, by its code."""

    code: tuple[str, ...]


@dataclass
class _Reader:
    """The stack and the memory of the program."""

    stack: list[Any] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)

    def run(self, program: bytes) -> dict[Any, Any]:
        """Carry out a program and return the dictionary it leaves."""
        for instruction, argument, _ in pickletools.genops(program):
            name = instruction.name
            if name in _VALUES:
                self.stack.append(argument)
            elif name in _STRINGS:
                self.stack.append(str(argument).encode("latin-1"))
            elif name in _MAKERS:
                self.stack.append(_MAKERS[name]())
            elif name in _STEPS:
                _STEPS[name](self, argument)
            elif name not in _NOTES:
                raise _RefusedError(f"the instruction {name}")
        (found,) = self.stack
        if not isinstance(found, dict):
            raise _RefusedError("no dictionary")
        return found

    def pop(self, count: int) -> list[Any]:
        """Take the newest values off the stack."""
        taken = [self.stack.pop() for _ in range(count)]
        return taken[::-1]

    def pop_to_mark(self) -> list[Any]:
        """Take the values since the last mark off the stack."""
        place = max(index for index, value in enumerate(self.stack) if value is _MARK)
        taken = self.stack[place + 1 :]
        del self.stack[place:]
        return taken

    def remember(self, place: int | None) -> None:
        """Keep the newest value in the memory."""
        self.memory[len(self.memory) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        """Put a value from the memory on the stack."""
        self.stack.append(self.memory[place])

    def append(self, values: list[Any]) -> None:
        """Add values to the list on the stack."""
        _expect(self.stack[-1], list).extend(values)

    def set_items(self, values: list[Any]) -> None:
        """Add keys and values to the dictionary on the stack."""
        pairs: Iterator[Any] = iter(values)
        _expect(self.stack[-1], dict).update(zip(pairs, pairs, strict=True))

    def name(self, words: str) -> None:
        """Put one of the known names on the stack."""
        if words not in _NAMES:
            raise _RefusedError(f"the function {words.replace(' ', '.')}")
        self.stack.append(_Name(_NAMES[words]))

    def make(self) -> None:
        """Make an empty array or a number type."""
        maker, arguments = self.pop(2)
        if maker == _Name("array"):
            self.stack.append(_Array())
        elif maker == _Name("number"):
            self.stack.append(_Number((_text(arguments[0]),)))
        else:
            raise _RefusedError(f"a call of {type(maker).__name__}")

    def build(self) -> None:
        """Fill the array on the stack; what a number type is filled with changes nothing for bytes."""
        (state,) = self.pop(1)
        if isinstance(self.stack[-1], _Array):
            self.stack[-1].state = state
        elif not isinstance(self.stack[-1], _Number):
            raise _RefusedError("the state of an object")


def _expect(value: Any, kind: type[Any]) -> Any:  # noqa: ANN401
    if type(value) is not kind:
        raise _RefusedError(f"a change of {type(value).__name__}")
    return value


def _text(value: Any) -> str:  # noqa: ANN401
    if not isinstance(value, str | bytes):
        raise TypeError(f"{type(value).__name__} where a text was expected")
    return value.decode("latin-1") if isinstance(value, bytes) else value


_Step: TypeAlias = Callable[[_Reader, Any], None]
_NOTES = {"PROTO", "FRAME", "STOP"}
_STRINGS = {"BINSTRING", "SHORT_BINSTRING"}
_VALUES = {
    *("BININT", "BININT1", "BININT2", "LONG1"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
}
_MAKERS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "MARK": lambda: _MARK,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_STEPS: dict[str, _Step] = {
    "BINPUT": _Reader.remember,
    "LONG_BINPUT": _Reader.remember,
    "MEMOIZE": _Reader.remember,
    "BINGET": _Reader.recall,
    "LONG_BINGET": _Reader.recall,
    "TUPLE": lambda reader, _: reader.stack.append(tuple(reader.pop_to_mark())),
    "TUPLE1": lambda reader, _: reader.stack.append(tuple(reader.pop(1))),
    "TUPLE2": lambda reader, _: reader.stack.append(tuple(reader.pop(2))),
    "TUPLE3": lambda reader, _: reader.stack.append(tuple(reader.pop(3))),
    "APPEND": lambda reader, _: reader.append(reader.pop(1)),
    "APPENDS": lambda reader, _: reader.append(reader.pop_to_mark()),
    "SETITEM": lambda reader, _: reader.set_items(reader.pop(2)),
    "SETITEMS": lambda reader, _: reader.set_items(reader.pop_to_mark()),
    "GLOBAL": _Reader.name,
    "STACK_GLOBAL": lambda reader, _: reader.name(" ".join(map(_text, reader.pop(2)))),
    "REDUCE": lambda reader, _: reader.make(),
    "BUILD": lambda reader, _: reader.build(),
}

"""The options that commands share, and the checks of what they name, before any work starts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from eenet.errors import InputError
from eenet.tables.atomic import require_replaceable

LARGEST = 2**31 - 1
"""No number of samples, classes, threads or passes is larger; no seed is larger than twice this."""
_FILES = (".csv", ".html", ".json", ".npy", ".npz", ".png", ".pt", ".safetensors", ".tsv", ".txt")
_OUT = ("--out", "-o")


def whole_numbers(text: str, option: str, example: str = "1,32,128") -> list[int]:
    """Read whole numbers above 0, separated by commas; the option and an example are named in the message.

    Raises:
        InputError: If a part is not a whole number above 0, or is too large.
    """
    words = [word.strip() for word in text.split(",")]
    wrong = next((word for word in words if not is_count(word)), None)
    if wrong is not None:
        raise InputError(
            f"{option} {text!r} is no list of whole numbers from 1 to {LARGEST}: {wrong!r} is none. Pass for example "
            f"{example}."
        )
    return list(map(int, words))


def is_count(word: str) -> bool:
    """Return whether a word is a whole number above 0 that is not too large."""
    return word.isdecimal() and len(word) <= len(str(LARGEST)) and 1 <= int(word) <= LARGEST


def existing(path: Path, what: str, *, folder: bool = False) -> Path:
    """Return `path` if it is there and may be read; `what` it should be is named in the message.

    Raises:
        InputError: If nothing is there, it may not be read, or it is a file where a folder is needed.
    """
    if not os.path.lexists(path):
        raise InputError(f"{what} {str(path)!r} does not exist: no such file or folder. Check the path.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{what} {str(path)!r} cannot be read: permission denied. Change its permissions.")
    if folder and not path.is_dir():
        raise InputError(f"{what} {str(path)!r} is not a folder: it is a file. Pass the folder.")
    return path


def output_file(path: Path, option: str = "--out", suffixes: Sequence[str] = ()) -> Path:
    """Return `path` if a file can be written there.

    Args:
        path: File named by the user.
        option: Name of the option, for the message.
        suffixes: One of which the name must have, if given.

    Raises:
        InputError: If it is a folder, is named otherwise, or cannot be written.
    """
    if suffixes and path.suffix.lower() not in suffixes:
        raise InputError(
            f"{option} {str(path)!r} is of no known kind: it is written as {' or '.join(suffixes)}. Rename it."
        )
    if path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a folder: a file is to be written. Pass a file name.")
    _check_written(path, option)
    return path


def _check_written(path: Path, option: str) -> None:
    """Refuse a path, or what it points to, beside which no file can be made."""
    parent = path
    try:
        parents = path.resolve().parents
        if not parents:
            raise InputError(
                f"{option} {str(path)!r} cannot be written: it is the root of all folders. Pass a folder in it."
            )
        parent = next(folder for folder in parents if folder.exists())
        tempfile.TemporaryFile(dir=parent).close()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        reason = f"{getattr(error, 'strerror', '') or error}, {str(parent)!r}"
        raise InputError(f"{option} {str(path)!r} cannot be written: {reason}. Pass another path.") from error


def output_folder(path: Path, option: str = "--out", replaces: Sequence[str] = ()) -> Path:
    """Return `path` if a folder can be made or filled there.

    Args:
        path: Folder named by the user.
        option: Name of the option, for the message.
        replaces: If given, the folder is replaced as a whole: a folder that is there must contain nothing but what
            these patterns name (so that nothing else is ever deleted).

    Raises:
        InputError: If it is a file or is named like one, cannot be written, or contains something else.
    """
    if not path.is_dir() and (path.exists() or path.suffix.lower() in _FILES):
        what = "is a file" if path.exists() else "has the name of a file"
        raise InputError(f"{option} {str(path)!r} {what}: a folder is to be written. Pass another path.")
    _check_written(path, option)
    if not path.exists():
        return path
    _check_written(path / "inside", option)
    if replaces:
        require_replaceable(path)
    foreign = sorted(entry.name for entry in path.iterdir() if not any(fnmatch(entry.name, name) for name in replaces))
    if replaces and foreign:
        raise InputError(
            f"{option} {str(path)!r} would be replaced, and it contains other things: {foreign[0]}. Pass a new folder."
        )
    return path


def _path(names: Sequence[str], metavar: str, what: str, check: Callable[[Path], Path]) -> Any:  # noqa: ANN401
    """Return an option that names a path, checked where one is given."""
    return typer.Option(*names, metavar=metavar, help=what, callback=lambda path: None if path is None else check(path))


def place(metavar: str, what: str, *, folder: bool = False) -> Any:  # noqa: ANN401 - typer claims this
    """Return an argument that names a file or folder to read."""
    return typer.Argument(
        metavar=metavar,
        help=what,
        callback=lambda path: None if path is None else existing(path, metavar, folder=folder),
    )


def file_in(name: str, what: str) -> Any:  # noqa: ANN401
    """Return an option that names a file to read."""
    return _path([name], "FILE", what, lambda path: existing(path, name))


def file_out(what: str, *suffixes: str) -> Any:  # noqa: ANN401
    """Return the option --out of a file."""
    return _path(_OUT, "FILE", what, lambda path: output_file(path, suffixes=suffixes))


def folder_out(what: str, metavar: str = "DIR", *, names: Sequence[str] = _OUT, replaces: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Return an option, --out if not named otherwise, of a folder to fill or replace, as of `output_folder`."""
    return _path(names, metavar, what, lambda path: output_folder(path, names[0], replaces))


def folder_in(name: str, what: str) -> Any:  # noqa: ANN401
    """Return an option that names a folder to read."""
    return _path([name], "DIR", what, lambda path: existing(path, name, folder=True))


def word(metavar: str, what: str, *names: str) -> Any:  # noqa: ANN401
    """Return an option with one word as its value; its name is that of the parameter, if not given."""
    return typer.Option(*names, metavar=metavar, help=what)


def count(what: str, low: int = 1, high: int = LARGEST, *, names: Sequence[str] = ()) -> Any:  # noqa: ANN401
    """Return an option that is a whole number; its name is that of the parameter, if not given."""
    return typer.Option(*names, min=low, max=high, help=what)


SeedOption = Annotated[int, count("Seed of everything random.", 0, 2 * LARGEST + 1)]
BUDGET = ("--budget", "-b")
BudgetsOption = Annotated[
    list[str] | None,
    word(
        "B", "Mean cost per sample: 3.2 (the table's unit), 2.5ms, or 60% (of the original model). Repeatable.", *BUDGET
    ),
]
ConfidenceOption = Annotated[str | None, word("NAME", "max_prob (default), margin, certainty, or a feature's name.")]
ThreadsOption = Annotated[
    int | None, count("Threads of the CPU; default: EENET_THREADS, else the engine's own choice.")
]
ForceOption = Annotated[bool, typer.Option("--force", help="Use a policy that was fitted on a table of another model.")]
TableArgument = Annotated[Path, place("VAL", "Exit table to fit on (.npz, or a folder of .npy).")]
RunArgument = Annotated[Path, place("RUN", "Folder written by `eenet train` or `eenet attach`.", folder=True)]
POLICY = ("--policy", "-p")
POLICY_OPTION = _path(
    POLICY, "POLICY", "Folder written by `eenet fit`.", lambda path: existing(path, "--policy", folder=True)
)
PartsOption = Annotated[
    list[str] | None,
    word("MODULE:CLASS", "Class of yours that the policy consists of. Repeatable.", "--parts"),
]
DataRootOption = Annotated[
    Path | None,
    _path(
        ["--data-root"],
        "DIR",
        "Folder that contains the data set; default: that of training, else EENET_DATA.",
        lambda path: existing(path, "--data-root", folder=True),
    ),
]

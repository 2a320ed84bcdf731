"""The options that commands share, and the checks of what they name, before any work starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any

import typer

from eenet.errors import InputError


def whole_numbers(text: str, option: str, example: str = "1,32,128") -> list[int]:
    """Read whole numbers above 0, separated by commas; the option and an example are named in the message.

    Raises:
        InputError: If a part is not a whole number above 0.
    """
    words = [word.strip() for word in text.split(",")]
    wrong = next((word for word in words if not word.isdecimal() or int(word) < 1), None)
    if wrong is not None:
        raise InputError(
            f"{option} {text!r} is no list of whole numbers above 0: {wrong!r} is none. Pass for example {example}."
        )
    return list(map(int, words))


def existing(path: Path, what: str) -> Path:
    """Return `path` if it is there and may be read; `what` it should be is named in the message.

    Raises:
        InputError: If nothing is there, or it may not be read.
    """
    if not os.path.lexists(path):
        raise InputError(f"{what} {str(path)!r} does not exist: no such file or folder. Check the path.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{what} {str(path)!r} cannot be read: permission denied. Change its permissions.")
    return path


def existing_folder(path: Path, what: str) -> Path:
    """Return `path` if it is a folder that may be read.

    Raises:
        InputError: If it is missing, unreadable or a file.
    """
    if not existing(path, what).is_dir():
        raise InputError(f"{what} {str(path)!r} is not a folder: it is a file. Pass the folder.")
    return path


def output_file(path: Path, option: str = "--out") -> Path:
    """Return `path` if a file can be written there.

    Raises:
        InputError: If it is a folder, or its nearest existing parent cannot be written to.
    """
    if path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a folder: a file is to be written. Pass a file name.")
    parent = next(folder for folder in path.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise InputError(f"{option} {str(path)!r} cannot be written: {str(parent)!r} is a file. Pass another path.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written: {str(parent)!r} is read-only. Pass another path.")
    return path


def output_folder(path: Path, option: str = "--out", replaces: Sequence[str] = ()) -> Path:
    """Return `path` if a folder can be made or filled there.

    Args:
        path: Folder named by the user.
        option: Name of the option, for the message.
        replaces: If given, the folder is replaced as a whole: a folder that is there must contain nothing but what
            these patterns name (so that nothing else is ever deleted).

    Raises:
        InputError: If it is a file, cannot be written to, or contains something else.
    """
    if not path.exists():
        return output_file(path, option)
    if not path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a file: a folder is to be written. Pass another path.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written: permission denied. Pass another path.")
    if replaces and path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"{option} {str(path)!r} would be replaced, and it is, or holds, the folder you work in. Pass a new folder."
        )
    foreign = sorted(entry.name for entry in path.iterdir() if not any(fnmatch(entry.name, name) for name in replaces))
    if replaces and foreign:
        raise InputError(
            f"{option} {str(path)!r} would be replaced, and it holds other things: {foreign[0]}. Pass a new folder."
        )
    return path


def _checked(check: Callable[..., Path], *more: Any) -> Callable[[Path | None], Path | None]:  # noqa: ANN401
    """Return a check as typer calls it: with a path, where one is given."""
    return lambda path: None if path is None else check(path, *more)


def place(metavar: str, what: str, check: Callable[..., Path] = existing) -> Any:  # noqa: ANN401 - typer claims this
    """Return an argument that names a file or folder to read."""
    return typer.Argument(metavar=metavar, help=what, callback=_checked(check, metavar))


def file_in(option: str, what: str) -> Any:  # noqa: ANN401
    """Return an option that names a file to read."""
    return typer.Option(option, metavar="FILE", help=what, callback=_checked(existing, option))


def file_out(what: str) -> Any:  # noqa: ANN401
    """Return the option --out of a file."""
    return typer.Option("--out", "-o", metavar="FILE", help=what, callback=_checked(output_file))


def folder_out(
    what: str, metavar: str = "DIR", *, names: Sequence[str] = ("--out", "-o"), replaces: Sequence[str] = ()
) -> Any:  # noqa: ANN401
    """Return an option, --out if not named otherwise, of a folder to fill or replace, as of `output_folder`."""
    return typer.Option(*names, metavar=metavar, help=what, callback=_checked(output_folder, names[0], replaces))


SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
BudgetsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        "-b",
        metavar="B",
        help="Mean cost per sample: 3.2 (the table's unit), 2.5ms, or 60% (of the original model). Repeatable.",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the CPU; default: the engine's own choice.")
]
TableArgument = Annotated[Path, place("VAL", "Exit table to fit on (.npz, or a folder of .npy).")]
RunArgument = Annotated[Path, place("RUN", "Folder written by `eenet train` or `eenet attach`.", existing_folder)]
POLICY_OPTION = typer.Option(
    "--policy",
    "-p",
    metavar="POLICY",
    help="Folder written by `eenet fit`.",
    callback=_checked(existing_folder, "--policy"),
)
DataRootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        help="Folder that contains the data set.",
        callback=_checked(existing_folder, "--data-root"),
    ),
]

"""Checks of files and folders before any work starts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from eenet.errors import InputError


def existing(path: Path, what: str) -> Path:
    """Return `path` if it is there and may be read.

    Args:
        path: File or folder named by the user.
        what: What the path should hold, for the message.

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


def _check_parent(path: Path, option: str) -> None:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise InputError(f"{option} {str(path)!r} cannot be written: {str(parent)!r} is a file. Pass another path.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written: {str(parent)!r} is read-only. Pass another path.")


def output_file(path: Path, option: str = "--out") -> Path:
    """Return `path` if a file can be written there.

    Raises:
        InputError: If it is a folder, or its nearest existing parent cannot be written to.
    """
    if path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a folder: a file is to be written. Pass a file name.")
    _check_parent(path, option)
    return path


def output_folder(path: Path, option: str = "--out", *, replaces: Sequence[str] = ()) -> Path:
    """Return `path` if a folder can be made or filled there.

    Args:
        path: Folder named by the user.
        option: Name of the option, for the message.
        replaces: If given, the folder is replaced as a whole: a folder that is there must hold nothing but what these
            patterns name (so that nothing else is ever deleted).

    Raises:
        InputError: If it is a file, cannot be written to, or holds something else.
    """
    if not path.exists():
        _check_parent(path, option)
        return path
    if not path.is_dir():
        raise InputError(f"{option} {str(path)!r} is a file: a folder is to be written. Pass another path.")
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"{option} {str(path)!r} cannot be written: permission denied. Pass another path.")
    if replaces and path.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"{option} {str(path)!r} would be replaced, and it is, or holds, the folder you work in. Pass a new folder."
        )
    foreign = sorted(held.name for held in path.iterdir() if not any(fnmatch(held.name, name) for name in replaces))
    if replaces and foreign:
        raise InputError(
            f"{option} {str(path)!r} would be replaced, and it holds other things: {foreign[0]}. Pass a new folder."
        )
    return path

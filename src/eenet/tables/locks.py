"""Locks on files and folders that end with the process that has them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


@contextlib.contextmanager
def lock(path: Path, *, create: bool = False, unsure: bool = True) -> Iterator[bool]:
    """Try to lock a file or folder; yield whether that worked and it is still there. A dead process holds no lock.

    Where the system knows no such locks, ``unsure`` is yielded for what is there.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o666)
    except FileNotFoundError:
        yield False
        return
    except OSError:  # another user's; Windows opens no folders at all
        if create:
            raise
        yield unsure and os.path.exists(path)
        return
    try:
        yield _locked(handle, unsure) and _still(handle, path)
    finally:
        os.close(handle)


def _locked(handle: int, unsure: bool) -> bool:
    if fcntl is None:
        return unsure
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return unsure and error.errno not in {errno.EWOULDBLOCK, errno.EACCES}  # else a file system without locks
    return True


def _still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False

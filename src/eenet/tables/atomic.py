"""Writing so that nothing is lost: old or new, whole, whatever stops the writer and whoever reads meanwhile."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias, TypeVar, cast

from eenet.errors import EenetError, InputError
from eenet.tables.locks import lock

_Read = TypeVar("_Read", bound=Callable[..., object])
PathLike: TypeAlias = "str | os.PathLike[str]"

_NEW, _READY = "new", "ready"  # drafts, and files of a set that is complete
_REPLACED = "replaced"  # where the old folder waits when the system cannot exchange two folders in one step
_SCRATCH = re.compile(r"\..+\.eenet-\w{8}")
_MISSING = 3  # times that nothing is found at a path before it is said to be missing
_TRIES = 1000  # reads of a folder that is replaced again and again


@contextlib.contextmanager
def atomic_path(path: PathLike, check: Callable[[Path], None] | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, whose parents are made, and move it there when the block succeeds.

    Works for files and for folders (create the folder inside the block). What was there is replaced in one step, where
    the system can exchange two folders; elsewhere in two, and `restore` repairs what a kill between them left. A
    symbolic link stays, and what it points to is written. What was written is removed when the block fails.

    Args:
        path: File or folder to write.
        check: Raises if what stands at a path must not be replaced. It is asked at once, and again about the folder
            that was really taken away: a file that somebody saved there during the work counts, too.

    Raises:
        InputError: A parent of ``path`` is a file; ``path`` cannot be replaced (see `require_replaceable`), or it and
            what was written differ in kind.
        OSError: The disk is full or broken.
    """
    target = _real(path)
    _make(target.parent, target)
    if any(_SCRATCH.fullmatch(name) for name in target.parts):
        yield target  # a part of a draft
        return
    require_replaceable(target)
    restore(target)
    if check is not None:
        check(target)
    with _scratch(target) as scratch:
        draft = scratch / _NEW / target.name
        draft.parent.mkdir()
        yield draft
        kind = "folder" if target.is_dir() else "file" if target.is_file() else None
        if kind is not None and (kind == "folder") != draft.is_dir():
            raise InputError(f"output {target} cannot be written: a {kind} of that name is in the way. Choose another.")
        _put(draft, target, check)


@contextlib.contextmanager
def atomic_files(folder: PathLike, name: str) -> Iterator[Path]:
    """Yield a temporary folder; when the block succeeds, the files in it move into ``folder``, all or none.

    What else is in the folder stays. If the process is killed while the files move, the next call, or `restore` of
    ``folder / name``, moves the rest.

    Args:
        folder: It is made where it is not there.
        name: Of the set of files.

    Raises:
        InputError: The folder is a file, or has a folder of the name of one of the files.
    """
    target = _real(folder) / name
    _make(target.parent, target.parent)
    restore(target)
    with _scratch(target) as scratch:
        draft = scratch / _NEW
        draft.mkdir()
        yield draft
        for file in draft.iterdir():
            if (target.parent / file.name).is_dir():
                raise InputError(
                    f"output {target.parent / file.name} cannot be written: a folder of that name is in the way. "
                    "Choose another folder."
                )
        draft.rename(scratch / _READY)


def require_replaceable(path: PathLike) -> None:
    """Refuse what no file or folder can take the place of.

    Raises:
        InputError: A device, the root of a file system, or the folder that the process works in, or one around it.
    """
    target, fault = _real(path), ""
    try:
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _refusal(target, error) from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        fault = "it is neither a file nor a folder"
    elif os.path.ismount(target):
        fault = "a file system is mounted there"
    elif target in _worked_in():
        fault = "it is, or contains, the folder you work in"
    if fault:
        raise InputError(f"output {target} would be replaced, and {fault}. Choose another name, or one inside it.")


def _worked_in() -> list[Path]:
    """Return the folder that the process works in, and those around it; none where it was deleted."""
    try:
        here = Path.cwd()
    except OSError:
        return []
    return [here, *here.parents]


def restore(path: PathLike) -> None:
    """Put right what killed writers of ``path`` left: their drafts go, and a folder that they moved away comes back."""
    target = _real(path)
    for scratch in _scratches(target):
        with lock(scratch, unsure=False) as mine:
            if mine:
                _remove(scratch, target)


def steady(read: _Read) -> _Read:
    """Make a function of a ``path`` read one version of that folder, though other processes may replace it."""

    @functools.wraps(read)
    def wrapped(path: PathLike, *args: object, **kwargs: object) -> object:
        missing = 0
        _real(path)  # what is no path is said
        for _ in range(_TRIES):
            before = _identity(path)
            try:
                value = read(path, *args, **kwargs)
            except (EenetError, OSError) as error:
                if before is None:
                    restore(path)
                if _identity(path) != before:
                    continue
                if before is None and (_moved_away(path) or missing < _MISSING):  # a writer is between its two renames
                    missing += 1
                    time.sleep(0.001)
                    continue
                if isinstance(error, OSError):
                    raise InputError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from error
                raise
            if _identity(path) == before:
                return value
        raise InputError(f"{path} cannot be read: it was replaced during each of {_TRIES} tries. Read it again later.")

    return cast("_Read", wrapped)


@contextlib.contextmanager
def holding(folder: Path, what: str) -> Iterator[None]:
    """Keep other processes from working in a folder; ``what`` they would disturb is for the message.

    Raises:
        InputError: Another process works in it.
    """
    _make(folder, folder)
    path = folder / ".lock"
    with lock(path, create=True) as mine:
        if not mine:
            try:
                owner = json.loads(path.read_text(encoding="utf-8"))
                who = f"process {owner['process']} on {owner['machine']} has worked in it since {owner['since']}"
            except (OSError, ValueError, LookupError, TypeError):
                who = "another process works in it"
            raise InputError(f"{what} {folder} is in use: {who}. Wait for it, or choose another folder.")
        owner = {"process": os.getpid(), "machine": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        path.write_text(json.dumps(owner), encoding="utf-8")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _real(path: PathLike) -> Path:
    """Return what a path stands for, links followed."""
    try:
        return Path(os.path.realpath(path))
    except (TypeError, ValueError) as error:
        raise InputError(f"path {path!r} is none: {error}. Pass another.") from error


def _make(folder: Path, target: Path) -> None:
    """Make a folder, and those around it, that the target needs."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"output {target} cannot be written: {folder} is not a folder. Choose another.") from error
    except OSError as error:
        raise _refusal(target, error) from error


def _refusal(target: Path, error: OSError) -> Exception:
    """Return what says that nothing can be written beside a target; what is not the path's fault stays as it is."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE}:
        return error
    return InputError(f"output {target} cannot be written: {error.strerror or error}. Choose another place.")


@contextlib.contextmanager
def _scratch(target: Path) -> Iterator[Path]:
    """Make a folder beside the target that is locked while this process lives, and remove it in the end."""
    while True:
        try:
            scratch = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
        except OSError as error:
            raise _refusal(target, error) from error
        with lock(scratch) as mine:
            if not mine:  # somebody took it for a dead one's before it was locked
                continue
            try:
                yield scratch
            finally:
                _remove(scratch, target)
            return


def _prefix(target: Path) -> str:
    name = os.fsencode(target.name)
    return f".{target.name if len(name) <= 200 else hashlib.sha256(name).hexdigest()[:40]}.eenet-"


def _scratches(target: Path) -> list[Path]:
    pattern = re.compile(re.escape(_prefix(target)) + r"\w{8}")
    return [target.parent / name for name in _names(target.parent) if pattern.fullmatch(name)]


def _names(folder: Path) -> list[str]:
    """Return what is in a folder; nothing where it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _moved_away(path: PathLike) -> bool:
    return any((scratch / _REPLACED).exists() for scratch in _scratches(_real(path)))


def _put(draft: Path, target: Path, check: Callable[[Path], None] | None) -> None:
    """Move the draft to the target; what stood there stays in the scratch folder until that is removed."""
    while True:
        try:
            if check is not None:
                check(target)
            if not (draft.is_dir() and target.is_dir()):
                os.replace(draft, target)
                return
            back = _exchange(draft, target)
        except OSError as error:  # the target came or went meanwhile
            if error.errno not in {errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST} or not draft.exists():
                raise
            continue
        if check is not None:
            _refuse_late(back, check, draft, target)
        return


def _refuse_late(back: Callable[[], object], check: Callable[[Path], None], draft: Path, target: Path) -> None:
    """Take the exchange back if the folder that was taken away must not be replaced after all."""
    replaced = draft.parent.with_name(_REPLACED)
    try:
        check(replaced if replaced.exists() else draft)
    except BaseException as error:
        back()
        if isinstance(error, EenetError):
            check(target)  # says the same of the path that the user knows
        raise


def _exchange(draft: Path, target: Path) -> Callable[[], object]:
    """Exchange two folders, in one step where the system can; return what takes it back."""
    if _rename_exchange(draft, target):
        return functools.partial(_rename_exchange, draft, target)
    replaced = draft.parent.with_name(_REPLACED)
    shutil.rmtree(replaced, ignore_errors=True)  # of a try before, when another writer came between
    os.replace(target, replaced)
    os.replace(draft, target)

    def back() -> None:
        os.replace(target, draft)
        os.replace(replaced, target)

    return back


def _remove(scratch: Path, target: Path) -> None:
    """Remove a writer's scratch folder, once what it moved away is back in place or another stands there.

    The files of a complete set move on first; an interrupt waits for that.
    """
    interrupt = None
    while names := _names(scratch / _READY):
        try:
            os.replace(scratch / _READY / names[0], target.parent / names[0])
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
    replaced = scratch / _REPLACED
    while replaced.exists() and not target.exists():
        try:
            os.replace(replaced, target)
        except OSError:
            if not target.exists():  # kept: the next writer or reader tries again
                return
    shutil.rmtree(scratch, ignore_errors=True)


def _rename_exchange(a: Path, b: Path) -> bool:
    """Exchange two paths by ``renameat2`` (Linux); False where there is no such call, or not on this file system."""
    call = _renameat2()
    if call is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0:
        return True
    code = ctypes.get_errno()
    if code in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        return False
    raise OSError(code, os.strerror(code), str(a), None, str(b))


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return None


def _identity(path: PathLike) -> tuple[int, int, int] | None:
    """Return what tells two versions of a file or folder apart; None where nothing is there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # the latter: no path at all
        return None
    return status.st_dev, status.st_ino, status.st_ctime_ns

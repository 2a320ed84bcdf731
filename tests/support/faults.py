"""Faults injected before each file operation of a writer, in a process of its own."""

from __future__ import annotations

import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable

_WRITES = frozenset(
    ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
)
FAULTS = ("full", "KILL", "INT", "TERM")


def _counted(event: str, arguments: tuple[object, ...], under: str) -> bool:
    """Return whether an operation is on a path that begins so, or, as those of `shutil.rmtree`, on a relative one."""
    paths = [value for value in arguments if isinstance(value, str)]
    relative = any(isinstance(value, int) and value >= 0 for value in arguments[1:]) and event != "open"
    return event in _WRITES and (relative or any(path.startswith(under) for path in paths))


def _announced() -> None:
    """Let the exchange of two folders, which Python does not know of, count as an operation, before and after."""
    from eenet.tables import atomic

    real = atomic._rename_exchange

    def exchanged(a: object, b: object) -> bool:
        sys.audit("os.rename", str(a), str(b))
        done = real(a, b)  # type: ignore[arg-type]
        sys.audit("os.rename", str(b), str(a))
        return done

    atomic._rename_exchange = exchanged  # type: ignore[assignment]


def _meet(fault: str) -> None:
    if fault == "full":
        raise OSError(28, "No space left on device")
    os.kill(os.getpid(), getattr(signal, f"SIG{fault}"))


def with_fault(work: Callable[[], object], under: str, after: int, fault: str) -> str:
    """Run ``work`` in a child whose file operation number ``after`` on paths that begin with ``under`` fails.

    ``fault`` is ``full`` (the disk is full), ``KILL``, ``INT`` or ``TERM``, which interrupts as on the command line; or
    ``size``: then ``after`` is the number of bytes that fit into a file. Returns how the child ended: ``done`` where
    there were fewer operations, ``survived``, ``raised NAME``, ``killed``.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        end = "done"
        count = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal count
            if fault != "size" and _counted(event, arguments, under):
                count += 1
                if count == after:
                    _meet(fault)

        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            _announced()
            if fault == "size":
                resource.setrlimit(resource.RLIMIT_FSIZE, (after, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            sys.addaudithook(hook)
            work()
            end = "done" if count < after else "survived"
        except BaseException as error:  # noqa: BLE001
            end = f"raised {type(error).__name__}"
            if not isinstance(error, OSError | KeyboardInterrupt):
                end += " " + traceback.format_exc()
        os.write(writer, end.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        end = pipe.read().decode()
    os.waitpid(child, 0)
    return end or "killed"

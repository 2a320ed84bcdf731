"""Signals that end the process: Ctrl-C, and those of `kill` and of a terminal that is closed, which clean up alike."""

from __future__ import annotations

import os
import sys
from typing import Any

from eenet import errors

INTERRUPTED = 130
"""The exit code of a process that was interrupted."""


class Importing:
    """Lets a signal end the process at once while modules are imported.

    An exception may be lost there: callbacks of Python's import system and extension modules swallow it. Where other
    code called `main`, nothing changes: ending its process is not ours to decide. Where other code made another
    exception of an interrupt, ``interrupted`` still says that there was one.
    """

    owns_process = False
    interrupted = False

    def __enter__(self) -> None:
        """Replace the handlers of the signals."""
        handle_signals(_leave)

    def __exit__(self, *error: object) -> None:
        """Let signals be exceptions again, after which temporary files are removed."""
        handle_signals(_interrupt)


def handle_signals(handler: object) -> None:
    """Set the handler of all signals that end the process, but of those that are ignored, as by `nohup`."""
    if Importing.owns_process:
        import signal

        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # Windows has no SIGHUP
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, handler)  # type: ignore[arg-type]


def _leave(number: int, frame: object) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: object) -> None:
    sys.unraisablehook = _unraisable
    Importing.interrupted = True
    raise KeyboardInterrupt


def _unraisable(error: Any) -> None:  # noqa: ANN401 - of sys
    """Interrupt again where that came into a callback that can raise nothing."""
    if error.exc_type is KeyboardInterrupt:
        import _thread
        import threading

        threading.Timer(0.01, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(error)


def require(*packages: str) -> None:
    """Import optional packages that a command needs, before any work starts.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    with Importing():
        errors.require(*packages, reason="this command needs it")

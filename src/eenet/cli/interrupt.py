"""Ctrl-C while modules are imported, before any work starts."""

from __future__ import annotations

import os

from eenet import errors

INTERRUPTED = 130
"""The exit code of a process that was interrupted."""


class Importing:
    """Lets Ctrl-C end the process at once while modules are imported.

    An exception may be lost there: callbacks of Python's import system and extension modules swallow it. Where other
    code called `main`, nothing changes: ending its process is not ours to decide.
    """

    owns_process = False

    def __enter__(self) -> None:
        """Replace the handler of the signal."""
        if self.owns_process:
            import signal

            self._before = signal.signal(signal.SIGINT, _leave)

    def __exit__(self, *error: object) -> None:
        """Put it back."""
        if self.owns_process:
            import signal

            signal.signal(signal.SIGINT, self._before)


def _leave(number: int, frame: object) -> None:
    os.write(2, b"Interrupted.\n")
    os._exit(INTERRUPTED)


def require(*packages: str) -> None:
    """Import optional packages that a command needs, before any work starts.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    with Importing():
        errors.require(*packages, reason="this command needs it")

"""Where the process enters: next to nothing is imported, so that Ctrl-C ends it properly from the first line on."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence

from eenet.cli.interrupt import INTERRUPTED, Importing, handle_signals


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: The words after `eenet`; those of the process if not given.

    Returns:
        0 done, 1 failure, 2 bad input (found before any work starts), 130 interrupted.
    """
    try:
        Importing.owns_process = arguments is None
        with Importing():
            from eenet.cli.app import run
        code = run(list(sys.argv[1:] if arguments is None else arguments))
        if Importing.owns_process:  # what was asked for is done: nothing is left to interrupt while Python shuts down
            import signal

            handle_signals(signal.SIG_IGN)
        return code
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may be gone
            sys.stderr.write("Interrupted.\n")
        if Importing.owns_process:
            # an interrupt that came while other code ran a string (as dataclasses are made) counts as unhandled, and
            # Python would end itself by the signal
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(INTERRUPTED)
        return INTERRUPTED

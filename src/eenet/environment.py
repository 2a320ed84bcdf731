"""Environment variables that eenet reads, all of them, and nowhere else.

| variable | meaning |
| --- | --- |
| ``EENET_THREADS`` | threads of the CPU, where a command is given no ``--threads`` and an exported graph none |
| ``EENET_DATA`` | folder of the published data sets, where no ``--data-root`` is given and a run names none |
| ``EENET_CACHE`` | folder that ``--download`` writes into, where no ``--data-root`` is given |
"""

from __future__ import annotations

import os
from pathlib import Path

from eenet.errors import InputError

THREADS, DATA, CACHE = "EENET_THREADS", "EENET_DATA", "EENET_CACHE"
_LIBRARIES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def threads() -> int | None:
    """Return how many threads of the CPU are wanted; None where that is not said.

    Raises:
        InputError: It is no whole number above 0.
    """
    text = os.environ.get(THREADS, "").strip()
    if not text:
        return None
    if not text.isdecimal() or not 1 <= int(text) <= 2**16:
        raise InputError(
            f"{THREADS} {text!r} is no number of threads: whole numbers from 1 to {2**16} are. Set one, or unset it."
        )
    return int(text)


def limit_threads() -> None:
    """Let numeric libraries that are not loaded yet use that many threads, unless their own variables say otherwise.

    Raises:
        InputError: As of `threads`.
    """
    wanted = threads()
    for name in _LIBRARIES if wanted is not None else ():
        os.environ.setdefault(name, str(wanted))


def data_folder() -> Path | None:
    """Return the folder of the published data sets; None where that is not said.

    Raises:
        InputError: There is no such folder.
    """
    path = _path(DATA)
    if path is not None and not path.is_dir():
        raise InputError(f"{DATA} {str(path)!r} is no folder: there is none of that name. Correct it, or unset it.")
    return path


def cache_folder() -> Path | None:
    """Return the folder that downloads are written into, which may not exist yet; None where that is not said."""
    return _path(CACHE)


def _path(name: str) -> Path | None:
    text = os.environ.get(name, "").strip()
    return Path(text).expanduser() if text else None

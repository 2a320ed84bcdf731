"""Names that the user wrote: known ones, and the ``package.module:name`` of own objects; never names from a file."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from eenet.errors import InputError

Name = TypeVar("Name", bound=str)


def known(kind: str, name: str, names: Iterable[Name]) -> Name:
    """Return a name if it is one of those known.

    Raises:
        InputError: It is not; all are in the message, and the near ones.
    """
    ordered: list[Name] = sorted(names)
    if name in ordered:
        return ordered[ordered.index(name)]
    near = difflib.get_close_matches(name.lower(), map(str, ordered), n=3, cutoff=0.5)
    advice = f"Did you mean {' or '.join(near)}?" if near else "Pass one of these."
    raise InputError(f"{kind} {name!r} is unknown: there are {', '.join(ordered)}. {advice}")


def imported(spec: str, what: str, advice: str) -> Any:  # noqa: ANN401
    """Return the object that ``package.module:name`` names; the current directory is searched too.

    Args:
        spec: Module and name, which may be that of an attribute, such as ``Class.method``.
        what: It is to the user, for messages.
        advice: What to write instead, where there is no such module.

    Raises:
        InputError: There is no such module, or it has nothing of that name. What the module itself raises is passed on.
    """
    place, _, name = spec.partition(":")
    found = _module(place, spec, what, advice)
    for part in name.split("."):
        if not hasattr(found, part):
            own = [one for one in vars(found) if callable(getattr(found, one)) and not one.startswith("_")]
            near = ", ".join(difflib.get_close_matches(part, own, n=5, cutoff=0.5) or [*own[:8], "..."])
            raise InputError(f"{what} {spec!r} is unknown: {place} has no {part!r}. It has {near}.")
        found = getattr(found, part)
    return found


def _module(place: str, spec: str, what: str, advice: str) -> Any:  # noqa: ANN401
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        with current_directory():
            return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not (place == error.name or place.startswith(f"{error.name}.")):
            raise  # the module is there and misses another one
        raise InputError(
            f"{what} {spec!r} is not found: no module {error.name!r} in {os.getcwd()} or among the installed ones. "
            f"{advice}"
        ) from error


@contextmanager
def current_directory() -> Iterator[None]:
    """Let modules be imported from the current directory for the block."""
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)

"""Result pages in Markdown: all are written here, so that each says of which version, command and machine it is.

The numbers come from steps that leave JSON files and are not repeated while these are there.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

import eenet
from eenet.tables.files import atomic_path, read_json, write_json


def write_page(path: Path, *parts: str, measured: bool = True) -> Path:
    """Write a page and return where it stands.

    Args:
        path: the file; the folder is made if it is not there.
        parts: paragraphs and sections, joined by empty lines; the first line of the first one is the title. Empty ones
            are left out.
        measured: say below the title which version of eenet the numbers are of; not where a test counts them again.
    """
    title, _, rest = parts[0].partition("\n")
    version = f"Measured with eenet {eenet.__version__}." if measured else ""
    said = [part.strip("\n") for part in (title, version, rest, *parts[1:])]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        draft.write_text("\n\n".join(filter(None, said)) + "\n", encoding="utf-8")
    return path


def kept(path: Path, make: Callable[[], Any], note: Callable[[str], None], said: str = "") -> Any:  # noqa: ANN401
    """Return the result of a step as JSON values, made now or by an earlier call.

    Args:
        path: the step's file.
        make: does the step.
        note: called with its description before it begins.
        said: the description; default: the file's name.
    """
    if not path.is_file():
        note(said or str(path))
        write_json(path, make())
    return read_json(path, "result")


def again(*commands: str) -> str:
    """Return the section that says how to make a page again."""
    return "## Again\n\n```\n" + "\n".join(commands) + "\n```"


def bullets(head: str, lines: Iterable[str]) -> str:
    """Return a list in Markdown below a line that says what it is, such as ``Caveats``."""
    return f"{head}:\n\n" + "\n".join(f"* {line}" for line in lines)


def spread(value: float | None, around: Sequence[float] | None) -> str:
    """Return a median with its quartiles, for a cell of a table.

    Args:
        value: the median; None where there is none.
        around: lower and upper quartile.
    """
    return "-" if value is None or around is None else f"{value:.2f} ({around[0]:.2f} to {around[1]:.2f})"


def machine() -> str:
    """Return the machine and the software in a line."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())
    return (
        f"Machine: {cpu}, {os.cpu_count()} cores, {platform.system()}; Python {platform.python_version()}, "
        f"torch {torch.__version__}.\n"
    )

"""Result pages in Markdown: all are written here, so that each has its version, command and machine.

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
from eenet.tables.atomic import atomic_path
from eenet.tables.files import read_json, write_json


def write_page(path: Path, *parts: str, measured: bool = True) -> Path:
    """Write a page and return its path.

    Args:
        path: the file; the folder is made if it is not there.
        parts: paragraphs and sections, joined by empty lines; the first line of the first one is the title. Empty ones
            are left out.
        measured: name the version of eenet below the title; not where a test counts the numbers again.
    """
    title, _, rest = parts[0].partition("\n")
    version = f"Measured with eenet {eenet.__version__}." if measured else ""
    paragraphs = [part.strip("\n") for part in (title, version, rest, *parts[1:])]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as draft:
        draft.write_text("\n\n".join(filter(None, paragraphs)) + "\n", encoding="utf-8")
    return path


def kept(path: Path, make: Callable[[], Any], note: Callable[[str], None], described: str = "") -> Any:  # noqa: ANN401
    """Return the result of a step as JSON values, made now or by an earlier call.

    Args:
        path: the step's file.
        make: does the step.
        note: called with its description before it begins.
        described: the description; default: the file's name.
    """
    if not path.is_file():
        note(described or str(path))
        write_json(path, make())
    return read_json(path, "result")


def again(*commands: str) -> str:
    """Return the section that says how to make a page again."""
    return "## Again\n\n```\n" + "\n".join(commands) + "\n```"


def bullets(head: str, lines: Iterable[str]) -> str:
    """Return a list in Markdown below a line that says what it is, such as ``Caveats``."""
    return f"{head}:\n\n" + "\n".join(f"* {line}" for line in lines)


def spread(value: float | None, around: Sequence[float] | None) -> str:
    """Return a median with its lower and upper quartile, for a cell of a table; ``-`` where there is none."""
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

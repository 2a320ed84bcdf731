"""A progress bar that only shows up when there is something to wait for."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["track"]

T = TypeVar("T")

_PATIENCE_SECONDS = 2.0


def track(items: Iterable[T], total: int, text: str, *, enabled: bool = True) -> Iterator[T]:
    """Yield the items; after two seconds a bar appears on stderr, if that is a terminal, and it goes away at the end.

    Args:
        items: What is worked on.
        total: How many items there are.
        text: What is being done.
        enabled: False: no bar, ever.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    enabled = enabled and console.is_terminal  # in a log file a bar is only noise
    bar = Progress(*columns, console=console, transient=True, disable=not enabled)
    task = bar.add_task(text, total=total)
    began, shown = time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task)
            if enabled and not shown and time.monotonic() - began > _PATIENCE_SECONDS:
                bar.start()
                shown = True
    finally:
        if shown:
            bar.stop()

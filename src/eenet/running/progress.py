"""A progress bar that appears only for work that takes a while."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

_PATIENCE_SECONDS = 2.0


def track(items: Iterable[T], total: int | None, text: str, *, enabled: bool = True) -> Iterator[T]:
    """Yield the items; after two seconds a bar appears on stderr, if that is a terminal, and it goes away at the end.

    Args:
        items: What is worked on.
        total: How many items there are; None: not known.
        text: What is being done.
        enabled: False: no bar, ever.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    enabled = enabled and console.is_terminal  # in a log file a bar is only noise
    bar = Progress(*columns, console=console, transient=True, disable=not enabled)
    task = bar.add_task(text, total=total)
    started, visible = time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task)
            if enabled and not visible and time.monotonic() - started > _PATIENCE_SECONDS:
                bar.start()
                visible = True
    finally:
        if visible:
            bar.stop()

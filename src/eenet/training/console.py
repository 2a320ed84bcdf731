"""What a training shares with the terminal: Ctrl-C and the progress bar."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from jaxtyping import Float
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor


@contextmanager
def interruption() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets, so that a step in progress can finish first; a second Ctrl-C interrupts at once.

    Outside the main thread, where signals cannot be caught, the event is never set.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.getsignal(signal.SIGINT)

    def note(signum: int, frame: FrameType | None) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def progress_bar(total: int, done: int, wanted: bool) -> Iterator[Callable[[Float[Tensor, " exit"]], None]]:
    """Yield a function that advances a progress bar on stderr by one step and shows the losses of the exits.

    Args:
        total: number of steps.
        done: steps done before.
        wanted: whether to show the bar at all.
    """
    losses = TextColumn("{task.fields[loss]}")
    columns = (
        TextColumn("train"),
        BarColumn(),
        MofNCompleteColumn(),
        losses,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not wanted, refresh_per_second=2) as bar:
        task = bar.add_task("train", total=total, completed=done, loss="")

        def advance(losses: Float[Tensor, " exit"]) -> None:
            if wanted:
                bar.update(task, advance=1, loss="loss " + " ".join(f"{loss:.2f}" for loss in losses.tolist()))

        yield advance

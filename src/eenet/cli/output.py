"""What a command prints: one result on stdout, as JSON or as tables; everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import numpy as np
import typer
from rich import box, table
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from eenet.cli.curve import Curve
from eenet.errors import visible
from eenet.report.sections import Block, Section, Table
from eenet.tables.files import write_json

Part: TypeAlias = Block | Section | Curve
Result: TypeAlias = tuple[Mapping[str, Any], Sequence[Part]]
"""What a command returns: the value that `--json` prints, and what is printed without."""

PIPE_WIDTH = 100
_SCREEN = 23  # lines of a small terminal, without that of the next prompt
_MOST_FOLDED = 20  # rows
_PATIENCE_SECONDS = 2.0  # before which progress is not worth a line
_WHOLE = 20  # characters of a cell up to which it stays on one line
_GAP = 3  # blanks that a column takes besides its cells


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, width=None if known else PIPE_WIDTH, highlight=False)


def plain(value: object) -> object:
    """Turn a result into JSON values: paths become text, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    return [plain(item) for item in value] if isinstance(value, Sequence) else str(value)


def error_line(message: str, start: str = "Error: ") -> None:
    """Write one line to stderr: `Error: ...`."""
    sys.stderr.write(one_line(message, start))
    sys.stderr.flush()


def one_line(message: str, start: str) -> str:
    """Return a message as one line, whatever line breaks and control characters it has."""
    return f"{start}{visible(' '.join(message.split()))}\n"


def facts_table(title: str, facts: Mapping[str, object]) -> Table:
    """Return a table of what is what; None is left out."""
    return Table(("what", "value"), [(name, str(fact)) for name, fact in facts.items() if fact is not None], title)


def percent(value: float | None) -> str:
    """Write a fraction as a percentage with two digits."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.2%}"


@dataclass(kw_only=True)
class Output:
    """Where a command's words go, by the options that all commands have.

    Attributes:
        as_json: Print the result as one JSON value instead of tables.
        quiet: Say nothing on the way; errors and the result still appear.
        debug: Print the traceback of an error, too.
        line: The command as it was written.
    """

    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value on stdout.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False
    line: str = field(default="", init=False)
    _began: float = field(default=0.0, init=False, repr=False)
    _noted: int = field(default=0, init=False, repr=False)

    def note(self, message: str) -> None:
        """Write a line of progress to stderr, unless quiet."""
        if not self.quiet:
            self._noted += 1
            _console(stderr=True).print(Text(visible(message)), soft_wrap=True)

    def step(self, name: str, done: int, total: int) -> None:
        """Write that a part of the work is done, unless quiet, where all of it takes more than two seconds.

        This is one line, which is rewritten and goes away; where stderr is no terminal there is none.
        """
        now = time.monotonic()
        if done <= 1:
            self._began = now
        if self.quiet or not sys.stderr.isatty() or now - self._began < _PATIENCE_SECONDS:
            return
        text = visible(f"[{done}/{total}] {name}")
        sys.stderr.write("\r\x1b[K" if done >= total else f"\r\x1b[K{text}")
        sys.stderr.flush()

    def save(self, value: Mapping[str, Any], path: Path | None, *, sealed: bool = False) -> None:
        """Write a result to the file of --out, where there is one; ``sealed``: with a checksum."""
        if path is not None:
            write_json(path, value, sealed=sealed)
            self.note(f"wrote {path}")

    def result(self, value: Mapping[str, Any], parts: Sequence[Part]) -> None:
        """Write the result to stdout: `value` with `--json`, else what is printed.

        A curve takes the lines that the other parts leave of a screen, or goes; where these fill more, it is drawn.
        """
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), allow_nan=False) + "\n")
        else:
            console = _console(stderr=False)
            shown = ["" if isinstance(part, Curve) else _rendered(part, console) for part in parts]
            left = _SCREEN - self._noted - sum(text.count("\n") for text in shown)
            for part, text in zip(parts, shown, strict=True):
                if isinstance(part, Curve):
                    drawn = part.drawn(console.width, left if left > 0 else None)
                    sys.stdout.write(f"{drawn}\n" if drawn else "")
                sys.stdout.write(text)
        sys.stdout.flush()


def _rendered(part: Block | Section, console: Console) -> str:
    """Return what a part looks like, line by line."""
    with console.capture() as captured:
        for item in _printed(part, console.width, "bold"):
            console.print(item, soft_wrap=isinstance(item, Text))
    return captured.get()


def _printed(part: Block | Section, width: int, style: str = "") -> Iterator[Text | table.Table]:
    """Yield what the terminal shows; pictures, and long tables that a page folds away, are left to the page.

    Names are text and never markup: `Text` reads none.
    """
    match part:
        case str():
            yield Text(_wrapped(part, width))
        case Section():
            yield Text(f"\n{visible(part.heading)}", style="bold")
            for place, block in enumerate(part.blocks):
                if place and isinstance(block, Table):
                    yield Text()
                yield from _printed(block, width)
        case Table() if not part.folded or len(part.rows) <= _MOST_FOLDED:
            if part.caption:
                yield Text(_wrapped(part.caption, width), style=style)
            yield from _fitted(part, width)


def _wrapped(text: str, width: int, indent: str = "") -> str:
    """Return a text in lines of a width, broken between words only: a path or a name stays in one piece."""
    return textwrap.fill(visible(text), width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)


def _fitted(shown: Table, width: int) -> Iterator[Text | table.Table]:
    """Yield a table that fits: without its least useful columns, or row by row where the others are still too wide."""
    names, missing = list(shown.columns), [name for name in shown.least if name in shown.columns]
    left_out: list[str] = []
    while (widths := _widths(shown, names, width)) is None and missing:
        left_out.append(missing.pop(0))
        names.remove(left_out[-1])
    if widths is None:
        for row in shown.rows:
            lines = (f"  {name}: {cell}" for name, cell in zip(shown.columns, row, strict=True))
            yield Text("\n".join(_wrapped(line, width, "    ") for line in lines) + "\n")
        return
    fitted = table.Table(box=box.SIMPLE_HEAD, show_edge=False)
    for i, (name, cells) in enumerate(zip(names, widths, strict=True)):
        fitted.add_column(Text(visible(name)), justify="right" if i else "left", width=cells)
    for row in shown.rows:
        fitted.add_row(*(Text(visible(row[shown.columns.index(name)])) for name in names))
    yield fitted
    if left_out:
        yield Text(_wrapped(f"Left out, as {width} columns are too few: {', '.join(left_out)}.", width))


def _widths(shown: Table, names: Sequence[str], width: int) -> list[int] | None:
    """Return how wide each column is when no word and no short cell is broken; None where that does not fit."""
    least, most = [], []
    for name in names:
        place = shown.columns.index(name)
        cells = [visible(row[place]) for row in shown.rows]
        whole = [cell for cell in cells if cell_len(cell) <= _WHOLE]
        least.append(
            max(map(cell_len, [*whole, *(word for cell in (name, *cells) for word in cell.split())]), default=1)
        )
        most.append(max(map(cell_len, (visible(name), *cells))))
    room = width - _GAP * len(names) - 1
    if sum(least) > room:
        return None
    widths = list(least)
    while sum(widths) < min(room, sum(most)):
        narrow = [i for i, cells in enumerate(widths) if cells < most[i]]
        widths[min(narrow, key=lambda i: widths[i])] += 1
    return widths

"""What a command shows: one result on stdout, everything else on stderr."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 200


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else PIPE_WIDTH, highlight=False)


def plain(value: object) -> object:
    """Turn a result into JSON values: paths become text, NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return [plain(item) for item in value] if isinstance(value, Sequence) else str(value)


def error_line(message: str, start: str = "Error: ") -> None:
    """Write one line to stderr: `Error: ...`, whatever line breaks the message has."""
    sys.stderr.write(f"{start}{' '.join(message.split())}\n")
    sys.stderr.flush()


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> RenderableType:
    """Build a table for the terminal, its title above it: the first column to the left, all others to the right."""
    table = Table(box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell(value)) for value in row))
    return Group(Text(title, style="bold"), table) if title else table


def cell(value: object) -> str:
    """Write one table cell: missing values as a dash, floats with four digits."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "-"
    return str(value)


def percent(value: float | None) -> str:
    """Write a fraction as a percentage with two digits."""
    return "-" if value is None or not math.isfinite(value) else f"{100 * value:.2f} %"


def shares(distribution: Sequence[float]) -> str:
    """Write an exit distribution as whole percentages, exit 0 first."""
    return " ".join(f"{100 * share:.0f}" for share in distribution)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """Where a command's words go.

    Args:
        as_json: Print the result as one JSON value instead of tables.
        quiet: Say nothing on the way; errors and the result still appear.
    """

    as_json: bool = False
    quiet: bool = False

    def note(self, message: str) -> None:
        """Write a line of progress to stderr, unless quiet."""
        if not self.quiet:
            _console(stderr=True).print(Text(message), soft_wrap=True)

    def step(self, name: str, done: int, total: int) -> None:
        """Write that a part of the work is done, unless quiet."""
        self.note(f"[{done}/{total}] {name}")

    def result(self, value: object, *shown: RenderableType) -> None:
        """Write the result to stdout: `value` with `--json`, else the renderables."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), allow_nan=False) + "\n")
        else:
            console = _console(stderr=False)
            for item in shown:
                console.print(Text(item) if isinstance(item, str) else item, soft_wrap=isinstance(item, str))
        sys.stdout.flush()

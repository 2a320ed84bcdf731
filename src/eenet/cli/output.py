"""What a command prints: one result on stdout, as JSON or as tables; everything else on stderr."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from eenet.report import sections as report
from eenet.tables.files import write_json

Result = tuple[Mapping[str, Any], Sequence[RenderableType]]
"""What a command returns: the value that `--json` prints, and what is printed without."""

Columns = Mapping[str, int | str | Callable[[Any], object]]
"""The columns of a table: each heading with what is written below it, a key of the row or a function of it."""

PIPE_WIDTH = 200
_MOST_BUDGETS = 4  # for which groups are listed
_MOST_FOLDED = 20  # rows


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
    """Write one line to stderr: `Error: ...`, whatever line breaks the message has."""
    sys.stderr.write(f"{start}{' '.join(message.split())}\n")
    sys.stderr.flush()


def text_table(title: str, rows: Iterable[Any], columns: Columns) -> RenderableType:
    """Build a table for the terminal, its title above it: the first column to the left, all others to the right."""
    cells = [[content(row) if callable(content) else row[content] for content in columns.values()] for row in rows]
    table = _table(columns, cells)
    return Group(Text(title, style="bold"), table) if title else table


def _table(columns: Iterable[str], rows: Iterable[Sequence[object]]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(escape(column), justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell(value)) for value in row))
    return table


def facts_table(title: str, facts: Mapping[str, object]) -> RenderableType:
    """Build a table of what is what; None is left out."""
    rows = [fact for fact in facts.items() if fact[1] is not None]
    return text_table(title, rows, {"what": 0, "value": 1})


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

    def note(self, message: str) -> None:
        """Write a line of progress to stderr, unless quiet."""
        if not self.quiet:
            _console(stderr=True).print(Text(message), soft_wrap=True)

    def step(self, name: str, done: int, total: int) -> None:
        """Write that a part of the work is done, unless quiet."""
        self.note(f"[{done}/{total}] {name}")

    def save(self, value: Mapping[str, Any], path: Path | None) -> None:
        """Write a result to the file of --out, where there is one."""
        if path is not None:
            write_json(path, value)
            self.note(f"wrote {path}")

    def result(self, value: Mapping[str, Any], parts: Sequence[RenderableType]) -> None:
        """Write the result to stdout: `value` with `--json`, else the renderables."""
        if self.as_json:
            sys.stdout.write(json.dumps(plain(value), allow_nan=False) + "\n")
        else:
            console = _console(stderr=False)
            for item in parts:
                console.print(Text(item) if isinstance(item, str) else item, soft_wrap=isinstance(item, str))
        sys.stdout.flush()


def comparison_parts(value: Mapping[str, Any]) -> list[RenderableType]:
    """Show the JSON of `eenet compare` as its page does, without pictures: who pays only at one budget of many."""
    from eenet.report.comparison import lead, table_sections

    entries = value.get("groups", [])
    budgets = sorted({entry["budget"] for entry in entries})
    listed = budgets if len(budgets) <= _MOST_BUDGETS else [budgets[len(budgets) // 2]]
    groups = [entry for entry in entries if entry["budget"] in listed]
    return [lead(value), *section_parts(*table_sections({**value, "groups": groups}))]


def section_parts(*sections: report.Section) -> list[RenderableType]:
    """Return sections of a report as the terminal shows them; long tables that a page folds away are left to it."""
    parts: list[RenderableType] = []
    for section in sections:
        parts.append(Text(f"\n{section.heading}", style="bold"))
        for block in section.blocks:
            if isinstance(block, str):
                parts.append(block)
            elif isinstance(block, report.Table) and (not block.folded or len(block.rows) <= _MOST_FOLDED):
                parts += [*filter(None, [block.caption]), _table(block.columns, block.rows)]
    return parts

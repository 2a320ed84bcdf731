"""`eenet report`: one page from what the other commands wrote."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli import paths
from eenet.cli.options import DebugFlag, JsonFlag, QuietFlag
from eenet.cli.output import Output
from eenet.errors import InputError

if TYPE_CHECKING:
    from eenet.report.html import Section

FILES = ("comparison.json", "costs.json", "bench.json")


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="JSON of compare, profile or bench, or folders that hold such files."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The page to write.")] = Path("report.html"),
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Early-exit report",
    as_json: JsonFlag = False,
    quiet: QuietFlag = False,
    debug: DebugFlag = False,
) -> None:
    """Make one self-contained HTML page from the results of compare, profile and bench.

    Examples:

        eenet report out/comparison.json costs.json bench.json --out report.html

        eenet report eenet-demo --out report.html
    """
    output = Output(as_json=as_json, quiet=quiet)
    paths.output_file(out)
    files = [file for path in results for file in find_results(path)]
    sections = [section for file in files for section in _sections(file)]

    from eenet.report.html import page, write_page
    from eenet.report.sections import about_section

    command = shlex.join(["eenet", "report", *map(str, results), "--out", str(out), "--title", title])
    write_page(out, page(title, [*sections, about_section(command=command)]))
    output.result({"out": str(out), "from": [str(file) for file in files]}, f"wrote {out}")


def find_results(path: Path) -> list[Path]:
    """Return the result files that a path stands for: itself, or those inside the folder.

    Raises:
        InputError: There is none.
    """
    paths.existing(path, "RESULTS")
    if not path.is_dir():
        return [path]
    found = [path / name for name in FILES if (path / name).is_file()]
    if not found:
        raise InputError(f"RESULTS {str(path)!r} holds nothing to show: none of {', '.join(FILES)}. Name a JSON file.")
    return found


def _sections(file: Path) -> Sequence[Section]:
    """Return the sections about one result, recognised by its keys."""
    from eenet.core.files import read_json
    from eenet.report.comparison import comparison_sections
    from eenet.report.sections import bench_section, costs_section

    value: Any = read_json(file, "RESULTS")
    keys = set(value) if isinstance(value, dict) else set()
    try:
        if {"rows", "area", "exits"} <= keys:
            return comparison_sections(value)
        if {"flops", "latency"} <= keys:
            return [costs_section(value["flops"]), *(costs_section(row) for row in value["latency"])]
        if {"rows", "device", "threads"} <= keys:
            return [bench_section(value)]
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"RESULTS {str(file)!r} is incomplete: {error!r}. Write it again with its command.") from error
    raise InputError(
        f"RESULTS {str(file)!r} is of no known kind: it was not written by compare, profile or bench. "
        "Name files of these."
    )

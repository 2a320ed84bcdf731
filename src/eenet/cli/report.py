"""`eenet report`: one page from what the other commands wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from eenet.cli.compare import SET
from eenet.cli.interrupt import require
from eenet.cli.options import existing, file_out
from eenet.cli.output import Output, Result
from eenet.errors import InputError
from eenet.tables.atomic import restore
from eenet.tables.files import read_json

if TYPE_CHECKING:
    from eenet.report import Section

FILES = ("comparison.json", "costs.json", "bench.json")


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULTS...", help="JSON of compare, profile or bench, or folders that hold such files."
        ),
    ],
    *,
    out: Annotated[Path, file_out("The page to write.", ".html", ".htm")] = Path("report.html"),
    title: Annotated[str, typer.Option("--title", help="Heading of the page.")] = "Early-exit report",
    output: Output,
) -> Result:
    """Make one self-contained HTML page from the results of compare, profile and bench.

    Examples:

        eenet report out/comparison.json costs.json bench.json --out report.html

        eenet report eenet-demo --out report.html
    """
    require("matplotlib")
    files = [file for path in results for file in find_results(path)]
    sections = [section for file in files for section in _sections(file)]
    verdicts = [value["verdict"] for file in files if "verdict" in (value := read_json(file, "RESULTS"))]

    from eenet.report import about_section, page, write_page

    write_page(out, page(title, [*sections, about_section(command=output.line)]))
    return {"out": str(out), "from": [str(file) for file in files]}, [*verdicts, f"wrote {out}"]


def find_results(path: Path) -> list[Path]:
    """Return the result files that a path stands for: itself, or those inside the folder.

    Raises:
        InputError: There is none.
    """
    if not existing(path, "RESULTS").is_dir():
        return [path]
    restore(path / SET)  # whose writer was killed while its files moved there
    found = [path / name for name in FILES if (path / name).is_file()]
    if not found:
        raise InputError(f"RESULTS {str(path)!r} holds no results: none of {', '.join(FILES)}. Name a JSON file.")
    return found


def _sections(file: Path) -> Sequence[Section]:
    """Return the sections about one result, recognised by its keys."""
    from eenet.report import bench_section, comparison_sections, costs_section, sizes_section

    value: Any = read_json(file, "RESULTS")
    keys = set(value) if isinstance(value, dict) else set()
    try:
        if {"rows", "area", "exits"} <= keys:
            return comparison_sections(value)
        if {"flops", "latency"} <= keys:
            costs = [costs_section(one) for one in (value["flops"], *value["latency"]) if one]
            return [*([sizes_section(value)] if value.get("parameters") else []), *costs]
        if {"rows", "device", "threads"} <= keys:
            return [bench_section(value)]
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise InputError(f"RESULTS {str(file)!r} is incomplete: {error!r}. Write it again with its command.") from error
    raise InputError(
        f"RESULTS {str(file)!r} is of no known kind: it was not written by compare, profile or bench. "
        "Name files of these."
    )

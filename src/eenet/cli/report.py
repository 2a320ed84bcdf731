"""`eenet report`: one page from what the other commands wrote."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from eenet.cli.compare import SET
from eenet.cli.options import existing, file_out
from eenet.cli.output import Output, Result
from eenet.errors import InputError
from eenet.tables.atomic import restore
from eenet.tables.files import read_json

if TYPE_CHECKING:
    from eenet.report import Section

FILES = ("comparison.json", "costs.json", "bench.json")
POLICY = "policy/policy.json"
KINDS = {
    "comparison": {"rows", "area", "exits"},
    "profile": {"flops", "latency"},
    "bench": {"rows", "device", "threads"},
    "policy": {"rule", "info"},
}
"""What results are recognised by."""

Made = TypeVar("Made")


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
    files = [file for path in results for file in find_results(path)]
    verdicts = [value["verdict"] for file in files if "verdict" in (value := read_json(file, "RESULTS"))]

    from eenet.report import write_page

    write_page(out, _page([_read(file) for file in files], title, output.line))
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
    return [*found, *([path / POLICY] if (path / POLICY).is_file() else [])]


def _page(results: Sequence[tuple[Path, str, Any]], title: str, command: str) -> str:
    """Return the page of results with their kinds: about one comparison and what belongs to it, or about each."""
    from eenet.report import about_section, comparison_page, page

    by_kind = {kind: [value for _, one, value in results if one == kind] for kind in KINDS}
    single = {kind: values[0] for kind, values in by_kind.items() if len(values) == 1}
    if "comparison" not in single or any(len(values) > 1 for values in by_kind.values()):
        listed = [_sections(*one, number=number) for number, one in enumerate(results)]
        return page(title, [*(section for sections in listed for section in sections), about_section(command=command)])
    comparison, info = single["comparison"], single.get("policy", {}).get("info", {})
    (file,) = (file for file, kind, _ in results if kind == "comparison")
    others = [_sections(*one) for one in results if one[1] == "profile"]
    return _whole(
        file,
        lambda: comparison_page(
            comparison,
            title=title,
            bench=single.get("bench"),
            profile=single.get("profile"),
            promise=info.get("certificate", {}).get("statement", ""),
            budget=info.get("budget") if info.get("unit") == comparison["unit"] else None,
            more=[section for sections in others for section in sections],
            command=command,
        ),
    )


def _read(file: Path) -> tuple[Path, str, Any]:
    """Return a result with its kind, recognised by its keys."""
    value: Any = read_json(file, "RESULTS")
    keys = set(value) if isinstance(value, dict) else set()
    for kind, needed in KINDS.items():
        if needed <= keys:
            return file, kind, value
    raise InputError(
        f"RESULTS {str(file)!r} is of no known kind: it was not written by compare, profile or bench. "
        "Name files of these."
    )


def _sections(file: Path, kind: str, value: Any, number: int = 0) -> Sequence[Section]:  # noqa: ANN401 - JSON
    """Return the sections about one result; ``number``: of the comparison on the page."""
    from eenet.report import bench_section, comparison_sections, costs_section, sizes_section

    def made() -> list[Section]:
        if kind == "comparison":
            return comparison_sections(value, number=number)
        if kind == "bench":
            return [bench_section(value)]
        if kind == "policy":
            return []
        costs = [costs_section(one) for one in (value["flops"], *value["latency"]) if one]
        return [*([sizes_section(value)] if value.get("parameters") else []), *costs]

    return _whole(file, made)


def _whole(file: Path, make: Callable[[], Made]) -> Made:
    """Return what is made of a result.

    Raises:
        InputError: Something is missing in it.
    """
    try:
        return make()
    except (KeyError, TypeError, IndexError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"RESULTS {str(file)!r} is incomplete: {error!r}. Write it again with its command.") from error

"""The paper's tables, and beside them ours at the same relative budgets, as points lost against the model itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from eenet.errors import InputError
from eenet.evaluation import compare
from eenet.evaluation.segmentation import Confusion
from eenet.experiments import pages
from eenet.experiments.reproduce.paper import METHODS, PAPER, Budgeted, PaperExperiment
from eenet.report import markdown_table
from eenet.schedulers import Scheduler
from eenet.tables.costs import CostTable
from eenet.tables.files import read_json, write_json
from eenet.tables.table import ExitTable

FILE = "parity.json"
KEPT = "parity"  # folder, beside the pages, of results whose runs are elsewhere
_SHOWN = (("operations", "auto"), ("latency", "auto"), ("latency", "random"))  # in the first table
_HEAD = """# The paper's tables, and ours beside them

The paper (Ilhan et al., WACV 2024) asks for mean latencies; what carries over to another machine is the **share of the
base model's latency**. Every table below compares at these shares: on top the paper's five methods, below all policies
here, as **points lost against the base model** (negative: gained). The base of ours is the last exit for all samples,
at the cost of the original model without exits. *Operations* and *latency* say what the budget is counted in: both
halves have the same share of their own full cost. Latency is the median time of one sample on the eager engine, with
heads and decisions. `random` is the best mix of fixed exits, *exit k* is that exit for all samples. Ours are means over
the random splits stated, with the standard deviation over them.
"""


def results(
    paper: PaperExperiment,
    tables: tuple[ExitTable, ExitTable, Confusion | None],
    schedulers: Mapping[str, Scheduler],
    profile: Mapping[str, Any],
    *,
    splits: int,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Return what every policy loses at the paper's shares of the full cost, by operations and by time.

    Args:
        paper: Whose budgets.
        tables: Calibration set, test set, and the confusion counts of the latter where it is of maps.
        schedulers: By name.
        profile: As of `Profile.to_dict`, with the times of one engine at batch size 1.
        splits: See `compare`.
        seed: Likewise.
        progress: Likewise.
    """
    val, test, confusion = tables
    shares = [paper.share(row) for row in paper.rows]
    ours: dict[str, Any] = {}
    row = profile["latency"][0]
    for name, costs in {"operations": val.require_costs(), "latency": CostTable.from_dict(row)}.items():
        asked = [share * costs.full for share in shares if share * costs.full >= costs.low]
        found = compare(
            val, test, schedulers, asked, costs, confusion=confusion, splits=splits, seed=seed, progress=progress
        ).to_dict()
        ours[name] = {"costs": costs.to_dict(), "splits": splits, **_lost(found, costs, shares)}
    return {
        "ours": ours,
        "parameters": profile["parameters"],
        "times": row["cumulative"],
        "full_time": row["full"]["median"],
        "decisions": [1000 * one["median"] for one in row["decisions"]],
        "machine": pages.machine().strip(),
    }


def keep(folder: Path, name: str, found: Mapping[str, Any]) -> None:
    """Write the results of an experiment beside the pages, so that their page can be made again without its run."""
    write_json(folder / KEPT / f"{name}.json", dict(found))


def _lost(found: Mapping[str, Any], costs: CostTable, shares: list[float]) -> dict[str, Any]:
    """Return the points lost by every policy, and by every exit, at each share of the full cost."""
    full = found["full"]["utility_test"]
    lost: dict[str, list[dict[str, float] | None]] = {}
    for row in found["rows"]:
        cells = lost.setdefault(row["policy"], [None] * len(shares))
        place = min(range(len(shares)), key=lambda i: abs(shares[i] * costs.full - row["budget"]))
        spread = 100 * row.get("sd", {}).get("utility_at_budget", 0.0)
        cells[place] = {"lost": 100 * (full - row["utility_at_budget"]), "sd": spread}
    exits = [100 * (full - one["utility_test"]) for one in found["exits"]]
    return {"full": full, "lost": lost, "exits": exits}


def write_paper_page(folder: Path, out: Path, command: str) -> Path:
    """Write the page of all experiments of the paper, with ours where they were done.

    Args:
        folder: For the page; results of earlier runs, see `keep`, stand in for those that ``out`` has not.
        out: Contains a folder for every experiment of ours that was done, by its name.
        command: That makes the page again.

    Raises:
        InputError: Results of ours are damaged, or of another version.
    """
    found: dict[str, Mapping[str, Any]] = {}
    sections: list[str] = []
    for paper in PAPER:
        path = out / paper.ours / FILE
        if not path.is_file():
            path = folder / KEPT / f"{paper.ours}.json"
        if path.is_file():
            found[paper.ours] = read_json(path, "results")
        try:
            summary(found)
            sections += _section(paper, found.get(paper.ours))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"results {path} cannot be used: they are damaged, or of another version ({type(error).__name__}: "
                f"{error}). Delete the file, and repeat eenet reproduce {paper.ours}."
            ) from error
    return pages.write_page(folder / "paper.md", _HEAD, summary(found), *sections, pages.again(command))


def summary(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the table of the tightest budgets: what the paper's scheduler loses there, and what `auto` does.

    Args:
        found: What `results` returned, by the name of our experiment.
    """
    head = (
        *("data, model", "budget, share of the base", "points lost: EENet, as published"),
        *("`auto`, operations", "`auto`, latency", "best static mix, latency"),
    )
    rows = []
    for paper in PAPER:
        tightest, ours = paper.rows[-1], found.get(paper.ours, {}).get("ours")
        cells = ["not run"] * 3
        if ours is not None:
            wanted = [(ours[by]["lost"], policy) for by, policy in _SHOWN]
            cells = [_cell(lost[policy][-1]) if policy in lost else "-" for lost, policy in wanted]
        published = _paper_cell(paper.base, tightest, METHODS.index("EENet"))
        rows.append((paper.title, f"{paper.share(tightest):.2f}", published, *cells))
    return markdown_table(head, rows)


def _section(paper: PaperExperiment, found: Mapping[str, Any] | None) -> Iterator[str]:
    """Yield the title, the table of points lost, and the table of sizes of an experiment."""
    yield f"## {paper.title}"
    shares = [f"{paper.share(row):.2f}" for row in paper.rows]
    head = ("", f"base, {paper.measure} %", *(f"lost at {share} of the base" for share in shares))
    rows = [
        (f"paper: {name}", f"{paper.base:.2f}", *(_paper_cell(paper.base, row, i) for row in paper.rows))
        for i, name in enumerate(METHODS)
    ]
    for by, ours in [] if found is None else found["ours"].items():
        base = f"{100 * ours['full']:.2f}"
        for name, cells in ours["lost"].items():
            rows.append((f"{name}, {by}", base, *map(_cell, cells)))
        for k, lost in enumerate(ours["exits"][:-1]):
            cost = ours["costs"]["cumulative"][k] / (ours["costs"]["reference"] or ours["costs"]["cumulative"][-1])
            cells = [f"{lost:.2f}" if cost <= paper.share(row) else "-" for row in paper.rows]
            rows.append((f"exit {k} ({cost:.2f} of the base), {by}", base, *cells))
    yield markdown_table(head, rows)
    if found is None:
        yield f"Ours is missing: `eenet reproduce {paper.ours}` has not been run, or its data are not at hand."
    else:
        yield (
            f"What differs in ours: {paper.differs}. Means over {found['ours']['operations']['splits']} split(s). "
            f"{found['machine']}{found.get('note', '')}"
        )
    yield markdown_table(*_sizes(paper, found))


def _paper_cell(base: float, row: Budgeted, method: int) -> str:
    quality = row.quality[method]
    if quality is None:
        return "-"
    return f"{base - quality:.2f}" + (f" ± {row.spread:.2f}" if METHODS[method] == "EENet" else "")


def _cell(cell: Mapping[str, float] | None) -> str:
    """Return points lost with their spread over splits, where there are several."""
    if cell is None:
        return "out of reach"
    return f"{cell['lost']:.2f}" + (f" ± {cell['sd']:.2f}" if cell["sd"] else "")


def _sizes(paper: PaperExperiment, found: Mapping[str, Any] | None) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Return size and time of leaving at each exit, and of the model without exits."""
    exits = max(len(paper.times), 0 if found is None else len(found["times"]) + 1) - 1
    head = ("", *(f"exit {k}" for k in range(exits)), "without exits", "the scheduler adds, per exit")
    rows = [_padded("paper", paper.parameters, paper.times, exits, paper.scheduler)]
    if found is not None:
        sizes = [count / 1e6 for count in (*found["parameters"]["up_to"], found["parameters"]["full"])]
        added = f"{max(found['decisions']):.0f} µs"
        if (numbers := found["parameters"].get("policy")) is not None:
            added = f"{numbers / len(found['decisions']):,.0f} parameters, {added}"
        rows.append(_padded("ours", sizes, (*found["times"], found["full_time"]), exits, added))
    return head, rows


def _padded(
    name: str, sizes: tuple[float, ...] | list[float], times: tuple[float, ...], exits: int, added: str
) -> tuple[str, ...]:
    cells = [f"{size:.2f} M, {time:.2f} ms" for size, time in zip(sizes, times, strict=True)]
    return (name, *cells[:-1], *[""] * (exits - len(cells) + 1), cells[-1], added)

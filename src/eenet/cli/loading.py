"""What commands read before any work starts: tables with the costs that count, runs, and policies that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from eenet import environment
from eenet.cli import names
from eenet.cli.interrupt import require
from eenet.cli.options import count, existing, file_in, output_folder, word
from eenet.cli.output import Output
from eenet.errors import InputError
from eenet.tables.costs import CostTable
from eenet.tables.files import read_arrays, read_json
from eenet.tables.outcomes import load_table
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    from eenet.evaluation import CostParts
    from eenet.experiments.recipes import Recipe, Run
    from eenet.models.model import MultiExitModel
    from eenet.policies import SavedPolicy


@dataclass(frozen=True, kw_only=True)
class Costs:
    """The options that say which costs count: those of a profile, else a table's own."""

    costs: Annotated[Path | None, file_in("--costs", "Costs of `eenet profile`, in place of the table's own.")] = None
    batch_size: Annotated[int | None, count("Batch size whose latency in --costs counts.")] = None
    engine: Annotated[str | None, word("E", "Engine whose latency in --costs counts.")] = None
    dtype: Annotated[str | None, word("D", "Number format whose latency in --costs counts.")] = None
    fallback: Annotated[
        str | None,
        word("COST[:UTILITY]", "Add a last exit that passes samples on, such as to a person, at this extra cost."),
    ] = None

    def read_table(self, path: Path, unit: str | None = None) -> ExitTable:
        """Read an exit table, with the costs that count.

        Args:
            path: The file or folder.
            unit: Of its own costs, where they can be converted; default: a readable one for operations.

        Raises:
            InputError: A file is missing, damaged or malformed; there are no costs, or those of another model; or a
                choice is made where there is nothing to choose.
        """
        measured, table = self._measured(), load_table(path)
        if measured is None and table.costs is None:
            raise InputError(
                "costs are missing: the table has no key 'costs' and there is no --costs. "
                "Pass --costs FILE (written by `eenet profile`), or add the keys 'costs' and 'cost_unit' to the table."
            )
        if measured is not None and measured.num_exits != table.num_exits:
            raise InputError(
                f"--costs of {measured.num_exits} exits does not fit: the table has {table.num_exits}. "
                "Profile the model that the table was recorded from."
            )
        if table.costs is not None:
            own = readable(table.costs, unit)
            factor = own.low / table.costs.low
            table = replace(table, costs=own, cost=None if table.cost is None else table.cost * factor)
        return self._with_fallback(table.with_costs(measured))

    def _with_fallback(self, table: ExitTable) -> ExitTable:
        if self.fallback is None:
            return table
        cost, _, utility = self.fallback.partition(":")
        try:
            return table.with_fallback(
                cost=read_cost(cost, table.require_costs()), utility=read_utility(utility or "1")
            )
        except ValueError as error:
            raise InputError(
                f"--fallback {self.fallback!r} cannot be used: {str(error).rstrip('.')}. Pass what passing a sample on "
                "costs, and, after a colon, the utility of what comes back, such as 50:0.98."
            ) from error

    def _measured(self) -> CostTable | None:
        chosen: dict[str, Any] = {"batch_size": self.batch_size, "engine": self.engine, "dtype": self.dtype}
        if self.costs is not None:
            from eenet.running import load_costs

            return readable(load_costs(self.costs, **chosen))
        if any(choice is not None for choice in chosen.values()):
            raise InputError(
                "--batch-size, --engine and --dtype choose among measured costs: there is no --costs. Pass --costs."
            )
        return None

    def parts(self, costs: CostTable) -> CostParts | None:
        """Return what costs are made of, where there is a profile that says so."""
        from eenet.evaluation import CostParts

        return None if self.costs is None else CostParts.of_profile(read_json(self.costs, "costs"), costs)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The options that say where a recipe's data set is."""

    data_root: Annotated[
        Path | None, word("DIR", "Folder that contains the recipe's data set; default: EENET_DATA.")
    ] = None
    download: Annotated[
        bool,
        typer.Option(
            "--download",
            help="Fetch the data set if missing (CIFAR-10, CIFAR-100), into --data-root, else EENET_CACHE.",
        ),
    ] = False

    def prepare(self, recipe: Recipe) -> Path | None:
        """Return the folder, checked before any work starts, after fetching the data where that is asked for.

        Raises:
            InputError: It is no folder, is missing, or the data cannot be fetched.
            RunError: The download failed.
        """
        folder = self.data_root or (environment.cache_folder() if self.download else None)
        if self.download and folder is None:
            raise InputError(
                "--download has nowhere to go: the data set needs a folder. Pass --data-root with one, or set "
                f"{environment.CACHE}."
            )
        if self.download and folder is not None:
            recipe.download(output_folder(folder, "--data-root" if self.data_root else environment.CACHE))
        elif folder is not None:
            existing(folder, "--data-root", folder=True)
        return folder


def readable(costs: CostTable, unit: str | None = None) -> CostTable:
    """Return operation counts in a unit, or in the largest one in which the full cost is at least 1.

    Costs in anything but FLOPs stay as they are.
    """
    sizes = {"GFLOPs": 1e9, "MFLOPs": 1e6, "kFLOPs": 1e3, "FLOPs": 0}
    if costs.unit != "FLOPs":
        return costs
    return costs.convert(unit if unit in sizes else next(name for name, size in sizes.items() if costs.high >= size))


def read_cost(text: str, costs: CostTable) -> float:
    """Read a cost as budgets are written, also one below all exits; a `BudgetError` where it is none."""
    anything = CostTable((1e-9 * costs.full, costs.full), costs.unit, costs.reference)
    return anything.budget(text).value


def read_utility(text: str) -> float:
    """Read a fraction or a percentage; a `ValueError` where it is no number."""
    return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)


def read_groups(path: Path) -> np.ndarray:
    """Read groups of samples named by the user: an array, or text with one group per line.

    Raises:
        InputError: The file is damaged, or a line holds nothing or more than one value.
    """
    if path.suffix.lower() == ".npy":
        return next(iter(read_arrays(path, "--groups").values()))
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"--groups {str(path)!r} cannot be read: {error}. Write it again.") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or "," in line:
            what = "several values" if line.strip() else "nothing"
            raise InputError(
                f"--groups {str(path)!r} has {what} in line {number}: one group per line is needed, without a heading, "
                "one line per TEST sample. Write it so."
            )
    return np.array([line.strip() for line in lines], dtype=np.str_)


def read_exits(text: str, num_exits: int) -> tuple[int, ...]:
    """Read which exits stay, with the last one: numbers separated by commas, or the file of `eenet advise --out`.

    Raises:
        InputError: It names no early exit of the table, or none at all.
    """
    words: list[object] = [word.strip() for word in text.split(",")]
    if text.lower().endswith(".json"):
        value = read_json(existing(Path(text), "--exits"), "--exits")
        words = value["kept"] if isinstance(value, dict) and isinstance(value.get("kept"), list) else []
    last = num_exits - 1
    known = {str(k): k for k in range(num_exits)}
    numbers = {known.get(str(word), -1) for word in words} | {last}
    if len(numbers) < 2 or -1 in numbers:
        raise InputError(
            f"--exits {text!r} names no early exits of this table: they are 0 to {last - 1}. "
            "Name some of these, with commas between them, or pass the file of eenet advise --out."
        )
    return tuple(sorted(numbers))


def open_run(path: Path, data_root: Path | None = None) -> Run:
    """Return the run in a folder.

    Raises:
        InputError: There is no finished run.
        MissingExtraError: torch is not installed.
    """
    require("torch")
    from eenet.experiments import recipes

    return recipes.open_run(path, data_root=data_root)


def open_policy(
    path: Path, opened: Run, output: Output, *, force: bool, parts: Sequence[str] | None = None
) -> tuple[SavedPolicy, MultiExitModel]:
    """Return a fitted policy and the model that it decides for: the run's, without the exits it was not fitted for.

    Args:
        path: Its folder.
        opened: The run.
        output: For notes.
        force: Take a policy of another model.
        parts: Classes of the user's own that it consists of, as the user wrote them.

    Raises:
        InputError: It is missing, damaged, was fitted for another number of exits or classes, or, without ``force``, on
            a table of another model.
    """
    from eenet.policies import load_policy
    from eenet.running.adaptive import require_source
    from eenet.running.engines import as_engine

    model, classes = opened.model, len(opened.classes)
    saved = load_policy(path, names.parts(parts))
    exits = tuple(range(saved.policy.num_exits)) if saved.exits is None else saved.exits
    needed = {"exits": exits[-1] + 1, "classes": saved.info.get("num_classes", classes)}
    for what, there in (("exits", model.num_exits), ("classes", classes)):
        if needed[what] != there:
            raise InputError(
                f"--policy {str(path)!r} does not fit: it was fitted for {needed[what]} {what}, this run has {there}. "
                "Fit a policy on a table recorded from this run."
            )
    if not saved.source:
        output.note("The policy does not name the model it was fitted for: whether it is this one was not checked.")
    if not force:
        require_source(saved.policy, as_engine(model, optimise=False))
    dropped = [k for k in range(model.num_exits) if k not in exits]
    return saved, model.without(dropped) if dropped else model

"""Outcome tables: what every stage's answer was worth and cost for every sample, from files and frames of columns."""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64

from eenet.errors import TableError, require
from eenet.tables.checks import COSTS, array_of, check_cost, listed, names_of
from eenet.tables.costs import CostTable
from eenet.tables.files import DAMAGED
from eenet.tables.table import ExitTable

Columns: TypeAlias = dict[str, np.ndarray]
_Fields: TypeAlias = dict[str, dict[str, str]]

SUFFIXES = (".csv", ".parquet")
"""How the names of files end that are read here."""

_LONG = ("sample", "stage", "utility")
_ABOUT_SAMPLES = ("group", "label")
_COST = re.compile(r"(?P<kind>cost|cumulative_cost)(?: ?\[(?P<unit>[^\]]+)\])?")
_TRUTH = {"true": 1.0, "false": 0.0}
_MISSING = ("", "na", "n/a", "nan", "none", "null", "<na>", "nat")


def read_outcomes(
    source: Any,  # noqa: ANN401
    stages: Sequence[str] | None = None,
    *,
    reference: float | None = None,
    group: str | None = None,
) -> ExitTable:
    """Return the exit table of outcomes: the stages are its exits, numbers known when a stage is done its features.

    **Costs are those of each stage**: ``small.cost`` is what running the stage ``small`` on the sample costs, and the
    costs of all stages up to where a sample leaves are added up. Where costs are added up already, the columns are
    called ``small.cumulative_cost``. A unit stands behind, in brackets: ``small.cost [ms]``.

    *Wide*, one row per sample: columns ``<stage>.utility`` (in [0, 1], or true and false), ``<stage>.cost``, and any
    others named ``<stage>.<feature>``. Stages are in the order of their first columns. *Long*, one row per sample and
    stage: columns ``sample``, ``stage``, ``utility``, ``cost`` and features; stages in the order of every
    sample's rows. Columns without a stage are left out, apart from `outcome_groups`.

    A feature that a stage does not have keeps its value from the stage before, and is 0 before the first that has it.
    Those of the last stage are not needed: nothing is decided there. Costs that are the same for all samples become a
    `CostTable`; others stay with the samples, and no policy reads them.

    Args:
        source: A CSV file (UTF-8, with commas and a heading), a Parquet file, a frame (pandas, polars, pyarrow), or a
            mapping from names to columns.
        stages: Some of the stages, in their order; default: all.
        reference: What the model to compare with costs alone, for percentages; default: they refer to the last stage,
            with all stages before it.
        group: The column that says which samples belong together (`ExitTable.group`), such as ``document``; default:
            each is independent of the others.

    Raises:
        TableError: The file or a column is missing or damaged, a value is missing, a stage was not evaluated for every
            sample, or a value cannot be used; the message names column and row (the first is 0).
        MissingExtraError: A Parquet file without pyarrow.

    Example:
        >>> columns = {"small.utility": [1, 0], "small.cost": [1, 1], "small.score": [0.9, 0.2]}
        >>> table = read_outcomes({**columns, "large.utility": [1, 1], "large.cost": [9, 9]})
        >>> table.exit_names, table.costs.cumulative
        (('small', 'large'), (1.0, 10.0))
    """
    columns = _wide(_columns(source), ordered=stages is None, group=group)
    fields = _by_stage(columns)
    names = tuple(fields) if stages is None else _chosen(stages, fields)
    if len(names) < 2:
        raise TableError(
            f"outcomes have the stages {', '.join(names) or 'none'}: a choice needs at least 2, each with a column "
            f"'<stage>.utility'. Found the columns {', '.join([*columns][:8])}."
        )
    utility = np.stack([_between(columns, f"{name}.utility", 0, 1) for name in names], axis=1)
    cost, unit = _costs(columns, {name: fields[name] for name in names})
    features, feature_names = _features(columns, [fields[name] for name in names])
    check_cost(cost)
    same = bool((cost == cost[0]).all())
    return ExitTable(
        features=features,
        feature_names=feature_names,
        utility=utility,
        cost=None if same else cost,
        group=None if group is None else _group(columns, group),
        costs=CostTable(tuple((cost[0] if same else cost.mean(axis=0)).tolist()), unit, reference),
        exit_names=names,
        split=Path(source).stem if isinstance(source, str | os.PathLike) else "",
    )


def outcome_groups(source: Any) -> np.ndarray | None:  # noqa: ANN401 - as of `read_outcomes`
    """Return the group of every sample, from a column ``group`` or else ``label``; None where there is neither."""
    columns = _wide(_columns(source), ordered=False)
    found = next((columns[name] for name in _ABOUT_SAMPLES if name in columns), None)
    return None if found is None else _texts(found)


def _group(columns: Columns, name: str) -> np.ndarray:
    """Return the group of every sample from a column, as texts; refuse a column that lacks one."""
    if name not in columns:
        raise TableError(
            f"group {name!r} is no column of the outcomes: there are {', '.join([*columns][:8])}. Name one."
        )
    if (absent := _absent(columns[name])).any():
        raise TableError(
            f"column {name!r} has no value in row {int(absent.argmax())}: every sample belongs to a group. Name it "
            "there."
        )
    return _texts(columns[name])


def _texts(values: np.ndarray) -> np.ndarray:
    return np.array([str(value) for value in values.tolist()], dtype=np.str_)


def load_table(path: str | os.PathLike[str]) -> ExitTable:
    """Return the table in a file or folder: outcomes where the name ends so, else as `ExitTable.load`."""
    return read_outcomes(path) if Path(path).suffix.lower() in SUFFIXES else ExitTable.load(path)


def _columns(source: Any) -> Columns:  # noqa: ANN401
    """Return columns by name, as they are."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if not path.is_file():
            raise TableError(f"outcomes {path} are missing: there is no such file. Check the path.")
        if path.suffix.lower() != ".parquet":
            return _csv(path)
        source = _parquet(path)
    if hasattr(source, "collect"):  # of polars, for one
        raise TableError(
            f"outcomes of type {type(source).__name__} are not read yet: the values are needed. Pass what collect() "
            "returns."
        )
    names: Any = source if isinstance(source, Mapping) else None
    for attribute in ("column_names", "columns"):  # of pyarrow; of pandas and polars
        names = getattr(source, attribute, None) if names is None else names
    if names is None:
        raise TableError(
            f"outcomes of type {type(source).__name__} are no table: a file, a frame or a mapping of columns is "
            "needed. Pass one."
        )
    return _unlike(
        names_of(listed([*names], "columns"), "columns"), [array_of(f"column {name}", source[name]) for name in names]
    )


def _csv(path: Path) -> Columns:
    """Return the columns of a CSV file, as texts."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            heading, *rows = csv.reader(file, strict=True)
    except (OSError, ValueError, csv.Error) as error:  # ValueError: an empty file, and what is no UTF-8
        fault = "it is empty" if path.stat().st_size == 0 else str(error)
        raise TableError(
            f"outcomes {path} cannot be read: {fault}. A CSV file in UTF-8 is needed, with a heading. Write it again."
        ) from error
    if len(heading) == 1 and (mark := next((one for one in ";\t|" if one in heading[0]), None)):
        raise TableError(
            f"outcomes {path} have {mark!r} between their columns: commas are needed, and points in numbers. Write it "
            f"again, or pass the frame: read_outcomes(pandas.read_csv(path, sep={mark!r}, decimal=','))."
        )
    heading = [name.strip() for name in heading]
    rows = [row for row in rows if row]  # blank lines
    uneven = next((i for i, row in enumerate(rows) if len(row) != len(heading)), None)
    if uneven is not None:
        raise TableError(
            f"outcomes {path} have {len(rows[uneven])} values in row {uneven}: the heading has {len(heading)}. Write "
            "one value per column; texts with commas stand in quotes."
        )
    cells = zip(*rows, strict=True) if rows else [()] * len(heading)
    return _unlike(heading, [np.array(column, dtype=object) for column in cells])


def _parquet(path: Path) -> Any:  # noqa: ANN401 - a table of pyarrow
    require("pyarrow", reason="Parquet files need it")
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_table(path)
    except (ArrowException, *DAMAGED) as error:
        raise TableError(f"outcomes {path} cannot be read: {error}. Write the Parquet file again.") from error


def _unlike(names: Sequence[str], values: Sequence[np.ndarray]) -> Columns:
    """Return columns by name; refuse two of one name, and columns that are no columns."""
    columns: Columns = {}
    for name, column in zip(names, values, strict=True):
        if name in columns:
            raise TableError(f"column {name!r} stands twice: which of them counts is not clear. Leave one out.")
        if column.ndim != 1 or len(column) != len(values[0]):
            raise TableError(f"column {name!r} of shape {column.shape} does not fit: a value per row is needed.")
        columns[name] = column
    if not columns or not len(values[0]):
        raise TableError("outcomes have no rows: at least 1 sample is needed, below the heading. Add some.")
    return columns


def _wide(columns: Columns, *, ordered: bool, group: str | None = None) -> Columns:
    """Return columns of one row per sample, from such ones or from one row per sample and stage.

    Args:
        columns: As they are.
        ordered: The order of rows is that of the stages; refuse rows that have several.
        group: A column that is about samples, not about stages.
    """
    if not set(_LONG) <= set(columns):
        return columns
    samples, of_sample = _numbered(columns["sample"])
    stages, of_stage = _numbered(columns["stage"])
    place = of_sample * len(stages) + of_stage
    times = np.bincount(place, minlength=len(samples) * len(stages))
    if (times != 1).any():
        wrong = int((times != 1).argmax())
        sample, stage = samples[wrong // len(stages)], stages[wrong % len(stages)]
        if times[wrong]:
            raise TableError(
                f"sample {sample!r} has the stage {stage!r} {times[wrong]} times: one counts. Leave the others out."
            )
        raise TableError(
            f"sample {sample!r} lacks the stage {stage!r}: what its answer would be worth is not known, and the policy "
            "has to be judged there too. Evaluate it, or leave the sample out."
        )
    if ordered:
        _check_order(samples, stages, of_sample, of_stage)
    rows = np.argsort(place).reshape(len(samples), len(stages))
    about = dict.fromkeys(("sample", *_ABOUT_SAMPLES, group))
    wide = {name: _of_samples(name, columns[name], rows) for name in about if name is not None and name in columns}
    for j, stage in enumerate(stages):
        for name, values in columns.items():
            own = values[rows[:, j]]
            if name in wide or name == "stage" or (name != "utility" and _absent(own).all()):
                continue  # a feature that the stage does not have
            wide[f"{stage}.{name}"] = own
    return wide


def _check_order(samples: Sequence[str], stages: Sequence[str], of_sample: np.ndarray, of_stage: np.ndarray) -> None:
    """Refuse rows in which samples have their stages in several orders: which of them runs first is not known."""
    orders = of_stage[np.argsort(of_sample, kind="stable")].reshape(len(samples), len(stages))
    other = (orders != orders[0]).any(axis=1)
    if other.any():
        row = int(other.argmax())
        first, second = (", ".join(stages[k] for k in orders[i]) for i in (0, row))
        raise TableError(
            f"stages of sample {samples[row]!r} stand in the order {second}, those of {samples[0]!r} as {first}: which "
            "of them runs first is not clear. Sort the rows, or pass stages=."
        )


def _of_samples(name: str, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return what is known of each sample from the rows of its stages; refuse it where they differ."""
    texts = np.array([str(value) for value in values.tolist()], dtype=object)[rows]
    differs = (texts != texts[:, :1]).any(axis=1)
    if differs.any():
        row = int(differs.argmax())
        shown = " and ".join(repr(text) for text in dict.fromkeys(texts[row]))
        raise TableError(
            f"column {name!r} has {shown} for one sample, in rows {', '.join(map(str, np.sort(rows[row])))}: it is the "
            "same for all its stages. Correct it."
        )
    return np.asarray(values[rows[:, 0]])


def _numbered(values: np.ndarray) -> tuple[list[str], np.ndarray]:
    """Return the different values in the order of their appearance, and the number of each row's."""
    texts = [str(value) for value in values.tolist()]
    numbers = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    return list(numbers), np.array([numbers[text] for text in texts])


def _by_stage(columns: Columns) -> _Fields:
    """Return the columns of every stage by what they hold."""
    stages = [name.removesuffix(".utility") for name in columns if name.endswith(".utility")]
    fields: _Fields = {}
    for name in columns:
        stage = max((one for one in stages if one and name.startswith(f"{one}.")), key=len, default=None)
        if stage is not None:
            fields.setdefault(stage, {})[name.removeprefix(f"{stage}.")] = name
        elif "." in name:
            raise TableError(
                f"column {name!r} belongs to no stage: there is no column '{name.rpartition('.')[0]}.utility'. Add "
                "that, or rename the column without a dot to leave it out."
            )
    return fields


def _chosen(stages: Sequence[str], fields: _Fields) -> tuple[str, ...]:
    chosen = names_of(listed(stages, "stages"), "stages")
    wrong = next((one for i, one in enumerate(chosen) if one not in fields or one in chosen[:i]), None)
    if wrong is not None:
        raise TableError(
            f"stages {wrong!r} is unknown or named twice: there are {', '.join(fields)}. Name some of them."
        )
    return chosen


def _costs(columns: Columns, fields: _Fields) -> tuple[Float64[np.ndarray, "sample stage"], str]:
    """Return the cumulative costs and their unit."""
    found, kinds, units = [], {}, {}
    for stage, own in fields.items():
        named = [(match, column) for field, column in own.items() if (match := _COST.fullmatch(field))]
        if len(named) != 1:
            raise TableError(
                f"stage {stage!r} has {len(named)} columns of its cost: 1 is needed, '{stage}.cost' for what the stage "
                f"costs by itself, or '{stage}.cumulative_cost' with all before it; a unit "
                "stands behind, in square brackets. Correct it."
            )
        [(match, column)] = named
        kinds[match["kind"]] = units[match["unit"] or "units"] = column
        found.append(_between(columns, column, *COSTS))
    for each in (kinds, units):
        if len(each) > 1:
            raise TableError(
                f"columns {' and '.join(each.values())} differ in their kind or unit: costs of all stages are of one "
                "kind. Use one."
            )
    cost = np.stack(found, axis=1)
    return np.cumsum(cost, axis=1) if "cost" in kinds else cost, next(iter(units))


def _features(columns: Columns, fields: Sequence[Mapping[str, str]]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return what is known when each stage is done; a feature that it lacks keeps its value."""
    names = tuple(dict.fromkeys(f for own in fields[:-1] for f in own if f != "utility" and not _COST.fullmatch(f)))
    if not names:
        raise TableError(
            "outcomes have no features: a policy needs a number that is known when a stage is done, such as a score, "
            "in a column '<stage>.score'. Add one."
        )
    features = np.zeros((len(next(iter(columns.values()))), len(fields), len(names)), dtype=np.float32)
    for k, own in enumerate(fields):
        features[:, k] = features[:, max(k - 1, 0)]
        for j, name in enumerate(names):
            if name in own:
                features[:, k, j] = _between(columns, own[name], -1e30, 1e30)
    return features, names


def _between(columns: Columns, name: str, low: float, high: float) -> Float64[np.ndarray, " sample"]:
    """Return the numbers of a column; refuse one that is missing or out of range, naming its row."""
    if (kind := columns[name].dtype).kind in "mMc":  # numpy would take a time as a count of its own unit
        raise TableError(f"column {name!r} of type {kind} does not fit: numbers are needed. Convert it.")
    try:
        found = columns[name].astype(np.float64)
    except (TypeError, ValueError):
        found = np.array([_number(value) for value in columns[name].tolist()])
    bad = ~((found >= low) & (found <= high))
    if not bad.any():
        return found
    row = int(bad.argmax())
    value = columns[name][row]
    if _absent(columns[name][row : row + 1])[0]:
        raise TableError(
            f"column {name!r} has no value in row {row}: every stage has to be known for every sample, also where an "
            "earlier one would do. Evaluate it there, or leave the sample out."
        )
    raise TableError(
        f"column {name!r} has {str(value)[:40]!r} in row {row}: a number from {low:g} to {high:g} is needed, written "
        "with a point and without a unit or percent sign. Correct it, leave the sample out, or, if the column is no "
        "number, rename it without a dot."
    )


def _number(value: object) -> float:
    """Return a number, or that of a truth value; NaN for anything else."""
    text = str(value).strip().lower()
    try:
        return _TRUTH[text] if text in _TRUTH else float(text)
    except ValueError:
        return math.nan


def _absent(values: np.ndarray) -> np.ndarray:
    """Return where there is no value."""
    return np.array([str(value).strip().lower() in _MISSING for value in values.tolist()], dtype=np.bool_)

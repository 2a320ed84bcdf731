"""What leaving at each exit costs, and what a budget means in those terms."""

from __future__ import annotations

import math
import re
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Any, SupportsFloat

from eenet.errors import BudgetError, InputError, ShapeError, TableError
from eenet.tables.checks import COSTS, instance, number
from eenet.tables.display import few

# unit -> (dimension, size in the dimension's base unit); one multiply-accumulate is two floating point operations
_UNITS = {
    "FLOPs": ("operations", 1.0),
    "kFLOPs": ("operations", 1e3),
    "MFLOPs": ("operations", 1e6),
    "GFLOPs": ("operations", 1e9),
    "MACs": ("operations", 2.0),
    "MMACs": ("operations", 2e6),
    "us": ("time", 1e-6),
    "µs": ("time", 1e-6),  # the micro sign
    "μs": ("time", 1e-6),  # the Greek letter
    "ms": ("time", 1e-3),
    "s": ("time", 1.0),
}
_SAME = 1e-6  # relative difference of equal costs: files may contain float32
_BUDGET = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([^\d\s].*?)?\s*")

STANDARD_FRACTIONS = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.75, 0.9)
"""Where the ten standard budgets lie between the cheapest and the full cost."""


@dataclass(frozen=True)
class Budget:
    """A mean cost per sample.

    Attributes:
        value: In the unit of the cost table that read it.
        text: As the user wrote it.
        meaning: In words, with the unit and what a percentage referred to.
        unit: That unit.
    """

    value: float
    text: str
    meaning: str
    unit: str


BudgetLike = Budget | SupportsFloat | str
"""A mean cost per sample: any real number (numpy and torch scalars too), text, or what another table read."""


def unit_factor(unit: str, target: str) -> float | None:
    """Return what one ``unit`` is in ``target`` units, None where they cannot be converted."""
    if unit == target:
        return 1.0
    source, goal = _UNITS.get(unit), _UNITS.get(target)
    if source is None or goal is None or source[0] != goal[0]:
        return None
    return source[1] / goal[1]


@dataclass(frozen=True)
class CostTable:
    """Cumulative cost per sample of leaving at each exit, early heads and decisions on the way included.

    Attributes:
        cumulative: One positive number per exit, strictly increasing.
        unit: ``FLOPs, kFLOPs, MFLOPs, GFLOPs, MACs, MMACs, us, ms, s``, or a free word without conversion.
        reference: Cost of the original model without exits, where it is known.

    Raises:
        TableError: Fewer than two exits, or costs that are no numbers from 1e-30 to 1e30, or not increasing.

    Example:
        >>> costs = CostTable(cumulative=(2.31, 4.15, 4.93), unit="ms", reference=4.2)
        >>> costs.budget("75%").meaning
        '75% of the original model without exits = 3.15 ms'
    """

    cumulative: tuple[float, ...]
    unit: str
    reference: float | None = None

    def __repr__(self) -> str:
        """Return what makes the same table, of many exits the first and the last."""
        costs = few(list(map(repr, self.cumulative)))
        return f"CostTable(cumulative=({costs}), unit={self.unit!r}, reference={self.reference})"

    def __post_init__(self) -> None:
        values, _, reference = _plain(self.cumulative, self.unit, self.reference)
        object.__setattr__(self, "cumulative", values)
        object.__setattr__(self, "reference", reference)
        if len(values) < 2:
            raise TableError(
                f"costs {values} are not enough: a choice needs at least 2 exits. Give one number per exit."
            )
        for k, (before, value) in enumerate(pairwise(values), 1):
            if value <= before:
                raise TableError(
                    f"costs of exit {k}, {value:g} {self.unit}, are not increasing: exit {k - 1} costs {before:g}. "
                    "Give the cumulative cost of leaving at each exit."
                )

    @property
    def num_exits(self) -> int:
        """Number of exits."""
        return len(self.cumulative)

    @property
    def stage_costs(self) -> tuple[float, ...]:
        """What each exit costs on top of the one before."""
        return tuple(b - a for a, b in zip((0.0, *self.cumulative), self.cumulative, strict=False))

    @property
    def low(self) -> float:
        """Cost of leaving at exit 0, the least any policy can spend."""
        return self.cumulative[0]

    @property
    def high(self) -> float:
        """Cost of leaving at the last exit."""
        return self.cumulative[-1]

    @property
    def full(self) -> float:
        """What a percentage refers to: the original model where known, else the last exit."""
        return self.high if self.reference is None else self.reference

    @property
    def full_name(self) -> str:
        """What a percentage refers to, in words."""
        return "the last exit" if self.reference is None else "the original model without exits"

    def require(self, num_exits: int, what: str) -> None:
        """Refuse these costs for ``what`` has another number of exits.

        Raises:
            ShapeError: It has.
        """
        if num_exits != self.num_exits:
            raise ShapeError(
                f"costs of {self.num_exits} exits do not fit: {what} has {num_exits}. Use costs with one number per "
                "exit of it."
            )

    def factor(self, other: CostTable) -> float | None:
        """Return what one unit of these costs is in another table's, None where exits have other relative costs."""
        factor = other.high / self.high
        pairs = list(zip(self.cumulative, other.cumulative, strict=False))
        same = self.num_exits == other.num_exits and all(math.isclose(a * factor, b, rel_tol=_SAME) for a, b in pairs)
        return factor if same else None

    def convert(self, unit: str) -> CostTable:
        """Return the same costs in another unit.

        Raises:
            InputError: The units measure different things, or one of them is a free word.
        """
        factor = unit_factor(self.unit, instance(unit, str, "unit"))
        if factor is None:
            raise InputError(f"unit {unit!r} does not fit: costs are in {self.unit}. Use a unit of the same kind.")
        reference = None if self.reference is None else self.reference * factor
        return CostTable(tuple(value * factor for value in self.cumulative), unit, reference)

    def budget(self, value: BudgetLike) -> Budget:
        """Read a budget into the table's unit: a number, with a unit, a percentage, or what another table read.

        A percentage refers to `full`. A budget above the last exit's cost is allowed: it limits nothing.

        Raises:
            BudgetError: Not a number, a foreign unit, or below the cost of exit 0.
        """
        if isinstance(value, Budget):
            if value.unit == self.unit and value.value >= self.low:
                return value
            text, parsed = value.text, f"{value.value!r}{value.unit}"  # read by another table
        else:
            text, parsed = _written(value)
        amount, meaning = self._parse(parsed, repr(text) if isinstance(value, str) else text)
        # exit 0's own cost, typed or computed, must not fail by rounding
        if amount < self.low and math.isclose(amount, self.low, rel_tol=1e-9):
            amount = self.low
        if amount < self.low:
            percent = math.ceil(1e4 * self.low / self.full) / 100  # rounded up, so that the advice can be taken
            bare = parsed[-1].isdigit() and amount < 1 and amount * self.full >= self.low  # 0.3 may mean 30 %
            share = f" A share of the cost is a percentage: '{100 * amount:g}%'." if bare else ""
            raise BudgetError(
                f"budget {meaning} per sample is out of reach: leaving at exit 0 costs {self.low:g} {self.unit}, "
                f"running to exit {self.num_exits - 1} costs {self.high:g} {self.unit}. Pass a budget in "
                f"[{self.low:g}, {self.high:g}] {self.unit}, that is from {percent:.4g}% upwards.{share}"
            )
        return Budget(amount, text, meaning, self.unit)

    def _parse(self, text: str, written: str) -> tuple[float, str]:
        """Return the amount in the table's unit and what it means in words."""
        match = _BUDGET.fullmatch(text)
        if match is None or not math.isfinite(float(match[1])):
            raise BudgetError(
                f"budget {written} is no mean cost per sample: a finite number is needed, alone or with a unit or a "
                f"percent sign; leaving at exit 0 costs {self.low:g} {self.unit}, running to exit "
                f"{self.num_exits - 1} costs {self.high:g} {self.unit}. Pass a budget in [{self.low:g}, "
                f"{self.high:g}], for example {self.high:g}, '{self.high:g}{self.unit}' or '60%'."
            )
        amount, unit = float(match[1]), match[2]
        if unit == "%":
            value = amount / 100 * self.full
            return value, f"{amount:g}% of {self.full_name} = {value:g} {self.unit}"
        factor = 1.0 if unit is None else unit_factor(unit, self.unit)
        if factor is None:
            raise BudgetError(
                f"budget {written} has a unit that does not fit: costs are in {self.unit}. "
                f"Use {self.unit}, a unit of the same kind, or a percentage."
            )
        return amount * factor, f"{amount * factor:g} {self.unit}"

    def to_dict(self) -> dict[str, Any]:
        """Return the costs as JSON-ready values."""
        return {"cumulative": list(self.cumulative), "unit": self.unit, "reference": self.reference}

    @classmethod
    def from_dict(cls, value: object) -> CostTable:
        """Rebuild costs from `to_dict`.

        Raises:
            TableError: A key is missing or a value is no cost.
        """
        if not isinstance(value, dict) or not isinstance(value.get("cumulative"), list) or "unit" not in value:
            raise TableError(
                "costs are incomplete: keys 'cumulative' (a list) and 'unit' are needed. Write them again."
            )
        return cls(*_plain(value["cumulative"], value["unit"], value.get("reference")))


def _plain(cumulative: object, unit: object, reference: object) -> tuple[tuple[float, ...], str, float | None]:
    """Return the values of a cost table in the types it keeps; refuse what is of another."""
    if not unit or not isinstance(unit, str):
        raise TableError(f"cost_unit {unit!r} is no unit: a word is needed. Pass for example 'ms' or 'MFLOPs'.")
    if not isinstance(cumulative, Iterable) or isinstance(cumulative, str):
        raise TableError(f"costs {cumulative!r} are no list. Give one number per exit.")
    values = [number(value, f"cost of exit {k}", *COSTS, error=TableError) for k, value in enumerate(cumulative)]
    known = None if reference is None else number(reference, "cost_reference", *COSTS, error=TableError)
    return tuple(values), unit, known


def _written(value: SupportsFloat | str) -> tuple[str, str]:
    """Return a budget as messages write it, and as it is parsed; what is no single real number is refused later."""
    if isinstance(value, str):
        return value, value
    try:
        found = number(value, "budget")
    except InputError:
        return str(value) if isinstance(value, Real) else reprlib.repr(value), ""
    return f"{found:g}", repr(found)


def standard_budgets(costs: CostTable) -> tuple[float, ...]:
    """Return the ten budgets at which policies are compared, in the table's unit.

    They are ``c_0 + f (c_{K-1} - c_0)`` for each ``f`` of `STANDARD_FRACTIONS`.
    """
    instance(costs, CostTable, "costs")
    return tuple(costs.low + f * (costs.high - costs.low) for f in STANDARD_FRACTIONS)

"""What advice starts from: the costs of exits in parts, and models that could be used instead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np

from eenet.errors import EenetError, InputError, ShapeError, TableError
from eenet.tables.costs import CostTable

_PARTS = ("stages", "heads", "decisions")


@dataclass(frozen=True, kw_only=True)
class CostParts:
    """What leaving at exits is made of, so that the costs of a model with fewer of them can be added up.

    Attributes:
        stages: Cost of each stage; what every sample needs once (the first state; of maps, the answer) belongs to stage
            0.
        heads: Cost of each head.
        decisions: Cost of deciding at each early exit; none by default.
        known: Whether heads were measured; if not, they count as part of their stage, and dropping an exit saves
            nothing further on.

    Raises:
        ShapeError: Numbers of stages, heads and decisions that do not fit, or fewer than two stages.
        TableError: A cost that is negative or not finite.
    """

    stages: tuple[float, ...]
    heads: tuple[float, ...]
    decisions: tuple[float, ...] = ()
    known: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be added up."""
        exits = len(self.stages)
        if exits < 2 or len(self.heads) != exits or len(self.decisions) not in (0, exits - 1):
            raise ShapeError(
                f"costs of {exits} stages, {len(self.heads)} heads and {len(self.decisions)} decisions do not fit: "
                "each of at least 2 stages has one head, and each early exit may have one decision. Give one cost each."
            )
        for name in _PARTS:
            for k, value in enumerate(getattr(self, name)):
                if not (math.isfinite(value) and value >= 0):
                    raise TableError(
                        f"costs of {name} {value:g} at exit {k} are no costs: they must be finite and not negative."
                    )

    @classmethod
    def of_costs(cls, costs: CostTable) -> CostParts:
        """Return parts where only the costs of leaving are known."""
        return cls(stages=costs.stage_costs, heads=(0.0,) * costs.num_exits, known=False)

    @classmethod
    def of_profile(cls, profile: Mapping[str, Any], costs: CostTable) -> CostParts | None:
        """Return the parts of the record in a profile that some costs were read from, None where there is none.

        Args:
            profile: What ``eenet profile`` wrote.
            costs: Read from it; their unit may be another, and is that of the parts.

        Raises:
            TableError: The record is damaged.
        """
        for record in (profile.get("flops"), *profile.get("latency", ())):
            factor = _factor(record, costs)
            if factor is not None:
                return cls._of_record(record).scaled(factor)
        return None

    @classmethod
    def _of_record(cls, record: Mapping[str, Any]) -> CostParts:
        try:
            first, *others = map(_number, record["stages"])
            return cls(
                stages=(_number(record["start"]) + _number(record.get("answer", 0.0)) + first, *others),
                heads=tuple(map(_number, record["heads"])),
                decisions=tuple(map(_number, record.get("decisions", ()))),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TableError(f"costs are damaged: {error} in stages or heads. Profile the model again.") from error

    def scaled(self, factor: float) -> CostParts:
        """Return the same in another unit."""
        parts: dict[str, Any] = {name: tuple(factor * value for value in getattr(self, name)) for name in _PARTS}
        return replace(self, **parts)

    def cumulative(self, kept: Sequence[int]) -> tuple[float, ...]:
        """Return what leaving at each kept exit costs in a model that has only these; the last exit is one of them."""
        stage = list(accumulate(self.stages))
        asides = accumulate(self.heads[k] + (self.decisions[k] if k < len(self.decisions) else 0.0) for k in kept)
        return tuple(stage[k] + aside for k, aside in zip(kept, asides, strict=True))

    def alone(self, k: int) -> float:
        """Return the cost of a model that ends at an exit and has no other."""
        return sum(self.stages[: k + 1]) + self.heads[k]


@dataclass(frozen=True, kw_only=True)
class StaticModel:
    """A model without early exits that could be used instead.

    Attributes:
        name: What it is called.
        cost: Per sample, in the unit of the costs.
        utility: What its answers are worth on data like the table's, a fraction.
    """

    name: str
    cost: float
    utility: float

    def __post_init__(self) -> None:
        """Refuse what is no model."""
        if not (math.isfinite(self.cost) and self.cost > 0 and 0 <= self.utility <= 1):
            raise InputError(
                f"static model {self.name!r} of cost {self.cost:g} and utility {self.utility:g} is not possible: costs "
                "are positive, utilities from 0 to 1. Correct it."
            )


def _factor(record: object, costs: CostTable) -> float | None:
    """Return what turns the unit of a profile's record into that of costs; None where these are not read from it."""
    try:
        own = CostTable.from_dict(record)
        same = own.convert(costs.unit)
    except EenetError:
        return None
    near = len(same.cumulative) == costs.num_exits and np.allclose(same.cumulative, costs.cumulative, rtol=1e-12)
    return same.high / own.high if near else None


def _number(value: Any) -> float:  # noqa: ANN401
    return float(value["median"] if isinstance(value, Mapping) else value)

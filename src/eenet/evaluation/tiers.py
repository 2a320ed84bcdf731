"""Which exits of a model fit which tiers of devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from eenet.errors import InputError
from eenet.tables.capacity import Capacity
from eenet.tables.checks import instance, listed
from eenet.tables.costs import CostTable, unit_factor


@dataclass(frozen=True, kw_only=True)
class TierFit:
    """What one tier of devices can hold.

    Attributes:
        capacity: As it was written.
        exit: The last exit that fits; None: not even exit 0 does.
        takes: What the model takes up to there, or up to exit 0 where that does not fit, in words.
        verdict: That in a sentence.
    """

    capacity: str
    exit: int | None
    takes: str
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)


def fitting_exits(
    capacities: Sequence[Capacity], costs: CostTable, sizes: Mapping[str, Sequence[float]] | None = None
) -> tuple[TierFit, ...]:
    """Return the last exit that each tier can hold: a sub-model with all stages and heads up to it.

    Args:
        capacities: The weakest tier first, as `read_capacities` returns them.
        costs: Of leaving at each exit.
        sizes: Parameters (``params``) and ``bytes`` up to each exit, where they are known.

    Raises:
        InputError: A capacity is of a kind that is not known of this model.
    """
    found: list[TierFit] = []
    before = -1
    instance(costs, CostTable, "costs")
    for tier, capacity in enumerate(listed(capacities, "capacities")):
        instance(capacity, Capacity, "capacities", "Read them with read_capacities.")
        taken = _taken(capacity, costs, sizes or {})
        fits = [k for k, amount in enumerate(taken) if amount <= capacity.value * (1 + 1e-9)]
        last = fits[-1] if fits else None
        takes = capacity.written(taken[last or 0])
        if last is None:
            verdict = f"Tier {tier} ({capacity.text}) holds no exit: exit 0 takes {takes}."
        elif last == len(taken) - 1:
            verdict = f"Tier {tier} ({capacity.text}) holds the whole model, {takes}."
        elif last <= before:
            verdict = f"Tier {tier} ({capacity.text}) adds nothing: exit {before} is on an earlier tier already."
        else:
            verdict = f"Tier {tier} ({capacity.text}) ends at exit {last}: up to there the model takes {takes}."
        before = max(before, -1 if last is None else last)
        found.append(TierFit(capacity=capacity.text, exit=last, takes=takes, verdict=verdict))
    return tuple(found)


def _taken(capacity: Capacity, costs: CostTable, sizes: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """Return what the model takes up to each exit, in the kind of a capacity."""
    if capacity.kind in sizes:
        return sizes[capacity.kind]
    factor = unit_factor(costs.unit, capacity.kind)
    if factor is None:
        known = [costs.unit, *sizes]
        raise InputError(
            f"capacity {capacity.text!r} cannot be compared: of this model {', '.join(known)} are known. State it "
            "in one of these; parameters and bytes are known of a run."
        )
    return [factor * cost for cost in costs.cumulative]

"""What a comparison found, as values: rows, pairs and the contract's JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from eenet.evaluation.groups import Group

__all__ = ["BOOTSTRAP", "Comparison", "Pair", "PolicyGroups", "Row"]

BOOTSTRAP = "paired bootstrap"
"""How an interval is made where the two sides are given."""

_LISTED = 50  # groups listed in full in the JSON; of more, only the first _WORST
_WORST = 10


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy at one asked budget; means over the splits where there are several.

    Attributes:
        policy: Name; ``random`` and ``oracle`` are the bounds.
        budget: Mean cost per sample asked for, in the comparison's unit.
        budget_input: The same as it was typed.
        val_cost: What the policy costs on the fitting side, in expectation over its coin.
        test_cost: Realised mean cost on the test side.
        test_utility: Realised mean utility on the test side, a fraction.
        utility_at_budget: Read off the policy's own curve at the budget: what may be compared between policies.
        exit_distribution: Share of the test side leaving at each exit.
        fit_seconds: Wall time of fitting all budgets at once.
        sd: Standard deviations over the splits, by field; None with one split.
    """

    policy: str
    budget: float
    budget_input: str
    val_cost: float
    test_cost: float
    test_utility: float
    utility_at_budget: float
    exit_distribution: tuple[float, ...]
    fit_seconds: float
    sd: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON-ready values, ``sd`` only where there is one."""
        values = asdict(self) | {"exit_distribution": list(self.exit_distribution)}
        if self.sd is None:
            del values["sd"]
        return values


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The difference between two policies' areas, in points (percent of utility), and how sure it is.

    Attributes:
        a: First policy.
        b: Second policy.
        difference: Area of ``a`` minus area of ``b``, times 100.
        low: Lower end of the 95 % interval, in points.
        high: Upper end, in points.
        significant: Whether the interval leaves out 0. Not corrected for the number of pairs.
        method: How the interval was made.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    significant: bool
    method: str

    @classmethod
    def of(cls, a: str, b: str, difference: float, interval: tuple[float, float], method: str) -> Pair:
        """Return a pair that is significant if its interval leaves out 0."""
        low, high = interval
        return cls(a=a, b=b, difference=difference, low=low, high=high, significant=low > 0 or high < 0, method=method)


@dataclass(frozen=True, kw_only=True)
class PolicyGroups:
    """Who pays for one policy at one asked budget.

    Attributes:
        policy: Name; the bounds have no groups.
        budget: Mean cost per sample asked for.
        budget_input: The same as it was typed.
        by: What the groups are: ``class`` or ``group``.
        groups: All of them, those that surely lose most first.
    """

    policy: str
    budget: float
    budget_input: str
    by: str
    groups: tuple[Group, ...]

    @property
    def loss(self) -> float:
        """What the policy takes from all samples, in points."""
        return self._mean([group.loss for group in self.groups])

    @property
    def spread(self) -> float:
        """Standard deviation of the groups' losses, weighted by their size, in points."""
        mean = self.loss
        return math.sqrt(self._mean([(group.loss - mean) ** 2 for group in self.groups]))

    def _mean(self, values: Sequence[float]) -> float:
        sizes = [group.num_samples for group in self.groups]
        return sum(size * value for size, value in zip(sizes, values, strict=True)) / sum(sizes)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values with a summary; of more than 50 groups only the first 10 are listed."""
        listed = self.groups if len(self.groups) <= _LISTED else self.groups[:_WORST]
        return {
            "policy": self.policy,
            "budget": self.budget,
            "budget_input": self.budget_input,
            "by": self.by,
            "num_groups": len(self.groups),
            "loss": self.loss,
            "largest_loss": max(group.loss for group in self.groups),
            "spread": self.spread,
            "pays_more": sum(group.pays_more for group in self.groups),
            "groups": [group.to_dict() for group in listed],
        }


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Policies compared at equal cost on the same samples.

    Attributes:
        unit: Of all costs, per sample.
        reference: Cost of the original model without exits, where known.
        n_val: Samples of the fitting side.
        n_test: Samples of the test side.
        splits: How often the two sides were drawn; 1 = as given.
        seed: Of the splits and of the bootstrap.
        exits: Cost and test utility of answering everything at each exit (with ``sd`` over several splits).
        full: Cost and test utility of running everything to the last exit.
        rows: One per policy and asked budget, the bounds included.
        area: By policy, mean of its curve over the standard budgets.
        area_sd: Standard deviations of the areas over the splits; empty with one split.
        pairs: Differences between the areas in points, with intervals.
        groups: Who pays: what every policy did to every class or group at every asked budget.
        curves: By policy, the anchor and all realised points by rising cost; means over the splits.
        standard_budgets: The ten budgets the area is taken over.
        notes: What a reader should know before believing the numbers.
    """

    unit: str
    reference: float | None
    n_val: int
    n_test: int
    splits: int
    seed: int
    exits: tuple[dict[str, Any], ...]
    full: dict[str, float]
    rows: tuple[Row, ...]
    area: dict[str, float]
    area_sd: dict[str, float] = field(default_factory=dict)
    pairs: tuple[Pair, ...]
    groups: tuple[PolicyGroups, ...] = ()
    curves: dict[str, tuple[dict[str, float], ...]]
    standard_budgets: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of ``eenet compare --json``: utilities and areas as fractions, differences in points."""
        return {
            "unit": self.unit,
            "reference": self.reference,
            "n_val": self.n_val,
            "n_test": self.n_test,
            "splits": self.splits,
            "seed": self.seed,
            "exits": list(self.exits),
            "full": self.full,
            "rows": [row.to_dict() for row in self.rows],
            "area": self.area,
            **({"area_sd": self.area_sd} if self.area_sd else {}),
            "pairs": [asdict(pair) for pair in self.pairs],
            "groups": [groups.to_dict() for groups in self.groups],
            "curves": {name: list(points) for name, points in self.curves.items()},
            "standard_budgets": list(self.standard_budgets),
            "notes": list(self.notes),
        }

    def table(self) -> list[dict[str, str]]:
        """Return the rows for showing: one dictionary of column heading to text per row, all with the same headings.

        Utilities are in percent, ``±`` is the standard deviation over the splits.
        """
        return [self._shown(row) for row in self.rows]

    def _shown(self, row: Row) -> dict[str, str]:
        sd = row.sd or {}

        def percent(value: float, spread: float | None) -> str:
            return f"{100 * value:.2f}" + (f" ± {100 * spread:.2f}" if spread is not None else "")

        return {
            "policy": row.policy,
            "budget": row.budget_input,
            f"asked [{self.unit}]": f"{row.budget:.4g}",
            f"val cost [{self.unit}]": f"{row.val_cost:.4g}",
            f"test cost [{self.unit}]": f"{row.test_cost:.4g}",
            "utility [%]": percent(row.test_utility, sd.get("test_utility")),
            "at budget [%]": percent(row.utility_at_budget, sd.get("utility_at_budget")),
            "area [%]": percent(self.area[row.policy], self.area_sd.get(row.policy)),
            "exits [%]": " ".join(f"{100 * share:.0f}" for share in row.exit_distribution),
            "fit [s]": f"{row.fit_seconds:.2f}",
        }

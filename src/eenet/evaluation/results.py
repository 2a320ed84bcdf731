"""The results of a comparison: policies on every split, and the rows, pairs and JSON made of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from eenet.evaluation.groups import GroupStats, PolicyGroups
from eenet.evaluation.saving import Saving
from eenet.evaluation.statistics import (
    SampledCurve,
    bootstrap_interval,
    bootstrap_p,
    holm,
    nadeau_bengio,
    nadeau_bengio_p,
)
from eenet.tables.checks import listed
from eenet.tables.costs import Budget, BudgetLike, CostTable, standard_budgets
from eenet.tables.display import few, frame, notebook, samples
from eenet.tables.table import ExitTable

if TYPE_CHECKING:
    import pandas

BOUNDS = ("random", "oracle")  # rows that are no policies: the lower and the upper bound
_LEVEL = 0.05  # chance that anything at all is wrongly called significant


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The budgets of a comparison, read once.

    Attributes:
        costs: What they were read with: those of VAL.
        asked: Those that are listed as rows, each once.
        standard: The ten that the area is taken over.
        values: All of them, rising: what policies are fitted for.
    """

    costs: CostTable
    asked: tuple[Budget, ...]
    standard: tuple[float, ...]
    values: tuple[float, ...]

    @classmethod
    def read(cls, costs: CostTable, budgets: Sequence[BudgetLike]) -> Budgets:
        """Read the budgets a user asked for; none stand for the ten standard ones."""
        standard = standard_budgets(costs)
        asked = tuple(dict.fromkeys(costs.budget(budget) for budget in listed(budgets, "budgets") or standard))
        values = sorted({*standard, *(budget.value for budget in asked)})
        return cls(costs=costs, asked=asked, standard=standard, values=tuple(values))


@dataclass(frozen=True, kw_only=True, eq=False)
class PolicyRun:
    """One policy at all budgets of one split, in the order of the budgets.

    Attributes:
        points: The numbers of `Row` by name, each ``[budget, ...]``.
        area: Mean of its curve over the standard budgets.
        sampled: The samples of TEST at every point, for the bootstrap; None over several splits, and for the oracle.
        groups: By kind of group and budget; empty for bounds.
        dial: What its dial does at every budget of a range, for the tested policy alone.
        cap: The budget beyond which nothing is spent.
        saved: What is saved at one asked budget, which comes first in words; of the tested policy of one split only.
    """

    points: dict[str, np.ndarray]
    area: float
    cap: float = math.inf
    sampled: SampledCurve | None = None
    groups: dict[tuple[str, float], GroupStats] = field(default_factory=dict)
    dial: dict[str, Any] | None = None
    saved: tuple[str, Saving] | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitRun:
    """All policies and both bounds on one split.

    Attributes:
        runs: By policy name, the bounds last.
        static: Mean cost and utility on TEST of answering everything at each exit.
        anchor: Exit 0 for all samples of TEST: where every curve begins.
        groups: Number of the group of every sample of TEST; see `ExitTable.group_index`.
    """

    runs: dict[str, PolicyRun]
    static: Float[np.ndarray, "2 exit"]
    anchor: SampledCurve
    groups: Int[np.ndarray, " sample"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One policy at one asked budget; means over the splits where there are several.

    Attributes:
        policy: Name; ``random`` and ``oracle`` are the bounds.
        budget: Mean cost per sample asked for, in the comparison's unit.
        budget_input: The same as it was typed.
        val_cost: Mean cost on VAL; this and what follows is in expectation over the coin of a mixed policy.
        test_cost: Mean cost on TEST.
        test_utility: Mean utility on TEST, a fraction.
        utility_at_budget: Read off the policy's own curve at the budget: what may be compared between policies.
        exit_distribution: Share of TEST leaving at each exit.
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
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The difference between two policies' areas, in points (percent of utility), and how sure it is.

    Attributes:
        a: First policy.
        b: Second policy.
        difference: Area of ``a`` minus area of ``b``, times 100.
        low: Lower end of the 95 % interval, in points.
        high: Upper end, in points.
        p: Two-sided p-value of this pair alone.
        p_holm: The same, corrected by Holm for the number of pairs in the family; None for pairs outside it.
        significant: Whether the corrected p-value is below 0.05; never outside the family.
        method: How interval and p-value were made.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p: float
    p_holm: float | None = None
    significant: bool = False
    method: str


@dataclass(frozen=True, kw_only=True)
class Family:
    """The differences that are tested: one policy against each other, fixed before anything is judged.

    Attributes:
        policy: ``auto`` where it takes part, else the first policy named; None without policies.
        against: All other policies; bounds are not among them.
    """

    policy: str | None
    against: tuple[str, ...]

    @classmethod
    def of(cls, names: Sequence[str]) -> Family:
        """Return the family of a comparison of these policies, which may have bounds among them."""
        policies = [name for name in names if name not in BOUNDS]
        first = "auto" if "auto" in policies else next(iter(policies), None)
        return cls(policy=first, against=tuple(name for name in policies if name != first))

    def has(self, a: str, b: str) -> bool:
        """Return whether the difference between two rows belongs to the family."""
        return (a == self.policy and b in self.against) or (b == self.policy and a in self.against)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Policies compared at equal cost on the same samples.

    Attributes:
        unit: Of all costs, per sample.
        reference: Cost of the original model without exits, where known.
        n_val: Samples of VAL, the calibration set.
        n_test: Samples of TEST.
        splits: How often the two were chosen anew; 1 = as given.
        seed: Of the splits and of the bootstrap.
        exits: Cost and test utility of answering everything at each exit (with ``sd`` over several splits, and ``name``
            where exits have names).
        full: Cost and test utility of running everything to the last exit.
        rows: One per policy and asked budget, the bounds included.
        area: By policy, mean of its curve over the standard budgets.
        area_sd: Standard deviations of the areas over the splits; empty with one split.
        pairs: Differences between the areas in points, with intervals.
        family: Which of the pairs are tested together; no other is called significant.
        groups: Who pays: what every policy did to every class or group at every asked budget.
        curves: By policy, the anchor and all realised points by rising cost; means over the splits.
        standard_budgets: The ten budgets the area is taken over.
        statics: Models without early exits beside the policies at their cost, one `BesideStatic` as JSON values each.
        saving: What the tested policy of `family` saves and loses on TEST at one of the asked budgets; None over
            several splits, for maps, and without policies.
        saving_at: That budget in words: the smallest one that loses at most one point on VAL, else the largest.
        same_data: Whether VAL and TEST are the same outputs, so that all numbers are those of fitting.
        dial: The tested policy at every budget of a range, as JSON values (`eenet.evaluation.turned`); None over
            several splits, of maps, and without policies.
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
    family: Family
    groups: tuple[PolicyGroups, ...] = ()
    curves: dict[str, tuple[dict[str, float], ...]]
    standard_budgets: tuple[float, ...]
    statics: tuple[dict[str, Any], ...] = ()
    saving: Saving | None = None
    saving_at: str = ""
    same_data: bool = False
    dial: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        """Models that are better without exits; what the policy saves and loses, of several splits the largest area."""
        better = ", ".join(f"{one['name']} ({one['cost']:.4g} {self.unit})" for one in self.statics if one["better"])
        first = f"Better than every policy at its cost, without exits: {better}. " if better else ""
        if self.saving is not None:
            return f"{first}{self.family.policy} at {self.saving_at}: {self.saving}"
        if not (best := max((name for name in self.area if name not in BOUNDS), key=self.area.__getitem__, default="")):
            return f"{first}No policy was compared."
        above = f"{100 * (self.area[best] - self.area['random']):+.2f} points beside the best static mix"
        return f"{first}Largest mean utility over the ten standard budgets: {best} with {self.area[best]:.2%}, {above}."

    def __repr__(self) -> str:
        """Say what was compared, and the verdict."""
        policies = few([name for name in self.area if name not in BOUNDS])
        return f"Comparison of {policies} on {samples(self.n_test)}. {self.verdict}"

    def to_frame(self) -> pandas.DataFrame:
        """Return the rows: one per policy and asked budget, the bounds included, standard deviations as ``sd_...``.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = (row.to_dict() for row in self.rows)
        return frame([row | {f"sd_{key}": sd for key, sd in row.pop("sd", {}).items()} for row in rows])

    def _repr_html_(self) -> str:
        """Return the verdict and the areas of the policies for a notebook."""
        names = sorted(self.area, key=lambda name: -self.area[name])
        rows = {name: {"policy": name, "area [%]": 100 * self.area[name]} for name in names}
        for one in self.rows[: 4 * len(names)]:
            rows[one.policy][f"utility at {one.budget:.4g} {self.unit} [%]"] = 100 * one.utility_at_budget
        return notebook(self.verdict, list(rows.values()))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON of ``eenet compare --json``: utilities and areas as fractions, differences in points."""
        values = vars(self) | {
            "rows": [row.to_dict() for row in self.rows],
            "pairs": [dict(vars(pair)) for pair in self.pairs],
            "family": dict(vars(self.family)),
            "groups": [groups.to_dict() for groups in self.groups],
            "saving": None if self.saving is None else self.saving.to_dict(),
            "verdict": self.verdict,
        }
        return {key: value for key, value in values.items() if key not in ("area_sd", "dial") or value}


def summarise(
    runs: Sequence[SplitRun],
    val: ExitTable,
    test: ExitTable,
    budgets: Budgets,
    *,
    seed: int,
    resampled: Mapping[str, np.ndarray],
    groups: Sequence[PolicyGroups] = (),
    notes: Sequence[str] = (),
) -> Comparison:
    """Return what the runs of all splits show together.

    With one split, ``resampled`` is the utility of every curve at the standard budgets on the same resamples.
    """
    areas = {name: np.array([split.runs[name].area for split in runs]) for name in runs[0].runs}
    several, family = len(runs) > 1, Family.of(list(areas))
    utility = np.stack([split.static[1] for split in runs])  # [split, exit]
    points = {
        name: {key: np.stack([split.runs[name].points[key] for split in runs]) for key in run.points}
        for name, run in runs[0].runs.items()
    }  # [split, budget, ...]
    means, sds, names = utility.mean(axis=0).tolist(), _sd(utility), test.exit_names
    exits: list[dict[str, Any]] = [
        {"cost": cost, "utility_test": means[k]}
        | ({"sd": {"utility_test": sds[k]}} if several else {})
        | ({"name": names[k]} if names else {})
        for k, cost in enumerate(test.require_costs().cumulative)
    ]
    anchor = np.mean([split.static[:, 0] for split in runs], axis=0)
    at, saved = next((run.saved for run in runs[0].runs.values() if run.saved is not None), ("", None))
    pairs = _pairs(areas, resampled, num_fit=val.num_samples, num_test=test.num_samples)
    return Comparison(
        unit=budgets.costs.unit,
        reference=budgets.costs.reference,
        n_val=val.num_samples,
        n_test=test.num_samples,
        splits=len(runs),
        seed=seed,
        exits=tuple(exits),
        full={"cost": budgets.costs.full, "utility_test": exits[-1]["utility_test"]},
        rows=tuple(_rows(points, budgets)),
        area={name: float(area.mean()) for name, area in areas.items()},
        area_sd={name: _sd(area) for name, area in areas.items()} if several else {},
        pairs=_corrected(tuple(pairs), family),
        family=family,
        groups=tuple(groups),
        curves={name: _mean_curve(anchor, own) for name, own in points.items()},
        standard_budgets=budgets.standard,
        saving=saved,
        saving_at=at,
        same_data=same_outputs(val, test),
        dial=next(({"policy": name, **run.dial} for name, run in runs[0].runs.items() if run.dial is not None), None),
        notes=tuple(notes),
    )


def same_outputs(val: ExitTable, test: ExitTable) -> bool:
    """Return whether two tables contain the same outputs in the same order, as where one file was named twice."""
    return val.outputs.shape == test.outputs.shape and all(
        np.array_equal(val.outputs[rows], test.outputs[rows]) for rows in val.chunks()
    )


def _sd(values: np.ndarray) -> Any:  # noqa: ANN401 - a number, or a list of them
    """Return the standard deviation over splits; 0 where there is one."""
    return np.std(values, axis=0, ddof=min(1, len(values) - 1)).tolist()


def _rows(points: Mapping[str, Mapping[str, np.ndarray]], budgets: Budgets) -> Iterator[Row]:
    """Yield one row per asked budget and policy: means over the splits."""
    for budget in budgets.asked:
        index = budgets.values.index(budget.value)
        for name, own in points.items():
            columns = {key: column[:, index] for key, column in own.items()}
            means = {key: column.mean(axis=0).tolist() for key, column in columns.items()}
            means["exit_distribution"] = tuple(means["exit_distribution"])
            several = len(columns["test_cost"]) > 1
            sd = {key: _sd(column) for key, column in columns.items()} if several else None
            yield Row(policy=name, budget=budget.value, budget_input=budget.text, sd=sd, **means)


def _pairs(
    areas: Mapping[str, np.ndarray], resampled: Mapping[str, np.ndarray], *, num_fit: int, num_test: int
) -> Iterator[Pair]:
    """Yield every pair of policies, and every policy against `random`, with its interval."""
    names = [name for name in areas if name != "oracle"]  # the order of the schedulers, then random
    for a, b in combinations(names, 2):
        differences = 100 * (areas[a] - areas[b])  # in points
        mean = float(differences.mean())
        if resampled:
            method, drawn = "paired bootstrap", 100 * (resampled[a] - resampled[b]).mean(axis=1)
            (low, high), p = bootstrap_interval(drawn), bootstrap_p(drawn, mean)
        else:
            method, sizes = "corrected resampled t (Nadeau-Bengio)", {"num_fit": num_fit, "num_test": num_test}
            (low, high), p = nadeau_bengio(differences, **sizes), nadeau_bengio_p(differences, **sizes)
        yield Pair(a=a, b=b, difference=mean, low=low, high=high, p=p, method=method)


def _corrected(pairs: Sequence[Pair], family: Family) -> tuple[Pair, ...]:
    """Return the pairs, those of the family with their corrected p-values and what these say."""
    inside = [i for i, pair in enumerate(pairs) if family.has(pair.a, pair.b)]
    corrected = dict(zip(inside, holm([pairs[i].p for i in inside]), strict=True))
    return tuple(
        replace(pair, p_holm=corrected[i], significant=corrected[i] < _LEVEL) if i in corrected else pair
        for i, pair in enumerate(pairs)
    )


def _mean_curve(anchor: Float[np.ndarray, "2"], points: Mapping[str, np.ndarray]) -> tuple[dict[str, float], ...]:
    """Return exit 0 and a policy's points by rising cost, each the mean over the splits."""
    columns = [points[key].mean(axis=0) for key in ("test_cost", "test_utility")]
    joined = sorted(np.column_stack([anchor, columns]).T.tolist())
    return tuple({"cost": cost, "utility": utility} for cost, utility in joined)

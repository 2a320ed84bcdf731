"""What a policy saves and what it loses, in one sentence; and whether it is worth the trouble."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float64

from eenet.policies.policy import Policy
from eenet.policies.replay import Replayer
from eenet.schedulers.base import standard_error
from eenet.schedulers.bounds import static_mix
from eenet.tables.checks import instance, number
from eenet.tables.costs import Budget, CostTable
from eenet.tables.display import notebook, samples
from eenet.tables.table import ExitTable

LEAST_SAVING = 0.05  # of cost or time: below, nobody would notice
_LOSS = 0.01  # of utility on VAL, which the budget may cost at which a saving is named
_FEW = 200  # samples below which differences of points are chance
_Z = 1.96  # of a 95 % interval
_ROUNDING = 1e-9  # of utility and cost: below, sums of the same numbers differ


@dataclass(frozen=True, kw_only=True)
class Saving:
    """What leaving early saved and lost on samples that took no part in fitting.

    Attributes:
        cost_share: Mean cost per sample, as a share of the original model's.
        unit: Of the costs.
        lost: Points of utility below the last exit for all samples; negative where some were gained.
        lost_error: Its standard error.
        exits: Share of the samples that left at each exit.
        static_exit: The best single exit that costs no more than the policy; None where there is none.
        static_lost: Points that this exit loses.
        gain: Points above the best mix of fixed exits at equal cost, with the ends of its 95 % interval.
        num_samples: Judged on.
        full_utility: Utility of the last exit for all samples; NaN where it is not known.
        majority: Utility of always answering with the most frequent class; 0 where classes are not known.
        speedups: How many times faster than the original model, by batch size; empty where nothing was timed.
    """

    cost_share: float
    unit: str
    lost: float
    lost_error: float
    exits: tuple[float, ...]
    static_exit: int | None
    static_lost: float | None
    gain: tuple[float, float, float]
    num_samples: int
    full_utility: float = math.nan
    majority: float = 0.0
    speedups: Mapping[int, float] = field(default_factory=dict)

    @property
    def pays(self) -> bool:
        """Whether the policy is worth the trouble."""
        return not self.reasons

    @property
    def reasons(self) -> tuple[str, ...]:
        """What speaks against it, each from a number; empty where nothing does."""
        return tuple(self._against())

    @property
    def sentence(self) -> str:
        """The saving and the loss in one sentence; where it does not pay, first that and why."""
        facts = f"{self._saved()}, {points(self.lost)}, {self._left()}; {self._beside()}."
        if self.pays:
            return facts
        return f"Do not bother: {'; '.join(self.reasons)}. What was measured: {facts}"

    def __str__(self) -> str:
        """Say the sentence."""
        return self.sentence

    def __repr__(self) -> str:
        """Say the sentence."""
        return f"Saving: {self.sentence}"

    def _repr_html_(self) -> str:
        """Return the sentence and its numbers for a notebook."""
        values = {f"cost [% of all {self.unit}]": 100 * self.cost_share, "points lost": self.lost}
        values |= {f"left at exit {k} [%]": 100 * share for k, share in enumerate(self.exits[:6])}
        return notebook(self.sentence, [values])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, the sentence among them; None for what one sample does not tell."""
        values = asdict(self) | {"speedups": {str(size): value for size, value in self.speedups.items()}}
        values["lost_error"] = self.lost_error if math.isfinite(self.lost_error) else None
        values["full_utility"] = self.full_utility if math.isfinite(self.full_utility) else None
        values["gain"] = [value if math.isfinite(value) else None for value in self.gain]
        return values | {"pays": self.pays, "reasons": list(self.reasons), "sentence": self.sentence}

    def _saved(self) -> str:
        if not self.speedups:
            share = round(1 - self.cost_share, 2) + 0.0  # no "-0%"
            return f"{share:.0%} of the {self.unit} saved"
        (first, speedup), *others = self.speedups.items()
        same = round(speedup, 1) > 1 and all(value >= 1 for _, value in others)
        beside = ", ".join(
            f"{value:.1f}x at {size}" if same else f"{_times(value)} at {size}" for size, value in others
        )
        return f"{_times(speedup)} at batch {first}" + (f" ({beside})" if beside else "")

    def _left(self) -> str:
        *early, _ = self.exits
        most = int(np.argmax(early))
        return f"{early[most]:.0%} of the samples left at exit {most}"

    def _beside(self) -> str:
        if self.static_exit is None or self.static_lost is None:
            return "no single exit is as cheap"
        return f"the best single exit at that cost {points(self.static_lost, verb=True)}"

    def _against(self) -> Iterator[str]:
        right = self.full_utility if self.majority > 0 else math.nan  # a share only where it is of right answers
        if right <= self.majority + 2 * math.sqrt(right * (1 - right) / self.num_samples):
            yield (
                f"the model knows hardly anything ({right:.0%} right, always answering the most frequent "
                f"class {self.majority:.0%})"
            )
        gain, low, high = self.gain
        if low <= 0:
            better = "better" if high < 0 else "as good"
            yield (
                f"a fixed mix of exits is {better} at equal cost (the policy is {gain:+.1f} points above it, 95 % "
                f"interval {low:+.1f} to {high:+.1f})"
            )
            if self.num_samples < _FEW:
                yield f"{samples(self.num_samples)} cannot tell small gains from none"
        if self.cost_share > 1 - LEAST_SAVING:
            yield f"it costs {self.cost_share:.0%} of the original model"
        if self.speedups and max(self.speedups.values()) < 1 + LEAST_SAVING:
            best = max(self.speedups, key=lambda size: self.speedups[size])
            yield f"the saving is not on the clock ({self.speedups[best]:.2f}x at batch {best})"


def saving(
    policy: Policy, table: ExitTable, costs: CostTable | None = None, *, speedups: Mapping[int, float] | None = None
) -> Saving:
    """Return what a policy saves and loses on a table, and whether that pays.

    Args:
        policy: Fitted on other samples.
        table: Of samples that took no part in training, fitting or choosing.
        costs: Default: the table's own.
        speedups: Of the same policy by batch size, as `eenet.bench` measured them.

    Raises:
        InputError: A speed-up is no number above 0.
        TableError: The table has neither labels nor utility, or no costs.
    """
    timed = instance({} if speedups is None else speedups, Mapping, "speedups", "Pass them by batch size.")
    for size, value in timed.items():
        number(value, f"speedups at batch {size}", above=0)
    replayer = Replayer(instance(table, ExitTable, "table").with_costs(costs))
    return _saved(instance(policy, Policy, "policy"), replayer, timed)


def _saved(policy: Policy, replayer: Replayer, speedups: Mapping[int, float]) -> Saving:
    """Return what a policy saves and loses on the table of a replayer, which has costs."""
    replayer.table.require_utility("what a policy saves")
    shares = tuple(replayer.expected_shares(policy).tolist())
    return saving_of(replayer.table, *replayer.per_sample(policy), shares, speedups=speedups)


def saving_of(
    table: ExitTable,
    spent: Float64[np.ndarray, " sample"],
    earned: Float64[np.ndarray, " sample"],
    exits: tuple[float, ...],
    *,
    speedups: Mapping[int, float] | None = None,
) -> Saving:
    """Return the same from what each sample costs and earns, in expectation over the coin.

    Args:
        table: Of these samples, with costs and utility.
        spent: Cost of each sample.
        earned: Its utility.
        exits: Share of the samples that left at each exit.
        speedups: See `saving`.
    """
    costs, utility = table.require_costs(), table.require_utility("what a policy saves")
    cost, lost = float(spent.mean()), utility[:, -1] - earned
    cheap = np.flatnonzero(table.leaving_costs.mean(axis=0) <= cost * (1 + _ROUNDING))
    best = int(cheap[utility[:, cheap].mean(axis=0).argmax()]) if len(cheap) else None
    mix = np.array(static_mix(table, table, costs, cost).distribution)
    above = 100 * (earned - utility @ mix)
    above[np.abs(above) < 100 * _ROUNDING] = 0.0
    error = _Z * standard_error(above, table.group_index)
    return Saving(
        cost_share=cost / costs.full,
        unit=costs.unit,
        lost=100 * float(lost.mean()),
        lost_error=100 * standard_error(lost, table.group_index),
        exits=exits,
        static_exit=best,
        static_lost=None if best is None else 100 * float((utility[:, -1] - utility[:, best]).mean()),
        gain=(float(above.mean()), float(above.mean()) - error, float(above.mean()) + error),
        num_samples=len(utility),
        full_utility=float(utility[:, -1].mean()),
        majority=float(majority_right(table).mean()),
        speedups=dict(speedups or {}),
    )


def saving_at(policies: Mapping[Budget, Policy], on_val: Replayer, on_test: Replayer) -> tuple[str, Saving]:
    """Return what is saved on TEST at the smallest budget that loses at most one point on VAL, else the largest.

    Args:
        policies: By budget.
        on_val: Replays the calibration set, which chooses the budget.
        on_test: Replays what is judged on.

    Returns:
        That budget in words, and the saving there.
    """
    full = float(on_val.table.require_utility("what a policy saves")[:, -1].mean())
    budgets = sorted(policies, key=lambda budget: budget.value)
    enough = (one for one in budgets if on_val.expected(policies[one])[1] >= full - _LOSS - _ROUNDING)
    chosen = next(enough, budgets[-1])
    typed = chosen.text.strip()
    words = typed if typed.endswith("%") else f"{chosen.value:.4g} {on_val.table.require_costs().unit}"
    return words, _saved(policies[chosen], on_test, {})


def majority_right(table: ExitTable) -> Float64[np.ndarray, " sample"]:
    """Return the utility of answering every sample with the most frequent class; 0 where classes are not known."""
    if not table.utility_is_accuracy:
        return np.zeros(table.num_samples)
    return np.asarray(table.labels == np.bincount(table.labels).argmax(), dtype=np.float64)


def _times(speedup: float) -> str:
    factor = f"{max(speedup, 1 / speedup):.1f}"
    if factor == "1.0":
        return "as fast"
    return f"{factor}x faster" if speedup > 1 else f"{factor}x slower"


def points(lost: float, *, verb: bool = False) -> str:
    """Say how many points are lost or gained, after a subject where ``verb``: "loses 0.6 points"."""
    rounded = round(lost, 1) + 0.0  # no "-0.0"
    if verb:
        return f"loses {rounded:.1f} points" if rounded >= 0 else f"gains {-rounded:.1f} points"
    if rounded == 0:
        return "no loss"
    return f"{rounded:.1f} points lost" if rounded > 0 else f"{-rounded:.1f} points gained"

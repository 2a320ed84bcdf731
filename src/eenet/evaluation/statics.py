"""Models without early exits beside the policies of a comparison, each at its own cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eenet.errors import ShapeError
from eenet.evaluation.exits import StaticModel
from eenet.evaluation.results import BOUNDS, Comparison, SplitRun
from eenet.evaluation.statistics import SampledCurve, bootstrap, bootstrap_interval, curve


@dataclass(frozen=True, kw_only=True)
class BesideStatic:
    """A model without early exits, and what the policies reach at its cost.

    Attributes:
        name: Of the model.
        cost: Per sample.
        utility: Of its answers, a fraction.
        best_policy: The policy with the largest utility at this cost; empty without policies.
        best_utility: That utility, read off the policy's curve; below exit 0's cost that of exit 0.
        better: Whether the model's utility is larger.
        policy: The policy that is tested in this comparison (`Family`); None without policies.
        difference: Its utility at this cost minus the model's, in points.
        low: Lower end of the 95 % interval of the difference, paired on the samples of TEST; None where the model's
            utility is not known for each of them.
        high: Upper end.
    """

    name: str
    cost: float
    utility: float
    best_policy: str
    best_utility: float
    better: bool
    policy: str | None
    difference: float | None
    low: float | None = None
    high: float | None = None


def check_statics(statics: Sequence[StaticModel], num_samples: int, what: str) -> None:
    """Refuse models whose utilities are not those of a table's samples.

    Raises:
        ShapeError: They are of another number of samples than ``what`` has.
    """
    for model in statics:
        if model.utilities is not None and len(model.utilities) != num_samples:
            raise ShapeError(
                f"static model {model.name!r} of {len(model.utilities)} samples does not fit: {what} has "
                f"{num_samples}. Record it on the same samples, in the same order, or give cost and utility as numbers."
            )


def beside_statics(
    comparison: Comparison, statics: Sequence[StaticModel], runs: Sequence[SplitRun], *, resamples: int, seed: int
) -> tuple[BesideStatic, ...]:
    """Return each model beside the policies at its cost; intervals cover the chance in the test samples only."""
    curves = {}
    for name, points in comparison.curves.items():
        if name not in BOUNDS:
            costs, utilities = np.array([(one["cost"], one["utility"]) for one in points]).T
            curves[name] = curve(costs, utilities, anchor=(costs[0], utilities[0]))
    tested, found = comparison.family.policy, []
    for model in statics:
        reached = {name: one.at(model.cost) for name, one in curves.items()}
        best = max(reached, key=lambda name: reached[name], default="")
        low, high = _interval(model, runs, tested, resamples=resamples, seed=seed)
        found.append(
            BesideStatic(
                name=model.name,
                cost=model.cost,
                utility=model.utility,
                best_policy=best,
                best_utility=reached.get(best, 0.0),
                better=model.utility > reached.get(best, 0.0),
                policy=tested,
                difference=None if tested is None else 100 * (reached[tested] - model.utility),
                low=low,
                high=high,
            )
        )
    return tuple(found)


def _interval(
    model: StaticModel, runs: Sequence[SplitRun], policy: str | None, *, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """Return the interval of a policy's utility at the model's cost minus the model's, in points."""
    sampled = None if policy is None or len(runs) > 1 else runs[0].runs[policy].sampled
    if model.utilities is None or sampled is None or sampled.utilities.ndim > 2:  # of maps: no mean over images
        return None, None
    alone = SampledCurve(costs=np.full((1, len(model.utilities)), model.cost), utilities=model.utilities[None])
    read = bootstrap(
        {"policy": sampled, "model": alone},
        anchor=runs[0].anchor,
        budgets=[model.cost],
        groups=runs[0].groups,
        resamples=resamples,
        seed=seed,
    )
    low, high = bootstrap_interval(100 * (read["policy"] - read["model"])[:, 0])
    return low, high

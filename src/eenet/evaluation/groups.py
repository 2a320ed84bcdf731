"""The loss by group: exits, utility and loss of every class, or of any other groups of samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Int

from eenet.errors import InputError, ShapeError
from eenet.tables.arrays import as_array
from eenet.tables.display import samples
from eenet.tables.table import ExitTable

_LISTED = 50  # groups listed in full in the JSON; of more, only the first _WORST
_WORST = 10

GroupsLike: TypeAlias = Any
"""One group per sample, whole numbers or names: a sequence, an array or a tensor."""

GroupStats: TypeAlias = dict[str, np.ndarray]
"""The numbers of `Group` as arrays ``[group, ...]``, so that splits can be averaged; 0 where a group has no samples."""


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """The group of every sample.

    Attributes:
        by: Kind of the groups: ``class`` or ``group``.
        names: Of the groups.
        index: Number of every sample's group.
    """

    by: str
    names: tuple[str, ...]
    index: Int[np.ndarray, " sample"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """The effect of early exit on one group of samples.

    The interval is that of Bonett and Price: paired, sound for small groups, and at 95 % for all groups at once
    (Bonferroni), because readers look at the worst of them.

    Attributes:
        name: Class number or name of the group.
        num_samples: Its size; over several splits the mean.
        exit_distribution: Share of its samples leaving at each exit.
        cost: Mean cost per sample.
        utility: Mean utility under the policy, a fraction.
        full_utility: Mean utility of the last exit.
        loss: ``full_utility - utility``, in points (percent of utility).
        low: Lower end of the interval of the loss, in points.
        high: Upper end.
        significant: Whether the interval leaves out 0.
        pays_more: Whether the whole interval lies above the loss over all samples.
    """

    name: str
    num_samples: float
    exit_distribution: tuple[float, ...]
    cost: float
    utility: float
    full_utility: float
    loss: float
    low: float
    high: float
    significant: bool
    pays_more: bool


@dataclass(frozen=True, kw_only=True)
class PolicyGroups:
    """The groups under one policy at one asked budget.

    Attributes:
        policy: Name; the bounds have no groups.
        budget: Mean cost per sample asked for.
        budget_input: The same as it was typed.
        by: Kind of the groups: ``class`` or ``group``.
        groups: All of them, those that surely lose most first.
    """

    policy: str
    budget: float
    budget_input: str
    by: str
    groups: tuple[Group, ...]

    @property
    def loss(self) -> float:
        """Mean loss of all samples, in points."""
        return self._mean([group.loss for group in self.groups])

    def _mean(self, values: Sequence[float]) -> float:
        return float(np.average(values, weights=[group.num_samples for group in self.groups]))

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values with a summary; of more than 50 groups only the first 10 are listed.

        The spread is the standard deviation of the groups' losses, weighted by their size, in points.
        """
        listed = self.groups if len(self.groups) <= _LISTED else self.groups[:_WORST]
        return vars(self) | {
            "num_groups": len(self.groups),
            "loss": self.loss,
            "largest_loss": max(group.loss for group in self.groups),
            "spread": math.sqrt(self._mean([(group.loss - self.loss) ** 2 for group in self.groups])),
            "pays_more": sum(group.pays_more for group in self.groups),
            "groups": [dict(vars(group)) for group in listed],
        }


def groupings(table: ExitTable, groups: GroupsLike | None = None) -> list[Grouping]:
    """Return the groupings of a table's samples: by class where it is known, then by the groups given.

    Raises:
        ShapeError: There is not one group per sample.
        InputError: Groups are neither whole numbers nor texts.
    """
    found = []
    if table.labels is not None and table.has_classes:
        classes = tuple(str(label) for label in range(table.num_columns))
        found.append(Grouping(by="class", names=classes, index=table.labels))
    if groups is None:
        return found
    array = as_array(groups)
    if array.shape != (table.num_samples,):
        raise ShapeError(
            f"groups of shape {array.shape} do not fit: the table has {samples(table.num_samples)}. Give one group per "
            "sample."
        )
    if array.dtype.kind not in "iubU":
        raise InputError(
            f"groups of type {array.dtype} cannot be used: a group is a whole number or a name. Convert them."
        )
    names, index = np.unique(array, return_inverse=True)
    return [*found, Grouping(by="group", names=tuple(map(str, names)), index=index.astype(np.int64))]


def group_stats(
    groups: Grouping, table: ExitTable, leaving: Float[np.ndarray, "sample exit"], utility: Float[np.ndarray, " sample"]
) -> GroupStats:
    """Return exits, utility and the interval of the loss of every group.

    They follow from the chance of each sample to leave at each exit, which is 0 or 1 without a coin, and from its
    utility in expectation over that coin.

    The loss of a sample is the utility of the last exit minus that of the policy, in [-1, 1]. The interval of its mean
    adds two invented samples to the group, one with loss 1 and one with loss -1, and takes the normal interval of them
    all: it stays valid where hardly any sample, or none, changed its answer.

    Source:
        Bonett and Price, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
        Data, Journal of Educational and Behavioral Statistics 37, 2012.
    """
    full, number = table.require_utility("groups")[:, -1], len(groups.names)
    sums = partial(np.bincount, groups.index, minlength=number)
    counts, loss = sums().astype(np.float64), full - utility
    sizes = counts.clip(min=1)
    mean, square = sums(weights=loss) / (counts + 2), (sums(weights=loss**2) + 2) / (counts + 2)
    quantile = NormalDist().inv_cdf(1 - 0.025 / max(1, int((counts > 0).sum())))
    half = quantile * np.sqrt((square - mean**2) / (counts + 2))
    return {
        "num_samples": counts,
        "exit_distribution": np.stack([sums(weights=share) for share in leaving.T], axis=1) / sizes[:, None],
        "cost": sums(weights=(leaving * table.leaving_costs).sum(axis=1)) / sizes,
        "utility": sums(weights=utility) / sizes,
        "full_utility": sums(weights=full) / sizes,
        "low": 100 * (mean - half).clip(min=-1),
        "high": 100 * (mean + half).clip(max=1),
    }


def group_rows(names: Sequence[str], stats: Sequence[GroupStats]) -> tuple[Group, ...]:
    """Return the groups that have samples, those that surely lose most first.

    The order is that of the lower end of the interval: a large loss in a small group, mostly chance, does not come
    first. Over several splits every number is the mean over the group's samples in all of them; so are the ends of
    the interval, which is as wide as that of one split.
    """
    counts = np.stack([split["num_samples"] for split in stats])
    weights = counts / counts.sum(axis=0).clip(min=1)
    mean = {key: np.einsum("sg,sg...->g...", weights, np.stack([split[key] for split in stats])) for key in stats[0]}
    sizes = mean["num_samples"] = counts.mean(axis=0)
    mean["loss"] = 100 * (mean["full_utility"] - mean["utility"])
    overall = float(np.average(mean["loss"], weights=sizes))

    def group(g: int) -> Group:
        own: dict[str, Any] = {key: column[g].tolist() for key, column in mean.items()}
        own["exit_distribution"] = tuple(own["exit_distribution"])
        significant = own["low"] > 0 or own["high"] < 0
        return Group(name=names[g], significant=significant, pays_more=own["low"] > overall, **own)

    return tuple(group(g) for g in np.argsort(-mean["low"], kind="stable").tolist() if sizes[g] > 0)

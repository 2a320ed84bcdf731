"""Who pays for early exit: exits, utility and loss of every class, or of any other groups of samples.

Arithmetic on arrays, like `eenet.evaluation.statistics`: no tables, no policies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from eenet.errors import InputError, ShapeError

__all__ = ["Group", "GroupStats", "Grouping", "GroupsLike", "class_grouping", "group_rows", "group_stats", "grouping"]


GroupsLike = Sequence[int] | Sequence[str] | np.ndarray | Tensor
"""One group per sample: whole numbers or names."""


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """Which group every sample belongs to.

    Attributes:
        by: What the groups are: ``class`` or ``group``.
        names: Of the groups.
        index: Number of every sample's group.
    """

    by: str
    names: tuple[str, ...]
    index: Int[np.ndarray, " sample"]


@dataclass(frozen=True, kw_only=True)
class Group:
    """What early exit did to one group of samples.

    The interval is that of Bonett and Price: paired, sound for small groups, and at 95 % for all groups at once
    (Bonferroni), because readers look at the worst of them.

    Attributes:
        name: Class number or name of the group.
        num_samples: Its size; over several splits the mean.
        exit_distribution: Share of its samples leaving at each exit.
        cost: Mean cost per sample.
        utility: Mean utility under the policy, a fraction.
        full_utility: Mean utility of the last exit.
        loss: What the policy takes from the group, ``full_utility - utility``, in points (percent of utility).
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

    def to_dict(self) -> dict[str, Any]:
        """Return the group as JSON-ready values."""
        return asdict(self) | {"exit_distribution": list(self.exit_distribution)}


@dataclass(frozen=True, kw_only=True)
class GroupStats:
    """All groups as arrays, so that splits can be averaged; zeros where a group has no samples.

    Attributes:
        counts: Samples of every group.
        shares: Exit distribution of every group.
        utility: Mean utility under the policy.
        full_utility: Mean utility of the last exit.
        low: Lower end of the interval of the loss, a fraction.
        high: Upper end.
    """

    counts: Float[np.ndarray, " group"]
    shares: Float[np.ndarray, "group exit"]
    utility: Float[np.ndarray, " group"]
    full_utility: Float[np.ndarray, " group"]
    low: Float[np.ndarray, " group"]
    high: Float[np.ndarray, " group"]


def class_grouping(labels: Int[np.ndarray, " sample"], num_classes: int) -> Grouping:
    """Return the classes as groups."""
    return Grouping(by="class", names=tuple(str(label) for label in range(num_classes)), index=labels)


def grouping(groups: GroupsLike, num_samples: int) -> Grouping:
    """Return the groups of some samples by number or name, in sorted order.

    Args:
        groups: One whole number or text per sample.
        num_samples: How many there must be.

    Raises:
        ShapeError: There are more or fewer.
        InputError: They are neither whole numbers nor texts.
    """
    array = np.asarray(groups.cpu() if isinstance(groups, Tensor) else groups)
    if array.shape != (num_samples,):
        raise ShapeError(
            f"groups of shape {array.shape} do not fit: the table has {num_samples} samples. Give one group per sample."
        )
    if array.dtype.kind not in "iubU":
        raise InputError(
            f"groups of type {array.dtype} cannot be used: a group is a whole number or a name. Convert them."
        )
    names, index = np.unique(array, return_inverse=True)
    return Grouping(by="group", names=tuple(str(name) for name in names), index=index.astype(np.int64))


def group_stats(
    exit_index: Int[np.ndarray, " sample"],
    utility: Float[np.ndarray, " sample"],
    full_utility: Float[np.ndarray, " sample"],
    groups: Grouping,
    num_exits: int,
) -> GroupStats:
    """Return exits, utility and the interval of the loss of every group.

    The loss of a sample is what the last exit earns there minus what the policy earns, in [-1, 1]. The interval of
    its mean adds two made-up samples to the group, one that lost 1 and one that won 1, and takes the normal interval
    of the lot: it stays honest where few samples, or none, changed their answer.

    Args:
        exit_index: Where every sample left.
        utility: What it earned there, in [0, 1].
        full_utility: What it would have earned at the last exit.
        groups: Which group it belongs to.
        num_exits: Exits of the model.

    Source:
        Bonett and Price, Adjusted Wald Confidence Interval for a Difference of Binomial Proportions Based on Paired
        Data, Journal of Educational and Behavioral Statistics 37, 2012.
    """
    size = len(groups.names)

    def sums(values: Float[np.ndarray, " sample"]) -> Float[np.ndarray, " group"]:
        return np.bincount(groups.index, weights=values, minlength=size)

    counts = np.bincount(groups.index, minlength=size).astype(np.float64)
    held = counts.clip(min=1)
    leaving = np.bincount(groups.index * num_exits + exit_index, minlength=size * num_exits)
    loss = full_utility - utility
    mean, square = sums(loss) / (counts + 2), (sums(loss**2) + 2) / (counts + 2)
    quantile = NormalDist().inv_cdf(1 - 0.025 / max(1, int((counts > 0).sum())))
    half = quantile * np.sqrt((square - mean**2) / (counts + 2))
    return GroupStats(
        counts=counts,
        shares=leaving.reshape(size, num_exits) / held[:, None],
        utility=sums(utility) / held,
        full_utility=sums(full_utility) / held,
        low=(mean - half).clip(min=-1),
        high=(mean + half).clip(max=1),
    )


def group_rows(names: Sequence[str], stats: Sequence[GroupStats], prices: Sequence[float]) -> tuple[Group, ...]:
    """Return the groups that have samples, those that surely lose most first.

    The order is that of the lower end of the interval: a large loss of a few samples, mostly luck, does not come
    first. Over several splits every number is the mean over the group's samples in all of them; so are the ends of
    the interval, which is as wide as that of one split.

    Args:
        names: Of the groups.
        stats: One per split.
        prices: Cost of leaving at each exit.
    """
    counts = np.stack([split.counts for split in stats])
    weights = counts / counts.sum(axis=0).clip(min=1)

    def mean(field: str) -> Float[np.ndarray, "group *rest"]:  # noqa: F821 - a shape, not an expression
        values = np.stack([getattr(split, field) for split in stats])
        total: np.ndarray = np.einsum("sg,sg...->g...", weights, values)
        return total

    shares, utility, full = mean("shares"), mean("utility"), mean("full_utility")
    low, high, sizes = mean("low"), mean("high"), counts.mean(axis=0)
    overall = float(sizes @ (full - utility)) / float(sizes.sum())
    order = [int(g) for g in np.argsort(-low, kind="stable") if sizes[g] > 0]
    return tuple(
        Group(
            name=names[g],
            num_samples=float(sizes[g]),
            exit_distribution=tuple(shares[g].tolist()),
            cost=float(shares[g] @ np.asarray(prices)),
            utility=float(utility[g]),
            full_utility=float(full[g]),
            loss=100 * float(full[g] - utility[g]),
            low=100 * float(low[g]),
            high=100 * float(high[g]),
            significant=bool(low[g] > 0 or high[g] < 0),
            pays_more=bool(low[g] > overall),
        )
        for g in order
    )

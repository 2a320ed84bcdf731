"""Planted tables, on which it is known exactly what the best policy reaches.

In `gaussian_table` and `classwise_table` a sample is one of two classes, equally likely. Each exit adds a Gaussian
observation of known information ``v``, which moves the log-odds ``L`` of the true class by ``N(v / 2, v)``. The outputs
are the exact chances given all evidence so far, so the best policy solves a stopping problem in the one number ``|L|``:
with a Lagrange multiplier ``lambda`` of cost,

    ``V_k(L) = max(chance(|L|), E[V_{k+1}(L')] - lambda (c_{k+1} - c_k))``

with ``chance`` the logistic function. Mixing makes utility concave in the budget, so by duality the largest utility at
a budget ``B`` is the least ``V(lambda) + lambda B`` over all multipliers. `classwise_table` has several such pairs of
classes whose later exits add more or less, although their first exits look the same.

`typed_table` and `posterior_table` are smaller: their optimum is worked out by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float64
from scipy.special import expit, logit, ndtr

from eenet.errors import InputError
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

_INFORMATION = (0.8, 0.2, 1.4, 0.1, 1.5, 1.0)
_COSTS = (1.0, 1.4, 2.3, 2.8, 4.2, 6.0)
_PAIRS = ((1.5, 2.5, 1.0, 0.5), (1.5, 0.1, 0.2, 4.0), (1.5, 0.0, 0.0, 0.0), (1.5, 0.8, 0.8, 0.8))
_PAIR_COSTS = (1.0, 1.8, 2.8, 4.0)
_OTHERS = -14.0  # about the log-chance of each class outside a sample's pair
_GRID = np.linspace(0.0, 20.0, 501)  # of |L|
_LEAST = 0.02  # information below which the grid is too coarse
_MULTIPLIERS = 500

_LATER = 0.95  # how often the last exit of `posterior_table` is right
_TYPE_SHARES = (0.5, 0.3, 0.2)  # of easy, middling and hard samples in `typed_table`


def gaussian_table(
    num_samples: int = 4000,
    *,
    information: Sequence[float] = _INFORMATION,
    costs: Sequence[float] = _COSTS,
    expected: bool = False,
    seed: int = 0,
) -> ExitTable:
    """Return a table of two classes whose evidence arrives unevenly over the exits; outputs are the exact chances.

    The best policy leaves where the largest chance reaches a threshold of its own at each exit (and mixes two such
    policies), so `gaussian_optimum` is also the optimum of `JointScheduler` with its default confidence.

    Args:
        num_samples: Rows.
        information: What each exit adds: the squared distance of its two class means in standard deviations.
        costs: Cumulative cost of each exit.
        expected: Whether the utility is the chance of being right, which judges a policy with less noise, instead of
            being right.
        seed: Of the samples.

    Raises:
        InputError: Numbers of information and costs that differ, or information that is negative or too small.
    """
    table = classwise_table(num_samples, information=(information,), costs=costs, expected=expected, seed=seed)
    return replace(table, split="gaussian")


def gaussian_optimum(
    budget: float, *, information: Sequence[float] = _INFORMATION, costs: Sequence[float] = _COSTS
) -> float:
    """Return the largest expected utility at a mean cost on samples of `gaussian_table`, to about 2e-5."""
    return classwise_optimum(budget, information=(information,), costs=costs)


def gaussian_accuracies(*, information: Sequence[float] = _INFORMATION) -> tuple[float, ...]:
    """Return the expected utility of each exit on samples of `gaussian_table`."""
    return classwise_accuracies(information=(information,))


def classwise_table(
    num_samples: int = 4000,
    *,
    information: Sequence[Sequence[float]] = _PAIRS,
    costs: Sequence[float] = _PAIR_COSTS,
    expected: bool = False,
    seed: int = 0,
) -> ExitTable:
    """Return a table of pairs of classes: whether to go on depends on the pair, not only on the confidence.

    Every exit knows a sample's pair, and within it the exact chances. By default the four pairs look the same at exit
    0, but in one of them the next exit adds most, in one the last, in one each exit a little, and in one no exit
    anything: thresholds on a confidence, the same for all pairs, cannot be the best policy.

    Pairs are equally likely; classes ``2 i`` and ``2 i + 1`` are pair ``i``. Information is given for each pair, all
    else as for `gaussian_table`.
    """
    _check(information, costs)
    generator = np.random.default_rng(seed)
    pair, second = generator.integers(len(information), size=num_samples), generator.integers(2, size=num_samples)
    v = np.array(information, dtype=np.float64)[pair]
    noise = generator.standard_normal(v.shape)
    odds = ((2 * second[:, None] - 1) * v / 2 + np.sqrt(v) * noise).cumsum(axis=1)
    logits = _OTHERS + 0.5 * generator.standard_normal((*v.shape, 2 * len(information)))
    rows = np.arange(num_samples)
    logits[rows, :, 2 * pair], logits[rows, :, 2 * pair + 1] = -odds / 2, odds / 2
    utility = expit(np.abs(odds)) if expected else None
    return _table(logits, 2 * pair + second, costs, "classwise", utility)


def classwise_optimum(
    budget: float, *, information: Sequence[Sequence[float]] = _PAIRS, costs: Sequence[float] = _PAIR_COSTS
) -> float:
    """Return the largest expected utility at a mean cost on samples of `classwise_table`, to about 2e-5.

    It is the least ``V(lambda) + lambda B``, where ``V`` is the mean over equally likely pairs.
    """
    _check(information, costs)
    table = CostTable(tuple(costs), "ms")
    best = np.mean([_values(tuple(map(float, row)), table.cumulative) for row in information], axis=0)
    return float((best + _multipliers(table.cumulative) * table.budget(budget).value).min())


def classwise_accuracies(*, information: Sequence[Sequence[float]] = _PAIRS) -> tuple[float, ...]:
    """Return the expected utility of each exit on samples of `classwise_table`.

    That is the chance that the log-odds of the true class are positive, the mean over equally likely pairs.
    """
    return tuple(ndtr(np.sqrt(np.cumsum(information, axis=1)) / 2).mean(axis=0).tolist())


def _check(information: Sequence[Sequence[float]], costs: Sequence[float]) -> None:
    """Refuse information that the grid cannot handle."""
    for row in information:
        if len(row) != len(costs):
            raise InputError(
                f"information of {len(row)} exits does not fit: costs have {len(costs)}. Give one number per exit."
            )
        for k, value in enumerate(row):
            if not (math.isfinite(value) and (value >= _LEAST or (value == 0 and k > 0))):
                raise InputError(
                    f"information of exit {k}, {value:g}, cannot be used: the optimum is computed for {_LEAST:g} and "
                    f"more, or 0 after exit 0. Change it."
                )


def _table(
    logits: np.ndarray,
    labels: np.ndarray | None,
    costs: Sequence[float],
    split: str,
    utility: np.ndarray | None = None,
) -> ExitTable:
    table = CostTable(tuple(costs), "ms")
    return ExitTable(logits=logits.astype(np.float32), labels=labels, utility=utility, costs=table, split=split)


def _multipliers(costs: tuple[float, ...]) -> Float64[np.ndarray, " multiplier"]:
    """Return 0 and multipliers, 2 % apart, up to one at which no evidence pays for the cheapest stage."""
    most = math.log10(0.5 / min(CostTable(costs, "ms").stage_costs[1:]))
    return np.append(0.0, np.logspace(most - 4.3, most, _MULTIPLIERS - 1))


@lru_cache(maxsize=32)
def _values(information: tuple[float, ...], costs: tuple[float, ...]) -> Float64[np.ndarray, " multiplier"]:
    """Return the value of the best policy, its cost deducted, at every multiplier: by dynamic programming."""
    multipliers = _multipliers(costs)
    chance = expit(_GRID)[:, None]
    value = np.broadcast_to(chance, (len(_GRID), len(multipliers)))
    for k in reversed(range(1, len(costs))):
        going_on = _transition(information[k]) @ value - multipliers * (costs[k] - costs[k - 1])
        value = np.maximum(chance, going_on)
    return np.asarray(_transition(information[0], _GRID[:1])[0] @ value - multipliers * costs[0])


def _transition(information: float, start: Float64[np.ndarray, " start"] = _GRID) -> Float64[np.ndarray, "start grid"]:
    """Return the chances to get from one ``|L|`` to another: rows sum to 1.

    From ``L = a`` the evidence moves ``L`` by ``N(v / 2, v)`` if the likelier class is the true one, else by
    ``N(-v / 2, v)``; both signs of the result count.
    """
    here, there = start[:, None], _GRID[None]
    if information == 0:
        return np.asarray(here == there, dtype=np.float64)
    likelier = expit(here)
    rows = np.zeros((len(start), len(_GRID)))
    for weight, drift in ((likelier, information / 2), (1 - likelier, -information / 2)):
        for end in (there, -there):
            rows += weight * np.exp(-((end - here - drift) ** 2) / (2 * information))
    rows[:, :3] *= (3 / 8, 7 / 6, 23 / 24)  # |L| has a kink at 0: Gregory's rule
    return np.asarray(rows / rows.sum(axis=1, keepdims=True))


def synthetic_table(
    num_samples: int = 1000, *, num_exits: int = 4, num_classes: int = 5, seed: int = 0, labels: bool = True
) -> ExitTable:
    """Return a table of a plausible network: later exits are better, some samples are harder, costs are even."""
    generator = np.random.default_rng(seed)
    label = generator.integers(num_classes, size=num_samples)
    ease = np.exp(0.7 * generator.standard_normal((num_samples, 1)))
    strength = np.linspace(0.8, 4.0, num_exits) * ease
    shared = generator.standard_normal((num_samples, 1, num_classes))
    own = generator.standard_normal((num_samples, num_exits, num_classes))
    logits = shared + own + strength[:, :, None] * np.eye(num_classes)[label][:, None]
    return _table(logits, label if labels else None, range(1, num_exits + 1), "synthetic")


def typed_table(num_samples: int = 2000, *, seed: int = 0) -> ExitTable:
    """Return a table whose best policy is known exactly: three kinds of samples that differ in their confidences.

    Easy samples (half) are right at exit 0, middling ones (0.3) from exit 1 on, hard ones (0.2) at exit 2 only. An
    exit is sure of a sample just where it is right. Costs are 1, 2 and 4.
    """
    generator = np.random.default_rng(seed)
    kind = generator.choice(3, size=num_samples, p=_TYPE_SHARES)
    label = generator.integers(4, size=num_samples)
    right = np.arange(3) >= kind[:, None]
    wrong = (label[:, None] + 1 + generator.integers(3, size=(num_samples, 3))) % 4
    chosen = np.where(right, label[:, None], wrong)
    sureness = np.where(right, 4.0, 1.0) + 0.2 * generator.random((num_samples, 3))
    return _table(np.eye(4)[chosen] * sureness[:, :, None], label, (1.0, 2.0, 4.0), "typed")


def typed_optimum(budget: float) -> float:
    """Return the largest expected utility any policy reaches on samples of `typed_table`.

    Going on to exit 1 with all who are not easy costs 1 each and gains for the share 0.3 / 0.5 of them; going on to
    exit 2 with the hard ones costs 2 each and always gains. So the slopes are 0.6 and 0.5 per unit of cost.
    """
    easy, middling, hard = _TYPE_SHARES
    first, second = middling + hard, 2 * hard
    spare = max(0.0, budget - 1.0)
    return easy + middling * min(1.0, spare / first) + hard * min(1.0, max(0.0, spare - first) / second)


def posterior_table(num_samples: int = 4000, *, seed: int = 0) -> ExitTable:
    """Return a table of two exits whose first probability is calibrated, so that the best rule is a threshold on it.

    The probability of exit 0's choice is uniform on [1/2, 1] and is the chance that it is right; exit 1 is right with
    chance 0.95, whatever was seen. Costs are 1 and 2.
    """
    generator = np.random.default_rng(seed)
    sure = 0.5 + 0.5 * generator.random(num_samples).clip(1e-6, 1 - 1e-6)
    label = generator.integers(2, size=num_samples)
    chances = np.stack([sure, np.full(num_samples, _LATER)], axis=1)
    right = generator.random((num_samples, 2)) < chances
    chosen = np.where(right, label[:, None], 1 - label[:, None])
    return _table(np.eye(2)[chosen] * logit(chances)[:, :, None], label, (1.0, 2.0), "posterior")


def posterior_optimum(budget: float) -> float:
    """Return the largest expected utility any policy reaches on samples of `posterior_table`.

    The least sure samples go on, as long as the last exit is surer: with share ``f`` going on, those left are uniform
    on ``[1/2 + f/2, 1]``, so the utility is ``(1 - f) (3 + f) / 4 + 0.95 f``.
    """
    f = min(max(budget - 1.0, 0.0), 2 * (_LATER - 0.5))
    return (1 - f) * (3 + f) / 4 + _LATER * f


def planted_outcomes(num_samples: int = 3000, *, stages: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """Return made-up outcomes of models asked one after the other, as columns for `eenet.read_outcomes`.

    A sample is as hard as a number drawn evenly from [0, 1]. Stage ``k`` of ``K`` is right with the chance
    ``1 / (1 + exp(8 (hard - skill)))``, where skills rise evenly from 0.6 to 1.2, and costs ``2 ** k`` in the mean:
    more where the sample is hard, and by chance. It knows a score, one minus the hardness with noise that falls from
    stage to stage, and the length of its answer, which says nothing. The group is the half by hardness.

    Args:
        num_samples: Rows.
        stages: Models.
        seed: Of the samples.
    """
    generator = np.random.default_rng(seed)
    hard = generator.random(num_samples)
    columns = {"sample": np.arange(num_samples), "group": np.where(hard < 0.5, "easy", "hard")}
    for k, skill in enumerate(np.linspace(0.6, 1.2, stages)):
        noise = generator.standard_normal((3, num_samples))
        columns |= {
            f"stage{k}.utility": (generator.random(num_samples) < expit(8 * (skill - hard))).astype(np.float64),
            f"stage{k}.cost": 2.0**k * (0.5 + hard) * np.exp(0.3 * noise[0] - 0.045),
            f"stage{k}.score": 1 - hard + 0.3 / (1 + k) * noise[1],
            f"stage{k}.length": np.exp(noise[2]),
        }
    return columns

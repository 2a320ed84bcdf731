"""Planted tables on which schedulers can be told apart: evidence arrives exit by exit, the optimum is computed exactly.

A sample is one of two classes, equally likely. Each exit adds a Gaussian observation of known information ``v``, which
moves the log-odds ``L`` of the true class by ``N(v / 2, v)``. The outputs are the exact chances given all evidence so
far, so the best policy solves a stopping problem in the one number ``|L|``: at a price ``lambda`` of cost,

    ``V_k(L) = max(chance(|L|), E[V_{k+1}(L')] - lambda (c_{k+1} - c_k))``

with ``chance`` the logistic function. Mixing makes utility concave in the budget, so by duality the largest utility at
a budget ``B`` is the least ``V(lambda) + lambda B`` over all prices. `classwise_table` has several such pairs of
classes whose later exits are worth more or less, although their first exits look the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable
from eenet.errors import InputError

__all__ = [
    "classwise_accuracies",
    "classwise_optimum",
    "classwise_table",
    "gaussian_accuracies",
    "gaussian_optimum",
    "gaussian_table",
]

_INFORMATION = (0.8, 0.2, 1.4, 0.1, 1.5, 1.0)
_COSTS = (1.0, 1.4, 2.3, 2.8, 4.2, 6.0)
_PAIRS = ((1.5, 2.5, 1.0, 0.5), (1.5, 0.1, 0.2, 4.0), (1.5, 0.0, 0.0, 0.0), (1.5, 0.8, 0.8, 0.8))
_PAIR_COSTS = (1.0, 1.8, 2.8, 4.0)
_OTHERS = -14.0  # about the log-chance of each class outside a sample's pair
_GRID = torch.linspace(0.0, 20.0, 501, dtype=torch.float64)  # of |L|
_LEAST = 0.02  # information below which the grid is too coarse
_PRICES = 500


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
        seed: Of the draw.

    Raises:
        InputError: Numbers of information and costs that differ, or information that is negative or too small.
    """
    return _table(num_samples, _checked((information,), costs), costs, expected=expected, seed=seed, split="gaussian")


def gaussian_optimum(
    budget: float, *, information: Sequence[float] = _INFORMATION, costs: Sequence[float] = _COSTS
) -> float:
    """Return the largest expected utility any policy reaches on draws of `gaussian_table`, to about 2e-5.

    Args:
        budget: Mean cost per sample, from the first exit's cost upwards.
        information: As for `gaussian_table`.
        costs: As for `gaussian_table`.
    """
    return _optimum(budget, _checked((information,), costs), costs)


def gaussian_accuracies(*, information: Sequence[float] = _INFORMATION) -> tuple[float, ...]:
    """Return the expected utility of each exit on draws of `gaussian_table`.

    Args:
        information: As for `gaussian_table`.
    """
    return _accuracies((information,))


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
    0, but in one of them the next exit tells most, in one the last, in one each exit a little, and in one no exit
    anything: thresholds on a confidence, the same for all pairs, cannot be the best policy.

    Args:
        num_samples: Rows.
        information: For each pair, what each exit adds; see `gaussian_table`. Classes ``2 i`` and ``2 i + 1`` are pair
            ``i``; pairs are equally likely.
        costs: Cumulative cost of each exit.
        expected: Whether the utility is the chance of being right instead of being right.
        seed: Of the draw.

    Raises:
        InputError: Numbers of information and costs that differ, or information that is negative or too small.
    """
    return _table(num_samples, _checked(information, costs), costs, expected=expected, seed=seed, split="classwise")


def classwise_optimum(
    budget: float, *, information: Sequence[Sequence[float]] = _PAIRS, costs: Sequence[float] = _PAIR_COSTS
) -> float:
    """Return the largest expected utility any policy reaches on draws of `classwise_table`, to about 2e-5.

    Args:
        budget: Mean cost per sample, from the first exit's cost upwards.
        information: As for `classwise_table`.
        costs: As for `classwise_table`.
    """
    return _optimum(budget, _checked(information, costs), costs)


def classwise_accuracies(*, information: Sequence[Sequence[float]] = _PAIRS) -> tuple[float, ...]:
    """Return the expected utility of each exit on draws of `classwise_table`.

    Args:
        information: As for `classwise_table`.
    """
    return _accuracies(information)


def _accuracies(information: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Return the chance that log-odds of the true class are positive, the mean over equally likely pairs."""
    total = torch.tensor(information, dtype=torch.float64).cumsum(dim=1)
    return tuple(torch.special.ndtr(total.sqrt() / 2).mean(dim=0).tolist())


def _checked(information: Sequence[Sequence[float]], costs: Sequence[float]) -> tuple[tuple[float, ...], ...]:
    """Return the information as tuples of floats; refuse what the grid cannot handle."""
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
    return tuple(tuple(float(value) for value in row) for row in information)


def _table(
    num_samples: int,
    information: tuple[tuple[float, ...], ...],
    costs: Sequence[float],
    *,
    expected: bool,
    seed: int,
    split: str,
) -> ExitTable:
    """Draw pair, label and evidence of each sample, and write down the chances as logits."""
    generator = torch.Generator().manual_seed(seed)
    pair = torch.randint(len(information), (num_samples,), generator=generator)
    second = torch.randint(2, (num_samples,), generator=generator)
    v = torch.tensor(information, dtype=torch.float64)[pair]
    noise = torch.randn(num_samples, len(costs), generator=generator, dtype=torch.float64)
    odds = ((2 * second[:, None] - 1) * v / 2 + v.sqrt() * noise).cumsum(dim=1)
    classes = 2 * len(information)
    logits = _OTHERS + 0.5 * torch.randn(num_samples, len(costs), classes, generator=generator, dtype=torch.float64)
    columns = (2 * pair)[:, None, None] + torch.arange(2)
    logits.scatter_(2, columns.expand(-1, len(costs), -1), torch.stack([-odds / 2, odds / 2], dim=2))
    return ExitTable(
        logits=logits.float(),
        labels=2 * pair + second,
        utility=odds.abs().sigmoid() if expected else None,
        costs=CostTable(tuple(costs), "ms"),
        split=split,
    )


def _optimum(budget: float, information: tuple[tuple[float, ...], ...], costs: Sequence[float]) -> float:
    """Return the least ``V(lambda) + lambda B``, where ``V`` is the mean over equally likely pairs."""
    table = CostTable(tuple(costs), "ms")
    value = table.budget(budget).value
    prices = _prices(table.cumulative)
    best = torch.stack([_values(row, table.cumulative) for row in information]).mean(dim=0)
    return float((best + prices * value).min())


def _prices(costs: tuple[float, ...]) -> Float[Tensor, " price"]:
    """Return 0 and multipliers, 2 % apart, up to one at which no evidence is worth the cheapest stage."""
    most = 0.5 / min(CostTable(costs, "ms").stage_costs[1:])
    grid = torch.logspace(math.log10(most) - 4.3, math.log10(most), _PRICES - 1, dtype=torch.float64)
    return torch.cat([torch.zeros(1, dtype=torch.float64), grid])


@lru_cache(maxsize=32)
def _values(information: tuple[float, ...], costs: tuple[float, ...]) -> Float[Tensor, " price"]:
    """Return what the best policy is worth, its cost deducted, at every price: by dynamic programming."""
    prices = _prices(costs)
    chance = _GRID.sigmoid()[:, None]
    value = chance.expand(-1, len(prices))
    for k in reversed(range(1, len(costs))):
        going_on = _transition(information[k]) @ value - prices * (costs[k] - costs[k - 1])
        value = torch.maximum(chance, going_on)
    return _transition(information[0], _GRID[:1])[0] @ value - prices * costs[0]


def _transition(information: float, start: Float[Tensor, " start"] = _GRID) -> Float[Tensor, "start grid"]:
    """Return the chances to get from one ``|L|`` to another: rows sum to 1.

    From ``L = a`` the evidence moves ``L`` by ``N(v / 2, v)`` if the likelier class is the true one, else by
    ``N(-v / 2, v)``; both signs of the result count.
    """
    here, there = start[:, None], _GRID[None]
    if information == 0:
        return (here == there).double()
    likelier = here.sigmoid()
    rows = torch.zeros(len(start), len(_GRID), dtype=torch.float64)
    for weight, drift in ((likelier, information / 2), (1 - likelier, -information / 2)):
        for end in (there, -there):
            rows += weight * (-((end - here - drift) ** 2) / (2 * information)).exp()
    rows[:, :3] *= torch.tensor([3 / 8, 7 / 6, 23 / 24], dtype=torch.float64)  # |L| has a kink at 0: Gregory's rule
    return rows / rows.sum(dim=1, keepdim=True)

"""Small planted tables: one of a plausible network, two whose best policy is known by hand."""

from __future__ import annotations

import math

import torch

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable

__all__ = ["posterior_optimum", "posterior_table", "synthetic_table", "typed_optimum", "typed_table"]

_LATER = 0.95  # how often the last exit of `posterior_table` is right
_TYPE_SHARES = (0.5, 0.3, 0.2)  # of easy, middling and hard samples in `typed_table`


def synthetic_table(
    num_samples: int = 1000, *, num_exits: int = 4, num_classes: int = 5, seed: int = 0, labels: bool = True
) -> ExitTable:
    """Return a table of a plausible network: later exits are better, some samples are harder, costs are even.

    Args:
        num_samples: Rows.
        num_exits: Exits.
        num_classes: Classes.
        seed: Of the draw.
        labels: Whether the table carries labels.
    """
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(num_classes, (num_samples,), generator=generator)
    ease = torch.randn(num_samples, 1, generator=generator).mul(0.7).exp()
    strength = torch.linspace(0.8, 4.0, num_exits) * ease
    shared = torch.randn(num_samples, 1, num_classes, generator=generator)
    own = torch.randn(num_samples, num_exits, num_classes, generator=generator)
    logits = shared + own + strength[:, :, None] * torch.nn.functional.one_hot(label, num_classes)[:, None]
    costs = CostTable(tuple(float(k + 1) for k in range(num_exits)), "ms")
    return ExitTable(logits=logits, labels=label if labels else None, costs=costs, split="synthetic")


def typed_table(num_samples: int = 2000, *, seed: int = 0) -> ExitTable:
    """Return a table whose best policy is known exactly: three kinds of samples, told apart by their confidences.

    Easy samples (half) are right at exit 0, middling ones (0.3) from exit 1 on, hard ones (0.2) at exit 2 only. An
    exit is sure of a sample just where it is right. Costs are 1, 2 and 4.
    """
    generator = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(torch.tensor(_TYPE_SHARES), num_samples, replacement=True, generator=generator)
    label = torch.randint(4, (num_samples,), generator=generator)
    right = torch.arange(3) >= kind[:, None]
    wrong = (label[:, None] + 1 + torch.randint(3, (num_samples, 3), generator=generator)) % 4
    chosen = torch.where(right, label[:, None], wrong)
    sureness = torch.where(right, 4.0, 1.0) + 0.2 * torch.rand(num_samples, 3, generator=generator)
    logits = torch.nn.functional.one_hot(chosen, 4) * sureness[:, :, None]
    return ExitTable(logits=logits.float(), labels=label, costs=CostTable((1.0, 2.0, 4.0), "ms"), split="typed")


def typed_optimum(budget: float) -> float:
    """Return the largest expected utility any policy reaches on draws of `typed_table`.

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
    generator = torch.Generator().manual_seed(seed)
    sure = 0.5 + 0.5 * torch.rand(num_samples, generator=generator).clamp(1e-6, 1 - 1e-6)
    label = torch.randint(2, (num_samples,), generator=generator)
    right = torch.stack(
        [torch.rand(num_samples, generator=generator) < sure, torch.rand(num_samples, generator=generator) < _LATER], 1
    )
    odds = torch.stack([(sure / (1 - sure)).log(), torch.full_like(sure, math.log(_LATER / (1 - _LATER)))], 1)
    chosen = torch.where(right, label[:, None], 1 - label[:, None])
    logits = torch.nn.functional.one_hot(chosen, 2) * odds[:, :, None]
    return ExitTable(logits=logits, labels=label, costs=CostTable((1.0, 2.0), "ms"), split="posterior")


def posterior_optimum(budget: float) -> float:
    """Return the largest expected utility any policy reaches on draws of `posterior_table`.

    The least sure samples go on, as long as the last exit is surer: with share ``f`` going on, those left are uniform
    on ``[1/2 + f/2, 1]``, so the utility is ``(1 - f) (3 + f) / 4 + 0.95 f``.
    """
    f = min(max(budget - 1.0, 0.0), 2 * (_LATER - 0.5))
    return (1 - f) * (3 + f) / 4 + _LATER * f

"""Tables and schedulers small enough to be followed by hand."""

from dataclasses import dataclass

import torch

from eenet.core.costs import CostTable
from eenet.core.policy import ScorePolicy
from eenet.core.scorers import ConfidenceScorer
from eenet.core.table import ExitTable
from eenet.schedulers.base import Dial, Scheduler

NEVER = float("inf")


@dataclass(frozen=True, kw_only=True)
class Fixed(Scheduler):
    """Returns the same thresholds on max_prob whatever the budget."""

    thresholds: tuple[float, ...]
    fit_cost: float = 1.25

    def sweep(self, table, costs=None, budgets=None):
        policy = ScorePolicy(ConfidenceScorer("max_prob"), torch.tensor([*self.thresholds, -NEVER]))
        return Dial((policy,), (self.fit_cost,), (0.0,), costs)


def by_hand(reference=None):
    """Four samples, two exits of cost 1 and 2 ms; exit 0 is right on samples 0 and 1, exit 1 on all.

    The log-odds at exit 0 are 4, 3, 2 and 1.
    """
    first = torch.tensor([[4.0, 0.0], [3.0, 0.0], [2.0, 0.0], [1.0, 0.0]])
    last = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    return ExitTable(
        logits=torch.stack([first, last], dim=1),
        labels=torch.tensor([0, 0, 1, 1]),
        costs=CostTable((1.0, 2.0), "ms", reference),
    )


def planted(samples, seed, exits=3, classes=4):
    """Random labels; later exits see them more clearly, some samples are hard at all exits."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (samples,), generator=generator)
    noise = (
        torch.randn(samples, exits, classes, generator=generator) * torch.rand(samples, 1, 1, generator=generator) * 3
    )
    signal = torch.linspace(0.5, 2.5, exits).view(1, exits, 1) * torch.nn.functional.one_hot(labels, classes)[:, None]
    costs = CostTable(tuple(float(k + 1) for k in range(exits)), "MFLOPs", reference=float(exits) - 0.2)
    return ExitTable(logits=noise + signal, labels=labels, costs=costs)

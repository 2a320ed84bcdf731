"""Training EENet's scoring and assignment functions, many budgets and restarts at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import binary_cross_entropy, softplus

from eenet.core.costs import CostTable
from eenet.core.table import ExitTable

if TYPE_CHECKING:
    from eenet.schedulers.eenet import EENetScheduler

__all__ = ["Fitted", "fit_networks"]

_SCORE_EPSILON = 1e-6  # keeps the assignment's target positive where all scores are clipped to 0
_LOG_EPSILON = 1e-6  # keeps the cross-entropy finite where a score is exactly 0 or 1


@dataclass(frozen=True)
class Fitted:
    """What training returns, for each member: every budget times every restart, restarts of a budget side by side.

    Attributes:
        weight: Of the linear scores.
        shares: Mean exit shares of the assignment; equal shares where none was trained.
    """

    weight: Float[Tensor, "member exit feature"]
    shares: Float[Tensor, "member exit"]


def fit_networks(
    table: ExitTable,
    costs: CostTable,
    budgets: list[float] | None,
    features: Callable[[Tensor], Tensor],
    settings: EENetScheduler,
) -> Fitted:
    """Minimise EENet's score loss and, for each budget, its assignment loss.

    Args:
        table: Calibration data with labels or utility.
        costs: Of the table's exits.
        budgets: One assignment is trained for each; None: the scores alone, with equal weights for all samples.
        features: Turns log-probabilities ``[sample, seen, class]`` into features of every exit.
        settings: Of the optimisation.

    Returns:
        Copies, detached from training.
    """
    x = torch.cat([features(table.log_probs(rows)) for rows in table.chunks()])
    utility = table.require_utility("fitting eenet").float()
    members = (1 if budgets is None else len(budgets)) * settings.restarts
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        network = _Networks(x.shape, table.num_classes, members, settings)
        if budgets is None:
            _train_scores(network, x, utility, settings)
            return Fitted(network.weight.detach().clone(), torch.full((members, costs.num_exits), 1 / costs.num_exits))
        goal = torch.tensor(budgets).clamp_max(costs.high).repeat_interleave(settings.restarts)
        cumulative = torch.tensor(costs.cumulative)
        _train_in_turns(network, x, utility, costs=cumulative, goal=goal, settings=settings)
    with torch.no_grad():
        parts = [network.assign(part, network.scores(part)).sum(dim=1) for part in torch.split(x, 4096)]
    return Fitted(network.weight.detach().clone(), torch.stack(parts).sum(dim=0) / len(x))


class _Networks:
    """Linear scores and assignment networks of all members, as stacked parameters."""

    def __init__(self, shape: torch.Size, num_classes: int, members: int, settings: EENetScheduler) -> None:
        _, exits, own = shape
        width = own + exits - 1
        hidden = max(1, math.ceil(settings.hidden_ratio * width))
        self.settings, self.own = settings, own
        weight = torch.zeros(members, exits, width)
        weight[:, :, num_classes] = 1.0  # q = max p, inside [0, 1] where clipping leaves a gradient
        if settings.restarts > 1:
            spread = 0.01 * torch.randn(members, exits, width)
            spread[:: settings.restarts] = 0.0  # the first start of each budget is the plain one
            weight += spread
        self.weight = weight.requires_grad_()
        bound = 1 / math.sqrt(width)
        self.first = (torch.empty(members, exits, width, hidden).uniform_(-bound, bound)).requires_grad_()
        self.first_bias = torch.zeros(members, 1, exits, hidden, requires_grad=True)
        bound = 1 / math.sqrt(hidden)
        self.second = (torch.empty(members, exits, hidden).uniform_(-bound, bound)).requires_grad_()
        self.second_bias = torch.zeros(members, 1, exits, requires_grad=True)
        # exit k sees the scores of exits before k only
        self.earlier = torch.ones(exits - 1, exits).triu(diagonal=1)

    def assignment_parameters(self) -> list[Tensor]:
        return [self.first, self.first_bias, self.second, self.second_bias]

    def scores(self, x: Float[Tensor, "sample exit feature"]) -> Float[Tensor, "member sample exit"]:
        """Return clipped scores; earlier scores enter later ones as constants."""
        linear = torch.einsum("nkd,mkd->mnk", x, self.weight[:, :, : self.own])
        scores: list[Tensor] = []
        for k in range(x.shape[1]):
            score = linear[:, :, k]
            if scores:
                earlier = torch.stack(scores, dim=2).detach()
                score = score + torch.einsum("mnj,mj->mn", earlier, self.weight[:, k, self.own : self.own + k])
            scores.append(score.clamp(0.0, 1.0))
        return torch.stack(scores, dim=2)

    def assign(
        self, x: Float[Tensor, "sample exit feature"], scores: Float[Tensor, "member sample exit"]
    ) -> Float[Tensor, "member sample exit"]:
        """Return each sample's shares over the exits."""
        earlier = scores[:, :, :-1].detach()
        hidden = torch.einsum("nkd,mkdh->mnkh", x, self.first[:, :, : self.own])
        seen = self.first[:, :, self.own :] * self.earlier.T[None, :, :, None]
        hidden = torch.relu(hidden + torch.einsum("mnj,mkjh->mnkh", earlier, seen) + self.first_bias)
        raw = torch.einsum("mnkh,mkh->mnk", hidden, self.second) + self.second_bias
        if self.settings.assignment == "softmax":
            return torch.softmax(torch.sigmoid(raw), dim=2)
        positive = softplus(raw)
        return positive / positive.sum(dim=2, keepdim=True)


def _score_loss(scores: Tensor, utility: Tensor, weight: Tensor | None) -> Tensor:
    """``L_q``: cross-entropy of score against utility, samples weighted by how likely they are to leave there."""
    clipped = scores.clamp(_LOG_EPSILON, 1 - _LOG_EPSILON)
    loss = binary_cross_entropy(clipped, utility.expand_as(clipped), reduction="none")
    omega = 1 / scores.shape[1] if weight is None else weight / weight.sum(dim=1, keepdim=True)
    return (omega * loss).sum(dim=1).mean(dim=1).sum()  # members do not share parameters, so their losses just add


def _assignment_loss(shares: Tensor, scores: Tensor, costs: Tensor, goal: Tensor, settings: EENetScheduler) -> Tensor:
    """``L_r``: pull towards the exits with the larger scores, and towards the budget."""
    target = (scores.detach() + _SCORE_EPSILON) ** settings.beta
    target = target / target.sum(dim=2, keepdim=True)
    divergence = (target * (target / shares).log()).sum(dim=2).mean(dim=1)
    distance = ((shares @ costs).mean(dim=1) - goal).abs() / goal
    return (settings.alpha_kl * divergence + settings.alpha_cost * distance).sum()


def _epochs(settings: EENetScheduler) -> Iterator[int]:
    """Yield the numbers of the epochs, and tell every two seconds how far the training is."""
    told = monotonic()
    for epoch in range(settings.epochs):
        yield epoch
        if settings.progress is not None and monotonic() - told >= 2:
            told = monotonic()
            settings.progress("epochs of EENet's networks", epoch + 1, settings.epochs)


def _train_scores(network: _Networks, x: Tensor, utility: Tensor, settings: EENetScheduler) -> None:
    optimizer = torch.optim.Adam([network.weight], lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.epochs)
    for _ in _epochs(settings):
        for rows in torch.split(torch.randperm(len(x)), settings.batch_size):
            optimizer.zero_grad()
            _score_loss(network.scores(x[rows]), utility[rows], None).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()


def _train_in_turns(
    network: _Networks, x: Tensor, utility: Tensor, *, costs: Tensor, goal: Tensor, settings: EENetScheduler
) -> None:
    decay = settings.weight_decay
    score_optimizer = torch.optim.Adam([network.weight], lr=settings.learning_rate, weight_decay=decay)
    assign_optimizer = torch.optim.Adam(network.assignment_parameters(), lr=settings.learning_rate, weight_decay=decay)
    for epoch in _epochs(settings):
        scoring = (epoch // settings.alternate_every) % 2 == 0
        for rows in torch.split(torch.randperm(len(x)), settings.batch_size):
            part = x[rows]
            if scoring:
                score_optimizer.zero_grad()
                scores = network.scores(part)
                with torch.no_grad():
                    weight = network.assign(part, scores)
                _score_loss(scores, utility[rows], weight).backward()  # type: ignore[no-untyped-call]
                score_optimizer.step()
            else:
                assign_optimizer.zero_grad()
                with torch.no_grad():
                    scores = network.scores(part)
                shares = network.assign(part, scores)
                _assignment_loss(shares, scores, costs, goal, settings).backward()  # type: ignore[no-untyped-call]
                assign_optimizer.step()

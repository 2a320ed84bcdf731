"""EENet: learned exit scores, with the paper's assignment or our joint search for the thresholds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from eenet.core.confidence import certainty, max_prob, squash
from eenet.core.costs import BudgetLike, CostTable, standard_budgets
from eenet.core.scorers import Scorer
from eenet.core.table import ExitTable
from eenet.core.trace import Replayer
from eenet.errors import InputError
from eenet.schedulers.base import Dial, Scheduler
from eenet.schedulers.eenet_fit import Fitted, fit_networks
from eenet.schedulers.heuristics import geometric_dial
from eenet.schedulers.joint import joint_dial

__all__ = ["EENetScheduler", "EENetScorer", "exit_features"]


def exit_features(seen: Float[Tensor, "sample seen class"]) -> Float[Tensor, "sample seen feature"]:
    """Return EENet's features of every exit seen: the probabilities and three confidences.

    The confidences are the largest probability, one minus the normalised entropy, and the share of the exits up to
    here that voted for the most popular class.

    Source:
        EENet (arXiv 2301.07099), section on exit scoring.
    """
    probs = seen.exp()
    votes = seen.argmax(dim=-1)
    exits = votes.shape[1]
    counts = (votes.unsqueeze(2) == votes.unsqueeze(1)).float().cumsum(dim=2)  # [sample, voter i, exits up to j]
    share = counts.triu().amax(dim=1) / torch.arange(1, exits + 1, device=seen.device)
    return torch.cat(
        [probs, probs.amax(dim=-1, keepdim=True), certainty(seen).unsqueeze(-1), share.unsqueeze(-1)], dim=-1
    )


class EENetScorer(Scorer):
    """EENet's linear exit score ``q_k = clip(w_k . [p, a, b], 0, 1)``, in training and at inference alike.

    ``b`` are the earlier scores. Where ``q`` is clipped it ties; ties are broken by the largest probability, outside
    [0, 1], so that the order of untied samples stays as it is.

    Args:
        num_exits: Number of exits.
        num_classes: Number of classes.
        weight: Weights ``[exit, C + 3 + K - 1]``; default zero, for loading.
    """

    weight: Tensor

    def __init__(self, num_exits: int, num_classes: int, weight: Float[Tensor, "exit feature"] | None = None) -> None:
        super().__init__()
        self.num_exits, self.num_classes = num_exits, num_classes
        width = num_classes + 3 + num_exits - 1
        # double: a sum rounded once to float32 does not depend on the batch it was computed in
        self.register_buffer(
            "weight", torch.zeros(num_exits, width, dtype=torch.float64) if weight is None else weight.detach().double()
        )

    def forward(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the score at the newest exit seen."""
        k = seen.shape[1] - 1
        x = exit_features(seen)
        own = x.shape[2]
        linear = (x * self.weight[: k + 1, :own]).sum(dim=2)
        earlier: list[Tensor] = []
        for j in range(k + 1):
            score = linear[:, j]
            if earlier:
                score = score + (torch.stack(earlier, dim=1) * self.weight[j, own : own + j]).sum(dim=1)
            earlier.append(score.clamp(0.0, 1.0))
        clipped = earlier[-1]
        tie = squash(max_prob(seen[:, -1]))
        score = torch.where(clipped <= 0, tie - 1, torch.where(clipped >= 1, 1 + tie, clipped))
        return score.float()

    def widened(self, num_exits: int) -> EENetScorer:
        """Return a scorer with weights 0 for more exits."""
        more = num_exits - self.num_exits
        return EENetScorer(num_exits, self.num_classes, torch.nn.functional.pad(self.weight, (0, more, 0, more)))

    def settings(self) -> dict[str, object]:
        """Return the sizes that rebuild this scorer."""
        return {"num_exits": self.num_exits, "num_classes": self.num_classes}


@dataclass(frozen=True, kw_only=True)
class EENetScheduler(Scheduler):
    """EENet's learned exit scores. The defaults are ours; `published` gives the paper's rule and settings.

    The default trains the paper's scores faster and searches the thresholds jointly on them (one fit for all budgets).
    With ``thresholds="assigned"`` the paper's exit-assignment networks are trained for each budget, their mean shares
    become thresholds, and shares are tilted and mixed until the budget is met on the fitting data.

    Attributes:
        thresholds: ``"joint"`` or ``"assigned"``.
        epochs: Passes over the table.
        batch_size: Samples per step.
        learning_rate: Of Adam.
        weight_decay: Of Adam.
        restarts: Starts of which the most useful on the fitting data is kept (``"assigned"`` only; the joint fit is
            convex but for the clipping, and starts at ``q = max p``).
        alternate_every: Epochs after which score and assignment training take turns.
        alpha_kl: Weight of the pull of the assignment towards the scores.
        alpha_cost: Weight of the relative distance to the budget.
        beta: Sharpness of the assignment's target.
        hidden_ratio: Width of the assignment's hidden layer relative to its inputs: 0.5 for images, 2 for text in the
            paper.
        assignment: ``"sum"`` normalises softplus outputs by their sum; ``"softmax"`` takes the softmax of sigmoids as
            the released code does, which cannot reach tight budgets.
        progress: Told every two seconds what is done, how many epochs are and how many there will be.

    Source:
        Ilhan et al., Adaptive Deep Neural Network Inference Optimization with EENet, WACV 2024, arXiv 2301.07099.
    """

    thresholds: Literal["joint", "assigned"] = "joint"
    epochs: int = 60
    batch_size: int = 1024
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    restarts: int = 1
    alternate_every: int = 10
    alpha_kl: float = 1e-3
    alpha_cost: float = 1e-2
    beta: float = 1.0
    hidden_ratio: float = 0.5
    assignment: Literal["sum", "softmax"] = "sum"
    progress: Callable[[str, int, int], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        positive = ("epochs", "batch_size", "learning_rate", "restarts", "alternate_every", "hidden_ratio")
        for name in positive:
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} {getattr(self, name):g} cannot be used: it must be above 0 and finite. Pass a positive "
                    "number."
                )
        for name in ("weight_decay", "alpha_kl", "alpha_cost", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(
                    f"{name} {getattr(self, name):g} cannot be used: it must be 0 or more, and finite. Pass 0 to go "
                    "without."
                )
        if self.thresholds not in ("joint", "assigned") or self.assignment not in ("sum", "softmax"):
            raise InputError(
                f"thresholds {self.thresholds!r} or assignment {self.assignment!r} is unknown: see the "
                f"documentation of EENetScheduler."
            )

    @classmethod
    def published(cls, *, seed: int = 0, hidden_ratio: float = 0.5) -> EENetScheduler:
        """Return the paper's rule with its published settings: slow, for comparison."""
        return cls(
            seed=seed,
            hidden_ratio=hidden_ratio,
            thresholds="assigned",
            epochs=1000,
            batch_size=512,
            learning_rate=3e-5,
            weight_decay=1e-2,
            restarts=3,
        )

    def sweep(
        self, table: ExitTable, costs: CostTable | None = None, budgets: Sequence[BudgetLike] | None = None
    ) -> Dial:
        """Fit scores and thresholds; see `Scheduler.sweep`.

        With ``thresholds="joint"`` the dial serves all budgets equally. With ``"assigned"`` it holds one policy per
        budget of ``budgets``, trained together, and mixes between them.
        """
        costs = costs or table.require_costs()
        table.require_utility("fitting eenet")
        values = [costs.budget(b).value for b in (standard_budgets(costs) if budgets is None else budgets)]
        assigned = self.thresholds == "assigned"
        fitted = fit_networks(table, costs, sorted(set(values)) if assigned else None, exit_features, self)
        if not assigned:
            return joint_dial(self._scorer(table, fitted, 0), table, costs, self.seed, "fitting eenet")
        return self._assigned_dial(table, costs, sorted(set(values)), fitted)

    def _scorer(self, table: ExitTable, fitted: Fitted, member: int) -> EENetScorer:
        return EENetScorer(table.num_exits, table.num_classes, fitted.weight[member])

    def _assigned_dial(self, table: ExitTable, costs: CostTable, values: list[float], fitted: Fitted) -> Dial:
        """Return one policy per budget: the best of its restarts on the fitting data."""
        replayer = Replayer(table)
        best = []
        for i, value in enumerate(values):
            candidates = []
            for restart in range(self.restarts):
                member = i * self.restarts + restart
                scorer = self._scorer(table, fitted, member)
                dial = geometric_dial(scorer, table, costs, self.seed, "fitting eenet", base=fitted.shares[member])
                policy = dial.at(value)
                cost, gain = replayer.expected(policy, costs)
                candidates.append((gain, cost, policy))
            best.append(max(candidates, key=lambda candidate: candidate[0]))
        # both ends, so that the dial reaches every budget: all leave at once, all stay to the end
        for policy in (dial.policies[0], dial.policies[-1]):
            cost, gain = replayer.expected(policy, costs)
            best.append((gain, cost, policy))
        order = sorted(best, key=lambda candidate: (candidate[1], -candidate[0]))
        order = [one for j, one in enumerate(order) if j == 0 or one[1] > order[j - 1][1]]
        return Dial(
            policies=tuple(policy for _, _, policy in order),
            fit_costs=tuple(cost for _, cost, _ in order),
            fit_utilities=tuple(gain for gain, _, _ in order),
            costs=costs,
            seed=self.seed + 1,  # another coin than the one inside its policies
        )

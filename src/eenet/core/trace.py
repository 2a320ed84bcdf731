"""Applying a policy to recorded outputs: what it would have done."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eenet.core.costs import CostTable
from eenet.core.policy import MixedPolicy, Policy, ScorePolicy
from eenet.core.table import ExitTable
from eenet.errors import ShapeError, TableError

__all__ = ["ExitTrace", "Replayer", "exit_distribution", "first_exit", "replay"]


@dataclass(frozen=True, eq=False)
class ExitTrace:
    """Where each sample left, what it was answered with, and what that cost.

    Attributes:
        exit_index: 0-based exit of each sample.
        log_probs: The answers.
        cost: Per sample, in the unit of the cost table.
    """

    exit_index: Int[Tensor, " sample"]
    log_probs: Float[Tensor, "sample class"]
    cost: Float[Tensor, " sample"]

    @property
    def mean_cost(self) -> float:
        """Mean cost per sample."""
        return float(self.cost.mean())


def exit_distribution(exit_index: Int[Tensor, " sample"], num_exits: int) -> Float[Tensor, " exit"]:
    """Return the share of samples that left at each exit; the shares sum to 1."""
    return torch.bincount(exit_index, minlength=num_exits).double() / len(exit_index)


def first_exit(
    scores: Float[Tensor, "sample exit"], thresholds: Float[Tensor, "*sample exit"]
) -> Int[Tensor, " sample"]:
    """Return the first exit where the score reaches the threshold."""
    return (scores >= thresholds).int().argmax(dim=1)


def replay(policy: Policy, table: ExitTable, costs: CostTable | None = None) -> ExitTrace:
    """Apply a policy to recorded outputs. Row numbers serve as sample ids.

    Args:
        policy: As returned by a scheduler.
        table: What every exit said.
        costs: Default: the table's own.

    Returns:
        What `AdaptiveModel` would do, given the same logits.

    Raises:
        ShapeError: Policy, table and costs differ in their number of exits.
        TableError: No costs are known.
    """
    costs = costs or table.require_costs()
    replayer = Replayer(table)
    exit_index = replayer.exit_index(policy)
    cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
    if len(cumulative) != table.num_exits:
        raise ShapeError(
            f"costs of {len(cumulative)} exits do not fit: the table has {table.num_exits}. Give one cost per exit."
        )
    return ExitTrace(exit_index, _answers(policy, table, exit_index), cumulative[exit_index])


class Replayer:
    """Replays many policies on one table; policies that share a scorer share the work.

    Args:
        table: What every exit said. The table is read in chunks; only scores ``[sample, exit]`` are kept.
    """

    def __init__(self, table: ExitTable) -> None:
        self.table = table
        self._scores: dict[nn.Module, Tensor] = {}
        self._ids = torch.arange(table.num_samples)

    def scores(self, source: nn.Module) -> Float[Tensor, "sample exit"]:
        """Return the scores of a scorer (or of a policy without one) at every exit; 0 at the last, where all leave."""
        if source not in self._scores:
            self._scores[source] = _score_table(source, self.table)
        return self._scores[source]

    def exit_index(self, policy: Policy) -> Int[Tensor, " sample"]:
        """Return where each sample leaves.

        Raises:
            ShapeError: Policy and table differ in their number of exits.
        """
        if policy.num_exits != self.table.num_exits:
            raise ShapeError(
                f"policy of {policy.num_exits} exits does not fit: the table has {self.table.num_exits}. Fit it on "
                f"tables of this model."
            )
        if isinstance(policy, MixedPolicy):
            return torch.where(policy.follows_a(self._ids), self.exit_index(policy.a), self.exit_index(policy.b))
        source = policy.scorer if isinstance(policy, ScorePolicy) else policy
        return first_exit(self.scores(source), policy.thresholds.cpu())

    def utility(self, policy: Policy) -> Float[Tensor, " sample"]:
        """Return what each sample's answer was worth.

        Raises:
            TableError: The table has neither labels nor utility, or a policy that combines exits meets a table without
                labels.
        """
        utility = self.table.require_utility("judging a policy")
        exit_index = self.exit_index(policy)
        if _answers_with_newest(policy):
            return utility.gather(1, exit_index[:, None]).squeeze(1)
        labels = self.table.labels
        if labels is None:
            raise TableError(
                "labels are missing: the policy answers with several exits together, which 'utility' does not value. "
                "Judge it on a table with labels."
            )
        return (_answers(policy, self.table, exit_index).argmax(dim=1) == labels).double()

    def expected(self, policy: Policy, costs: CostTable) -> tuple[float, float]:
        """Return mean cost and mean utility on this table, in expectation over the coin of a mixed policy."""
        if isinstance(policy, MixedPolicy):
            (cost_a, gain_a), (cost_b, gain_b) = self.expected(policy.a, costs), self.expected(policy.b, costs)
            w = policy.weight
            return w * cost_a + (1 - w) * cost_b, w * gain_a + (1 - w) * gain_b
        shares = exit_distribution(self.exit_index(policy), self.table.num_exits).tolist()
        cost = sum(share * c for share, c in zip(shares, costs.cumulative, strict=True) if share)
        return cost, float(self.utility(policy).mean())


def _answers_with_newest(policy: Policy) -> bool:
    """Tell whether leaving samples get the newest exit's answer, so that the table's utility applies."""
    if isinstance(policy, MixedPolicy):
        return _answers_with_newest(policy.a) and _answers_with_newest(policy.b)
    return type(policy).answer is Policy.answer and type(policy).answers is Policy.answers


@torch.inference_mode()
def _score_table(source: nn.Module, table: ExitTable) -> Tensor:
    score = source.score if isinstance(source, Policy) else source
    scores = torch.zeros(table.num_samples, table.num_exits)
    for rows in table.chunks():
        log_probs = table.log_probs(rows)
        features = None if table.features is None else table.features[rows].float()
        for k in range(table.num_exits - 1):
            scores[rows, k] = score(log_probs[:, : k + 1], None if features is None else features[:, : k + 1])
    return scores


@torch.inference_mode()
def _answers(policy: Policy, table: ExitTable, exit_index: Tensor) -> Tensor:
    answers = torch.empty(table.num_samples, table.num_classes)
    ids = torch.arange(table.num_samples)
    for rows in table.chunks():
        log_probs = table.log_probs(rows)
        features = None if table.features is None else table.features[rows].float()
        part = answers[rows]
        for k in range(table.num_exits):
            here: Bool[Tensor, " row"] = exit_index[rows] == k
            if here.any():
                seen_features = None if features is None else features[here, : k + 1]
                part[here] = policy.answers(log_probs[here, : k + 1], ids[rows][here], seen_features)
    return answers

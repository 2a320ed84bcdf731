"""Applying a policy to recorded outputs: what it would have done."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from eenet.core.combined import MixedPolicy, TransformedPolicy, answers_with_newest, unmixed
from eenet.core.costs import CostTable
from eenet.core.policy import Policy, ScorePolicy
from eenet.core.scorers import Scorer, StateScorer
from eenet.core.table import ExitTable
from eenet.core.transform import Transform
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
        self._behind: dict[Transform, Replayer] = {}
        self._ids = torch.arange(table.num_samples)

    def scores(self, source: nn.Module) -> Float[Tensor, "sample exit"]:
        """Return the scores of a scorer (or of a policy without one) at every exit; 0 at the last, where all leave."""
        if source not in self._scores:
            self._scores |= _score_table([source], self.table)
        return self._scores[source]

    def prepare(self, policies: Iterable[Policy]) -> None:
        """Work out the scores of many policies in one pass over the table, where that saves work."""
        inner: dict[Transform, list[Policy]] = {}
        sources: dict[nn.Module, None] = {}
        for policy in (part for whole in policies for _, part in unmixed(whole)):
            if isinstance(policy, TransformedPolicy):
                inner.setdefault(policy.transform, []).append(policy.policy)
            elif isinstance(policy, ScorePolicy) and policy.scorer not in self._scores:
                sources[policy.scorer] = None
        self._scores |= _score_table(list(sources), self.table)
        for transform, parts in inner.items():
            self.behind(transform).prepare(parts)

    def behind(self, transform: Transform) -> Replayer:
        """Return the replayer of the same samples as policies behind a transform see them."""
        if transform not in self._behind:
            self._behind[transform] = Replayer(self.table.transformed(transform))
        return self._behind[transform]

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
        if isinstance(policy, TransformedPolicy):
            return self.behind(policy.transform).exit_index(policy.policy)
        source = policy.scorer if isinstance(policy, ScorePolicy) else policy
        return first_exit(self.scores(source), policy.thresholds.cpu())

    def utility(self, policy: Policy) -> Float[Tensor, " sample"]:
        """Return what each sample's answer was worth.

        Raises:
            TableError: The table has neither labels nor utility, or a policy that combines exits meets a table without
                labels.
        """
        if isinstance(policy, TransformedPolicy):
            return self.behind(policy.transform).utility(policy.policy)
        utility = self.table.require_utility("judging a policy")
        exit_index = self.exit_index(policy)
        if answers_with_newest(policy):
            return utility.gather(1, exit_index[:, None]).squeeze(1)
        labels = self.table.labels
        if labels is None:
            raise TableError(
                "labels are missing: the policy answers with several exits together, which 'utility' does not value. "
                "Judge it on a table with labels."
            )
        return (_answers(policy, self.table, exit_index).argmax(dim=1) == labels).double()

    def per_sample(self, policy: Policy, costs: CostTable) -> tuple[Float[Tensor, " sample"], Float[Tensor, " sample"]]:
        """Return cost and utility of each sample, in expectation over the coin of a mixed policy."""
        cumulative = torch.tensor(costs.cumulative, dtype=torch.float64)
        cost, utility = torch.zeros(2, self.table.num_samples, dtype=torch.float64)
        for weight, part in unmixed(policy):
            cost += weight * cumulative[self.exit_index(part)]
            utility += weight * self.utility(part)
        return cost, utility

    def expected(self, policy: Policy, costs: CostTable) -> tuple[float, float]:
        """Return mean cost and mean utility on this table, in expectation over the coin of a mixed policy."""
        parts = unmixed(policy)
        if len(parts) > 1:
            outcomes = [(weight, *self.expected(part, costs)) for weight, part in parts]
            return sum(w * cost for w, cost, _ in outcomes), sum(w * utility for w, _, utility in outcomes)
        shares = exit_distribution(self.exit_index(policy), self.table.num_exits).tolist()
        cost = sum(share * c for share, c in zip(shares, costs.cumulative, strict=True) if share)
        return cost, float(self.utility(policy).mean())


@torch.inference_mode()
def _score_table(sources: Sequence[nn.Module], table: ExitTable) -> dict[nn.Module, Tensor]:
    """Return the scores of scorers (or policies), all in one pass; a state that several share is worked out once."""
    if any(isinstance(source, Scorer) and source.compares_classes for source in sources) and table.holds_summaries:
        raise TableError(
            f"table {table.split or '(unnamed)'!r} holds summaries of maps, which name no classes: votes and patience "
            "compare the classes that exits chose. Use max_prob, margin, certainty, joint, eenet, pcee, eero, stopping "
            "or auto."
        )
    scores = {source: torch.zeros(table.num_samples, table.num_exits) for source in sources}
    for rows in table.chunks() if sources else ():
        log_probs = table.log_probs(rows)
        features = None if table.features is None else table.features[rows].float()
        for k in range(table.num_exits - 1):
            seen, shown = log_probs[:, : k + 1], None if features is None else features[:, : k + 1]
            states: dict[nn.Module, Tensor] = {}
            for source, out in scores.items():
                if isinstance(source, StateScorer):
                    if source.state not in states:
                        states[source.state] = source.state(seen, shown)
                    out[rows, k] = source.read(states[source.state], k)
                else:
                    out[rows, k] = (source.score if isinstance(source, Policy) else source)(seen, shown)
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

"""Applying policies to recorded outputs: what they would have done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float32, Float64

from eenet.errors import InputError, TableError
from eenet.policies.mixture import TransformedPolicy
from eenet.policies.policy import Answers, Ids, Policy, ScorePolicy, Stops
from eenet.policies.scorers import Scorer
from eenet.policies.transforms import Transform
from eenet.tables.checks import instance
from eenet.tables.costs import CostTable
from eenet.tables.table import ExitTable

PerSample: TypeAlias = Float64[np.ndarray, " sample"]

_ALL = slice(None)


@dataclass(frozen=True, eq=False)
class ExitTrace:
    """Where each sample left, what it was answered with, and what that cost.

    Attributes:
        exit_index: 0-based exit of each sample.
        log_probs: The answers; None where exits say features, which answer nothing.
        cost: Per sample, in the unit of the cost table.
    """

    exit_index: Stops
    log_probs: Float32[np.ndarray, "sample class"] | None
    cost: PerSample

    @property
    def mean_cost(self) -> float:
        """Mean cost per sample."""
        return float(self.cost.mean())


def exit_distribution(exit_index: Stops, num_exits: int) -> Float64[np.ndarray, " exit"]:
    """Return the share of samples that left at each exit; the shares sum to 1."""
    return np.bincount(exit_index, minlength=num_exits) / len(exit_index)


def replay(policy: Policy, table: ExitTable, costs: CostTable | None = None) -> ExitTrace:
    """Apply a policy to recorded outputs. Row numbers serve as sample ids.

    Returns:
        What `AdaptiveModel` would do, given the same logits: the same decisions and answers, to the bit.

    Raises:
        ShapeError: Policy, table and costs differ in their number of exits, or policy and table in their classes.
        TableError: No costs are known.
    """
    replayer = Replayer(instance(table, ExitTable, "table").with_costs(costs))
    exit_index = replayer.exit_index(policy)
    answers = replayer.answers(policy, exit_index) if table.has_classes else None
    return ExitTrace(exit_index, answers, replayer.cost(exit_index))


class Replayer:
    """Replays many policies on one table; policies that share a scorer share the work.

    Args:
        table: What every exit said. The table is read in chunks; only scores ``[sample, exit]`` are kept.
    """

    def __init__(self, table: ExitTable) -> None:
        self.table = instance(table, ExitTable, "table")
        self._scores: dict[Scorer, np.ndarray] = {}
        self._transformed: dict[Transform, Replayer] = {}
        self._ids = np.arange(table.num_samples)

    def scores(self, scorer: Scorer) -> Float32[np.ndarray, "sample exit"]:
        """Return the scores of a scorer at every exit; 0 at the last, where all leave."""
        if scorer not in self._scores:
            self._scores |= _score_table([scorer], self.table)
        return self._scores[scorer]

    def prepare(self, policies: Iterable[Policy]) -> None:
        """Work out the scores of many policies in one pass over the table, where that saves work."""
        asked: dict[Replayer, dict[Scorer, None]] = {}
        for view, rule in (self._view(part) for policy in policies for _, part in policy.components()):
            if isinstance(rule, ScorePolicy) and rule.scorer not in view._scores:
                asked.setdefault(view, {})[rule.scorer] = None
        for view, scorers in asked.items():
            view._scores |= _score_table(list(scorers), view.table)

    def transformed(self, transform: Transform) -> Replayer:
        """Return the replayer of the same samples as policies see them through a transform."""
        if transform not in self._transformed:
            self._transformed[transform] = Replayer(self.table.transformed(transform))
        return self._transformed[transform]

    def _view(self, part: Policy) -> tuple[Replayer, Policy]:
        """Return a component without its transform, and the replayer of what it sees."""
        if isinstance(part, TransformedPolicy):
            return self.transformed(part.transform), part.policy
        return self, part

    def exit_index(self, policy: Policy, rows: slice = _ALL, sample_ids: Ids | None = None) -> Stops:
        """Return where each sample leaves: all rows, or some, whose numbers are their ids unless others are given.

        Raises:
            ShapeError: Policy and table differ in their number of exits, or in their classes.
        """
        instance(policy, Policy, "policy")
        policy.require(self.table.num_exits, self.table.num_columns)
        ids = self._ids[rows] if sample_ids is None else sample_ids
        return _followed(policy, ids, [self._stops(part, rows, ids) for _, part in policy.components()])

    def _stops(self, part: Policy, rows: slice, ids: Ids) -> Stops:
        """Return where the rows leave by a component: what its `leaves` says, exit by exit."""
        view, rule = self._view(part)
        if isinstance(rule, ScorePolicy):
            return rule.first_reached(view.scores(rule.scorer)[rows])
        seen, last = view.table.seen(rows), rule.num_exits - 1
        stops = np.full(len(seen), last)
        for k in reversed(range(last)):
            stops[rule.leaves(seen[:, : k + 1], ids)] = k
        return stops

    def answers(self, policy: Policy, exit_index: Stops) -> Answers:
        """Return what every sample is answered with where it leaves."""
        chunks = self.table.chunks()
        return np.concatenate([self._answers(policy, exit_index[rows], rows, self._ids[rows]) for rows in chunks])

    def _answers(self, policy: Policy, stops: Stops, rows: slice, ids: Ids) -> Answers:
        answers = np.empty((len(stops), self.table.num_columns), dtype=np.float32)
        seen = self.table.seen(rows)
        for k in range(self.table.num_exits):
            here = np.flatnonzero(stops == k)
            if len(here):
                answers[here] = policy.answers(seen[here, : k + 1], ids[here])
        return answers

    def cost(self, exit_index: Stops, rows: slice = _ALL) -> PerSample:
        """Return what leaving there costs each sample."""
        costs = self.table.leaving_costs[rows]
        return np.asarray(costs[np.arange(len(costs)), exit_index])

    def utility(
        self, policy: Policy, exit_index: Stops | None = None, rows: slice = _ALL, sample_ids: Ids | None = None
    ) -> PerSample:
        """Return the utility of each sample's answer; for the arguments see `exit_index`.

        ``exit_index`` is what was returned for the same rows and ids, where that is known.

        Raises:
            TableError: The table has neither labels nor utility, or a policy that combines exits meets a table without
                labels.
        """
        ids = self._ids[rows] if sample_ids is None else sample_ids
        stops = self.exit_index(policy, rows, ids) if exit_index is None else exit_index
        if policy.answers_newest:
            return self._utility(policy, stops, rows, ids)
        return _followed(policy, ids, [self._utility(part, stops, rows, ids) for _, part in policy.components()])

    def _utility(self, part: Policy, stops: Stops, rows: slice, ids: Ids) -> PerSample:
        view, rule = self._view(part)
        utility = view.table.require_utility("judging a policy")[rows]
        if rule.answers_newest:
            return np.asarray(utility[np.arange(len(utility)), stops])
        if view.table.labels is None:
            raise TableError(
                "labels are missing: the policy answers with several exits together, which 'utility' does not value. "
                "Judge it on a table with labels."
            )
        answers = view._answers(rule, stops, rows, ids)
        return np.asarray(answers.argmax(axis=1) == view.table.labels[rows], dtype=np.float64)

    def per_sample(self, policy: Policy) -> tuple[PerSample, PerSample]:
        """Return cost and utility of each sample, in expectation over the coin of a mixed policy."""
        cost, utility = np.zeros((2, self.table.num_samples))
        for weight, part in policy.components():
            exit_index = self.exit_index(part)
            cost += weight * self.cost(exit_index)
            utility += weight * self.utility(part, exit_index)
        return cost, utility

    def expected(self, policy: Policy) -> tuple[float, float]:
        """Return mean cost and mean utility on this table, in expectation over the coin of a mixed policy."""
        cost = utility = 0.0
        for weight, part in policy.components():
            exit_index = self.exit_index(part)
            cost += weight * self.mean_cost(exit_index)
            utility += weight * float(self.utility(part, exit_index).mean())
        return cost, utility

    def expected_shares(self, policy: Policy) -> Float64[np.ndarray, " exit"]:
        """Return the share of samples that leave at each exit, in expectation over the coin of a mixed policy."""
        shares = np.zeros(policy.num_exits)
        for weight, part in policy.components():
            shares += weight * exit_distribution(self.exit_index(part), policy.num_exits)
        return shares

    def mean_cost(self, exit_index: Stops) -> float:
        """Return the mean cost of leaving there, added up so that equal shares give equal costs."""
        if self.table.cost is not None:
            return float(self.cost(exit_index).mean())
        shares = exit_distribution(exit_index, self.table.num_exits).tolist()
        costs = self.table.require_costs().cumulative
        return float(sum(share * cost for share, cost in zip(shares, costs, strict=True) if share))


def _followed(policy: Policy, ids: Ids, values: list[np.ndarray]) -> np.ndarray:
    """Return each sample's value by the component that it follows."""
    return values[0] if len(values) == 1 else np.stack(values)[policy.chosen(ids), np.arange(len(ids))]


def _score_table(scorers: list[Scorer], table: ExitTable) -> dict[Scorer, np.ndarray]:
    """Return the scores of scorers, all in one pass; what several read is worked out once."""
    if not table.has_classes and any(scorer.compares_classes for scorer in scorers):
        raise TableError(
            f"{table.name} holds features, which name no classes: votes and patience compare the classes that exits "
            "chose. Use a column, stopping or auto."
        )
    scores = {scorer: np.zeros((table.num_samples, table.num_exits), dtype=np.float32) for scorer in scorers}
    for rows in table.chunks() if scorers else ():
        seen = table.seen(rows)
        for k in range(table.num_exits - 1):
            known: dict[object, object] = {}
            for scorer, out in scores.items():
                if scorer.num_exits is None or k < scorer.num_exits - 1:  # closed exits need no score
                    out[rows, k] = scorer.shared(seen[:, : k + 1], known)
    for scorer, out in scores.items():
        if np.isnan(out).any():
            row, k = (int(i) for i in np.argwhere(np.isnan(out))[0])
            raise InputError(
                f"score of {type(scorer).__name__} at exit {k} of row {row} is NaN: samples cannot be put in order by "
                "it. Let the confidence return a number for every sample."
            )
    return scores

"""Policies: where each sample stops. The one rule that recorded outputs, running models, exports and servers share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias, final, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int

from eenet.errors import InputError, ShapeError, TableError
from eenet.policies.scorers import ConfidenceScorer, Part, Scorer, Seen
from eenet.policies.transforms import Transform
from eenet.tables.arrays import as_array
from eenet.tables.table import ExitTable

Change: TypeAlias = Callable[[Part], Part]
Answers: TypeAlias = Float32[np.ndarray, "sample column"]
Flags: TypeAlias = Bool[np.ndarray, " sample"]
Ids: TypeAlias = Int[np.ndarray, " sample"]
"""Whole numbers that stay with the samples; only mixed policies look at them."""
Stops: TypeAlias = Int[np.ndarray, " sample"]
"""The exit at which each sample leaves, counted from 0."""
Worth: TypeAlias = Float64[np.ndarray, " sample"]


@runtime_checkable
class Recorded(Protocol):
    """A recorded table as policies are replayed on it; see `eenet.policies.replay.Replayer`."""

    @property
    def table(self) -> ExitTable:
        """What every exit said."""

    def scores(self, scorer: Scorer, /) -> Float32[np.ndarray, "sample exit"]:
        """Return the scores of a scorer at every exit; 0 at the last, where all leave."""

    def behind(self, transform: Transform, /) -> Recorded:
        """Return the same samples as policies behind a transform see them."""


class Policy(ABC):
    """A fixed rule that says, exit by exit, which samples leave, and what they are answered with.

    Subclass it with `leaves` and `answers`, and set `num_exits`; the rest has defaults that
    are right, if slow; only `changed`, which deadlines need, is refused.
    Samples must be treated independently: what becomes of a row may not depend on the other rows, to the bit.

    Attributes:
        num_exits: Number of exits.
        num_columns: How many classes or features it was fitted for; None: any.
        newest_only: Whether it decides by nothing but the newest exit and its number.
        answers_newest: Whether samples that leave are answered with what the newest exit says, as it stands.
        compares_classes: Whether it compares the classes that exits chose: features name none.
        seeds: Of the coins it tosses.
    """

    num_exits: int
    num_columns: int | None = None
    newest_only: bool = False
    answers_newest: bool = False
    compares_classes: bool = False
    seeds: frozenset[int] = frozenset()

    @abstractmethod
    def leaves(self, seen: Seen, sample_ids: Ids) -> Flags:
        """Return which of the samples leave at the newest exit seen. At the last exit all do, whatever this says."""

    @abstractmethod
    def answers(self, seen: Seen, sample_ids: Ids) -> Answers:
        """Return the log-probabilities that samples which leave now are answered with."""

    def components(self) -> tuple[tuple[float, Policy], ...]:
        """Return the policies without a coin that this one consists of, each with its share of the samples."""
        return ((1.0, self),)

    def following(self, sample_ids: Ids) -> Policy:
        """Return the component that all these samples follow, the policy itself where they follow several."""
        return self

    def readers(self) -> Iterator[tuple[Transform | None, Scorer]]:
        """Yield the scorers that `stops` asks, each with the transform it stands behind."""
        yield from ()

    def stops(self, recorded: Recorded, rows: slice, sample_ids: Ids) -> Stops:
        """Return where some rows of a recorded table leave: what `leaves` says, exit by exit."""
        seen, last = recorded.table.seen(rows), self.num_exits - 1
        stops = np.full(len(seen), last)
        for k in reversed(range(last)):
            stops[self.leaves(seen[:, : k + 1], sample_ids)] = k
        return stops

    def worth(self, recorded: Recorded, stops: Stops, rows: slice, sample_ids: Ids) -> Worth:
        """Return what the answers to some rows of a recorded table, which leave at ``stops``, are worth.

        Raises:
            TableError: The table has neither labels nor utility, or a policy that combines exits meets a table without
                labels.
        """
        table = recorded.table
        utility = table.require_utility("judging a policy")[rows]
        if self.answers_newest:
            return utility[np.arange(len(utility)), stops]
        if table.labels is None:
            raise TableError(
                "labels are missing: the policy answers with several exits together, which 'utility' does not value. "
                "Judge it on a table with labels."
            )
        answers = answers_at(self, table, stops, rows, sample_ids)
        return (answers.argmax(axis=1) == table.labels[rows]).astype(np.float64)

    def changed(self, change: Change, exits: int | None = None) -> Policy:
        """Return the same rule with changed parts, such as parts that may be asked at more exits.

        ``exits`` is how many the result has, those beyond the policy's own closed: all leave there at once.

        Raises:
            InputError: The policy is of a class of yours, whose parts are not known.
        """
        raise InputError(
            f"policy of class {type(self).__name__} cannot be changed: its parts are known only to itself. Use one "
            "made of ScorePolicy."
        )

    def require(self, num_exits: int | None = None, num_columns: int | None = None) -> None:
        """Refuse a model or table that this policy was not made for, by its exits, or its classes or features.

        Raises:
            ShapeError: The policy has another number of exits, or was fitted for other columns.
        """
        if num_exits is not None and num_exits != self.num_exits:
            raise ShapeError(
                f"policy with {self.num_exits} exits does not fit: there are {num_exits}. Use a policy made for these."
            )
        if num_columns is not None and self.num_columns not in (None, num_columns):
            raise ShapeError(
                f"policy fitted for {self.num_columns} classes or features does not fit: the exits say {num_columns}. "
                "Use a policy made for these."
            )


@final
class ScorePolicy(Policy):
    """The usual policy: a scorer and a threshold per exit; a sample leaves where its score reaches the threshold.

    Args:
        scorer: Shared, not copied, so that many policies on one scorer cost nothing; or the name of a confidence.
        thresholds: One per exit, ``[exit]``, anything array-like; kept as float32. The last is ``-inf``.

    Raises:
        InputError: A threshold is NaN, or the last is not ``-inf``.
        ShapeError: The scorer knows fewer exits.
    """

    answers_newest = True

    def __init__(self, scorer: Scorer | str, thresholds: object) -> None:
        scorer = ConfidenceScorer(scorer) if isinstance(scorer, str) else scorer
        given = as_array(thresholds).astype(np.float64)
        if given.ndim != 1 or len(given) < 2:
            raise ShapeError(f"thresholds of shape {given.shape} do not fit: one per exit is needed, at least 2.")
        if np.isnan(given).any() or given[-1] != -math.inf:
            raise InputError(
                f"thresholds {given.tolist()} are no rule: none may be NaN and the last is -inf, so that all leave."
            )
        if scorer.num_exits is not None and scorer.num_exits < len(given):
            raise ShapeError(
                f"scorer of {scorer.num_exits} exits does not fit: there are {len(given)} thresholds. Give as many."
            )
        self.scorer, self.thresholds = scorer, given.astype(np.float32)
        self.num_exits, self.num_columns = len(given), scorer.num_columns
        self.newest_only, self.compares_classes = scorer.newest_only, scorer.compares_classes

    def leaves(self, seen: Seen, sample_ids: Ids) -> Flags:
        """Return which of the samples reach the threshold of the newest exit; at the last exit all do."""
        k = seen.shape[1] - 1
        if k == self.num_exits - 1:
            return np.ones(len(seen), dtype=np.bool_)
        return self._reached(self.scorer(seen), k)

    def answers(self, seen: Seen, sample_ids: Ids) -> Answers:
        """Return what the newest exit says."""
        return seen[:, -1]

    def readers(self) -> Iterator[tuple[Transform | None, Scorer]]:
        """Yield the scorer."""
        yield None, self.scorer

    def stops(self, recorded: Recorded, rows: slice, sample_ids: Ids) -> Stops:
        """Return the first exit where the score reaches the threshold."""
        reached = self._reached(recorded.scores(self.scorer)[rows], slice(None))
        reached[:, -1] = True
        return reached.argmax(axis=1)

    def _reached(self, scores: np.ndarray, k: int | slice) -> np.ndarray:
        """Compare scores with the thresholds of an exit, or of all: the only place where that is done."""
        return scores >= self.thresholds[k]

    def changed(self, change: Change, exits: int | None = None) -> Policy:
        """Return the same thresholds on the scorer in this one's place."""
        scorer = change(self.scorer)
        assert isinstance(scorer, Scorer)
        closed = (exits or self.num_exits) - self.num_exits
        return ScorePolicy(scorer, np.append(self.thresholds, np.full(closed, -math.inf)))


def static_policy(scorer: Scorer, exit_index: int, num_exits: int) -> ScorePolicy:
    """Return the policy that lets everybody leave at one exit."""
    return ScorePolicy(scorer, np.where(np.arange(num_exits) < exit_index, math.inf, -math.inf))


def answers_at(policy: Policy, table: ExitTable, stops: Stops, rows: slice, sample_ids: Ids) -> Answers:
    """Return what some rows of a table are answered with where they leave."""
    answers = np.empty((len(stops), table.num_columns), dtype=np.float32)
    seen = table.seen(rows)
    for k in range(table.num_exits):
        here = np.flatnonzero(stops == k)
        if len(here):
            answers[here] = policy.answers(seen[here, : k + 1], sample_ids[here])
    return answers

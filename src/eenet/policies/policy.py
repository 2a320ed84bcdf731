"""Policies: where each sample stops. The one rule that recorded outputs, running models, exports and servers share."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import TypeAlias, final

import numpy as np
from jaxtyping import Bool, Float32, Int

from eenet.errors import InputError, ShapeError
from eenet.policies.scorers import ConfidenceScorer, Scorer, Seen
from eenet.tables.checks import array_of, instance
from eenet.tables.display import few

Answers: TypeAlias = Float32[np.ndarray, "sample column"]
Flags: TypeAlias = Bool[np.ndarray, " sample"]
Ids: TypeAlias = Int[np.ndarray, " sample"]
"""Whole numbers that stay with the samples; only mixed policies look at them."""
Stops: TypeAlias = Int[np.ndarray, " sample"]
"""The exit at which each sample leaves, counted from 0."""


class Policy(ABC):
    """A fixed rule that says, exit by exit, which samples leave, and what they are answered with.

    Subclass it with `leaves` and `answers`, and set `num_exits`; the rest has defaults, and only `extended`, which
    deadlines need, is refused. Samples must be treated independently: what becomes of a row may not depend on the other
    rows, to the bit.

    Attributes:
        num_exits: Number of exits.
        num_open: How many of them samples may reach, where the others are closed; None: all.
        num_columns: How many classes or features it was fitted for; None: any.
        newest_only: Whether it decides by nothing but the newest exit and its number.
        answers_newest: Whether samples that leave are answered with what the newest exit says, as it stands.
        compares_classes: Whether it compares the classes that exits chose: features name none.
        seeds: Of the coins it tosses.
        depth: How many mixtures are inside each other.
        source: Fingerprint of the model whose table it was fitted on; empty where it is not known.
    """

    num_exits: int
    num_open: int | None = None
    num_columns: int | None = None
    newest_only: bool = False
    answers_newest: bool = False
    compares_classes: bool = False
    seeds: frozenset[int] = frozenset()
    depth: int = 0
    source: str = ""

    @abstractmethod
    def leaves(self, seen: Seen, sample_ids: Ids) -> Flags:
        """Return which of the samples leave at the newest exit seen. At the last exit all do, whatever this says."""

    @abstractmethod
    def answers(self, seen: Seen, sample_ids: Ids) -> Answers:
        """Return the log-probabilities that samples which leave now are answered with."""

    def decide(self, seen: Seen, sample_ids: Ids) -> tuple[Flags, Answers | None]:
        """Return `leaves`, and `answers` of all the samples where these are known by then; None: ask for them."""
        return self.leaves(seen, sample_ids), None

    def __repr__(self) -> str:
        """Say in words where samples leave."""
        return f"{type(self).__name__} for {self.num_exits} exits"

    def components(self) -> tuple[tuple[float, Policy], ...]:
        """Return the policies without a coin that this one consists of, each with its share of the samples."""
        return ((1.0, self),)

    def following(self, sample_ids: Ids) -> Policy:
        """Return the component that all these samples follow, the policy itself where they follow several."""
        return self

    def chosen(self, sample_ids: Ids) -> Stops:
        """Return which component, by its place in `components`, each of the samples follows."""
        return np.zeros(len(sample_ids), dtype=np.int64)

    def extended(self, num_exits: int) -> Policy:
        """Return the same rule for a model with more exits, which stay closed: all leave at this policy's last one.

        Raises:
            InputError: The policy is of a class of yours, whose parts are not known.
        """
        raise InputError(
            f"policy of class {type(self).__name__} cannot be extended to {num_exits} exits: its parts are known only "
            "to itself. Use one made of ScorePolicy."
        )

    def from_source(self, source: str) -> Policy:
        """Return the same policy, as one that was fitted on a table of the model with this fingerprint."""
        policy = copy.copy(self)
        policy.source = source
        return policy

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
        thresholds: One per exit, ``[exit]``, anything array-like; kept as float32. The last is ``-inf``; exits after
            the first ``-inf``, where all leave, are closed.

    Raises:
        InputError: A threshold is NaN or larger than single precision holds, or the last is not ``-inf``.
        ShapeError: The scorer knows fewer exits.
    """

    answers_newest = True

    def __init__(self, scorer: Scorer | str, thresholds: object) -> None:
        scorer = ConfidenceScorer(scorer) if isinstance(scorer, str) else scorer
        instance(scorer, Scorer, "scorer")
        given = array_of("thresholds", thresholds)
        if given.ndim != 1 or len(given) < 2:
            raise ShapeError(f"thresholds of shape {given.shape} do not fit: one per exit is needed, at least 2.")
        single = given.dtype.kind == "f" and (np.isinf(given) | (np.abs(given) <= np.finfo(np.float32).max)).all()
        if not single or given[-1] != -math.inf:
            raise InputError(
                f"thresholds {given.tolist()} are no rule: none is NaN or beyond single precision, and the last "
                "is -inf, so that all leave. Correct them."
            )
        self._all_leave_at = int(np.isneginf(given).argmax())
        self.num_open = self._all_leave_at + 1
        if scorer.num_exits is not None and scorer.num_exits < self.num_open:
            raise ShapeError(
                f"scorer of {scorer.num_exits} exits does not fit: thresholds are for {self.num_open}. Give as many."
            )
        self.scorer, self.thresholds = scorer, given.astype(np.float32)
        self.num_exits, self.num_columns = len(given), scorer.num_columns
        self.newest_only, self.compares_classes = scorer.newest_only, scorer.compares_classes

    def __repr__(self) -> str:
        """Say by which score samples leave, and from which thresholds on."""
        name = getattr(self.scorer, "confidence", None) or type(self.scorer).__name__
        early = [f"exit {k} at {one:.4g}" for k, one in enumerate(self.thresholds[: self._all_leave_at].tolist())]
        by = f"leaves by the score {getattr(name, '__name__', name)}: {few(early)}; " if early else ""
        return f"{by}all leave at exit {self._all_leave_at}"

    def leaves(self, seen: Seen, sample_ids: Ids) -> Flags:
        k = seen.shape[1] - 1
        if k >= self._all_leave_at:
            return np.ones(len(seen), dtype=np.bool_)
        return self._reached(self.scorer(seen), k)

    def answers(self, seen: Seen, sample_ids: Ids) -> Answers:
        return seen[:, -1]

    def first_reached(self, scores: Float32[np.ndarray, "sample exit"]) -> Stops:
        """Return the first exit where each sample's score reaches the threshold."""
        reached = self._reached(scores, slice(None))
        reached[:, -1] = True
        stops: np.ndarray = reached.argmax(axis=1)
        return stops

    def _reached(self, scores: np.ndarray, k: int | slice) -> np.ndarray:
        """Compare scores with the thresholds of an exit, or of all: the only place where that is done."""
        return np.asarray(scores >= self.thresholds[k])

    def extended(self, num_exits: int) -> Policy:
        closed = np.full(num_exits - self.num_exits, -math.inf)
        return ScorePolicy(self.scorer, np.append(self.thresholds, closed)).from_source(self.source)


def static_policy(scorer: Scorer, exit_index: int, num_exits: int) -> ScorePolicy:
    """Return the policy that lets everybody leave at one exit."""
    return ScorePolicy(scorer, np.where(np.arange(num_exits) < exit_index, math.inf, -math.inf))

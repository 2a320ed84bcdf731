"""Policies: where each sample stops. The one rule that recorded and real inference share is `Policy.leaves`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from eenet.core.alone import Row, least_doubles
from eenet.core.scorers import Scorer
from eenet.core.views import FEW_CLASSES, Viewed
from eenet.errors import InputError, ShapeError

__all__ = ["Policy", "ScorePolicy", "is_one"]

Few: TypeAlias = tuple[Bool[np.ndarray, " sample"], Float[np.ndarray, "sample class"]]
"""Which samples of a small batch leave, and what those that do are answered with."""


class Policy(Viewed, ABC):
    """A fixed rule that says, exit by exit, which samples leave.

    Subclass it with a `score`; override `answer` if leaving samples shall be answered by more than the newest exit.
    Override nothing else: recorded and real inference both rely on what `leaves` makes of score and threshold.

    Args:
        thresholds: One per exit; a sample leaves at the first exit where its score reaches the threshold. The last is
            ``-inf``.

    Raises:
        InputError: A threshold is NaN, or the last is not ``-inf``.
    """

    thresholds: Tensor

    def __init__(self, thresholds: Float[Tensor, " exit"]) -> None:
        super().__init__()
        if thresholds.dim() != 1 or len(thresholds) < 2:
            raise ShapeError(
                f"thresholds of shape {tuple(thresholds.shape)} do not fit: one per exit is needed, at least 2."
            )
        if thresholds.isnan().any() or thresholds[-1] != -math.inf:
            raise InputError(
                f"thresholds {thresholds.tolist()} are no rule: none may be NaN and the last is -inf, so that all "
                f"leave."
            )
        self.register_buffer("thresholds", thresholds.detach().float().clone())

    @property
    def num_exits(self) -> int:
        """Number of exits."""
        return len(self.thresholds)

    @property
    def single(self) -> bool:
        """Whether `shown_one` and `leaves_one` are there: one sample of few classes in a fraction of torch's time."""
        return False

    @property
    def quick(self) -> bool:
        """Whether `few` is there: for small batches, too, numpy's calls cost less than torch's."""
        return False

    def drawn(self, sample_ids: Int[np.ndarray, " sample"]) -> Shaped[np.ndarray, " sample"]:
        """Return what `few` asks of the samples themselves: their ids, or the coins that these toss."""
        return sample_ids

    def few(self, seen: Float[np.ndarray, "sample seen class"], drawn: Shaped[np.ndarray, " sample"], k: int) -> Few:
        """Return `leaves` and `answers` of a batch at exit ``k``, not the last; only where `quick` says so."""
        raise InputError(f"policy {type(self).__name__} decides in torch only. Call leaves and answers instead.")

    def shown_one(self, seen: list[Row]) -> Row:
        """Return what a single sample is judged by and answered with: the newest exit's log-probabilities."""
        return seen[-1]

    def leaves_one(self, shown: Row, k: int) -> bool:
        """Return whether a single sample leaves at exit ``k``, not the last; only where `single` says so.

        Args:
            shown: What `shown_one` returned.
            k: Number of the exit.
        """
        raise InputError(f"policy {type(self).__name__} takes batches only. Call leaves instead.")

    @abstractmethod
    def score(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the score at the newest exit seen; larger leaves first.

        Args:
            seen: float32 log-probabilities of the exits evaluated so far.
            features: Further features of those exits.
        """

    def answer(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, "sample class"]:
        """Return the log-probabilities a sample that leaves now is answered with: the newest exit's."""
        return seen[:, -1]

    def leaves(
        self,
        seen: Float[Tensor, "sample seen class"],
        sample_ids: Int[Tensor, " sample"],
        features: Float[Tensor, "sample seen feature"] | None = None,
    ) -> Bool[Tensor, " sample"]:
        """Return which of the samples leave at the newest exit seen.

        Args:
            seen: float32 log-probabilities of the exits evaluated so far.
            sample_ids: Numbers that stay with the samples; only mixed policies look at them.
            features: Further features of those exits.
        """
        return self.score(seen, features) >= self.thresholds[seen.shape[1] - 1]

    def answers(
        self,
        seen: Float[Tensor, "sample seen class"],
        sample_ids: Int[Tensor, " sample"],
        features: Float[Tensor, "sample seen feature"] | None = None,
    ) -> Float[Tensor, "sample class"]:
        """Return the log-probabilities of samples that leave now; as `answer`, but knows who they are."""
        return self.answer(seen, features)


class ScorePolicy(Policy):
    """The usual policy: a scorer and a threshold per exit.

    Args:
        scorer: Shared, not copied, so that many policies on one scorer cost nothing.
        thresholds: One per exit, the last ``-inf``.
    """

    def __init__(self, scorer: Scorer, thresholds: Float[Tensor, " exit"]) -> None:
        super().__init__(thresholds)
        self.scorer = scorer

    def score(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the scorer's score."""
        return self.scorer.forward(seen, features)

    def leaves(
        self,
        seen: Float[Tensor, "sample seen class"],
        sample_ids: Int[Tensor, " sample"],
        features: Float[Tensor, "sample seen feature"] | None = None,
    ) -> Bool[Tensor, " sample"]:
        """Return which of the samples leave; a single one is worked out without torch where the scorer can."""
        if is_one(self, seen):
            return torch.tensor([self.leaves_one(seen[0, -1].tolist(), seen.shape[1] - 1)])
        return super().leaves(seen, sample_ids, features)

    @property
    def single(self) -> bool:
        """Whether single samples are worked out without torch."""
        return type(self) is ScorePolicy and self.scorer.single

    @property
    def quick(self) -> bool:
        """Whether small batches are worked out by numpy."""
        return self.single

    def leaves_one(self, shown: Row, k: int) -> bool:
        """Return whether one sample leaves at exit ``k``."""
        return self.scorer.one(shown, k) >= self.kept("thresholds", least_doubles)[k]

    def few(self, seen: Float[np.ndarray, "sample seen class"], drawn: Shaped[np.ndarray, " sample"], k: int) -> Few:
        """Return which samples leave at exit ``k``, and what they are answered with."""
        newest: np.ndarray = seen[:, -1]
        return self.judged(self.scorer.read_few(newest), k), newest

    def judged(self, read: Float[np.ndarray, "sample column"], k: int) -> Bool[np.ndarray, " sample"]:
        """Return which samples leave at exit ``k`` by what the scorer's `read_few` returned."""
        leaves: np.ndarray = self.scorer.few(read, k) >= self.view("thresholds")[k]
        return leaves


def is_one(policy: Policy, seen: Tensor) -> bool:
    """Tell whether this is a single sample, not at its last exit, that is decided sooner without torch."""
    if len(seen) != 1 or seen.shape[2] > FEW_CLASSES or not seen.is_cpu:
        return False
    return seen.shape[1] < policy.num_exits and policy.single

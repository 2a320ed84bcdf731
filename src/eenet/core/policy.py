"""Policies: where each sample stops. The one rule that recorded and real inference share is `Policy.leaves`."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from eenet.core.coins import coin, tossed
from eenet.core.scorers import Scorer
from eenet.core.transform import Transform
from eenet.core.views import Viewed
from eenet.errors import InputError, ShapeError

__all__ = [
    "MixedPolicy",
    "Policy",
    "ScorePolicy",
    "TransformedPolicy",
    "answers_with_newest",
    "coin",
    "unmixed",
]

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
        """Whether `shown_one` and `leaves_one` are there: for one sample numpy takes a fraction of torch's time."""
        return False

    @property
    def quick(self) -> bool:
        """Whether `few` is there: for small batches, too, numpy's calls cost less than torch's."""
        return False

    def few(self, seen: Float[np.ndarray, "sample seen class"], sample_ids: Int[np.ndarray, " sample"], k: int) -> Few:
        """Return `leaves` and `answers` of a batch at exit ``k``, not the last; only where `quick` says so."""
        raise InputError(f"policy {type(self).__name__} decides in torch only. Call leaves and answers instead.")

    def shown_one(self, seen: Float[np.ndarray, "seen class"]) -> Float[np.ndarray, " class"]:
        """Return what a single sample is judged by and answered with: the newest exit's log-probabilities."""
        newest: np.ndarray = seen[-1]
        return newest

    def leaves_one(self, shown: Float[np.ndarray, " class"], k: int) -> bool:
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
        """Return which of the samples leave; a single one is worked out by numpy where the scorer can."""
        if len(seen) == 1 and seen.is_cpu and seen.shape[1] < self.num_exits and self.scorer.single:
            return torch.tensor([self.leaves_one(seen.numpy()[0, -1], seen.shape[1] - 1)])
        return super().leaves(seen, sample_ids, features)

    @property
    def single(self) -> bool:
        """Whether single samples are worked out by numpy."""
        return type(self) is ScorePolicy and self.scorer.single

    @property
    def quick(self) -> bool:
        """Whether small batches are worked out by numpy."""
        return self.single

    def leaves_one(self, shown: Float[np.ndarray, " class"], k: int) -> bool:
        """Return whether one sample leaves at exit ``k``."""
        return bool(self.scorer.one(shown, k) >= self.view("thresholds")[k])

    def few(self, seen: Float[np.ndarray, "sample seen class"], sample_ids: Int[np.ndarray, " sample"], k: int) -> Few:
        """Return which samples leave at exit ``k``, and what they are answered with."""
        newest: np.ndarray = seen[:, -1]
        return self.scorer.few(newest, k) >= self.view("thresholds")[k], newest


class MixedPolicy(Policy):
    """Two policies and one coin per sample: meets a budget between their costs exactly, in expectation.

    The coin is a hash of seed and sample id, so the order of samples and their batches do not matter, and each sample
    follows one policy from the first exit to the last.

    Args:
        a: Followed with probability ``weight``.
        b: Followed otherwise.
        weight: In [0, 1].
        seed: Of the coin.

    Raises:
        InputError: ``weight`` is outside [0, 1], or the policies differ in their number of exits.
    """

    def __init__(self, a: Policy, b: Policy, weight: float, seed: int = 0) -> None:
        if not 0 <= weight <= 1:
            raise InputError(
                f"weight {weight:g} is no probability: it must lie in [0, 1]. Give the share that follows policy a."
            )
        if a.num_exits != b.num_exits:
            raise ShapeError(
                f"policies of {a.num_exits} and {b.num_exits} exits cannot be mixed. Fit both on the same table."
            )
        super().__init__(torch.full((a.num_exits,), -math.inf))
        self.a, self.b = a, b
        self.weight, self.seed = float(weight), int(seed)

    @property
    def quick(self) -> bool:
        """Whether both policies decide in numpy."""
        return self.a.quick and self.b.quick

    def few(self, seen: Float[np.ndarray, "sample seen class"], sample_ids: Int[np.ndarray, " sample"], k: int) -> Few:
        """Return which samples leave at exit ``k``, and their answers, each by the rule its coin chose."""
        first = np.asarray(tossed(sample_ids.view(np.uint64), self.seed) < self.weight)
        a, b = self.a, self.b
        if isinstance(a, TransformedPolicy) and isinstance(b, TransformedPolicy) and a.transform is b.transform:
            seen = a.transform.few(seen)[:, None]
            a, b = a.policy, b.policy
        leaves_a, shown = a.few(seen, sample_ids, k)
        leaves_b, other = b.few(seen, sample_ids, k)
        if other is not shown and not np.shares_memory(other, shown):
            shown = np.where(first[:, None], shown, other)
        return np.where(first, leaves_a, leaves_b), shown

    def follows_a(self, sample_ids: Int[Tensor, " sample"]) -> Bool[Tensor, " sample"]:
        """Return which samples follow policy ``a``."""
        return coin(sample_ids, self.seed) < self.weight

    def score(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Refuse: a mixed policy has no single score; look at ``a`` and ``b``, or call `leaves`."""
        raise InputError(
            "score of a mixed policy is undefined: two rules share the samples. Use leaves(), or .a and .b."
        )

    def leaves(
        self,
        seen: Float[Tensor, "sample seen class"],
        sample_ids: Int[Tensor, " sample"],
        features: Float[Tensor, "sample seen feature"] | None = None,
    ) -> Bool[Tensor, " sample"]:
        """Return which of the samples leave, each by the rule its coin chose."""
        first = self.follows_a(sample_ids)
        a, b = self.a, self.b
        if isinstance(a, TransformedPolicy) and isinstance(b, TransformedPolicy) and a.transform is b.transform:
            seen = a.shown(seen, newest_only=a.newest_only and b.newest_only)
            a, b = a.policy, b.policy
        if isinstance(a, ScorePolicy) and isinstance(b, ScorePolicy) and a.scorer is b.scorer:
            k = seen.shape[1] - 1
            return a.score(seen, features) >= torch.where(first, a.thresholds[k], b.thresholds[k])
        return torch.where(first, a.leaves(seen, sample_ids, features), b.leaves(seen, sample_ids, features))

    def answers(
        self,
        seen: Float[Tensor, "sample seen class"],
        sample_ids: Int[Tensor, " sample"],
        features: Float[Tensor, "sample seen feature"] | None = None,
    ) -> Float[Tensor, "sample class"]:
        """Return the log-probabilities of leaving samples, each by the policy its coin chose."""
        a, b = self.a, self.b
        if answers_with_newest(self):
            return seen[:, -1]
        if _same_answers(a, b):
            return a.answers(seen, sample_ids, features)
        first = self.follows_a(sample_ids).unsqueeze(1)
        return torch.where(first, a.answers(seen, sample_ids, features), b.answers(seen, sample_ids, features))


class TransformedPolicy(Policy):
    """A policy that sees, and answers with, what a transform makes of the exits' outputs.

    Args:
        transform: Shared, not copied.
        policy: Decides on transformed outputs; must not be transformed itself.

    Raises:
        InputError: ``policy`` is transformed already.
    """

    def __init__(self, transform: Transform, policy: Policy) -> None:
        if any(isinstance(part, TransformedPolicy) for part in policy.modules()):
            raise InputError(
                "policy is transformed already: a second transform would see what the first one made. Use one "
                "transform that does both."
            )
        super().__init__(policy.thresholds)
        self.transform, self.policy = transform, policy
        self.newest_only = _looks_at_newest_only(policy)
        self._answers_with_newest = answers_with_newest(policy)

    def score(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, " sample"]:
        """Return the policy's score of the transformed outputs."""
        return self.policy.score(self.shown(seen, newest_only=self.newest_only), features)

    def answer(
        self, seen: Float[Tensor, "sample seen class"], features: Float[Tensor, "sample seen feature"] | None = None
    ) -> Float[Tensor, "sample class"]:
        """Return the policy's answer from the transformed outputs."""
        if self._answers_with_newest:
            newest: Tensor = self.transform(seen)
            return newest
        return self.policy.answer(self.transform.history(seen), features)

    def leaves(
        self,
        seen: Float[Tensor, "sample seen class"],
        sample_ids: Int[Tensor, " sample"],
        features: Float[Tensor, "sample seen feature"] | None = None,
    ) -> Bool[Tensor, " sample"]:
        """Return which of the samples leave, judged by their transformed outputs."""
        if len(seen) == 1 and seen.is_cpu and seen.shape[1] < self.num_exits and self.single:
            return torch.tensor([self.leaves_one(self.shown_one(seen.numpy()[0]), seen.shape[1] - 1)])
        return self.policy.leaves(self.shown(seen, newest_only=self.newest_only), sample_ids, features)

    @property
    def single(self) -> bool:
        """Whether single samples are worked out by numpy."""
        return self.policy.single and self.transform.single

    @property
    def quick(self) -> bool:
        """Whether small batches are worked out by numpy."""
        return self.policy.quick and self.transform.single

    def shown_one(self, seen: Float[np.ndarray, "seen class"]) -> Float[np.ndarray, " class"]:
        """Return what the transform makes of a single sample."""
        shown: np.ndarray = self.transform.one(seen)
        return shown

    def leaves_one(self, shown: Float[np.ndarray, " class"], k: int) -> bool:
        """Return whether one sample leaves at exit ``k``, judged by its transformed output."""
        return self.policy.leaves_one(shown, k)

    def few(self, seen: Float[np.ndarray, "sample seen class"], sample_ids: Int[np.ndarray, " sample"], k: int) -> Few:
        """Return which samples leave at exit ``k``, judged by their transformed outputs, and these."""
        return self.policy.few(self.transform.few(seen)[:, None], sample_ids, k)

    def answers(
        self,
        seen: Float[Tensor, "sample seen class"],
        sample_ids: Int[Tensor, " sample"],
        features: Float[Tensor, "sample seen feature"] | None = None,
    ) -> Float[Tensor, "sample class"]:
        """Return the log-probabilities of leaving samples, from the transformed outputs."""
        if self._answers_with_newest:
            return self.answer(seen, features)
        return self.policy.answers(self.transform.history(seen), sample_ids, features)

    def shown(
        self, seen: Float[Tensor, "sample seen class"], *, newest_only: bool
    ) -> Float[Tensor, "sample seen class"]:
        """Return the transformed outputs; the newest in every place for who looks at no other."""
        if not newest_only:
            return self.transform.history(seen)
        return self.transform.forward(seen).unsqueeze(1).expand_as(seen)


def _looks_at_newest_only(policy: Policy) -> bool:
    """Tell whether a policy decides by the newest exit alone."""
    if isinstance(policy, MixedPolicy):
        return _looks_at_newest_only(policy.a) and _looks_at_newest_only(policy.b)
    return type(policy) is ScorePolicy and policy.scorer.newest_only


def answers_with_newest(policy: Policy) -> bool:
    """Tell whether leaving samples get the newest exit's answer as the model gave it."""
    if isinstance(policy, MixedPolicy):
        return answers_with_newest(policy.a) and answers_with_newest(policy.b)
    return type(policy).answer is Policy.answer and type(policy).answers is Policy.answers


def _same_answers(a: Policy, b: Policy) -> bool:
    """Tell whether two policies answer with the newest output of one and the same transform."""
    if not (isinstance(a, TransformedPolicy) and isinstance(b, TransformedPolicy) and a.transform is b.transform):
        return False
    return answers_with_newest(a.policy) and answers_with_newest(b.policy)


def unmixed(policy: Policy) -> list[tuple[float, Policy]]:
    """Return the policies without a coin that a policy consists of, each with its share of the samples."""
    if isinstance(policy, MixedPolicy):
        sides = ((policy.weight, policy.a), (1 - policy.weight, policy.b))
        return [(weight * share, part) for weight, side in sides for share, part in unmixed(side)]
    if isinstance(policy, TransformedPolicy) and isinstance(policy.policy, MixedPolicy):
        return [(share, TransformedPolicy(policy.transform, part)) for share, part in unmixed(policy.policy)]
    return [(1.0, policy)]

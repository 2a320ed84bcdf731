"""Policies made of policies: mixed by a coin per sample, or behind a transform of what they see."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from eenet.core.alone import Row
from eenet.core.coins import coin, tossed
from eenet.core.policy import Few, Policy, ScorePolicy, is_one
from eenet.core.transform import Transform
from eenet.errors import InputError, ShapeError

__all__ = ["MixedPolicy", "TransformedPolicy", "answers_with_newest", "unmixed"]


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

    def drawn(self, sample_ids: Int[np.ndarray, " sample"]) -> Shaped[np.ndarray, " sample"]:
        """Return whether each sample follows ``a``; the ids where ``a`` or ``b`` toss coins, too."""
        if any(isinstance(part, MixedPolicy) for side in (self.a, self.b) for part in side.modules()):
            return sample_ids
        follows: np.ndarray = tossed(sample_ids.view(np.uint64), self.seed) < self.weight
        return follows

    def few(self, seen: Float[np.ndarray, "sample seen class"], drawn: Shaped[np.ndarray, " sample"], k: int) -> Few:
        """Return which samples leave at exit ``k``, and their answers, each by the rule its coin chose."""
        a, b = self.a, self.b
        first, of_a, of_b = drawn, drawn, drawn
        if drawn.dtype != bool:
            first, of_a, of_b = tossed(drawn.view(np.uint64), self.seed) < self.weight, a.drawn(drawn), b.drawn(drawn)
        if isinstance(a, TransformedPolicy) and isinstance(b, TransformedPolicy) and a.transform is b.transform:
            seen = a.transform.few(seen)[:, None]
            a, b = a.policy, b.policy
        if isinstance(a, ScorePolicy) and isinstance(b, ScorePolicy) and a.scorer.reads_alike(b.scorer):
            newest: np.ndarray = seen[:, -1]
            read = a.scorer.read_few(newest)
            return np.where(first, a.judged(read, k), b.judged(read, k)), newest
        leaves_a, shown = a.few(seen, of_a, k)
        leaves_b, other = b.few(seen, of_b, k)
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
        if is_one(self, seen):
            return torch.tensor([self.leaves_one(self.shown_one(seen[0].tolist()), seen.shape[1] - 1)])
        return self.policy.leaves(self.shown(seen, newest_only=self.newest_only), sample_ids, features)

    @property
    def single(self) -> bool:
        """Whether single samples are worked out without torch."""
        return self.policy.single and self.transform.single

    @property
    def quick(self) -> bool:
        """Whether small batches are worked out by numpy."""
        return self.policy.quick and self.transform.single

    def shown_one(self, seen: list[Row]) -> Row:
        """Return what the transform makes of a single sample."""
        return self.transform.one(seen)

    def leaves_one(self, shown: Row, k: int) -> bool:
        """Return whether one sample leaves at exit ``k``, judged by its transformed output."""
        return self.policy.leaves_one(shown, k)

    def drawn(self, sample_ids: Int[np.ndarray, " sample"]) -> Shaped[np.ndarray, " sample"]:
        """Return what the policy asks of the samples."""
        return self.policy.drawn(sample_ids)

    def few(self, seen: Float[np.ndarray, "sample seen class"], drawn: Shaped[np.ndarray, " sample"], k: int) -> Few:
        """Return which samples leave at exit ``k``, judged by their transformed outputs, and these."""
        return self.policy.few(self.transform.few(seen)[:, None], drawn, k)

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
